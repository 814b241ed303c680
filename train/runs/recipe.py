"""Keys of a run's recipe that most runs leave alone: its curriculum, its schedule, and when it stops."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo.errors import UserError

SCHEDULES = ("cosine", "wsd")
METRICS = ("beyond", "gain", "accuracy", "exact")


@dataclass
class CurriculumKeys:
    """Stages of longer and longer samples (zoo.train.data.curriculum)."""

    segments: list[int] | None = None  # of size.segment_len positions, of each stage's samples
    lengths: list[int] | None = None  # of each stage's samples, instead of segments
    shares: list[float] | None = None  # of the steps, of each stage; None: by the gate
    every: int = 10  # steps: the gate measures those since it measured last
    accuracy: float = 0.9  # in training, from which on the gate opens
    nats: float = 0.1  # instead, where the least possible loss is known: at most so far above it
    patience: int | None = None  # steps, after which a stage ends all the same; None: a quarter of all


@dataclass
class StopKeys:
    """When a run counts as solved, and stops (zoo.train.loop.stopping)."""

    metric: str | None = None  # None: never
    at_least: float = 0.95
    beyond: int | None = None  # positions that the evidence of a target lies back at least
    validations: int = 2  # in a row


GATE = ("every", "accuracy", "nats")  # and patience, which a yaml file derives from the steps
DECAY = 0.25  # of wsd: its steps, as a share of those before them
UNUSED: dict[str, Any] = {  # values that say nothing, of settings that others may leave without effect
    **{f"stop_when_solved.{key}": value for key, value in vars(StopKeys()).items()},
    **{f"data.curriculum.{key}": value for key, value in vars(CurriculumKeys()).items()},
    "optim.decay": DECAY,
}

Bound = tuple[str, Callable[[Any], bool]]
BOUNDS: dict[str, Bound] = {
    "data.val_samples": ("at least 1", lambda value: value >= 1),
    "data.curriculum.every": ("at least 1", lambda value: value >= 1),
    "data.curriculum.accuracy": ("a share from 0 to 1", lambda value: 0 <= value <= 1),
    "data.curriculum.nats": ("a number from 0 up", lambda value: value >= 0),
    "data.curriculum.patience": ("at least 1", lambda value: value >= 1),
    "data.curriculum.shares": (
        "shares above 0 that sum to 1",
        lambda shares: all(share > 0 for share in shares) and abs(sum(shares) - 1) < 1e-6,
    ),
    "optim.schedule": (" or ".join(SCHEDULES), lambda value: value in SCHEDULES),
    "optim.decay": ("a number above 0", lambda value: value > 0),
    "stop_when_solved.metric": (" or ".join(METRICS), lambda value: value in METRICS),
    "stop_when_solved.at_least": ("a number of at most 1", lambda value: value <= 1),
    "stop_when_solved.beyond": ("at least 0", lambda value: value >= 0),
    "stop_when_solved.validations": ("at least 1", lambda value: value >= 1),
}


def validate_recipe(cfg: DictConfig) -> None:
    """Raises UserError for the first key that is out of bounds, and for keys that don't go together."""
    for key, (expected, holds) in BOUNDS.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and not holds(value):
            raise UserError(f"{key}: expected {expected}, found {value}")
    stop, curriculum = cfg.stop_when_solved, cfg.data.curriculum
    refuse_unused(cfg)
    if stop.metric in ("beyond", "gain") and stop.beyond is None:
        raise UserError(f"stop_when_solved.beyond: expected positions for metric={stop.metric}, found null")
    if stop.metric is not None and cfg.optim.schedule != "wsd":
        raise UserError(
            "stop_when_solved: expected optim=wsd, whose rate doesn't fall before the run is solved, found "
            f"optim.schedule={cfg.optim.schedule}"
        )
    stages = curriculum.segments or curriculum.lengths or []
    if curriculum.shares is not None and len(curriculum.shares) != len(stages):
        raise UserError(
            f"data.curriculum.shares: expected one for each of {len(stages)} stages, "
            f"found {curriculum.shares}"
        )


def refuse_unused(cfg: DictConfig) -> None:
    """Raises UserError for a setting that others leave without effect."""
    stop, curriculum = cfg.stop_when_solved, cfg.data.curriculum
    is_staged = curriculum.segments is not None or curriculum.lengths is not None
    for node, keys, holds, needed in (
        ("stop_when_solved", ("at_least", "beyond", "validations"), stop.metric is not None, "a metric"),
        ("data.curriculum", ("shares", *GATE), is_staged, "segments or lengths"),
        ("data.curriculum", GATE, curriculum.shares is None, "the gate, which shares replaces"),
        ("optim", ("decay",), cfg.optim.schedule != SCHEDULES[0], "optim=wsd"),
    ):
        for key in keys:
            value = OmegaConf.select(cfg, f"{node}.{key}")
            if not holds and value != UNUSED[f"{node}.{key}"]:
                raise UserError(f"{node}.{key}: {value} has no effect without {needed}")


def drop_unused(stored: dict[Any, Any]) -> None:
    """Leaves out what isn't used: it is newer than stored runs, which are to be comparable."""
    if stored["stop_when_solved"]["metric"] is None:
        del stored["stop_when_solved"]
    curriculum = stored["data"]["curriculum"]
    if curriculum["segments"] is None and curriculum["lengths"] is None:
        del stored["data"]["curriculum"]
    if stored["data"]["val_samples"] is None:
        del stored["data"]["val_samples"]
    if stored["optim"]["schedule"] == SCHEDULES[0]:
        del stored["optim"]["schedule"], stored["optim"]["decay"]
    if stored["optim"].get("_target_") is None:
        stored["optim"].pop("_target_", None)
    if not stored["optim"].get("options"):
        stored["optim"].pop("options", None)
