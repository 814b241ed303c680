"""Shared by the loaders: tables of names, read in both directions, and checks of config fields.

A table maps a published name to the zoo's and to a view of the zoo's tensor in the published layout: weights
are copied into the view, gradients are read through it.  `{i}` stands for every layer.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zoo.errors import UserError

View = Callable[[Tensor], Tensor]
Table = dict[str, tuple[str, View]]
Config = Mapping[str, Any]
Model = TypeVar("Model", bound=nn.Module)

BUFFERS = re.compile(
    r"(.*\.)?(attn\.(masked_)?bias|(pos|rotary)_emb\.inv_freq)"
)  # computed, not learned: left out


class MissingWeightError(UserError):
    """A weight that the model has and the checkpoint hasn't."""

    def __init__(self, name: str, shape: Iterable[int], names: Iterable[str]) -> None:
        self.name = name
        message = f"weights: expected {name} {list(shape)}, found none"
        if prefixed := [other for other in names if other.endswith(f".{name}")]:
            prefix = prefixed[0].removesuffix(name)
            strange = next((other for other in names if not other.startswith(prefix)), None)
            message += f" but {prefixed[0]}: the prefix {prefix} would fit"
            message += "" if strange is None else f", if {strange} and others without it were left out"
        elif near := difflib.get_close_matches(name, names, n=1):
            message += f"; the nearest is {near[0]}"
        super().__init__(message)


def without_prefix(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor] | None:
    """The weights without a prefix that all of them have, if `name` is then one of them: a Lightning module's
    `model.`, DistributedDataParallel's `module.`, torch.compile's `_orig_mod.`."""
    prefix = next((other.removesuffix(name) for other in weights if other.endswith(f".{name}")), None)
    if prefix is None or not all(other.startswith(prefix) for other in weights):
        return None
    return {other.removeprefix(prefix): weight for other, weight in weights.items()}


def same(weight: Tensor) -> Tensor:
    return weight


def half(index: int) -> View:
    """A view of one of two matrices of one height that lie in one, below one another."""
    return lambda weight: weight.chunk(2)[index]


def under(published: str, ours: str, table: Table) -> Table:
    """The table with a prefix on both sides."""
    return {published + theirs: (ours + name, view) for theirs, (name, view) in table.items()}


def affine(**names: str) -> Table:
    """Weight and bias of modules, published name = the zoo's name (`__` for a dot)."""
    return {
        f"{theirs.replace('__', '.')}.{part}": (f"{name}.{part}", same)
        for theirs, name in names.items()
        for part in ("weight", "bias")
    }


def _parameters(module: nn.Module, table: Table) -> Iterator[tuple[str, Tensor, View]]:
    """Every parameter of the module that the table names; a tied one comes again under each of its names."""
    weights = dict(module.named_parameters(remove_duplicate=False))
    for theirs, (ours, view) in table.items():
        for layer in count():
            weight = weights.get(ours.replace("{i}", str(layer)))
            if weight is None:
                break
            yield theirs.replace("{i}", str(layer)), weight, view
            if "{i}" not in ours:
                break


def _storage(weight: Tensor, view: View) -> tuple[int, int]:
    """One parameter may hold several published ones, in slices."""
    return id(weight), int(view(weight).storage_offset())


@torch.no_grad()
def fill(module: nn.Module, weights: Mapping[str, Tensor], table: Table) -> None:
    """Convert the module to the weights' dtype and copy every weight into it."""
    ours = {name for name, _, _ in _parameters(module, table)}
    weights = {name: w for name, w in weights.items() if name in ours or not BUFFERS.fullmatch(name)}
    dtypes = sorted({weight.dtype for weight in weights.values()}, key=str)
    if len(dtypes) != 1 or not dtypes[0].is_floating_point:
        raise UserError(f"weights: expected one floating dtype, found {dtypes or 'no weights'}")
    module.to(dtypes[0])

    filled: dict[tuple[int, int], str] = {}  # storage -> the name of the weight copied there
    names = set()
    for name, weight, view in _parameters(module, table):
        names.add(name)
        first = filled.setdefault(_storage(weight, view), name)
        if name not in weights:
            if first == name:
                raise MissingWeightError(name, view(weight).shape, list(weights.keys() - names))
            continue  # tied, and stored once
        if view(weight).shape != weights[name].shape:
            raise UserError(
                f"weights: expected {name} {list(view(weight).shape)}, found {list(weights[name].shape)}"
            )
        if first != name and not torch.equal(weights[name].to(weight.device), view(weight)):
            raise UserError(f"weights: expected {name} tied to {first}, found another tensor")
        view(weight).copy_(weights[name])
    unknown = sorted(weights.keys() - names)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(f"weights: expected none of {', '.join(unknown[:3])}{more}, which this model hasn't")


def gradients(module: nn.Module, table: Table) -> dict[str, Tensor]:
    """Our gradients under the published names, in that layout; zeros where there is none, tied ones once."""
    grads, visited = {}, set()
    for name, weight, view in _parameters(module, table):
        if _storage(weight, view) not in visited:
            grads[name] = view(torch.zeros_like(weight) if weight.grad is None else weight.grad)
        visited.add(_storage(weight, view))
    return grads


def published_weights(module: nn.Module, table: Table) -> dict[str, Tensor]:
    """Our weights under the published names, as views in that layout."""
    return {name: view(weight) for name, weight, view in _parameters(module, table)}


def number(config: Config, name: str, least: int = 1, default: int | None = None) -> int:
    value = config.get(name, default)
    if type(value) is not int or value < least:
        raise UserError(f"config: expected {name}, a whole number from {least} on, found {value!r}")
    return value


def flag(config: Config, name: str, default: bool | None = None) -> bool:
    value = config.get(name, default)
    if type(value) is not bool:
        raise UserError(f"config: expected {name}, true or false, found {value!r}")
    return value


def fraction(config: Config, name: str, default: float) -> float:
    value = config.get(name, default)
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise UserError(f"config: expected {name}, a number in [0, 1), found {value!r}")
    return float(value)


def require(config: Config, **only: object) -> None:
    """Fields that may be absent or have this value."""
    for name, value in only.items():
        actual = config.get(name)
        if actual is not None and actual != value:
            raise UserError(f"config: expected {name} {value!r}, the only one supported, found {actual!r}")


def build(make: Callable[..., Model], **shape: Any) -> Model:
    """The model; a ValueError of its constructor becomes a UserError."""
    try:
        return make(**shape)
    except ValueError as error:
        raise UserError(f"config: {error}") from error
