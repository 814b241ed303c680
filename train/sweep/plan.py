"""Jobs of a sweep: every combination of its values, composed and checked, with a folder each."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

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
from zoo.train.runs.override_key import key_of
from zoo.train.runs.overrides import refuse_task_corpus
from zoo.train.runs.protocol import SCORE
from zoo.train.runs.provenance import code_fingerprint
from zoo.train.runs.unread_overrides import unread_overrides
from zoo.train.sweep.evaluations import evaluations
from zoo.train.sweep.job import Job
from zoo.train.sweep.options import NAME_KEYS, SweepOptions
from zoo.train.tasks.base import score_names


def plan(matrix: list[list[str]], options: SweepOptions) -> list[Job]:
    """One job per command line.  Raises UserError, before any job starts, for a setting that is wrong."""
    jobs = [make_job(overrides, Path(options.runs)) for overrides, _ in read_by_jobs(matrix)]
    folders = set[Path]()
    for job in jobs:
        if job.folder in folders:
            raise UserError(f"sweep: two runs of the matrix are the same, {job.folder}")
        folders.add(job.folder)
    return jobs


def read_by_jobs(matrix: list[list[str]]) -> list[tuple[list[str], DictConfig]]:
    """Every job's overrides without those of keys that its own task and model don't read, and its
    configuration.

    Raises UserError for an override that no job reads.
    """
    configs = [compose([*overrides, "run_dir=."]) for overrides in matrix]
    for cfg, overrides in zip(configs, matrix, strict=True):
        refuse_task_corpus(cfg, overrides)
    unread = [set(unread_overrides(cfg, overrides)) for cfg, overrides in zip(configs, matrix, strict=True)]
    for override in sorted(set[str]().union(*unread)):
        if all(override in job or override not in args for args, job in zip(matrix, unread, strict=True)):
            raise UserError(
                f"sweep: {override.partition('=')[0]} has no effect: no job's task or model reads it"
            )
    return [
        ([override for override in overrides if override not in job], cfg)
        for overrides, job, cfg in zip(matrix, unread, configs, strict=True)
    ]


def make_job(overrides: list[str], runs: Path, purpose: str = "") -> Job:
    """`purpose` under a protocol, as in protocol.json; a run with the purpose "score" is evaluated too."""
    cfg = compose([*overrides, "run_dir=."])
    validate_config(cfg)
    cfg.model = budget.solve_width(cfg)
    with torch.device("meta"):
        model = build.model(cfg)
    task = get_class(cfg.task._target_)
    settings = [
        override
        for override in overrides
        if override.partition("=")[0] not in (*NAME_KEYS, "seed", *RESULT_NEUTRAL_SETTINGS)
    ]
    suffix = ""
    if settings:
        suffix = f"-{hashlib.blake2b(' '.join(sorted(settings)).encode(), digest_size=3).hexdigest()}"
    return Job(
        folder=runs / cfg.names.task / cfg.names.model / f"{cfg.names.size}-s{cfg.seed}{suffix}",
        overrides=overrides,
        config=flatten(OmegaConf.to_container(OmegaConf.create(stored_config(cfg)), resolve=False)),
        explicit_keys={key_of(override) for override in settings},
        task_version=getattr(task, "VERSION", 0),
        scores=score_names(task),
        code={"model_code": code_fingerprint(type(model)), "task_code": code_fingerprint(task)},
        purpose=purpose,
        evaluations=evaluations(cfg) if purpose == SCORE else [],
    )


def check_corpora(jobs: Sequence[Job]) -> None:
    """Raises UserError for a corpus that isn't there or has no train or val split, each looked at once."""
    job_of = {
        tuple(job.config.get(f"task.{key}") for key in ("_target_", "corpus", "root", "field")): job
        for job in jobs
        if job.config.get("task.corpus") is not None
    }
    for job in job_of.values():
        task = build.task(compose([*job.overrides, "run_dir=."]))
        text = task.opened_corpus() or task
        text.split("train")
        text.split("val")


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
