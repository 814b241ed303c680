"""One run of a sweep: how it is configured, and its state."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zoo.train.sweep.process import RunProcess

JobState = Literal["waiting", "running elsewhere", "running", "done", "failed", "stopped"]
"""Running elsewhere: another process trains it."""


@dataclass
class Job:
    folder: Path
    overrides: list[str]
    """Hydra overrides, all but run_dir=."""
    config: dict[str, Any]
    """Its config.yaml, flattened: {"optim.lr": 0.001, …}."""
    explicit_keys: set[str]
    """Settings from the command line: all others that an older run lacks count as their defaults."""
    task_version: int
    scores: dict[str, str]
    """Names of the task's held-out scores, by tag."""
    code: dict[str, str]
    """Fingerprints of classes that aren't the zoo's, by their keys in metrics.json."""
    state: JobState = "waiting"
    note: str = ""
    result_folder: Path | None = None
    result: dict[str, Any] = field(default_factory=dict)
    process: RunProcess | None = None
    previous_seconds: float = 0.0
    """How long its earlier processes ran."""

    @property
    def name(self) -> str:
        names = [self.config[f"names.{key}"] for key in ("task", "model", "size")]
        return f"{'/'.join(names)}-s{self.config['seed']}"

    @property
    def is_waiting(self) -> bool:
        return self.state in ("waiting", "running elsewhere")

    @property
    def seconds(self) -> float:
        return self.previous_seconds + (self.process.seconds if self.process else 0.0)
