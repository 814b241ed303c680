"""The data that a run is trained on, as its checkpoint knows them: a resumed run trains on the same."""

import platform
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.train.runs import build
from zoo.train.runs.folder import read_config, read_json
from zoo.train.runs.provenance import fingerprint
from zoo.train.runs.tokens import with_run_tokenizer
from zoo.train.tasks.base import Task


def data_identity(task: Task) -> dict[str, str]:
    """The task's version, and hashes of the documents: of their lengths and samples, and of every byte where
    they are a corpus."""
    return {
        "task_version": str(task.VERSION),
        "fingerprint": fingerprint(task),
        "content": task.content_digest(),
        "python": platform.python_version(),
    }


def check_data(cfg: DictConfig, run_dir: Path, saved: Any, current: dict[str, str]) -> None:
    """Raises UserError unless task and data are those of the checkpoint that a run resumes from.

    `saved` is their identity in the checkpoint, None in those of earlier versions; then metrics.json may have
    a part of it.
    """
    check_task_version(run_dir, str(cfg.names.task), saved, current)
    corpus = cfg.data.corpus
    if not isinstance(saved, dict):
        if read_config(run_dir).get("data.corpus") != corpus:
            raise UserError(
                "resume: data.corpus is fixed by the run, whose checkpoint can't tell whether the texts of "
                f"{corpus} are the same"
            )
        metrics = run_dir / "metrics.json"
        stored = read_json(metrics).get("data_fingerprint") if metrics.is_file() else None
        saved = {"fingerprint": stored or current["fingerprint"]}
    for key in ("content", "fingerprint"):
        if saved.get(key, current[key]) != current[key]:
            message = (
                f"resume: data.corpus is fixed by the run, and the texts of {corpus} have changed or are "
                f"others: expected {key} {saved[key]}, found {current[key]}"
            )
            pythons = [saved.get("python"), current["python"]]
            if corpus == "stdlib" and pythons[0] and pythons[0] != pythons[1]:
                message += f" (that was Python {pythons[0]}, this is {pythons[1]})"
            raise UserError(message)


def data_have_changed(run_dir: Path, task: Task) -> bool:
    """True if the texts of `task`, the run's own, aren't those that it was trained on; False where its files
    don't tell."""
    metrics = run_dir / "metrics.json"
    if not (task.content_digest() and metrics.is_file()):
        return False
    trained = read_json(metrics)
    same_version = str(trained.get("task_version")) == str(task.VERSION)
    return same_version and trained.get("data_fingerprint") not in (None, fingerprint(task))


def check_task_version(run_dir: Path, name: str, saved: Any, current: dict[str, str]) -> None:
    """Raises UserError unless a checkpoint's task has the version that it has now.

    Checkpoints of earlier versions don't state it, but metrics.json of a finished run does.  Where neither
    does, the same hash of samples tells that it is the same; without one the run is of the task's first
    version if there never was another.
    """
    metrics = run_dir / "metrics.json"
    stored = saved.get("task_version") if isinstance(saved, dict) else None
    if stored is None and metrics.is_file():
        stored = read_json(metrics).get("task_version")
    if stored is None and (isinstance(saved, dict) or current["task_version"] == "1"):
        return
    if str(stored) != current["task_version"]:
        actual = "one of a checkpoint that doesn't state it" if stored is None else str(stored)
        raise UserError(
            f"resume: the version of task {name} is fixed by the run, and its samples have changed since: "
            f"expected version {current['task_version']}, found {actual}"
        )


def stored_task(cfg: DictConfig, run_dir: Path) -> Task:
    """The task of a stored run; where the run's corpus isn't there, the UserError says how to name its
    place."""
    try:
        return build.task(with_run_tokenizer(cfg, run_dir))
    except UserError as error:
        corpus = str(cfg.task.get("corpus") or "")
        is_runs = corpus == read_config(run_dir).get("data.corpus")
        is_relative = is_runs and not Path(corpus).is_absolute()
        if is_relative and "no corpus" in str(error):
            raise UserError(
                f"{error}; the run has its path relative to the folder where it was started: "
                "data.corpus=… names its place now"
            ) from error
        raise
