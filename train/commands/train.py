"""`python -m zoo.train model=rmt …`: Hydra composes, zoo.train.loop.trainer trains, a user's slip is one
line.

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
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo import plugins
from zoo.errors import UserError, one_line
from zoo.train.commands.cli import did_you_mean, in_words, stop
from zoo.train.runs import folder
from zoo.train.runs.config import Config, register
from zoo.train.runs.stored import load_stored

log = logging.getLogger(__name__)
KEPT_ON_RESUME = ("steps", "val_every", "checkpoint_every", "trainer.", "data.root", "resume")


class Composed:
    """Whether Hydra has made a configuration of the words: what is raised before is a matter of the words."""

    done = False


class Left(SystemExit):
    """A signal outside the training loop, which has its own way of ending (zoo.train.loop.signals)."""


def refuse_option(message: str) -> NoReturn:
    raise UserError(f"{message}; expected key=value, or an option that --help names")


def leave(number: int, frame: types.FrameType | None) -> None:
    raise Left(128 + number)


def main() -> None:
    """Exit code 0 for a finished run, 2 for a slip of the user's, 128 + number for a signal."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions come out as they are, to be told apart below
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
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
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error) + did_you_mean(str(error)), 2)
    except Exception as error:
        line = in_words(error)
        if line is None and Composed.done:
            raise
        stop(line or one_line(error), 2)
    except Left as left:
        stop("interrupted before the first step; nothing was saved", left.code)


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
                raise UserError(f"run_dir: {run_dir} holds a run already; resume={run_dir} goes on with it")
            return train(cfg, run_dir).get("val/loss")
    except InterruptedRunError as signal:
        stop(f"{signal}: saved; go on with resume={os.path.relpath(run_dir)}", 128 + signal.number)
    except Left as left:
        if not (run_dir / "config.yaml").exists():
            raise
        stop(f"interrupted; go on with resume={os.path.relpath(run_dir)}", left.code)
    except Exception as error:
        if (line := in_words(error)) is None:
            raise
        log.error("error: %s", line)  # to stderr and train.log
        if hydra_config.mode == RunMode.MULTIRUN:  # the other jobs go on
            raise
        clear(run_dir)
        sys.exit(2)


def clear(run_dir: Path) -> None:
    """Leave no folder behind of a run that never began: its log has been said on the screen."""
    from zoo.train.runs.files import LOCK

    left = {path.name for path in run_dir.iterdir()}
    if left <= {LOCK, "train.log"}:
        for name in left:
            (run_dir / name).unlink(missing_ok=True)
        run_dir.rmdir()


def resumed(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> DictConfig:
    """The run's own settings, changed only where that leaves its past true."""
    path = run_dir / "config.yaml"
    try:
        stored: Any = OmegaConf.merge(OmegaConf.structured(Config), load_stored(path))
        targets = {f"{group}._target_": str(stored[group]["_target_"]) for group in ("model", "task")}
    except Exception as error:
        raise UserError(f"resume: {path} is no run's config: {one_line(error)}") from error
    assert isinstance(stored, DictConfig)
    if lacking := OmegaConf.missing_keys(stored):
        raise UserError(f"resume: {path} is no run's config: {', '.join(sorted(lacking))} missing")
    for key, target in targets.items():
        if not plugins.trusted(target) and f"{key}={target}" not in overrides:
            raise UserError(
                f"resume: {path} names a class of no installed plug-in: {target}; "
                f"if you trust it, add {key}={target}"
            )
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if override == f"{key}={targets.get(key)}":
            continue
        if not key.startswith(KEPT_ON_RESUME):
            raise UserError(
                f"resume: {key} is settled by the run in {cfg.resume}; only "
                f"{', '.join(KEPT_ON_RESUME[:-1])}* can be changed"
            )
        OmegaConf.update(stored, key, OmegaConf.select(cfg, key))
    return stored
