"""The precision that a model computes in: that of Lightning's Trainer, for models that are run without it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from omegaconf import DictConfig, OmegaConf

from zoo.errors import UserError
from zoo.module import SequenceModule

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")
SHORT_NAMES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
WEIGHT_DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Of the weights, where it isn't float32."""

ForwardContext = Callable[[], AbstractContextManager[Any]]
"""Makes the context of a forward.  It must not outlast a change of the weights, of which autocast may hold
copies until it ends."""


def precision_name(cfg: DictConfig) -> str:
    """A run's `trainer.precision`, by its full name."""
    return full_name(str(OmegaConf.select(cfg, "trainer.precision", default="32-true")))


def full_name(precision: str) -> str:
    """Lightning's name of a precision, whose short form may be given: `bf16-mixed` of `bf16`."""
    return SHORT_NAMES.get(precision, precision)


def set_matmul_precision(name: str, device: torch.device) -> None:
    """On a CUDA device products of float32, those inside cuDNN among them, are in TF32 where the precision is
    mixed, and exact otherwise.

    It holds for the process, since the backward pass needs it too.
    """
    if device.type == "cuda":
        mixed = name.endswith("-mixed")
        torch.set_float32_matmul_precision("high" if mixed else "highest")
        torch.backends.cudnn.allow_tf32 = mixed


def refuse_loss_scaler(name: str, device: torch.device) -> None:
    """Raises UserError for a precision that needs a loss scaler: it probes for overflows, at which a run here
    ends.  On a CPU 16-mixed is bf16-mixed, as Lightning has it, and needs none."""
    if name == "16-mixed" and device.type != "cpu":
        raise UserError(
            "trainer.precision: expected bf16-mixed or 32-true, as no run survives the overflows of "
            f"16-mixed's loss scaler on {device.type}, found {name}"
        )


def convert_weights(model: SequenceModule, name: str) -> SequenceModule:
    """The model with its weights in the type that this precision trains."""
    dtype = WEIGHT_DTYPES.get(name)
    return model if dtype is None else model.to(dtype)


def make_precision(name: str, device: torch.device) -> Precision:
    """What Lightning's Trainer makes of `trainer.precision`: its `forward_context` is a ForwardContext.

    Products of float32 are then as in a run of this precision (see `set_matmul_precision`).

    UserError: an unknown precision, or one that needs Lightning's own loop.
    """
    set_matmul_precision(name, device)
    if name == "16-mixed" and device.type == "cpu":
        name = "bf16-mixed"  # as Lightning does
    match name:
        case "32-true":
            return Precision()
        case "64-true":
            return DoublePrecision()
        case "bf16-true" | "16-true":
            return HalfPrecision(name)
        case "bf16-mixed" | "16-mixed":
            return MixedPrecision(name, device.type)
    raise UserError(f"trainer.precision: expected {', '.join(PRECISIONS)}, found {name}")
