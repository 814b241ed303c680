"""A run's configuration: the type of every key; how it is composed, checked and stored."""

import dataclasses
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from zoo import composition, plugins
from zoo.errors import UserError, nearest, one_line
from zoo.train.runs.overrides import check_grammar, quoted_names
from zoo.train.runs.protocol import Compare
from zoo.train.runs.recipe import DECAY, CurriculumKeys, StopKeys, drop_unused, validate_recipe

DEFAULT_FIELD = "text"


@dataclass
class Data:
    corpus: str = MISSING  # a known name, or a file or folder of text
    root: str = MISSING  # the folder of named corpora
    field: str = DEFAULT_FIELD  # of a row of JSON: where its text is
    batch_size: int = MISSING  # rows per device
    seq_len: int = MISSING  # tokens per step and row
    val_bytes: int = MISSING  # of held-out text read by a validation inside a run
    val_samples: int | None = None  # read by a validation inside a run, of a task of samples; None: all
    curriculum: CurriculumKeys = dataclasses.field(default_factory=CurriculumKeys)


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
    _target_: str | None = None  # a class derived from zoo.optim.Optim; None: that one
    lr: float = MISSING
    warmup: int = MISSING  # steps
    floor: float = MISSING  # the last learning rate, as a share of the first
    weight_decay: float = MISSING
    betas: list[float] = MISSING
    clip: float = MISSING  # largest norm of all gradients together
    schedule: str = "cosine"  # or wsd
    decay: float = DECAY
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of the class


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
    profiler: str | None = None  # simple, advanced or pytorch


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
    logger: dict[str, Any] = field(default_factory=dict)  # by name, each with its class
    callbacks: dict[str, Any] = field(default_factory=dict)  # the same, beside those of the loop
    stop_when_solved: StopKeys = field(default_factory=StopKeys)
    base: Any = None  # of a run with model.base: what it started from (zoo.train.runs.base)
    compare: Compare = field(default_factory=Compare)  # of the task's yaml; no run has it


def register() -> None:
    ConfigStore.instance().store("schema", Config)


def compose(overrides: list[str]) -> DictConfig:
    """The configuration that a command line with these overrides would train with."""
    check_grammar(overrides)
    composition.register()
    register()
    quoted = quoted_names(overrides)
    with initialize_config_module("zoo.configs", version_base="1.3"):
        try:
            cfg = hydra_compose("train", quoted, return_hydra_config=True)
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):
                raise
            # a folder of configs that isn't there, a yaml file that isn't one, null for a name
            raise UserError(one_line(error)) from error
    HydraConfig.instance().set_config(cfg)
    for kind, name in to_dict(cfg.names).items():
        cfg.names[kind] = name  # now: later it would be that of the configuration composed last
    with open_dict(cfg):
        del cfg.hydra
    check_keys(cfg)
    if not cfg.resume and names_base(cfg):
        from zoo.train.runs.base import start_from_base  # which needs torch, and this module

        start_from_base(cfg, overrides)
    return cfg


def names_base(cfg: DictConfig) -> bool:
    """True if a new run's configuration says anything about a run to start from."""
    return any(OmegaConf.select(cfg, key) is not None for key in ("base", "model.base"))


def refuse_matrix(overrides: Sequence[str]) -> None:
    """Raises UserError for an experiment that is a sweep's: it has many runs."""
    for override in overrides:
        key, _, name = override.partition("=")
        files = plugins.choices("experiment") if key == "experiment" else []
        if any(file.name == name and file.is_matrix for file in files):
            raise UserError(f"experiment={name} has many runs: python -m zoo sweep experiment={name}")


def check_keys(cfg: DictConfig) -> None:
    """Raises UserError for a key that +KEY=VALUE added and nothing reads.

    Those of model and task are arguments of a class, which zoo.train.runs.construct checks.
    """
    kinds = typing.get_type_hints(Config)
    for group, node in ((str(key), node) for key, node in cfg.items()):
        if group not in kinds:
            settable = [kind for kind in kinds if kind not in ("base", "compare")]
            message = f"{group}: unknown; expected one of {', '.join(settable)}"
            raise UserError(message + nearest(group, settable))
        if dataclasses.is_dataclass(kinds[group]):
            if not isinstance(node, DictConfig):
                raise UserError(f"{group}: expected {group}.KEY=value, found {group}={node}")
            keys = [key.name for key in dataclasses.fields(kinds[group])]
            for key in map(str, node):
                if key not in keys:
                    settable = [known for known in keys if known != "_target_"]
                    message = f"{group}.{key}: unknown; {group} takes {', '.join(settable)}"
                    raise UserError(message + nearest(key, keys, prefix=f"{group}."))


def to_dict(node: DictConfig) -> dict[str, Any]:
    """A node of the configuration as plain Python, resolved."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


Bound = tuple[str, Callable[[Any], bool]]


def at_least(least: int) -> Bound:
    return f"at least {least}", lambda value: value >= least


PROFILERS = ("simple", "advanced", "pytorch")
LARGEST = 1e32  # Adam's step is larger than the learning rate, and 32 bits end at 1e38
POSITIVE: Bound = ("a number above 0, and not beyond all measure", lambda value: 0 < value < LARGEST)
BOUNDS: dict[str, Bound] = {  # key: the values that it may have, in words and as a test
    "steps": at_least(1),
    "val_every": at_least(1),
    "checkpoint_every": at_least(1),
    "data.batch_size": at_least(1),
    "data.seq_len": at_least(1),
    "data.val_bytes": at_least(1),
    "trainer.accumulate": at_least(1),
    "trainer.devices": at_least(1),
    "trainer.num_nodes": at_least(1),
    "trainer.log_every": at_least(1),
    "trainer.profiler": (" | ".join(PROFILERS), lambda value: value in PROFILERS),
    "seed": ("at least 0 and less than 2**32", lambda value: 0 <= value < 2**32),
    "optim.warmup": at_least(0),
    "optim.lr": POSITIVE,
    "optim.clip": POSITIVE,
    "optim.floor": ("a share from 0 to 1", lambda value: 0 <= value <= 1),
    "optim.weight_decay": ("a number from 0 up", lambda value: 0 <= value < math.inf),
    "optim.betas": (
        "two numbers from 0 to below 1",
        lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
    ),
}
"""Bounds that no type expresses."""
OPTIONAL = ("trainer.profiler",)


def validate_config(cfg: DictConfig) -> None:
    """Raises UserError for the first key whose value is out of bounds."""
    for key, (expected, holds) in BOUNDS.items():
        value = OmegaConf.select(cfg, key)
        if value is None and key in OPTIONAL:
            continue
        if value is None or not holds(value):  # None where ~key removed it
            raise UserError(f"{key}: expected {expected}, found {value}")
    validate_recipe(cfg)


def stored_config(cfg: DictConfig) -> str:
    """The text of config.yaml: resolved but for the folder of data, without the run's own folder."""
    stored = OmegaConf.to_container(cfg, resolve=True)
    unresolved = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(stored, dict)
    assert isinstance(unresolved, dict)
    stored["data"]["root"] = unresolved["data"]["root"]
    if "root" in unresolved["task"]:
        stored["task"]["root"] = unresolved["task"]["root"]
    for key in ("run_dir", "resume", "compare"):
        stored.pop(key, None)
    if stored.get("base") is None:
        stored.pop("base", None)
    drop_unused(stored)
    drop_default_loggers_and_callbacks(stored)
    for group in ("data", "task"):  # newer than stored runs, which are to be comparable
        if stored[group].get("field") == DEFAULT_FIELD:
            del stored[group]["field"]
    return OmegaConf.to_yaml(stored)


DEFAULT_LOGGER = {"tensorboard": {"_target_": "zoo.train.loop.tensorboard.RunLogger"}}


def drop_default_loggers_and_callbacks(stored: dict[Any, Any]) -> None:
    """Leaves out the logger, callbacks and profiler of most runs, for the same reason."""
    if stored.get("logger") == DEFAULT_LOGGER:
        del stored["logger"]
    if not stored.get("callbacks"):
        stored.pop("callbacks", None)
    if stored["trainer"].get("profiler") is None:
        stored["trainer"].pop("profiler", None)


def names(cfg: DictConfig) -> dict[str, str]:
    """The names of the model, the task and the size."""
    return {group: str(name) for group, name in cfg.names.items()}
