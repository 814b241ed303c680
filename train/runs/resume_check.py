"""Validate a checkpoint before resuming from it.

A checkpoint's checksums only show that its bytes are those that were written: it may come from other code, or
from an editor.  So every part is compared with an example of what this run would save: keys, types, shapes.
"""

import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.state import leaves
from zoo.train.runs.checkpoint import MismatchError, rng_states, set_rng_states
from zoo.train.runs.optimizer_weights import KEY, WeightNames, saved_names, weight_names, weight_shapes

ADAM = {"step", "exp_avg", "exp_avg_sq"}


def expect(condition: bool, expected: str, actual: Any) -> None:
    if not condition:
        raise MismatchError(f"expected {expected}, found {' '.join(str(actual).split())[:60]}")


def check_training_state(
    model: SequenceModule,
    batch_size: int,
    loop: dict[str, Any],
    metrics: dict[str, Any],
    checkpoint: dict[str, Any],
    path: Path,
    sharded: bool = False,
) -> None:
    """Raises UserError unless all of the checkpoint but its weights is what this model's run would save.

    `loop` and `metrics` are the states of a run that has not started.  A sharded run's optimiser is
    checked by its strategy, in whose form it is.
    """
    step = checkpoint["global_step"]
    parts: dict[str, Callable[[Any], Any]] = {  # a part -> the example for what is saved of it
        "pytorch-lightning_version": version_example,
        "optimizer_states": lambda saved: optimizer_example(model, saved, checkpoint["zoo"].get(KEY)),
        "lr_schedulers": lambda saved: schedule_example(model, saved),
        "loops": lambda saved: {"fit_loop": loop_example(saved["fit_loop"], loop, step)},
        "callbacks": callbacks_example,
        "metrics": lambda saved: metrics_example(saved, metrics),
        "zoo": lambda saved: {"ranks": ranks_example(model, batch_size, saved["ranks"])},
    }
    for part, example in parts.items():
        if sharded and part in ("optimizer_states", "lr_schedulers"):
            continue
        try:
            compare(checkpoint[part], example(checkpoint[part]), part)
        except MismatchError as error:
            raise UserError(f"{path}: {part}: {error}") from error
        except Exception as error:  # a value of another type can raise anything
            message = " ".join(str(error).split())[:100]
            raise UserError(
                f"{path}: {part} is not what a run writes: {type(error).__name__} {message}"
            ) from error


def compare(value: Any, example: Any, name: str) -> None:
    """Raises MismatchError unless a value has the types, shapes and keys of the example.

    It may have more keys.  An int is a count of at least 0, a float any finite number.
    """
    if isinstance(example, dict):
        expect(
            isinstance(value, dict) and value.keys() >= example.keys(), f"{name} of {list(example)}", value
        )
        for key, item in example.items():
            compare(value[key], item, f"{name}.{key}")
    elif isinstance(example, (list, tuple)):
        is_list = isinstance(value, (list, tuple)) and len(value) == len(example)
        expect(is_list, f"{name} of {len(example)}", value)
        for index, item in enumerate(example):
            compare(value[index], item, f"{name}.{index}")
    elif isinstance(example, Tensor):
        expect(isinstance(value, Tensor) and value.layout == torch.strided, f"{name} as a tensor", value)
        expect(value.shape == example.shape, f"{name} of shape {tuple(example.shape)}", tuple(value.shape))
        kinds = [(t.is_floating_point(), t.is_complex(), t.dtype == torch.bool) for t in (value, example)]
        expect(kinds[0] == kinds[1], f"{name} of {example.dtype}", value.dtype)
    elif isinstance(example, (int, float)) and not isinstance(example, bool):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        expect(is_number, f"{name} as a number", value)
        is_count = isinstance(value, int) and value >= 0
        expect(is_count or isinstance(example, float), f"{name} as a count", value)
    else:  # None, a flag or a word
        expect(type(value) is type(example), f"{name} such as {example!r}", value)


def version_example(saved: Any) -> str:
    parts = saved.split(".")[:2] if isinstance(saved, str) else []
    expect(len(parts) == 2 and all(part.isdecimal() for part in parts), "a version", saved)
    return ""


def optimizer_example(model: SequenceModule, saved: Any, stored_names: Any) -> list[dict[str, Any]]:
    """Groups of this model's weights, and for each weight that has them moments of its shape."""
    expect(isinstance(saved, list) and len(saved) == 1, "one optimiser", saved)
    optimizer = model.configure_optimizers()["optimizer"]
    shapes = weight_shapes(model)
    names = saved_names(weight_names(model, optimizer), shapes, saved[0], stored_names)
    groups = groups_example(optimizer.state_dict()["param_groups"], names, saved[0]["param_groups"])
    weights, state = list(chain(*names)), saved[0]["state"]
    expect(state.keys() <= set(range(len(weights))), "indices of weights", list(state)[:3])
    moments = {}
    for index, saved_moments in state.items():
        if isinstance(optimizer, torch.optim.AdamW):
            expect(saved_moments.keys() == ADAM, f"{sorted(ADAM)} of weight {index}", list(saved_moments))
            moments[index] = {
                name: torch.empty(() if name == "step" else shapes[weights[index]], device="meta")
                for name in ADAM
            }
        else:  # another optimiser's, which is asked when it loads them
            moments[index] = dict(saved_moments)
    return [{"param_groups": groups, "state": moments}]


def groups_example(
    groups: list[dict[str, Any]], names: WeightNames, saved: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The model's groups with the saved numbers of weights; what decays must be what decayed."""
    settings, saved_settings = (
        [(group.get("decays"), group.get("lr_scale")) for group in some] for some in (groups, saved)
    )
    expect(saved_settings == settings, f"groups whose decays and lr_scale are {settings}", saved_settings)
    sizes, saved_sizes = [len(group) for group in names], [len(group["params"]) for group in saved]
    expect(saved_sizes == sizes, f"groups of {sizes} weights", saved_sizes)
    indices = list(chain(*(group["params"] for group in saved)))
    expect(indices == list(range(sum(sizes))), "weights counted over all groups", indices)
    return [{**group, "params": old["params"]} for group, old in zip(groups, saved, strict=True)]


def schedule_example(model: SequenceModule, saved: Any) -> list[dict[str, Any]]:
    expect(isinstance(saved, list) and len(saved) == 1, "one schedule", saved)
    example = model.configure_optimizers()["lr_scheduler"]["scheduler"].state_dict()
    counts = {key: value for key, value in example.items() if not isinstance(value, bool)}
    flags = {key: False for key in saved[0] if key not in counts}  # they differ between releases of torch
    expect(all(key.startswith("_") for key in flags), f"{list(counts)} and flags", list(saved[0]))
    return [counts | flags]


def loop_example(saved: Any, loop: dict[str, Any], step: int) -> dict[str, Any]:
    """The counters of a fit loop, and one position in the data."""
    steps = saved["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
    expect(steps["completed"] == step, f"{step} steps, as in global_step", steps)
    return loop | {"state_dict": {"combined_loader": [{}]}}


def callbacks_example(saved: Any) -> dict[str, Any]:
    best = saved["Checkpoints"]["best"]
    expect(isinstance(best, (int, float)) and not math.isnan(best), "the best held-out loss", best)
    example: dict[str, Any] = {str(name): {} for name in saved}
    if "CallbackGuard" in saved:
        example["CallbackGuard"] = {"unsaved": [""] * len(saved["CallbackGuard"]["unsaved"])}
    if "Validations" in saved:
        point = {"step": 0, "tokens_seen": 0, "val/loss": 0.0}
        points = [numbers_example(saved_point) | point for saved_point in saved["Validations"]["curve"]]
        example["Validations"] = {"curve": points}
    if "Curriculum" in saved:
        example["Curriculum"] = curriculum_example(saved["Curriculum"])
    if "DecayTail" in saved:
        solved_at = saved["DecayTail"]["solved_at"]
        counts = dict.fromkeys(("steps", "decay_start", "streak"), 0)
        scores = {"peak": 0.0, "last": 0.0, "solved_at": None if solved_at is None else 0}
        example["DecayTail"] = counts | scores
    return example


def curriculum_example(saved: Any) -> dict[str, Any]:
    stages, ends = saved["stages"], saved["ends"]
    expect(isinstance(stages, list) and len(stages) > 0, "begun stages", stages)
    return {
        "stages": [[0, 0]] * len(stages),
        "passed": [False] * (len(stages) - 1),
        "totals": [[0.0] * 4] * len(saved["totals"]),
        "peak": 0.0,
        "last": 0.0,
        "had_something": False,
        "ends": None if ends is None else [0] * len(ends),
    }


def metrics_example(saved: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    seconds = [saved["train_s"], saved["wall_s"], saved["pending_s"]]
    expect(min(seconds) >= 0, "at least 0 seconds", seconds)
    return {**metrics, "latest": numbers_example(saved["latest"])}


def numbers_example(saved: Any) -> dict[str, float]:
    return {str(tag): 0.0 for tag in saved}


def ranks_example(model: SequenceModule, batch_size: int, saved: Any) -> list[Any]:
    """The carried state of each rank; its RNG states are checked by setting them."""
    expect(isinstance(saved, list) and len(saved) > 0, "a list of ranks", saved)
    current = rng_states()
    try:
        for rank in saved:
            set_rng_states(rank["random"])
            is_rng_state = [state.dtype == torch.uint8 for state in rank["random"]["cuda"]]
            expect(all(is_rng_state), "RNG states of a GPU", rank["random"]["cuda"])
    finally:
        set_rng_states(current)
    state = leaves(model.init_state(batch_size))
    return [{"carried": None if rank["carried"] is None else state} for rank in saved]
