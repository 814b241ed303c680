"""What the loop does around callbacks of its user: a stop ends a whole step; what isn't saved is found."""

import copy
import logging
import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from zoo.errors import UserError, first_line
from zoo.train.runs.loggers_and_callbacks import RESUMABLE

log = logging.getLogger(__name__)

PLAIN = (type(None), bool, int, float, str, bytes)


class CallbackGuard(L.Callback):
    """Runs after the callbacks that the configuration names, `callbacks` by name.

    A callback resumes exactly if what it keeps is what its `state_dict` saves.  So a checkpoint lists the
    attributes that have changed since training began and that `load_state_dict` doesn't bring back; where
    there is one, resuming is refused (`refuse_unsaved`).  What goes on inside an object that isn't plain
    data, or a tensor, isn't seen.
    """

    def __init__(self, callbacks: Mapping[str, L.Callback]) -> None:
        self.callbacks = callbacks
        self.stopped = False
        """True if a callback has stopped the run."""
        self._step = 0
        self._at_start: dict[str, dict[str, Any]] = {}
        self._known: set[str] = set()

    # -- a stop

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._at_start = {name: snapshot(callback) for name, callback in self.callbacks.items()}
        self._step = trainer.global_step
        self.stopped = trainer.should_stop

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Where a step has several batches, a stop between them waits for its last one."""
        self.stopped = self.stopped or trainer.should_stop
        trainer.should_stop = self.stopped and trainer.global_step != self._step
        self._step = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stopped = self.stopped or trainer.should_stop

    # -- a checkpoint

    @property
    def state_key(self) -> str:
        return "CallbackGuard"  # in checkpoints

    def state_dict(self) -> dict[str, Any]:
        unsaved = [
            f"{name}.{attribute}"
            for name, callback in self.callbacks.items()
            for attribute in unsaved_attributes(name, callback, self._at_start.get(name, {}))
        ]
        for attribute in sorted(set(unsaved) - self._known):
            log.info("callbacks.%s changes and isn't in its state_dict: this run can't be resumed", attribute)
        self._known |= set(unsaved)
        return {"unsaved": unsaved}


def refuse_unsaved(checkpoint: Mapping[str, Any]) -> None:
    """Raises UserError for a checkpoint without all that its run's callbacks kept."""
    saved = checkpoint["callbacks"].get("CallbackGuard", {})
    if unsaved := saved.get("unsaved"):
        raise UserError(
            f"resume: expected all that callbacks keep in their state_dict, found none of "
            f"{', '.join(f'callbacks.{name}' for name in unsaved)}, which training has changed"
        )


def snapshot(callback: L.Callback) -> dict[str, Any]:
    """A callback's attributes: copies of plain data, other objects themselves."""
    return {name: copy.deepcopy(v) if is_plain(v) else v for name, v in vars(callback).items()}


def unsaved_attributes(name: str, callback: L.Callback, at_start: dict[str, Any]) -> list[str]:
    """The attributes that differ from those `at_start` and that the callback's state doesn't restore.

    Raises UserError for a state that no checkpoint can hold.
    """
    cls = type(callback)
    if cls in RESUMABLE:
        return []
    state = callback.state_dict()
    if not is_plain(state):
        raise UserError(f"callbacks.{name}.state_dict: expected tensors and plain Python data, found {state}")
    if isinstance(differing := differs_between_ranks(state), str):
        return [differing]
    changed = [key for key, v in vars(callback).items() if key not in at_start or not same(v, at_start[key])]
    saves = cls.state_dict is not L.Callback.state_dict
    if not changed or not saves or cls.load_state_dict is L.Callback.load_state_dict:
        return changed
    twin = copy.copy(callback)
    vars(twin).clear()
    vars(twin).update({key: copy.deepcopy(v) if is_plain(v) else v for key, v in at_start.items()})
    try:
        twin.load_state_dict(copy.deepcopy(state))
    except Exception as error:  # of the user's code
        raise UserError(f"callbacks.{name}.load_state_dict: {first_line(error)}") from error
    return [key for key in changed if key not in vars(twin) or not same(vars(twin)[key], vars(callback)[key])]


def differs_between_ranks(state: Any) -> str | None:
    """Words for a state that isn't the same on all ranks: the checkpoint has that of the first."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return None if all(same(other, states[0]) for other in states) else "state_dict of further ranks"


def is_plain(value: Any) -> bool:
    """True for what a checkpoint may hold."""
    if isinstance(value, dict):
        return all(type(key) in PLAIN and is_plain(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return type(value) in PLAIN or isinstance(value, Tensor)


def same(value: Any, other: Any) -> bool:
    """Equal in every bit; objects other than plain data are the same if they are one."""
    if type(value) is not type(other):
        return False
    if isinstance(value, dict):
        return [*value] == [*other] and all(same(value[key], other[key]) for key in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(same, value, other))
    if isinstance(value, Tensor):
        return value.dtype == other.dtype and value.shape == other.shape and torch.equal(value, other)
    if isinstance(value, float) and math.isnan(value):
        return math.isnan(other)
    return value is other or (type(value) in PLAIN and value == other)
