"""Which runs a sweep is made of: every combination of its words, composed and checked, with a folder each."""

import hashlib
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from zoo.errors import UserError
from zoo.train.runs import budget, build
from zoo.train.runs.config import compose, stored_config, validate_config
from zoo.train.runs.folder import (
    NEUTRAL_SETTINGS,
    NOT_SET,
    describe_differences,
    differences,
    flatten,
    read_config,
    read_json,
)
from zoo.train.runs.provenance import code_fingerprint

AXES = ("model", "task", "size")
OWN: dict[str, Any] = {"seeds": [0], "jobs": 0, "runs": "runs", "results": "results/runs", "keep": ""}


@dataclass
class Job:
    """One run of the matrix, and how it stands."""

    folder: Path
    words: list[str]
    config: dict[str, Any]
    asked: set[str]
    version: int
    code: dict[str, str]
    """Of metrics.json: what the classes are that aren't the zoo's."""
    state: str = "waiting"  # waiting | elsewhere | running | done | failed | stopped
    note: str = ""
    where: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    slot: int = 0
    began: float = 0.0
    took: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        names = [self.config[f"names.{axis}"] for axis in ("task", "model", "size")]
        return f"{'/'.join(names)}-s{self.config['seed']}"


def plan(matrix: list[list[str]], own: dict[str, Any]) -> list[Job]:
    """Every run composed and checked before any starts: a slip in one stops all of them."""
    jobs = []
    for words in matrix:
        cfg = compose([*words, "run_dir=."])
        validate_config(cfg)
        cfg.model = budget.solve_width(cfg)
        with torch.device("meta"):
            model = build.model(cfg)
        given = [word for word in words if word.partition("=")[0] not in (*AXES, "seed", *NEUTRAL_SETTINGS)]
        code = (
            f"-{hashlib.blake2b(' '.join(sorted(given)).encode(), digest_size=3).hexdigest()}"
            if given
            else ""
        )
        names = cfg.names
        folder = Path(own["runs"]) / names.task / names.model / f"{names.size}-s{cfg.seed}{code}"
        config = flatten(OmegaConf.to_container(OmegaConf.create(stored_config(cfg)), resolve=False))
        asked = {word.lstrip("+~").partition("=")[0] for word in given}
        task = get_class(cfg.task._target_)
        made_by = {"model_code": code_fingerprint(type(model)), "task_code": code_fingerprint(task)}
        jobs.append(Job(folder, words, config, asked, getattr(task, "VERSION", 0), made_by))
    twice = [job.folder for n, job in enumerate(jobs) if job.folder in [old.folder for old in jobs[:n]]]
    if twice:
        raise UserError(f"sweep: two runs of the matrix are the same, {twice[0]}")
    return jobs


def config_mismatch(job: Job, folder: Path, finished: bool) -> str:
    """In what the run in a folder isn't the one that is asked for; "" where it is.

    A setting that the zoo didn't have yet when a run was made counts as its default.
    """
    found = differences(read_config(folder), job.config)
    newer = {key for key, (theirs, _) in found.items() if theirs == NOT_SET and key not in job.asked}
    found = {key: pair for key, pair in found.items() if key not in newer}
    if finished:
        wanted = {"task_version": job.version, **job.code}
        result = read_json(folder / "metrics.json")
        theirs = {key: result.get(key, value) for key, value in wanted.items()}
        found |= {key.replace("_", " "): pair for key, pair in differences(theirs, wanted).items()}
    return describe_differences(found, "there", "asked for")
