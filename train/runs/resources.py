"""Memory of the process or the GPU, and bytes of state."""

import contextlib
import resource
import sys
from pathlib import Path

import torch

from zoo.module import SequenceModule
from zoo.state import nbytes

SLACK = 2**24  # bytes: the kernel counts pages in lots


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held, ever or since a Peak was made: of the GPU where there is one, else of the process
    (resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if peak := _of_process("VmHWM"):  # what getrusage says begins with the parent's peak
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _of_process(key: str) -> int:
    """Bytes that Linux says of this process; 0 where it says none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0


class Peak:
    """The most memory held since it was made; `so_far` where the system can't forget an earlier peak, which
    then counts too."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.so_far = device, False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # Linux; not every machine of it does so
            held = _of_process("VmRSS")
            self.so_far = not held or peak_memory_bytes(device) > held + SLACK
        self.before = peak_memory_bytes(device)

    def bytes(self) -> int:
        """In all."""
        return peak_memory_bytes(self.device)

    def above(self) -> int:
        """On top of what was held when it was made."""
        return self.bytes() - self.before


def state_bytes(model: SequenceModule) -> int:
    """Bytes of carried state per row."""
    return nbytes(model.init_state(1))
