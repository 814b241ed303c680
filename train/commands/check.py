"""`zoo check my_pkg.MyModel width=32 …` or `zoo check model=rmt`: the laws of zoo.contract, one line each.

    law=          streaming,causality-train,…: these laws alone

A law that says nothing of a model, because of one of its traits, is shown with that trait.
Exit code 0 where every law holds, 1 where one doesn't, 2 for a user error.
"""

import time
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import UserError, counted, nearest, one_line
from zoo.lazy import large_imports
from zoo.train.commands.cli import command, refuse_without_effect
from zoo.train.runs.override_key import refuse_repeated

if TYPE_CHECKING:
    from zoo.module import SequenceModule

TRAINING_KEYS = (
    *("steps", "seed", "val_every", "checkpoint_every", "run_dir", "resume"),
    *("optim", "optim.", "trainer", "trainer.", "logger", "logger.", "callbacks", "callbacks."),
    *("stop_when_solved.", "data.curriculum."),
    *(f"data.{key}" for key in ("batch_size", "seq_len", "val_bytes", "val_samples")),
)


@command
def main(args: list[str]) -> int:
    chosen = [arg for arg in args if arg.startswith("law=")]
    overrides = [arg for arg in args if arg not in chosen]
    if len(chosen) > 1:
        raise UserError(f"check: expected law= once, found {' '.join(chosen)}")
    if not overrides:
        raise UserError("check: expected model=NAME or a class, package.module.Class, beside law=")
    only = chosen[0].removeprefix("law=").split(",") if chosen else []
    return 1 if check(model_builder(overrides), only) else 0


def model_builder(args: list[str]) -> "Callable[[], SequenceModule]":
    """Builds what is named: a class, with the arguments of its constructor, or a config at size=nano."""
    from zoo.train.runs.config import compose

    refuse_repeated(args)
    if "=" in args[0]:
        cfg = compose(["size=nano", *args])
        refuse_without_effect("check", args, TRAINING_KEYS, "the laws")
    else:
        from omegaconf import OmegaConf

        from zoo.train.runs.construct import import_class
        from zoo.train.runs.overrides import assignments

        if "." not in args[0]:
            raise UserError(
                f"check: expected model=NAME or a class, package.module.Class, found {args[0]!r}; "
                f"did you mean model={args[0]}?"
            )

        if find_spec(args[0].partition(".")[0]) is None:
            import_class(args[0], object, "model")  # says so at once, before torch is imported
        cfg = compose(["size=nano"])
        defaults = {"vocab_size": cfg.task.vocab_size, "segment_len": cfg.size.segment_len}
        cfg.model = OmegaConf.merge({"_target_": args[0]}, defaults, assignments(args[1:]))
    with large_imports():
        from zoo.interface import check_traits
        from zoo.train.runs import build
    built = build.model(cfg)  # raises user errors once, not law by law
    try:
        check_traits(built)
    except TypeError as error:
        raise UserError(f"check: {type(built).__name__}.{error}") from error
    return lambda: build.model(cfg)


def check(build_model: "Callable[[], SequenceModule]", only: Sequence[str] = ()) -> int:
    """Prints a line per law, of all or of `only` these; returns how many are broken.

    Raises UserError for a name that no law has.
    """
    from zoo import contract

    model = build_model()
    package = type(model).__module__.partition(".")[0]
    laws = dict(contract.laws(build_model))
    for name in only:
        if name not in laws:
            raise UserError(f"check: unknown law {name!r}{nearest(name, laws)} (all are in docs/laws.md)")
    unpromised = contract.unpromised(model)
    crashes: dict[str, str] = {}
    broken = 0
    for name in only or laws:
        if name in unpromised:
            print(f"{name:<36}          promises nothing: {unpromised[name]}", flush=True)
            continue
        start = time.perf_counter()
        try:
            laws[name]()
            verdict = "holds"
        except Exception as error:  # a law may fail in any way that the model does
            broken += 1
            reason = f"{type(error).__name__}: {one_line(error)}"
            if not raised_by_law(error):
                reason += f" ({innermost_line(error, package)})"
            verdict = f"BROKEN: as {crashes[reason]}" if reason in crashes else f"BROKEN: {reason}"
            crashes.setdefault(reason, name)
        print(f"{name:<36}{time.perf_counter() - start:6.2f} s  {verdict}", flush=True)
    verdict_of_all = "every law holds" if not only else f"{counted(len(only), 'law')} checked, none broken"
    print(f"{counted(broken, 'law')} broken" if broken else verdict_of_all)
    return broken


def raised_by_law(error: Exception) -> bool:
    """True for an assertion of a law itself, False for one of the model's."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = str(frame.f_globals.get("__name__"))
    return isinstance(error, AssertionError) and module.startswith(
        ("zoo.contract", "zoo.law_", "torch.testing")
    )


def innermost_line(error: Exception, package: str) -> str:
    """ "file.py:12" of the innermost frame that belongs to a package, else of the innermost frame."""
    frames = list(traceback.walk_tb(error.__traceback__))
    in_package = [
        pair for pair in frames if str(pair[0].f_globals.get("__name__")).partition(".")[0] == package
    ]
    frame, line = (in_package or frames)[-1]
    return f"{Path(frame.f_code.co_filename).name}:{line}"
