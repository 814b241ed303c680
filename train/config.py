"""The type of every key of a training run: what Hydra checks a command line against."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class Data:
    corpus: str = MISSING  # a known name, or a file or folder of text
    root: str = MISSING  # where named corpora lie
    rows: int = MISSING  # lanes, per device
    window: int = MISSING  # tokens per step and lane
    val_bytes: int = MISSING  # of held-out text read by a validation inside a run


@dataclass
class Size:
    depth: int = MISSING
    width: int = MISSING
    heads: int = MISSING
    segment_len: int = MISSING
    capacity: int = MISSING  # tokens per row that a retrieval memory keeps
    budget: int | None = None  # parameters without embeddings and output projection; None: no budget
    hidden: int | None = None  # the feed-forward's width; None: solved from the budget
    rows: int = MISSING
    window: int = MISSING
    steps: int = MISSING
    lr: float = MISSING
    val_bytes: int = MISSING


@dataclass
class OptimKeys:
    lr: float = MISSING
    warmup: int = MISSING  # steps
    floor: float = MISSING  # the last learning rate, as a share of the first
    weight_decay: float = MISSING
    betas: list[float] = MISSING
    clip: float = MISSING  # largest norm of all gradients together


@dataclass
class TrainerKeys:
    accelerator: str = MISSING
    devices: int = MISSING
    num_nodes: int = MISSING
    strategy: str = MISSING
    precision: str = MISSING
    compile: bool = MISSING  # torch.compile
    accumulate: int = MISSING  # windows per optimiser step
    log_every: int = MISSING  # steps


@dataclass
class Names:
    model: str = MISSING
    task: str = MISSING
    size: str = MISSING


@dataclass
class Config:
    model: Any = MISSING
    task: Any = MISSING
    size: Size = field(default_factory=Size)
    optim: OptimKeys = field(default_factory=OptimKeys)
    trainer: TrainerKeys = field(default_factory=TrainerKeys)
    data: Data = field(default_factory=Data)
    names: Names = field(default_factory=Names)
    steps: int = MISSING
    seed: int = MISSING
    val_every: int = MISSING  # steps
    checkpoint_every: int = MISSING  # steps
    run_dir: str | None = None
    resume: str | None = None


def register() -> None:
    ConfigStore.instance().store("schema", Config)
