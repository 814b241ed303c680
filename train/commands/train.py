"""`python -m zoo.train model=rmt …`: Hydra composes the configuration, zoo.train.loop.trainer trains.

Only Hydra is imported up here, so that --help answers at once.
"""

import logging
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from zoo import plugins, trust
from zoo.errors import UserError, one_line
from zoo.train.commands.cli import stop, user_message
from zoo.train.runs import folder
from zoo.train.runs.config import Config, register
from zoo.train.runs.stored import load_stored

log = logging.getLogger(__name__)
CHANGEABLE_ON_RESUME = ("steps", "val_every", "checkpoint_every", "trainer.", "data.root", "resume")


class Composed:
    """`done` once Hydra has composed a configuration: errors before that are about the words."""

    done = False


class SignalExit(SystemExit):
    """A signal outside the training loop, which handles signals itself (zoo.train.loop.signals)."""


def refuse_option(message: str) -> NoReturn:
    raise UserError(f"{message}; expected key=value, or an option that --help names")


def exit_on_signal(number: int, frame: types.FrameType | None) -> None:
    raise SignalExit(128 + number)


def main() -> None:
    """Exit code 0 for a finished run, 2 for a user error, 128 + number for a signal."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions arrive unchanged, to be told apart below
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, exit_on_signal)
    plugins.register()
    register()
    Composed.done = False
    try:
        parser = get_args_parser()
        parser.error = refuse_option  # type: ignore[method-assign]  # instead of usage and two lines more
        parser.parse_args(sys.argv[1:])
        for word in sys.argv[1:]:
            if word.startswith("resume=") and not (Path(word[7:]) / "config.yaml").is_file():
                raise UserError(f"resume: {folder.no_run(Path(word[7:]))}")
        run()
    except Exception as error:
        message = user_message(error)
        if message is None and Composed.done:
            raise
        stop(message or one_line(error), 2)
    except SignalExit as signalled:
        stop("interrupted before the first step; nothing was saved", signalled.code)


@hydra.main(version_base="1.3", config_path="pkg://zoo.configs", config_name="train")
def run(cfg: DictConfig) -> float | None:
    from zoo.train.loop.signals import InterruptedRunError
    from zoo.train.loop.trainer import train
    from zoo.train.runs.files import lock_folder

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    Composed.done = True
    try:
        with lock_folder(run_dir):
            if cfg.resume:
                cfg = resumed(cfg, run_dir, list(hydra_config.overrides.task))
            elif (run_dir / "config.yaml").exists() and "LOCAL_RANK" not in os.environ:
                raise UserError(f"run_dir: {run_dir} holds a run already; resume={run_dir} continues it")
            return train(cfg, run_dir).get("val/loss")
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
        remove_empty_run(run_dir)
        sys.exit(2)


def remove_empty_run(run_dir: Path) -> None:
    """Removes the folder of a run that never started: its log was printed on the screen."""
    from zoo.train.runs.files import LOCK

    names = {path.name for path in run_dir.iterdir()}
    if names <= {LOCK, "train.log"}:
        for name in names:
            (run_dir / name).unlink(missing_ok=True)
        run_dir.rmdir()


def resumed(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> DictConfig:
    """The settings of the stored run, changed only where what it has done so far stays true."""
    path = run_dir / "config.yaml"
    try:
        stored: Any = OmegaConf.merge(OmegaConf.structured(Config), load_stored(path))
        targets = trust.run_targets(stored)
    except Exception as error:
        raise UserError(f"resume: {path} is no run's config: {one_line(error)}") from error
    assert isinstance(stored, DictConfig)
    if missing := OmegaConf.missing_keys(stored):
        raise UserError(f"resume: {path} is no run's config: {', '.join(sorted(missing))} missing")
    trust.check_targets(targets, overrides, f"resume: {path}")
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if override == f"{key}={targets.get(key)}":
            continue
        if not key.startswith(CHANGEABLE_ON_RESUME):
            raise UserError(
                f"resume: {key} is fixed by the run in {cfg.resume}; only "
                f"{', '.join(CHANGEABLE_ON_RESUME[:-1])}* can be changed"
            )
        OmegaConf.update(stored, key, OmegaConf.select(cfg, key))
    return stored
