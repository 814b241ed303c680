"""The names of the weights in each of an optimiser's parameter groups, which a checkpoint stores.

torch stores a weight's moments under its index over all groups, so that a model with other groups than the
checkpoint's would give its weights the moments of others.
"""

from itertools import chain
from typing import Any

import torch

from zoo.module import SequenceModule
from zoo.train.runs.checkpoint import MismatchError

WeightNames = list[list[str]]
"""The names of the weights in each group of an optimiser."""
Shapes = dict[str, torch.Size]
"""The shapes of a model's weights by their names, in the order of `named_parameters`."""
KEY = "optimizer_weights"
"""Key of the WeightNames in a checkpoint's metadata; versions before it stored none."""
FORMERLY_DECAYING = ("memory", "content_bias", "position_bias")
"""Last parts of the names of parameters that these versions counted among the matrices."""


def weight_names(model: SequenceModule, optimizer: torch.optim.Optimizer) -> WeightNames:
    """Empty names for the parts into which a strategy such as DeepSpeed's divides the weights."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    return [[names.get(id(weight), "") for weight in group["params"]] for group in optimizer.param_groups]


def weight_shapes(model: SequenceModule) -> Shapes:
    return {name: weight.shape for name, weight in model.named_parameters()}


def saved_names(names: WeightNames, shapes: Shapes, saved: dict[str, Any], stored: Any) -> WeightNames:
    """The WeightNames of a saved state: those `stored` beside it; `names` are today's.

    Without stored ones it is the grouping that fits the saved sizes and shapes, today's or the former, and
    today's if neither does.  Raises MismatchError if both fit and differ, or if the stored names aren't those
    of the model.
    """
    sizes = [len(group["params"]) for group in saved["param_groups"]]
    if stored is not None:
        if sorted(chain(*stored)) != sorted(chain(*names)) or [len(group) for group in stored] != sizes:
            raise MismatchError(f"expected this model's weights in groups of {sizes}, found {stored!s:.60}")
        return [list(group) for group in stored]
    fitting = []
    for grouping in (names, _former_names(names, shapes)):
        owners = {i: name for i, name in enumerate(chain(*grouping)) if i in saved["state"]}
        fits = all(
            moment == "step" or value.shape == shapes[name]
            for i, name in owners.items()
            for moment, value in saved["state"][i].items()
        )
        if fits and [len(group) for group in grouping] == sizes:
            fitting.append((grouping, owners))
    if len(fitting) == 2 and fitting[0][1] != fitting[1][1]:
        raise MismatchError("expected the names of its weights, found none and more than one order that fits")
    return fitting[0][0] if fitting else names


def _former_names(names: WeightNames, shapes: Shapes) -> WeightNames:
    """The groups of versions that stored no names: more of the weights decayed, and of the others vectors
    came first."""
    decaying, *rest = names
    moved = {
        name
        for name in chain(*rest)
        if name.rpartition(".")[2] in FORMERLY_DECAYING and len(shapes[name]) >= 2
    }
    vectors_first = [
        sorted((name for name in group if name not in moved), key=lambda name: len(shapes[name]) >= 2)
        for group in rest
    ]
    return [[name for name in shapes if name in decaying or name in moved], *vectors_first]


def reordered(saved: dict[str, Any], old: WeightNames, new: WeightNames) -> dict[str, Any]:
    """A saved state_dict with the weights in another order: each keeps its moments, a group its settings."""
    index = {name: i for i, name in enumerate(chain(*new))}
    state = {index[name]: saved["state"][i] for i, name in enumerate(chain(*old)) if i in saved["state"]}
    groups = [
        {**group, "params": [index[name] for name in members]}
        for group, members in zip(saved["param_groups"], new, strict=True)
    ]
    return {**saved, "state": state, "param_groups": groups}


def reorder_moments(checkpoint: dict[str, Any], model: SequenceModule) -> None:
    """Put the optimiser's moments in a checkpoint into the order of the model's parameter groups."""
    names = weight_names(model, model.configure_optimizers()["optimizer"])
    saved = checkpoint["optimizer_states"][0]
    old = saved_names(names, weight_shapes(model), saved, checkpoint["zoo"].get(KEY))
    if old != names:
        checkpoint["optimizer_states"] = [reordered(saved, old, names)]
