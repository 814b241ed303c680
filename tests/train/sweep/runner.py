"""Sweeps in this process whose runs are a script that takes no time."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from zoo.train.commands import sweep
from zoo.train.commands.sweep import parse_args
from zoo.train.runs import budget
from zoo.train.runs.config import compose, stored_config
from zoo.train.sweep import process, scheduler
from zoo.train.sweep.job import Job
from zoo.train.sweep.plan import plan
from zoo.train.tasks.lm import LanguageModelling

WORDS = ("size=nano", "data.corpus=text", "steps=8", "trainer.accelerator=cpu")
FAKE_TRAINING = """
import json, os, pathlib, signal, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(words.get("resume") or words["run_dir"])
log = pathlib.Path("started.txt").open("a")
resources = os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES")
print(folder, "resume" in words, *resources, file=log, flush=True)
if (pathlib.Path("fails") / folder.name).exists():
    sys.exit("error: no luck")
(folder / "config.yaml").write_text(json.loads(pathlib.Path("configs.json").read_text())[str(folder)])
def leave(*_):
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
progress = {"step": 4, "steps": 8, "loss": 1.5, "tokens_per_s": 900}
progress["val"] = {"loss": 1.6, "bits_per_byte": 2.2}
(folder / "progress.json").write_text(json.dumps(progress))
while pathlib.Path("hold").exists():
    time.sleep(0.02)
time.sleep(0.1)
result = {"val/loss": 1.4, "val/bits_per_byte": 2.0, "steps": 8, "tokens_per_s": 900}
result["task_version"] = TASK_VERSION
(folder / "metrics.json").write_text(json.dumps(result))
"""


class SweepRunner:
    composed: ClassVar[dict[tuple[str, ...], str]] = {}

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        (folder / "fake_training.py").write_text(
            FAKE_TRAINING.replace("TASK_VERSION", str(LanguageModelling.VERSION))
        )
        monkeypatch.setattr(process, "PROGRAM", (sys.executable, str(folder / "fake_training.py")))
        monkeypatch.setattr(scheduler, "POLL_INTERVAL", 0.02)

    def jobs(self, *words: str) -> list[Job]:
        options, matrix = parse_args([*WORDS, *words])
        return plan(matrix, options)

    def write_configs(self, *words: str) -> None:
        """Writes configs.json, from which the fake runs take their config.yaml; the same words are composed
        once a session."""
        if words not in self.composed:
            configs = {}
            for job in self.jobs(*words):
                cfg = compose([*job.overrides, "run_dir=."])
                cfg.model = budget.solve_width(cfg)
                configs[str(job.folder)] = stored_config(cfg)
            self.composed[words] = json.dumps(configs)
        (self.folder / "configs.json").write_text(self.composed[words])

    def run(self, *words: str) -> tuple[Any, str, str]:
        self.write_configs(*words)
        self.monkeypatch.setattr(sys, "argv", ["zoo sweep", *WORDS, *words])
        code: Any = 0
        try:
            sweep.main()
        except SystemExit as error:
            code = error.code
        return (code, *self.capsys.readouterr())

    def started(self) -> list[str]:
        """Of every process its folder, True if it resumed, its threads and GPUs."""
        log = self.folder / "started.txt"
        return log.read_text().splitlines() if log.exists() else []


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
