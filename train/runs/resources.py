"""Memory of the process or the GPU, and bytes of state."""

import contextlib
import resource
import sys
from pathlib import Path

import torch

from zoo.module import SequenceModule
from zoo.state import nbytes

SLACK = 2**24  # bytes: the kernel counts pages in batches


def peak_memory_bytes(device: torch.device) -> int:
    """The largest memory in use, ever or since a PeakMemory was made: the GPU's if there is one, else this
    process's (resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if peak := _process_status("VmHWM"):  # getrusage starts from the parent's peak
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _process_status(key: str) -> int:
    """Bytes of an entry of Linux's status of this process; 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0


class PeakMemory:
    """The largest memory in use since it was made; `so_far` where the system can't reset an earlier peak,
    which is then included."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.so_far = device, False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # Linux; not on every machine
            resident = _process_status("VmRSS")
            self.so_far = not resident or peak_memory_bytes(device) > resident + SLACK
        self.before = peak_memory_bytes(device)

    def bytes(self) -> int:
        return peak_memory_bytes(self.device)

    def above(self) -> int:
        """Bytes on top of those in use when it was made."""
        return self.bytes() - self.before


def state_bytes(model: SequenceModule) -> int:
    """Bytes of carried state per row."""
    return nbytes(model.init_state(1))
