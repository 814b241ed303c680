"""`zoo evaluate run=<run_dir> [key=value …]`: any trained run on any length or task, streamed.

    run=          a run's folder: its config.yaml and checkpoints
    checkpoint=   last (default) or best
    model=        another architecture that the run's weights fit: unlimiformer or sliding_window read with
                  those of a transformer; model.KEY=… changes one of its settings
    task=         another task than the run's; task.KEY=… changes one of its settings, data.corpus=… its text
    split=        test (default), val or train
    rows=         texts read side by side (default 16)
    window=       tokens per row and call (default 4,096): memory doesn't depend on the length of a text
    tokens=       a ceiling: of text, no more than the first so many; of samples, fewer per cell where they
                  would be more tokens than that, but never fewer than 16

Tasks made of samples (passkey, induction, …): accuracy with 95 % Wilson intervals, per target and exact (all
targets of a sample hit), by the task's groups, on a grid of

    lengths=      1000,4000 or multiples of the task's own, 1x,4x,64x (default 1x,4x,16x,64x)
    depths=       per cent, where the task has that axis (default 0,25,50,75,100)
    prompts=      samples per cell (default 50; without axes the whole split)

Text: bits per byte, word perplexity and loss by position, with the memory kept from segment to segment and
with the memory reset at every segment; what the memory is worth is the gap.

    positions=    where buckets of positions begin (default 512,2048,8192,32768,131072)
    stride= context=    instead: a window of `context` tokens that moves on by `stride`, empty at its start

Writes evaluation.json (what was there of other tasks and axes stays), evaluation/*.png, and the same figures
as images for TensorBoard.  Each cell is kept as soon as it is done.
"""

import datetime
import difflib
import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from zoo import plugins
from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train import build, evaluations, grids
from zoo.train.checkpoints import check_weights, read_checkpoint
from zoo.train.cli import one_line, stop, words_or_help
from zoo.train.grids import Asked, Say
from zoo.train.loop import commit, quiet
from zoo.train.metrics import add_images, state_bytes
from zoo.train.runs import no_run
from zoo.train.task import Split

FOR_SAMPLES = ("lengths", "depths", "prompts")
FOR_TEXT = ("positions", "stride", "context")


def main() -> None:
    """Exit code 0, or 2 for a slip of the user's."""
    words = words_or_help(__doc__)
    try:
        run_dir, asked = arguments(words)
        entry = evaluate(run_dir, asked, said)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        stop(f"can't use {error.filename}: {error.strerror}", 2)
    except KeyboardInterrupt:
        stop(f"interrupted; what was measured before is in {run_dir / evaluations.FILE}", 130)
    else:
        Console().print(*evaluations.tables(entry))
        print(f"{run_dir / evaluations.FILE}   figures: {run_dir / FIGURES}")


# -- the command line ----------------------------------------------------------------------------------------


def arguments(words: list[str]) -> tuple[Path, Asked]:
    """The run's folder and what is asked; UserError: an unknown key, or a value that is none of its kind."""
    given: dict[str, str] = {}
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if key.startswith(("task.", "data.", "model.")):
            overrides.append(word)
        elif key not in KEYS or not equals:
            near = difflib.get_close_matches(key, KEYS, 1)
            raise UserError(
                f"evaluate: unknown key {key!r}; expected one of {', '.join(KEYS)}, "
                "task.KEY, model.KEY, data.corpus" + (f"; did you mean {near[0]}?" if near else "")
            )
        else:
            given[key] = value
    if not given.get("run"):
        raise UserError("evaluate: expected run=<a run's folder>")
    read = {key: KEYS[key](key, value) for key, value in given.items() if key != "run"}
    return Path(given["run"]), Asked(overrides=tuple(overrides), **read)


def _whole(key: str, value: str) -> int:
    if not value.replace("_", "").isdigit() or int(value) < 1:
        raise UserError(f"evaluate: {key}: expected a whole number of at least 1, found {value}")
    return int(value)


def _listed(key: str, value: str) -> list[str]:
    return [part.strip() for part in value.strip("[]").split(",")]


def _lengths(key: str, value: str) -> list[str]:
    for one in _listed(key, value):
        if not one.endswith("x"):
            _whole(key, one)
        elif not _number(one[:-1]) > 0:
            raise UserError(f"evaluate: {key}: expected a multiple such as 4x, found {one}")
    return _listed(key, value)


def _number(word: str) -> float:
    """NaN where it is none: no comparison holds of it."""
    try:
        return float(word) if math.isfinite(float(word)) else math.nan
    except ValueError:
        return math.nan


def _depths(key: str, value: str) -> list[float]:
    for one in _listed(key, value):
        if not 0 <= _number(one) <= 100:
            raise UserError(f"evaluate: {key}: expected per cent, 0 to 100, found {one}")
    return [float(one) for one in _listed(key, value)]


def _positions(key: str, value: str) -> list[int]:
    edges = [_whole(key, one) for one in _listed(key, value)]
    if edges != sorted(set(edges)):
        raise UserError(f"evaluate: {key}: expected growing numbers, found {value}")
    return edges


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def read(key: str, value: str) -> str:
        if value not in choices:
            raise UserError(f"evaluate: {key}: expected {' | '.join(choices)}, found {value}")
        return value

    return read


KEYS: dict[str, Callable[[str, str], Any]] = {
    "run": lambda key, value: value,
    "checkpoint": _one_of("last", "best"),
    "model": lambda key, value: value,
    "task": lambda key, value: value,
    "split": _one_of(*get_args(Split)),
    "rows": _whole,
    "window": _whole,
    "tokens": _whole,
    "lengths": _lengths,
    "depths": _depths,
    "prompts": _whole,
    "positions": _positions,
    "stride": _whole,
    "context": _whole,
}


# -- the run -------------------------------------------------------------------------------------------------


def trained(
    run_dir: Path, checkpoint: str = "last", overrides: tuple[str, ...] = (), architecture: str | None = None
) -> tuple[DictConfig, SequenceModule, dict[str, int]]:
    """A run's configuration, its model with the weights of a checkpoint, ready to read, and how far that was
    trained: `step` and `tokens_seen`.  `architecture`: another model that these weights fit."""
    plugins.register()
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise no_run(run_dir)
    try:
        cfg = OmegaConf.load(path)
        targets = {f"{group}._target_": str(cfg[group]["_target_"]) for group in ("model", "task")}  # type: ignore[index]
        assert isinstance(cfg, DictConfig)
        build.plain(cfg)
        cfg.names.task, cfg.size, cfg.data, cfg.seed  # noqa: B018
    except Exception as error:
        raise UserError(f"{path} is no run's config: {one_line(error)}") from error
    for key, target in targets.items():
        if not plugins.trusted(target) and f"{key}={target}" not in overrides:
            raise UserError(
                f"{path} names a class of no installed plug-in: {target}; if you trust it, add {key}={target}"
            )
    of_model = [word for word in overrides if word.startswith("model.") and not word.startswith(APART)]
    if architecture is not None:
        read_by(cfg, architecture, of_model)
    elif of_model:
        raise UserError(f"evaluate: {of_model[0]} changes a setting of model=NAME, which isn't given")
    model = build.model(cfg)
    file = run_dir / "checkpoints" / f"{checkpoint}.ckpt"
    kept = read_checkpoint(file)
    check_weights(model, kept, file)
    model.load_state_dict(kept["state_dict"])
    far = {"step": int(kept["global_step"]), "tokens_seen": int(kept["metrics"]["tokens_seen"])}
    return cfg, model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), far


def read_by(cfg: DictConfig, name: str, overrides: list[str]) -> None:
    """Put another architecture in the place of the run's, in the run's shape."""
    names = [f"{group}={cfg.names[group]}" for group in ("task", "size")]
    other = build.compose([f"model={name}", *names, *overrides])
    given = {word.partition("=")[0].removeprefix("model.") for word in overrides} | {
        "_target_",
        "free",
        "base",
    }
    shared = {key: value for key, value in cfg.model.items() if key in other.model and key not in given}
    cfg.model = build.plain(OmegaConf.merge(other, {"model": shared}).model)
    cfg.model.pop("base", None)


def task_config(cfg: DictConfig, asked: Asked) -> tuple[str, DictConfig]:
    """Name and settings of the task to evaluate on: the run's, or another one as its yaml has it."""
    name = asked.task or str(cfg.names.task)
    if name != cfg.names.task:
        other = build.compose([f"task={name}", f"size={cfg.names.size}"])
        other.data.corpus, other.data.root = cfg.data.corpus, cfg.data.root
    else:
        other = cfg.copy()
    for word in asked.overrides:
        group, _, rest = word.partition(".")
        key = rest.partition("=")[0]
        if group == "model" or key == "_target_":
            continue
        if group == "data" and key not in ("corpus", "root"):
            raise UserError(f"evaluate: unknown key data.{key}; of data only data.corpus and data.root")
        if key not in other.task:
            raise UserError(
                f"evaluate: {group}.{key}: task {name} has no such setting; expected one of "
                f"{', '.join(_settings(other.task))}"
            )
        other.task[key] = OmegaConf.from_dotlist([rest])[key]
    return name, other


def _settings(node: DictConfig) -> dict[str, Any]:
    """What a task or a model was built with, without where data lies on this machine."""
    return {key: value for key, value in build.plain(node).items() if key not in ("_target_", "root")}


# -- the evaluation ------------------------------------------------------------------------------------------

FIGURES = "evaluation"
APART = ("data.root=", "task.root=", "model._target_=", "task._target_=")  # say nothing of what is measured


def said(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def evaluate(run_dir: Path, asked: Asked | None = None, say: Say = lambda line: None) -> dict[str, Any]:
    """The entry of evaluation.json that this evaluation made or added to (see zoo.train.evaluations)."""
    asked = asked or Asked()
    quiet()
    cfg, model, far = trained(run_dir, asked.checkpoint, asked.overrides, asked.model)
    own, reading = model, None
    if asked.model is not None:
        run = OmegaConf.load(run_dir / "config.yaml")
        assert isinstance(run, DictConfig)
        reading = {key: value for key, value in _settings(cfg.model).items() if run.model.get(key) != value}
        own = build.model(run)
    name, chosen = task_config(cfg, asked)
    task = build.task(chosen)
    if task.vocab_size > model.vocab_size:
        raise UserError(
            f"expected a task of at most the {model.vocab_size} symbols that the run's model knows, "
            f"found {name} with {task.vocab_size}"
        )
    settings = _settings(chosen.task)
    changed = chosen.task["_target_"] == cfg.task["_target_"] and settings != _settings(cfg.task)
    if changed and asked.split != "train":
        task.check_unseen(build.task(cfg), asked.split)
    text = task.metric == "bits_per_byte"
    for key in FOR_SAMPLES if text else FOR_TEXT:
        if getattr(asked, key) is not None:
            kind, usual = ("reads text", FOR_TEXT) if text else ("is made of samples", FOR_SAMPLES)
            raise UserError(
                f"evaluate: {key}= says nothing of task {name}, which {kind}: expected {'=, '.join(usual)}="
            )
    if (asked.stride is None) != (asked.context is None):
        raise UserError("evaluate: expected stride= and context= together, found one alone")

    file = evaluations.opened(run_dir / evaluations.FILE, run_facts(run_dir, cfg, own))
    entry = file.entry(
        {
            "task": name,
            "version": task.VERSION,
            "settings": settings,
            "split": asked.split,
            "checkpoint": asked.checkpoint,
            **far,
            "read_by": asked.model,
            "reading": reading,
            "unit": "bits per byte" if text else "accuracy",
        },
        *called(str(cfg.names.model), name, asked, far["step"]),
    )
    facts = {
        "asked": {
            key: value
            for key in ("rows", "window", "tokens", "prompts")
            if (value := getattr(asked, key)) is not None
        },
        "device": torch.cuda.get_device_name(model.device)
        if model.device.type == "cuda"
        else f"{platform.machine()} CPU",
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    rows = grids.of_text if text else grids.of_samples
    for row in rows(model, task, asked, settings.get("length"), say):
        file.put(entry, row | facts)
    drawn = evaluations.drawn(entry, settings.get("length") if name == cfg.names.task else None)
    for title, figure in drawn.items():
        (run_dir / FIGURES).mkdir(exist_ok=True)
        figure.savefig(run_dir / FIGURES / f"{title}.png", dpi=120)
    add_images(
        run_dir, {f"evaluation/{title}": figure for title, figure in drawn.items()}, far["tokens_seen"]
    )
    return entry


def called(model: str, name: str, asked: Asked, step: int) -> tuple[str, str]:
    """What tells this evaluation from others of the same run, for files; and a title."""
    words = [word for word in asked.overrides if not word.startswith(APART)]
    of_model = [word.removeprefix("model.") for word in words if word.startswith("model.")]
    of_task = [word.partition(".")[2] for word in words if not word.startswith("model.")]
    what = " ".join([name, *of_task, *([f"by {asked.model}", *of_model] if asked.model else [])])
    others = [asked.split] * (asked.split != "test") + [asked.checkpoint] * (asked.checkpoint != "last")
    return " ".join([what, *others]), f"{model} on {what} ({asked.split} split, step {step:,})"


def run_facts(run_dir: Path, cfg: DictConfig, model: SequenceModule) -> dict[str, Any]:
    """What evaluation.json says of the run itself."""
    return {
        "run": run_dir.resolve().name,
        **{group: str(chosen) for group, chosen in cfg.names.items()},
        "seed": cfg.seed,
        "trained_at": {"window": cfg.data.window}
        | ({"length": cfg.task.length} if "length" in cfg.task else {}),
        "segment_len": model.segment_len,
        "parameters": model.count_parameters(),
        "state_bytes": state_bytes(model),
    }
