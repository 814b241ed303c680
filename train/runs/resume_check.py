"""Whether a checkpoint that loads is one that this run can go on from, part by part and before it begins.

A checkpoint's checksums say that its bytes are those that were written, not that they are a run's: it may
come from other code, or from an editor.
"""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.state import leaves

ADAM = {"step", "exp_avg", "exp_avg_sq"}
Check = Callable[[], None]


class UnfitError(Exception):
    """What is wrong with one part."""


def expect(holds: bool, what: str, found: Any) -> None:
    if not holds:
        raise UnfitError(f"expected {what}, found {str(found)[:60]}")


def check_progress(
    model: SequenceModule,
    rows: int,
    loop: dict[str, Any],
    metrics: Sequence[str],
    checkpoint: dict[str, Any],
    path: Path,
    sharded: bool = False,
) -> None:
    """Raises UserError unless everything but the weights is such as this model's run of `rows` rows writes;
    `loop` is the state of a fit loop that hasn't begun, `metrics` names what is counted.  A sharded run keeps
    its optimiser in a form of its strategy's, which is left to that."""
    parts: dict[str, Check] = {
        "pytorch-lightning_version": lambda: version(checkpoint["pytorch-lightning_version"]),
        "optimizer_states": lambda: optimizer(model, checkpoint["optimizer_states"]),
        "lr_schedulers": lambda: schedule(checkpoint["lr_schedulers"], checkpoint["optimizer_states"]),
        "loops": lambda: loops(checkpoint["loops"]["fit_loop"], loop, checkpoint["global_step"]),
        "callbacks": lambda: callbacks(checkpoint["callbacks"]),
        "metrics": lambda: counted(checkpoint["metrics"], metrics),
        "zoo": lambda: ranks(model, rows, checkpoint["zoo"]["ranks"]),
    }
    for part, check in parts.items():
        if sharded and part in ("optimizer_states", "lr_schedulers"):
            continue
        try:
            check()
        except UnfitError as error:
            raise UserError(f"{path}: {part}: {error}") from error
        except Exception as error:  # whatever a wrong type gives
            raise UserError(
                f"{path}: {part} is not what a run writes: {type(error).__name__} {_flat(error)}"
            ) from error


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


def version(found: Any) -> None:
    numbers = found.split(".")[:2] if isinstance(found, str) else []
    expect(len(numbers) == 2 and all(number.isdecimal() for number in numbers), "a version", found)


def optimizer(model: SequenceModule, found: list[dict[str, Any]]) -> None:
    """Groups, and for every weight moments of its shape."""
    ours = model.configure_optimizers()["optimizer"]
    expect(isinstance(found, list) and len(found) == 1, "one optimiser", type(found).__name__)
    groups, state = found[0]["param_groups"], found[0]["state"]
    expected = ours.state_dict()["param_groups"]
    members = [group["params"] for group in expected]
    expect(
        [group["params"] for group in groups] == members, "the weights of this model in groups", len(groups)
    )
    for one, other in zip(groups, expected, strict=True):
        expect(one.keys() >= other.keys(), f"settings {', '.join(other)}", ", ".join(map(str, one)))
        for key, usual in other.items():
            if key != "params":
                expect(_alike(one[key], usual), f"{key} such as {usual}", one[key])
    weights = [weight for group in ours.param_groups for weight in group["params"]]
    expect(state.keys() <= set(range(len(weights))), "the weights' numbers", list(state)[:3])
    for number, kept in state.items():
        if isinstance(ours, torch.optim.AdamW):
            expect(kept.keys() == ADAM, f"{', '.join(sorted(ADAM))} of weight {number}", ", ".join(kept))
        for name, tensor in kept.items():
            wanted = () if name == "step" else tuple(weights[number].shape)
            is_one = isinstance(tensor, Tensor) and tensor.is_floating_point()
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            expect(is_one and shape == wanted, f"{name} of weight {number} of shape {wanted}", shape)


def schedule(found: list[dict[str, Any]], optimizers: list[dict[str, Any]]) -> None:
    expect(isinstance(found, list) and len(found) == 1, "one schedule", type(found).__name__)
    (kept,), groups = found, len(optimizers[0]["param_groups"])
    for key in ("base_lrs", "_last_lr"):
        expect(len(kept[key]) == groups and all(map(_is_number, kept[key])), f"{groups} {key}", kept[key])
    expect(kept["lr_lambdas"] == [None] * groups, f"{groups} schedules", kept["lr_lambdas"])
    for key in ("last_epoch", "_step_count"):
        expect(_is_count(kept[key]), f"{key} of at least 0", kept[key])
    others = kept.keys() - {"base_lrs", "_last_lr", "lr_lambdas", "last_epoch", "_step_count"}
    for key in others:  # the flags of one release or another
        expect(key.startswith("_") and isinstance(kept[key], bool), "a flag", f"{key} {kept[key]!r}")


def loops(found: dict[str, Any], fresh: dict[str, Any], step: int) -> None:
    """The same counters as in a loop that hasn't begun, and a place in the data."""
    _same_counters(found, fresh, "fit_loop")
    optim = found["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
    expect(optim["completed"] == step, f"{step} steps, as in global_step", optim["completed"])
    places = found["state_dict"]["combined_loader"]
    expect(isinstance(places, list) and len(places) == 1, "one place in the data", places)
    expect(isinstance(places[0], dict), "a place in the data", places[0])


def _same_counters(found: Any, fresh: Any, where: str) -> None:
    if isinstance(fresh, dict):
        if where.endswith(" state_dict"):  # what loops keep besides counters, none before they begin
            expect(isinstance(found, dict), f"{where} of names and values", found)
            return
        expect(isinstance(found, dict) and found.keys() >= fresh.keys(), f"all counters in {where}", found)
        for key, value in fresh.items():
            _same_counters(found[key], value, f"{where} {key}")
    elif isinstance(fresh, bool):
        expect(isinstance(found, bool), f"True or False for {where}", found)
    elif isinstance(fresh, int):
        expect(_is_count(found), f"a count for {where}", found)


def callbacks(found: dict[str, dict[str, Any]]) -> None:
    best = found["Checkpoints"]["best"]
    expect(isinstance(best, (int, float)) and not math.isnan(best), "the best held-out loss", best)
    for name, kept in found.items():
        expect(isinstance(name, str) and isinstance(kept, dict), "settings by name", f"{name} {kept}")
    curve = found.get("Validations", {"curve": []})["curve"]
    for point in curve if isinstance(curve, list) else [curve]:
        expect({"step", "tokens_seen", "val/loss"} <= point.keys(), "points of a curve", point)
        expect(all(isinstance(key, str) for key in point), "names", list(point))
        expect(all(map(_is_number, point.values())), "numbers in a curve", point)


def counted(found: dict[str, Any], names: Sequence[str]) -> None:
    expect(found.keys() == set(names), ", ".join(names), ", ".join(map(str, found)))
    for name, value in found.items():
        if name == "pending":
            good = isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
        elif name == "latest":
            good = all(isinstance(tag, str) and _is_number(said) for tag, said in value.items())
        else:
            good = _is_number(value) and (name == "validated_step" or value >= 0)
        expect(good, f"numbers for {name}", value)


def ranks(model: SequenceModule, rows: int, found: list[dict[str, Any]]) -> None:
    """Every rank's memory and dice."""
    expect(isinstance(found, list) and len(found) > 0, "a list of ranks", found)
    for own in found:
        if own["carried"] is not None:
            carried(model, rows, own["carried"])
        states = own["random"]
        python, inner, gauss = states["python"]
        random.Random().setstate((python, tuple(inner), gauss))
        kind, keys, *rest = states["numpy"]
        np.random.RandomState().set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.Generator().set_state(states["torch"])
        for dice in states["cuda"]:
            expect(dice.dtype == torch.uint8 and dice.ndim == 1, "the dice of a GPU", dice)


def carried(model: SequenceModule, rows: int, found: list[Tensor]) -> None:
    born = leaves(model.init_state(rows))
    expected, shapes = ([tuple(leaf.shape) for leaf in some] for some in (born, found))
    if expected != shapes:
        raise UnfitError(f"it carries another memory: expected shapes {expected}, found {shapes}")
    for leaf, like in zip(found, born, strict=True):
        expect(_kind(leaf) == _kind(like), f"memory of {like.dtype}", leaf.dtype)


def _kind(leaf: Tensor) -> tuple[bool, bool, bool]:
    return leaf.is_floating_point(), leaf.is_complex(), leaf.dtype == torch.bool


def _alike(found: Any, usual: Any) -> bool:
    if isinstance(usual, bool) or usual is None:
        return found is None or isinstance(found, bool)
    if isinstance(usual, (tuple, list)):
        return isinstance(found, (tuple, list)) and len(found) == len(usual) and all(map(_is_number, found))
    return _is_number(found) if isinstance(usual, (int, float)) else isinstance(found, type(usual))


def _is_number(found: Any) -> bool:
    return isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found)


def _is_count(found: Any) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and found >= 0
