"""The runs of `zoo sweep protocol=1`: those that choose learning rates, then those with scores.

For every model and task, with SELECTION_SEED:

    tasks of samples   GRID on the short task (one segment of passkey, at most SHORT_STEPS steps); a best rate
                       at the edge of the grid extends it by FACTOR once; then the best and a quarter of it on
                       the task itself: the run that solves it first, or the smaller held-out loss, decides
    text               GRID on the task itself with half the steps

Then SEEDS at the chosen rate; MORE_SEEDS where they disagree on whether the task is solved; where none has
solved it, the first with LONG_FACTOR times the steps.  What is to run next follows from the results of the
runs before alone, so that a sweep goes on from their files anywhere.
"""

import math
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.train.runs import build, protocol
from zoo.train.runs.override_key import key_of
from zoo.train.runs.protocol import (
    FACTOR,
    GRID,
    LONG,
    LONG_FACTOR,
    RATE,
    SCORE,
    SELECTION_SEED,
    SHORT_RATE,
    SHORT_TASK,
)
from zoo.train.sweep.job import Job
from zoo.train.sweep.options import SweepOptions
from zoo.train.sweep.plan import make_job, read_by_jobs

SHORT_STEPS, SHORT_LENGTH, SHORT_ACCURACY = 300, 16, 0.95
SHORT_SETTINGS = ("task.form=compact", "task.filler=random", "task.lengths=fixed")
MODEL_SETTINGS = ("model.", "size.", "optim.", "trainer.", "data.root", "hydra.")
"""Beginnings of the settings that the short task shares with the task itself."""
VAL_EVERY, VAL_SAMPLES = 25, 64
SET_BY_PROTOCOL = {"optim.lr": "chooses it", "protocol": "is protocol="}


class Protocol:
    """The jobs of a protocol, made as the results of earlier ones come in."""

    def __init__(self, matrix: list[list[str]], options: SweepOptions) -> None:
        """`matrix`: the overrides of every model and task, without seed.  Raises UserError, before any job
        starts, for a setting that is wrong or that the protocol sets, and for a seed that chooses rates."""
        if SELECTION_SEED in options.seeds:
            raise UserError(
                f"sweep: seeds: {SELECTION_SEED} chooses learning rates under protocol=1, so no score uses it"
            )
        self.options, self.made = options, dict[tuple[str, ...], Job]()
        cells = [Cell(*cell) for cell in read_by_jobs(matrix)]
        reaches = [reach for cell in cells if (reach := cell.attention_reach) is not None]
        self.beyond = options.beyond if options.beyond is not None else max(reaches, default=None)
        self.cells = cells
        for cell in cells:
            self.job(cell, cell.full(GRID[0], 0, self.beyond), SCORE)
        self.made.clear()

    def jobs(self) -> list[Job]:
        """All jobs that are known so far, in the order in which they are to run; each folder once."""
        by_folder: dict[Path, Job] = {}
        for cell in self.cells:
            for job in self.of_cell(cell):
                by_folder.setdefault(job.folder, job)
        return list(by_folder.values())

    def job(self, cell: "Cell", overrides: list[str], purpose: str) -> Job:
        key = tuple(overrides)
        if key not in self.made:
            self.made[key] = make_job(overrides, Path(self.options.runs), purpose)
        return self.made[key]

    def of_cell(self, cell: "Cell") -> Generator[Job, None, None]:
        """The jobs of a model and a task, up to those whose results aren't there yet."""
        rate = yield from self.rate_of(cell)
        if rate is None:
            return
        seeds = self.options.seeds or protocol.SEEDS
        scores = [self.job(cell, cell.full(rate, seed, self.beyond), SCORE) for seed in seeds]
        yield from scores
        if self.options.seeds or any(job.state != "done" for job in scores):
            return
        solved = [job.result.get("solved_at") is not None for job in scores]
        if any(solved) and not all(solved):
            for seed in protocol.MORE_SEEDS:
                yield self.job(cell, cell.full(rate, seed, self.beyond), SCORE)
        elif cell.is_solved_or_not and not any(solved):
            yield self.job(cell, cell.long(rate, self.beyond), LONG)

    def rate_of(self, cell: "Cell") -> Generator[Job, None, float | None]:
        """Yields the jobs that choose the learning rate; returns it, None while it isn't known."""
        tried = {rate: self.job(cell, cell.short(rate), SHORT_RATE) for rate in GRID}
        yield from tried.values()
        results = outcomes(tried)
        if results is None:
            return None
        best = protocol.best_rate(results)
        if protocol.is_edge(best, results):
            further = best * FACTOR if best == max(results) else best / FACTOR
            tried[further] = self.job(cell, cell.short(further), SHORT_RATE)
            yield tried[further]
            results = outcomes(tried)
            if results is None:
                return None
            best = protocol.best_rate(results)
        if cell.is_text:
            return best
        full = {
            rate: self.job(cell, cell.full(rate, SELECTION_SEED, self.beyond), RATE)
            for rate in (best, best / FACTOR)
        }
        yield from full.values()
        results = outcomes(full)
        return None if results is None else protocol.best_rate(results)


def outcomes(jobs: dict[float, Job]) -> dict[float, dict[str, Any] | None] | None:
    """The metrics of finished jobs by rate, None of one that diverged; None while any has none."""
    if any(job.state not in ("done", "diverged") for job in jobs.values()):
        return None
    return {rate: job.result if job.state == "done" else None for rate, job in jobs.items()}


class Cell:
    """A model on a task, without learning rate and seed."""

    def __init__(self, overrides: list[str], config: DictConfig) -> None:
        keys = {key_of(override) for override in overrides}
        for key, what in SET_BY_PROTOCOL.items():
            if key in keys:
                raise UserError(f"sweep: {key} can't be set with protocol=1, which {what}")
        self.overrides = [*overrides, *([] if "val_every" in keys else [f"val_every={VAL_EVERY}"])]
        self.config = config
        task: Any = get_class(config.task._target_)
        self.is_text: bool = task.metric == "bits_per_byte"
        if self.is_text:
            build.task(self.config).split("test")  # whose scores are told; samples can always be drawn

    @property
    def attention_reach(self) -> int | None:
        """How far back the model sees, if that has an end within a sample; None otherwise."""
        length = self.config.task.get("length")
        with torch.device("meta"):
            reach = build.model(self.config).reach
        return reach if isinstance(reach, int) and (length is None or reach < length) else None

    def full(self, rate: float, seed: int, beyond: int | None) -> list[str]:
        """The overrides of a run on the task itself."""
        given = {key_of(override) for override in self.overrides}
        fixed = [
            override for override in recipe(self.config, beyond) if override.partition("=")[0] not in given
        ]
        return [*self.overrides, *fixed, f"optim.lr={rate:g}", f"seed={seed}"]

    @property
    def is_solved_or_not(self) -> bool:
        return bool(self.config.compare.jump)

    def long(self, rate: float, beyond: int | None) -> list[str]:
        """The overrides of the first seed with more steps: the same run up to the usual ones, so what follows
        from the steps stays as it was."""
        usual = self.full(rate, protocol.SEEDS[0], beyond)
        unchanged = [override for override in usual if key_of(override) not in protocol.LONG_SETTINGS]
        overrides = [f"steps={LONG_FACTOR * self.config.steps}", f"optim.warmup={self.config.optim.warmup}"]
        if any(override.startswith("data.curriculum") for override in usual):
            overrides.append(f"data.curriculum.patience={self.config.data.curriculum.patience}")
        return [*unchanged, *overrides]

    def short(self, rate: float) -> list[str]:
        """The overrides of a run that helps to choose the rate."""
        last = [f"optim.lr={rate:g}", f"seed={SELECTION_SEED}"]
        if self.is_text:
            others = [override for override in self.overrides if not override.startswith("steps=")]
            return [*others, f"steps={max(1, self.config.steps // 2)}", *last]
        size = self.config.size
        length = size.segment_len * -(-SHORT_LENGTH // size.segment_len)
        names = [f"model={self.config.names.model}", f"task={SHORT_TASK}", f"size={self.config.names.size}"]
        shared = [override for override in self.overrides if override.lstrip("+~").startswith(MODEL_SETTINGS)]
        return [
            *names,
            *SHORT_SETTINGS,
            f"task.length={length}",
            f"data.batch_size={max(1, size.batch_size * size.seq_len // length)}",
            f"steps={min(SHORT_STEPS, self.config.steps)}",
            f"val_every={VAL_EVERY}",
            *stop_rule("accuracy", SHORT_ACCURACY),
            *shared,
            *last,
        ]


def recipe(cfg: DictConfig, beyond: int | None) -> list[str]:
    """The overrides of a run on a task that is learned in a jump: its rate is constant until it has solved
    it, and it reads longer and longer samples."""
    rules, segment_len = cfg.compare, cfg.size.segment_len
    if not rules.jump:
        return []
    metric = rules.metric if beyond is not None else "accuracy"
    overrides = [
        *stop_rule(metric, rules.at_least),
        f"data.val_samples={min(VAL_SAMPLES, cfg.task.eval_samples)}",
    ]
    if metric != "accuracy":
        overrides.append(f"stop_when_solved.beyond={beyond}")
    if rules.curriculum and cfg.task.length >= 2 * segment_len:
        doublings = range(int(math.log2(cfg.task.length / segment_len)) + 1)
        overrides.append(f"data.curriculum.segments=[{','.join(str(2**i) for i in doublings)}]")
    return overrides


def stop_rule(metric: str, at_least: float) -> list[str]:
    return ["optim=wsd", f"stop_when_solved.metric={metric}", f"stop_when_solved.at_least={at_least:g}"]
