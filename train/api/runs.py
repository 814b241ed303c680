"""Runs: trained, read from their folders, evaluated."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.api.errors import user_errors
from zoo.train.commands import evaluate as evaluate_command
from zoo.train.evaluation.evaluate import evaluate
from zoo.train.loop.launch import launch
from zoo.train.runs import build
from zoo.train.runs.config import compose, refuse_matrix, to_dict
from zoo.train.runs.folder import read_json
from zoo.train.runs.history import Columns, read_history
from zoo.train.runs.load import load_trained
from zoo.train.runs.override_key import key_of, refuse_repeated
from zoo.train.runs.overrides import home_override, refuse_task_corpus
from zoo.train.runs.precision import make_precision, precision_name
from zoo.train.runs.resume import args_to_resume
from zoo.train.runs.run_folder import run_folder
from zoo.train.runs.unread_overrides import refuse_unread


@dataclass(frozen=True, eq=False)
class Run:
    """A run in its folder; `metrics` and `history` are read when they are first used."""

    folder: Path
    model: SequenceModule
    """In eval mode, with the checkpoint's weights; on the GPU where there is one."""
    config: dict[str, Any]
    """The settings of config.yaml, nested: `run.config["optim"]["lr"]`."""
    checkpoint: Literal["last", "best"]
    step: int
    """Optimiser steps done by the checkpoint."""

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, checkpoint={self.checkpoint!r}, step={self.step})"

    def in_precision(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which `model` computes as the run's training and validation did, with its
        `trainer.precision`: under autocast where that is mixed, and without effect where it is 32-true."""
        name = precision_name(OmegaConf.create(self.config))
        context: contextlib.AbstractContextManager[Any] = make_precision(
            name, self.model.device
        ).forward_context()
        return context

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The results in metrics.json.  Raises UserError for a run that isn't finished."""
        path = self.folder / "metrics.json"
        if not path.is_file():
            raise UserError(f"expected metrics.json in {self.folder}, found none: the run isn't finished")
        metrics: dict[str, Any] = read_json(path)
        return metrics

    @cached_property
    def history(self) -> dict[str, Columns]:
        """What the run logged: {"train": columns, "val": columns}, each {name: values by row}.

        The columns are `step` (of the optimiser), `tokens_seen` (loss targets) and the tags of values,
        `train/loss` (nats per target) or `val/bits_per_byte` say.  Either split is the data of a
        pandas.DataFrame.  Raises UserError for a run of a version that wrote no history.jsonl.
        """
        return read_history(self.folder)


def load_run(
    folder: str | PathLike[str],
    checkpoint: Literal["last", "best"] = "last",
    trust: Sequence[str] | None = None,
) -> Run:
    """The run in a folder, with the weights of its last or its best checkpoint (by held-out loss).

    `trust` names again what the run's files name and no plug-in here has, since to build a class is to run
    its code: `["model._target_=my_models.Mine"]`.  Raises zoo.errors.UserError for a folder without a run,
    another checkpoint than `last` or `best`, a class that isn't trusted, and a file that is missing or
    damaged.
    """
    if checkpoint not in ("last", "best"):
        raise UserError(f"checkpoint: expected last | best, found {checkpoint}")
    path = Path(os.path.abspath(folder))
    with user_errors(()):
        named = tuple(trust or ())
        if others := [argument for argument in named if not argument.partition("=")[0].endswith("._target_")]:
            raise UserError(f"trust: expected model._target_=CLASS or task._target_=CLASS, found {others[0]}")
        cfg, model, progress = load_trained(path, checkpoint, named)
    return Run(path, model, to_dict(cfg), checkpoint, progress["step"])


def train_run(*args: str) -> Run:
    """Train a run as `python -m zoo.train` does with these arguments, or resume one (`"resume=runs/…"`).

    It trains in this process, and its messages are those of the command.  Raises zoo.errors.UserError for an
    argument that is wrong, and InterruptedRunError after Ctrl-C, with everything saved.  Several processes
    (`trainer.devices`) need the command, which starts them.
    """
    with user_errors(args):
        refuse_matrix(args)
        resumes = [arg for arg in args if arg.startswith("resume=")]
        refuse_repeated(resumes or args)  # to resume: the line it was started with, then changes
        overrides = args_to_resume([home_override(arg) for arg in args])
        cfg = compose(overrides)
        if cfg.trainer.devices != 1 or cfg.trainer.num_nodes != 1:
            raise UserError(
                "trainer.devices: expected 1 in train_run, which starts no further process as zoo.train does"
            )
        if not cfg.resume:
            refuse_task_corpus(cfg, overrides)
            refuse_unread(cfg, overrides)
            build.check_classes(cfg)
        with messages_on_screen(), run_folder(cfg, Path(), "train.log") as folder:
            launch(cfg, folder, overrides)
        return load_run(folder, trust=[arg.lstrip("+") for arg in args if key_of(arg).endswith("._target_")])


@contextlib.contextmanager
def messages_on_screen() -> Iterator[None]:
    """The zoo's messages on the standard output, unless the root logger shows them already."""
    logger = logging.getLogger("zoo")
    handlers = [] if logging.getLogger().hasHandlers() else [logging.StreamHandler(sys.stdout)]
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)


def evaluate_run(run: Run | str | PathLike[str], *args: str) -> dict[str, Any]:
    """Evaluate a run as `zoo evaluate` does with these arguments, `"lengths=1x,4x"` say.

    Returns the entry that was added to the run's evaluation.json (docs/evaluating.md): its `results` are a
    list with one dictionary for each point.  A `Run` is read again from its folder, with the checkpoint that
    it was loaded with; changes to its model in memory have no part in it.  Raises zoo.errors.UserError for an
    argument that is wrong.
    """
    folder = run.folder if isinstance(run, Run) else Path(run)
    with user_errors(args):
        if isinstance(run, Run) and not any(arg.startswith("checkpoint=") for arg in args):
            args = (*args, f"checkpoint={run.checkpoint}")
        run_dir, options = evaluate_command.parse_args([f"run={folder}", *args])
        if options.contexts is not None or options.methods is not None:
            raise UserError("evaluate_run: expected no contexts= and methods=, which are several evaluations")
        return evaluate(run_dir, options)
