"""The task of an imported model, of whose tokens only the number is known."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.errors import UserError
from zoo.train.tasks.base import Dataset, Split, Task


@dataclass(frozen=True)
class Tokens(Task):
    """Tokens without text: there are no datasets in them."""

    name = "tokens"
    VERSION = 1
    metric = "accuracy"

    vocab_size: int

    def split(self, name: Split) -> Dataset:
        raise UserError("an imported model has no text: name a task in its tokens, task=…")

    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        return torch.zeros((), dtype=torch.long, device=targets.device)
