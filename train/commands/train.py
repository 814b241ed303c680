"""`zoo train model=rmt [key=value …]`: train one architecture, or resume a run.

CHOICES

Keys everyone uses:

    steps=              optimiser steps
    seed=               of weights, dropout and the order of documents
    data.corpus=        stdlib | wikilong | books | … | a file or folder of text
    data.root=          where named corpora lie (default $ZOO_DATA, or data/)
    data.batch_size=    rows of text read side by side
    data.seq_len=       tokens that a row reads per step: how far back-propagation reaches
    run_dir=            where the run goes (default runs/<task>/<model>/<size>-s<seed>-<time>)
    resume=             a run's folder: resume from its last checkpoint
    val_every=          steps between validations
    checkpoint_every=   steps between checkpoints
    trainer.KEY=        precision=32-true, devices=2, accelerator=gpu, …

Every key can be set:   zoo train model=rmt size=tiny data.corpus=my_texts steps=2000
Show the whole config:  zoo train model=rmt --cfg job
Resume a run:           zoo train resume=runs/lm/rmt/micro-s0-20260101-120000
Small sweeps:           zoo train -m model=rmt,transformer_xl seed=0,1,2
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from zoo import composition
from zoo.errors import UserError, closed_pipe_exits, one_line, tolerate_any_text
from zoo.lazy import large_imports
from zoo.train.commands.cli import disk_problem, stop, user_message
from zoo.train.commands.help import FLAGS, page
from zoo.train.loop.signal_watch import WATCH
from zoo.train.runs import config
from zoo.train.runs.config import check_keys, register, validate_config
from zoo.train.runs.files import is_further_rank
from zoo.train.runs.override_key import key_of, refuse_repeated
from zoo.train.runs.overrides import check_grammar, quoted_names, refuse_task_corpus
from zoo.train.runs.resume import args_to_resume
from zoo.train.runs.run_folder import run_folder
from zoo.train.runs.stop_signals import InterruptedRunError, stop_signals
from zoo.train.runs.unread_overrides import refuse_unread, refuse_unread_by_all

log = logging.getLogger(__name__)


class Composed:
    """`done` once Hydra has composed a configuration: errors before that are about the arguments."""

    done = False


class SignalExit(SystemExit):
    """A signal outside the training loop, which handles signals itself (zoo.train.loop.signals)."""


def refuse_option(message: str) -> NoReturn:
    raise UserError(f"{message}; expected key=value, or an option that --help names")


def exit_on_signal(number: int, frame: types.FrameType | None) -> None:
    WATCH.handled()
    raise SignalExit(128 + number)


def on_thread_error(arguments: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread, whose full disk is raised again by the next write."""
    if not disk_problem(arguments.exc_value):
        threading.__excepthook__(arguments)


def main() -> None:
    """Exit code 0 for a finished run, 2 for a user error, 128 + number for a signal."""
    with closed_pipe_exits():
        if any(arg in FLAGS for arg in sys.argv[1:]):
            print(page(__name__))
        else:
            compose_and_run()


def compose_and_run() -> None:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions arrive unchanged, to be told apart below
    for number in stop_signals():
        signal.signal(number, exit_on_signal)
    tolerate_any_text()
    threading.excepthook = on_thread_error
    composition.register()
    register()
    Composed.done = False
    try:
        parser = get_args_parser()
        parser.error = refuse_option  # type: ignore[method-assign]  # instead of usage and two lines more
        sys.argv[1:] = quoted_names(sys.argv[1:])
        check_args(parser.parse_args(sys.argv[1:]))
        with WATCH.running():
            run()
    except BrokenPipeError:
        raise
    except Exception as error:
        message = user_message(error)
        if message is None and Composed.done:
            raise
        stop(message or one_line(error), 2)
    except SignalExit as signalled:
        stop("interrupted before the first step; nothing was saved", signalled.code)


@contextlib.contextmanager
def closed_output_stops() -> Iterator[None]:
    """A block in which SIGPIPE, which Python ignores, is a signal as all others that stop a run."""
    if not hasattr(signal, "SIGPIPE"):
        yield
        return
    previous = signal.signal(signal.SIGPIPE, exit_on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGPIPE, previous)


def check_args(arguments: argparse.Namespace) -> None:
    """Raises UserError for arguments that no run can start with, and takes those from `sys.argv` that only
    repeat what the run to be resumed was started with."""
    check_grammar(arguments.overrides)
    config.refuse_matrix(arguments.overrides)
    resumes = [arg for arg in arguments.overrides if arg.startswith("resume=")]
    refuse_repeated(resumes or arguments.overrides)  # to resume: the line it was started with, then changes
    for arg in arguments.overrides:
        if arg.startswith(("hydra.run.dir=", "hydra.sweep.subdir=")) and not is_further_rank():
            raise UserError(f"{arg.partition('=')[0]} can't be set here; run_dir= is a run's folder")
    left = args_to_resume(arguments.overrides)
    sys.argv[1:] = [arg for arg in sys.argv[1:] if arg in left or arg not in arguments.overrides]
    if arguments.multirun:  # Hydra writes multirun.yaml before the first job is looked at
        overrides = OverridesParser.create().parse_overrides(arguments.overrides)
        jobs = BasicSweeper.split_arguments(overrides, None)[0]
        config.compose(jobs[0])
        refuse_unread_by_all(jobs)


@hydra.main(version_base="1.3", config_path="pkg://zoo.configs", config_name="train")
def run(cfg: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    Composed.done = True
    run_dir = Path()
    with contextlib.ExitStack() as stack:
        stack.enter_context(closed_output_stops())
        try:
            check_keys(cfg)
            if not cfg.resume:
                refuse_task_corpus(cfg, overrides)
            if not cfg.resume and hydra_config.mode == RunMode.RUN:  # a sweep's may be of some jobs
                refuse_unread(cfg, overrides)
                refuse_missing_corpus(cfg, overrides)
            if not cfg.resume:
                validate_config(cfg)
            if is_further_rank():  # the first says it for all
                logging.getLogger().setLevel(logging.WARNING)
            else:
                log_beginning(cfg)
            with large_imports():
                from zoo.train.loop.launch import launch
                from zoo.train.runs import build
                from zoo.train.runs.base import start_from_base
            if not cfg.resume:
                start_from_base(cfg, overrides)
                build.check_classes(cfg)
            base, log_name = Path(hydra_config.runtime.output_dir), f"{hydra_config.job.name}.log"
            run_dir = stack.enter_context(run_folder(cfg, base, log_name))
            return launch(cfg, run_dir, overrides).get("val/loss")
        except InterruptedRunError as interrupted:
            saved = f"{interrupted}: saved; continue with resume={os.path.relpath(run_dir)}"
            stop(saved, 128 + interrupted.signum)
        except SignalExit as signalled:
            if not (run_dir / "config.yaml").exists():
                raise
            stop(f"interrupted; continue with resume={os.path.relpath(run_dir)}", signalled.code)
        except Exception as error:
            if (message := user_message(error)) is None:
                raise
            log.error("error: %s", message)  # to stderr and train.log
            if hydra_config.mode == RunMode.MULTIRUN:  # the other jobs continue
                raise
            sys.exit(2)


def refuse_missing_corpus(cfg: DictConfig, overrides: list[str]) -> None:
    """Raises UserError, before any large import, for a corpus of the command line that isn't there."""
    if any(key_of(override) == "data.corpus" for override in overrides) and isinstance(cfg.data.corpus, str):
        from zoo.train.corpora.catalog import require_corpus

        require_corpus(cfg.data.corpus, cfg.data.root)


def log_beginning(cfg: DictConfig) -> None:
    """A line that names the run, before the imports that take seconds."""
    new = f"{cfg.names.model} on {cfg.names.task} at size={cfg.names.size}, seed {cfg.get('seed')}"
    logging.getLogger().info("%s", f"resuming {cfg.resume}" if cfg.resume else new)
