"""`zoo check my_pkg.MyModel width=32 …` or `zoo check model=rmt`: the laws of zoo.contract, one line each."""

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo import contract
from zoo.errors import UserError, one_line
from zoo.module import SequenceModule
from zoo.train.commands.cli import stop, words_or_help
from zoo.train.runs import build
from zoo.train.runs.config import compose


def main() -> None:
    """Exit code 0 where every law holds, 1 where one doesn't, 2 for a slip of the user's."""
    words = words_or_help(__doc__)
    try:
        broken = check(builder(words))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    else:
        sys.exit(1 if broken else 0)


def builder(words: list[str]) -> Callable[[], SequenceModule]:
    """How to build what the command line names: a class with its arguments, or a config at size=nano."""
    if "=" in words[0]:
        cfg = compose(["size=nano", *words])
    else:
        cfg = compose(["size=nano"])
        usual = {"vocab_size": cfg.task.vocab_size, "segment_len": cfg.size.segment_len}
        cfg.model = OmegaConf.merge({"_target_": words[0]}, usual, OmegaConf.from_dotlist(words[1:]))
    build.model(cfg)  # a slip shows here, once
    return lambda: build.model(cfg)


def check(make: Callable[[], SequenceModule]) -> int:
    """Print one line a law; how many don't hold."""
    package = type(make()).__module__.partition(".")[0]
    crashes: dict[str, str] = {}
    broken = 0
    for name, law in contract.laws(make):
        began = time.perf_counter()
        try:
            law()
            said = "holds"
        except Exception as error:  # a law may fail in whatever way the model does
            broken += 1
            why = f"{type(error).__name__}: {one_line(error)}"
            if not of_a_law(error):
                why += f" ({place(error, package)})"
            said = f"BROKEN: as {crashes[why]}" if why in crashes else f"BROKEN: {why}"
            crashes.setdefault(why, name)
        print(f"{name:<36}{time.perf_counter() - began:6.2f} s  {said}", flush=True)
    print(f"{broken} laws broken" if broken else "every law holds")
    return broken


def of_a_law(error: Exception) -> bool:
    """Whether a law says so itself, and no part of the model."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    house = str(frame.f_globals.get("__name__"))
    return isinstance(error, AssertionError) and house.startswith((contract.__name__, "torch.testing"))


def place(error: Exception, package: str) -> str:
    """The innermost line of a package that was running, "file.py:12", or else the innermost of all."""
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [one for one in frames if str(one[0].f_globals.get("__name__")).partition(".")[0] == package]
    frame, line = (own or frames)[-1]
    return f"{Path(frame.f_code.co_filename).name}:{line}"
