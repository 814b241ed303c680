"""The task of an imported model: its tokens are numbers, and nothing else is known of them."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.errors import UserError
from zoo.train.tasks.base import Dataset, Split, Task


class Tokens(Task):
    """Of a model whose tokens nothing is known of but their number."""

    name = "tokens"
    VERSION = 1
    metric: ClassVar[Literal["bits_per_byte", "accuracy"]] = "accuracy"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def split(self, name: Split) -> Dataset:
        raise UserError("an imported model has no texts of its own: name a task in its tokens, task=…")

    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        return torch.zeros((), dtype=torch.long, device=targets.device)
