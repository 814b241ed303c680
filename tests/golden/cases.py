"""A golden case: its tensors, and an account of which of them have been compared."""

import hashlib
import json
import re
from collections.abc import ItemsView, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file
from torch import Tensor

NOTES = {"arch", "backbone", "kind", "layout", "loss", "patches", "seed", "source", "weight_seed"}
"""Fields that tell how a file was made: what they say is in its tensors."""
INTERMEDIATES = re.compile(r"out/(.*/)?(mid/.*|BD_(before|after)_shift)")  # not exposed by our code


class Config(Mapping[str, Any]):
    """A case's config: records which fields are read, those of its tables too, as `table.field`."""

    def __init__(self, values: Mapping[str, Any], unread: set[str] | None = None, prefix: str = "") -> None:
        self._values, self._prefix = dict(values), prefix
        self.unread = {prefix + name for name in values} if unread is None else unread

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        self.unread.discard(self._prefix + name)
        if not isinstance(value, dict):
            return value
        self._values[name] = table = Config(value, self.unread, f"{self._prefix}{name}.")
        self.unread |= {f"{table._prefix}{field}" for field in value}
        return table

    def __or__(self, other: Mapping[str, Any]) -> "Config":
        return Config(self._values | dict(other), self.unread, self._prefix)

    def __ror__(self, other: Mapping[str, Any]) -> "Config":
        return Config(dict(other) | self._values, self.unread, self._prefix)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> ItemsView[str, Any]:
        """To look at all fields is to read none, so that a copy misses what reads the copy."""
        return self._values.items()

    def keys(self) -> NoReturn:
        raise TypeError("a case's config is read field by field: to unpack it would count as reading all")


class Case:
    """Every tensor of the file must be compared, read as an input or a weight, or be an intermediate; every
    field of its config must be read: by a loader, or held to the tensors by `expect`."""

    def __init__(
        self,
        kind: str,
        config: dict[str, Any],
        tensors: dict[str, Tensor],
        atol: float = 1e-9,
        rtol: float = 1e-9,
        of_max: bool = False,
    ) -> None:
        self.kind, self.config, self.tensors = kind, Config(config), tensors
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
                self.wrong.append(
                    f"{prefix}{name}: off by {(found.double() - expected.double()).abs().max():.2g}"
                )

    def _close(self, found: Tensor, expected: Tensor) -> bool:
        if not self.of_max:
            return torch.allclose(found, expected, rtol=self.rtol, atol=self.atol, equal_nan=True)
        largest = max([1e-5, *expected.abs().flatten().tolist()])  # a gradient of 0 is 0 but for rounding
        return torch.allclose(found, expected, rtol=0.0, atol=self.rtol * largest, equal_nan=True)

    def expect(self, **fields: object) -> None:
        """Hold fields of the config to what the tensors have, or to the one value that is implemented: a
        value, or a pattern of texts.  Absent fields say nothing."""
        for name, expected in fields.items():
            if name not in self.config:
                continue
            value = self.config[name]
            if isinstance(expected, re.Pattern):
                right = isinstance(value, str) and bool(expected.fullmatch(value))
                expected = expected.pattern
            else:
                right = value == expected
            if not right:
                self.wrong.append(f"config field {name}: expected {expected!r}, found {value!r}")

    def expect_flag(self, name: str, expected: bool) -> None:
        """The same for true or false, also in words: nothing, `untied` and `not ...` are false."""
        value = self.config.get(name, expected)
        true = bool(value) and not str(value).startswith(("untied", "not "))
        if true != expected:
            self.wrong.append(f"config field {name}: expected {expected}, found {value!r}")

    def ignore(self, *fields: str) -> None:
        """Fields that say nothing about a case of this kind: of the config, `table.field` of a table, or all
        of a table."""
        tables = tuple(f"{name}." for name in fields)
        self.config.unread -= {n for n in self.config.unread if n in fields or n.startswith(tables)}

    def close(self, config: bool = True) -> None:
        """Everything compared, all of the config read, and nothing wrong; without `config`, the tensors."""
        if config:
            dtypes = {str(x.dtype)[6:] for x in self.tensors.values() if x.is_floating_point()}
            dtypes = dtypes or {str(x.dtype)[6:] for x in self.tensors.values()}
            self.expect(dtype="/".join(sorted(dtypes)))
        unread = self.config.unread - NOTES if config else ()
        wrong = [*self.wrong, *(f"{name}: never compared" for name in sorted(self.open))]
        wrong += [f"config field {name}: never read" for name in sorted(unread)]
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
