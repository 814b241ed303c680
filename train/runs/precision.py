"""The precision that a model computes in: that of Lightning's Trainer, for models that are run without it."""

import torch
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision

from zoo.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")
SHORT_NAMES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def make_precision(name: str, device: torch.device) -> Precision:
    """What Lightning's Trainer makes of `trainer.precision`: it converts a module's weights
    (`convert_module`), and every forward runs in a new `forward_context`.

    A context must not outlast a change of the weights: autocast may cache its copies of them until it ends.
    Raises UserError for a precision that needs Lightning's own loop, and for one that doesn't exist.
    """
    name = SHORT_NAMES.get(name, name)
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
