"""`zoo bench model=a,b size=micro [lengths=128,1024] [key=value …]`: speed and memory of models side by side.

    model=      one or several, with commas between
    size=       nano, micro (default), tiny, small, base
    lengths=    tokens per row and training step, multiples of segment_len (default: the size's window)
    rounds=     how often each is measured (default 3)
    …           everything else goes to every model: data.batch_size=4 trainer.precision=bf16-mixed

Every measurement is a process of its own; models and lengths take turns in each round, so that a slow moment
of the machine hits all of them alike, and the table says medians over the rounds:

    train       tokens per second of a whole training step: forward, backward, clipping, AdamW
    peak        memory of training above what the libraries take: of the GPU, or else of the process
    read        tokens per second without gradient, state carried on
    write       tokens per second generated, all rows together, state carried on
    state       bytes carried per row; in brackets, how many of them a segment writes anew

Tokens are random: nothing is learned, and no corpus is needed.
"""

import json
import platform
import statistics
import sys

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.console import Console
from rich.table import Table

from zoo.errors import UserError, one_line
from zoo.train.commands.cli import stop, words_or_help
from zoo.train.evaluation.throughput import (
    PRECISIONS,
    WORKER_FLAG,
    BenchCase,
    Measurement,
    measure,
    run_rounds,
    select_device,
)
from zoo.train.runs import build, provenance
from zoo.train.runs import config as run_config
from zoo.train.runs.config import compose

OWN = {"lengths": "", "rounds": "3"}
REFUSED = ("run_dir", "resume", "steps", "data.seq_len")
COLUMNS = ("tokens", "parameters", "train tok/s", "peak MiB", "read tok/s", "write tok/s", "state bytes")


def main() -> None:
    """Exit code 0, 1 where a measurement failed, 2 for a slip of the user's."""
    words = words_or_help(__doc__)
    try:
        if words[0] == WORKER_FLAG:
            print(json.dumps(measure(compose(words[1:]))))
            return
        cases, rounds = plan(words)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    try:
        found = run_rounds(cases, rounds)
    except KeyboardInterrupt:
        stop("interrupted", 130)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table(found, rounds))
    for (name, length), results in found.items():
        for why in {result for result in results if isinstance(result, str)}:
            print(f"failed: {name}, {length} tokens: {why}", file=sys.stderr)
    sys.exit(1 if any(isinstance(one, str) for results in found.values() for one in results) else 0)


def plan(words: list[str]) -> tuple[dict[BenchCase, list[str]], int]:
    """The words of every measurement, each checked by building its model on the meta device."""
    given, others = dict(OWN), []
    models: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"bench: expected key=value, found {word!r}")
        if key in REFUSED:
            raise UserError(f"bench: {key} can't be set here; lengths= are the windows")
        if key in OWN:
            given[key] = value
        elif key == "model":
            models = value.strip("[]").split(",")
        else:
            others.append(word)
    if not models or "" in models or len(set(models)) < len(models):
        raise UserError("bench: expected model=a,b, names with commas between, each once")
    cases: dict[BenchCase, list[str]] = {}
    for model in models:
        lengths = [f"data.seq_len={length}" for length in whole("lengths", given["lengths"])]
        for window in ([length] for length in lengths) if lengths else [[]]:
            asked = [f"model={model}", *others, *window]
            cfg = compose(asked)
            check(cfg)
            cases[model, cfg.data.seq_len] = asked
    rounds = whole("rounds", given["rounds"])
    if len(rounds) != 1:
        raise UserError(f"bench: rounds: expected one whole number, found {given['rounds']!r}")
    return cases, rounds[0]


def whole(key: str, value: str) -> list[int]:
    parts = [part for part in value.strip("[]").split(",") if part]
    if not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"bench: {key}: expected whole numbers of at least 1, found {value!r}")
    return [int(part) for part in parts]


def check(cfg: DictConfig) -> None:
    run_config.validate_config(cfg)
    if cfg.trainer.precision not in PRECISIONS:
        raise UserError(
            f"bench: trainer.precision: expected {' or '.join(PRECISIONS)}, found {cfg.trainer.precision}"
        )
    select_device(cfg)
    with torch.device("meta"):
        segment_len = build.model(cfg).segment_len
    if cfg.data.seq_len % segment_len:
        raise UserError(
            f"bench: lengths: expected multiples of segment_len={segment_len}, found {cfg.data.seq_len}"
        )


def table(found: dict[BenchCase, list[Measurement | str]], rounds: int) -> Table:
    """Medians; of training the range over the rounds too."""
    good = {case: [one for one in results if not isinstance(one, str)] for case, results in found.items()}
    first = next((results[0] for results in good.values() if results), {})
    commit = provenance.commit()
    device = torch.cuda.get_device_name() if first.get("cuda") else f"{platform.machine()} CPU"
    drawn = Table(
        title=f"{device}, {first.get('threads', 0):.0f} threads, {first.get('rows', 0):.0f} rows, torch "
        f"{torch.__version__}, commit {commit[:12] + commit[40:] or 'unknown'}, medians of {rounds} rounds",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    drawn.add_column("model")
    for column in (
        "tokens",
        "parameters",
        "train tok/s",
        "peak MiB",
        "read tok/s",
        "write tok/s",
        "state bytes",
    ):
        drawn.add_column(column, justify="right")
    for (name, length), results in good.items():
        if not results:
            drawn.add_row(name, f"{length:,}", "failed")
            continue
        of = {key: statistics.median(result[key] for result in results) for key in results[0]}
        speeds = [result["train"] for result in results]
        drawn.add_row(
            name,
            f"{length:,}",
            f"{of['parameters']:,.0f}",
            f"{of['train']:,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})",
            f"{of['peak'] / 2**20:,.0f}",
            f"{of['read']:,.0f}",
            f"{of['write']:,.0f}",
            f"{of['state']:,.0f} ({of['written']:,.0f})",
        )
    return drawn
