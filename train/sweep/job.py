"""One run of a sweep: how it is configured, and its state."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zoo.train.runs.protocol import CHOOSE_RATE, LONG
from zoo.train.sweep.process import RunProcess

JobState = Literal["waiting", "running elsewhere", "running", "done", "failed", "diverged", "stopped"]
"""Running elsewhere: another process trains it.  Diverged: a run that helps to choose a learning rate, whose
loss or gradient wasn't finite: the rate is too large."""


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
    purpose: str = ""
    """Under a protocol, as in protocol.json."""
    evaluations: list[list[str]] = field(default_factory=list)
    """Command lines of the evaluations that follow its training, without the run's folder."""
    num_evaluated: int = 0
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
        name = f"{'/'.join(names)}-s{self.config['seed']}"
        if self.purpose in CHOOSE_RATE:
            name += f" {self.purpose} {self.config['optim.lr']:g}"
        if self.purpose == LONG:
            name += f" {self.config['steps']:,} steps"
        return name

    @property
    def kind(self) -> tuple[str, str, str]:
        """Model, task and size."""
        model, task, size = (str(self.config[f"names.{key}"]) for key in ("model", "task", "size"))
        return model, task, size

    @property
    def is_waiting(self) -> bool:
        return self.state in ("waiting", "running elsewhere")

    @property
    def seconds(self) -> float:
        return self.previous_seconds + (self.process.seconds if self.process else 0.0)
