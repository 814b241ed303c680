"""Jobs of a sweep: every combination of its words, composed and checked, with a folder each."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from zoo.errors import UserError
from zoo.train.runs import budget, build
from zoo.train.runs.config import compose, stored_config, validate_config
from zoo.train.runs.folder import (
    NOT_SET,
    RESULT_NEUTRAL_SETTINGS,
    describe_differences,
    differences,
    flatten,
    read_config,
    read_json,
)
from zoo.train.runs.provenance import code_fingerprint
from zoo.train.sweep.job import Job

AXES = ("model", "task", "size")


@dataclass(frozen=True)
class SweepOptions:
    """The keys of `zoo sweep` itself."""

    max_parallel: int | None = None
    """The key jobs=."""
    runs: str = "runs"
    results: str = "results/runs"
    keep: str = ""


def plan(matrix: list[list[str]], options: SweepOptions) -> list[Job]:
    """One job per command line; UserError, before any job starts, for a setting that is wrong."""
    jobs = [make_job(words, Path(options.runs)) for words in matrix]
    folders = set[Path]()
    for job in jobs:
        if job.folder in folders:
            raise UserError(f"sweep: two runs of the matrix are the same, {job.folder}")
        folders.add(job.folder)
    return jobs


def make_job(words: list[str], runs: Path) -> Job:
    cfg = compose([*words, "run_dir=."])
    validate_config(cfg)
    cfg.model = budget.solve_width(cfg)
    with torch.device("meta"):
        model = build.model(cfg)
    task = get_class(cfg.task._target_)
    settings = [
        word for word in words if word.partition("=")[0] not in (*AXES, "seed", *RESULT_NEUTRAL_SETTINGS)
    ]
    suffix = ""
    if settings:
        suffix = f"-{hashlib.blake2b(' '.join(sorted(settings)).encode(), digest_size=3).hexdigest()}"
    return Job(
        folder=runs / cfg.names.task / cfg.names.model / f"{cfg.names.size}-s{cfg.seed}{suffix}",
        words=words,
        config=flatten(OmegaConf.to_container(OmegaConf.create(stored_config(cfg)), resolve=False)),
        explicit_keys={word.lstrip("+~").partition("=")[0] for word in settings},
        task_version=getattr(task, "VERSION", 0),
        code={"model_code": code_fingerprint(type(model)), "task_code": code_fingerprint(task)},
    )


def describe_mismatch(job: Job, folder: Path, finished: bool) -> str:
    """Describes how the run in a folder differs from the job; "" where it doesn't.

    A setting that is newer than the run counts as its default.
    """
    pairs = {
        key: (stored, wanted)
        for key, (stored, wanted) in differences(read_config(folder), job.config).items()
        if stored != NOT_SET or key in job.explicit_keys
    }
    if finished:
        wanted = {"task_version": job.task_version, **job.code}
        metrics = read_json(folder / "metrics.json")
        stored = {key: metrics.get(key, value) for key, value in wanted.items()}
        pairs |= {key.replace("_", " "): pair for key, pair in differences(stored, wanted).items()}
    return describe_differences(pairs, "in the folder", "requested")
