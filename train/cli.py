"""`python -m zoo.train model=rmt …`: Hydra composes, zoo.train.loop trains, a user's slip is one line.

Only Hydra is imported up here, so that --help answers at once.
"""

import difflib
import logging
import os
import re
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
from zoo.errors import UserError
from zoo.train import config, runs

log = logging.getLogger(__name__)

KEPT_ON_RESUME = ("steps", "val_every", "checkpoint_every", "trainer.", "data.root", "resume")


class Composed:
    """Whether Hydra has made a configuration of the words: what is raised before is a matter of the words."""

    done = False


class Left(SystemExit):
    """A signal outside the training loop, which has its own way of ending (zoo.train.guards)."""


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
    config.register()
    Composed.done = False
    try:
        parser = get_args_parser()
        parser.error = refuse_option  # type: ignore[method-assign]  # instead of usage and two lines more
        parser.parse_args(sys.argv[1:])
        for word in sys.argv[1:]:
            if word.startswith("resume=") and not (Path(word[7:]) / "config.yaml").is_file():
                raise UserError(f"resume: {runs.no_run(Path(word[7:]))}")
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
    from zoo.train.files import alone_in
    from zoo.train.guards import InterruptedRunError
    from zoo.train.loop import train

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    Composed.done = True
    try:
        with alone_in(run_dir):
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
    from zoo.train.files import LOCK

    left = {path.name for path in run_dir.iterdir()}
    if left <= {LOCK, "train.log"}:
        for name in left:
            (run_dir / name).unlink(missing_ok=True)
        run_dir.rmdir()


def resumed(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> DictConfig:
    """The run's own settings, changed only where that leaves its past true."""
    path = run_dir / "config.yaml"
    try:
        stored: Any = OmegaConf.merge(OmegaConf.structured(config.Config), OmegaConf.load(path))
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


def in_words(error: Exception) -> str | None:
    """What the user can do about an error, in one line; None for a fault of ours."""
    if isinstance(error, (UserError, OmegaConfBaseException)):
        return one_line(error)
    cause = error.__cause__ if isinstance(error, ValueError) else error  # logging wraps what open says
    if isinstance(cause, OSError) and cause.filename is not None:
        return f"can't use {cause.filename}: {cause.strerror}"
    memory = ("out of memory", "allocate memory")  # torch says so in words alone
    if isinstance(error, MemoryError) or any(words in str(error) for words in memory):
        return f"{one_line(error)} (a smaller size, data.rows or data.window?)"
    return None


def one_line(error: BaseException) -> str:
    """The whole message on one line, with its cause, without the trailers of Hydra and OmegaConf."""
    cause = error.__cause__ if isinstance(error, HydraException) else None
    said = [line.strip() for one in (error, cause) if one for line in str(one).splitlines()]
    if "Config search path:" in said:
        said = said[: said.index("Config search path:")]
    noise = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "See https://hydra.cc",
        "To append to your config",
    )
    return " ".join(line for line in said if line and not line.startswith(noise)) or type(error).__name__


def did_you_mean(message: str) -> str:
    """The key that comes closest to one that isn't there, as a question."""
    if option := re.search(r"Could not find '([^']+)/([^']+)'", message):
        near = difflib.get_close_matches(option[2], re.findall(r"\S+", message.rpartition("':")[2]), 1)
        return f"; did you mean {near[0]}?" if near else ""
    found = re.search(r"Could not override '([^']+)'", message)
    if not found:
        return ""
    from zoo.train import build

    groups = ("model=", "task=", "size=", "optim=", "trainer=", "experiment=", "hydra.searchpath=")
    try:
        cfg = build.plain(build.compose([word for word in sys.argv[1:] if word.startswith(groups)]))
    except Exception:  # it says too little to help; the error itself is said anyway
        return ""
    inner = [f"{group}.{key}" for group, keys in cfg.items() if isinstance(keys, dict) for key in keys]
    near = difflib.get_close_matches(found[1], [*cfg, *inner], 1)
    return f"; did you mean {near[0]}?" if near else ""


def words_or_help(text: str | None) -> list[str]:
    """The words after a command's name; without any, or where they ask for it, leaves with its help."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(text, file=sys.stdout if words else sys.stderr)
        sys.exit(0 if words else 2)
    return words


def stop(message: str, code: Any) -> NoReturn:
    print(f"error: {message}" if code == 2 else message, file=sys.stderr)
    sys.exit(code)
