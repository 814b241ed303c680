"""A golden case: its tensors, and an account of which of them have been compared."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

INTERMEDIATES = re.compile(r"out/(.*/)?(mid/.*|BD_(before|after)_shift)")  # not exposed by our code


class Case:
    """Every tensor of the file must be compared, read as an input or a weight, or be an intermediate."""

    def __init__(
        self,
        kind: str,
        config: dict[str, Any],
        tensors: dict[str, Tensor],
        atol: float = 1e-9,
        rtol: float = 1e-9,
        of_max: bool = False,
    ) -> None:
        self.kind, self.config, self.tensors = kind, config, tensors
        self.atol, self.rtol, self.of_max = atol, rtol, of_max  # of_max: rtol of each tensor's largest entry
        self.open = {name for name in tensors if not INTERMEDIATES.fullmatch(name)}
        self.wrong: list[str] = []

    @property
    def weights(self) -> dict[str, Tensor]:
        names = {name: name.removeprefix("param/").removeprefix("w.") for name in self.tensors}
        weights = {short: self.tensors[name] for name, short in names.items() if short != name}
        self.open -= {name for name, short in names.items() if short != name}
        return weights

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def read(self, name: str) -> Tensor:
        """An input."""
        self.open.discard(name)
        return self.tensors[name]

    def matching(self, pattern: str) -> list[re.Match[str]]:
        return [found for name in self.tensors if (found := re.fullmatch(pattern, name))]

    def compare(self, prefix: str, ours: Mapping[str, Tensor | None]) -> None:
        """Hold what the file has under these names against ours; names that it hasn't are ours to keep."""
        for name, found in ours.items():
            if prefix + name not in self.tensors:
                continue
            expected = self.tensors[prefix + name]
            self.open.discard(prefix + name)
            found = torch.zeros_like(expected) if found is None else found.detach()  # no gradient
            if expected.shape == (1,) and found.shape == ():
                found = found[None]  # the files know no scalars
            if found.shape != expected.shape or found.dtype != expected.dtype:
                self.wrong.append(
                    f"{prefix}{name}: {found.dtype} {list(found.shape)}, {list(expected.shape)} in the file"
                )
            elif not self._close(found, expected):
                self.wrong.append(f"{prefix}{name}: off by {(found - expected).abs().max():.2g}")

    def _close(self, found: Tensor, expected: Tensor) -> bool:
        if not self.of_max:
            return torch.allclose(found, expected, rtol=self.rtol, atol=self.atol, equal_nan=True)
        largest = max([1e-5, *expected.abs().flatten().tolist()])  # a gradient of 0 is 0 but for rounding
        return torch.allclose(found, expected, rtol=0.0, atol=self.rtol * largest, equal_nan=True)

    def close(self) -> None:
        """Everything compared, and nothing wrong."""
        wrong = [*self.wrong, *(f"{name}: never compared" for name in sorted(self.open))]
        assert not wrong, f"{len(wrong)} of {len(self.tensors)} tensors: " + "; ".join(wrong[:20])


def read_case(path: Path) -> Case:
    """The case whose json is here and whose tensors lie beside it.

    The files of the state-space models have no sha256, and their tolerance is of each tensor's maximum.
    """
    told = json.loads(path.read_text())
    file = path.with_suffix(".safetensors")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert told.get("sha256", found) == found, f"{file} isn't the file that its json tells of"
    tensors = load_file(file)
    assert set(tensors) == set(told["tensors"]), f"{file} hasn't the tensors that its json lists"
    tolerance = told.get("tolerance", {} if "sha256" in told else {"of_max": True})
    return Case(told["kind"], told["config"], tensors, **tolerance)
