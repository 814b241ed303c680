"""A run's configuration: the type of every key; how it is composed, checked and stored."""

import math
import typing
from dataclasses import dataclass, field
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from zoo import plugins
from zoo.errors import UserError


@dataclass
class Data:
    corpus: str = MISSING  # a known name, or a file or folder of text
    root: str = MISSING  # where named corpora lie
    batch_size: int = MISSING  # rows per device
    seq_len: int = MISSING  # tokens per step and row
    val_bytes: int = MISSING  # of held-out text read by a validation inside a run


@dataclass
class Size:
    depth: int = MISSING
    width: int = MISSING
    heads: int = MISSING
    segment_len: int = MISSING
    capacity: int = MISSING  # tokens per row that a retrieval memory keeps
    budget: int | None = None  # parameters without embeddings and output projection; None: no budget
    mlp_width: int | None = None  # the feed-forward's width; None: solved from the budget
    batch_size: int = MISSING
    seq_len: int = MISSING
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


def compose(overrides: list[str]) -> DictConfig:
    """The configuration that a command line with these overrides would train with."""
    plugins.register()
    register()
    with initialize_config_module("zoo.configs", version_base="1.3"):
        try:
            cfg = hydra_compose("train", overrides, return_hydra_config=True)
        except UserWarning as warning:  # a folder of configs that isn't there
            raise UserError(str(warning)) from warning
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg.hydra
    return cfg


def to_dict(node: DictConfig) -> dict[str, Any]:
    """A node of the configuration as plain Python, resolved."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def validate_config(cfg: DictConfig) -> None:
    """Numbers that no type can rule out."""
    least = {
        "steps": 1,
        "val_every": 1,
        "checkpoint_every": 1,
        "data.batch_size": 1,
        "data.seq_len": 1,
        "data.val_bytes": 1,
    }
    least |= {
        "trainer.accumulate": 1,
        "trainer.devices": 1,
        "trainer.num_nodes": 1,
        "trainer.log_every": 1,
        "seed": 0,
        "optim.warmup": 0,
    }
    for key, low in least.items():
        found = OmegaConf.select(cfg, key)  # None where ~key took it away
        if found is None or found < low:
            raise UserError(f"{key}: expected at least {low}, found {found}")
    for key in ("optim.lr", "optim.clip"):
        found = OmegaConf.select(cfg, key)
        if not 0 < found < 1e32:  # Adam's step is larger, and 32 bits end at 1e38
            raise UserError(f"{key}: expected a number above 0, and not beyond all measure, found {found}")
    if not 0 <= cfg.optim.floor <= 1:
        raise UserError(f"optim.floor: expected a share from 0 to 1, found {cfg.optim.floor}")
    if not 0 <= cfg.optim.weight_decay < math.inf:
        raise UserError(f"optim.weight_decay: expected a number from 0 up, found {cfg.optim.weight_decay}")
    if len(betas := cfg.optim.betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optim.betas: expected two numbers from 0 to below 1, found {betas}")
    if cfg.seed >= 2**32:
        raise UserError(f"seed: expected less than 2**32, found {cfg.seed}")


def stored_config(cfg: DictConfig) -> str:
    """config.yaml: all resolved, but for where data lies on this machine and where the run was told to go."""
    stored = OmegaConf.to_container(cfg, resolve=True)
    written = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(stored, dict)
    assert isinstance(written, dict)
    stored["data"]["root"] = written["data"]["root"]
    if "root" in written["task"]:
        stored["task"]["root"] = written["task"]["root"]
    del stored["run_dir"], stored["resume"]
    return OmegaConf.to_yaml(stored)


def hparams(cfg: DictConfig) -> dict[str, str | int | float | bool]:
    """The settings as the HParams tab takes them: one level, plain values."""
    pairs: dict[str, Any] = {}

    def walk(node: dict[Any, Any], name: str) -> None:
        for key, value in node.items():
            inner = f"{name}.{key}" if name else str(key)
            if isinstance(value, dict):
                walk(value, inner)
            elif key not in ("_target_", "free", "root"):
                pairs[inner] = value if isinstance(value, (str, int, float, bool)) else str(value)

    walk({**names(cfg), "steps": cfg.steps, "seed": cfg.seed}, "")
    walk(
        {group: to_dict(cfg[group]) for group in ("model", "task", "size", "optim", "data", "trainer")},
        "",
    )
    return pairs


def names(cfg: DictConfig) -> dict[str, str]:
    """Which model, task and size were chosen."""
    return {group: str(name) for group, name in cfg.names.items()}
