"""`zoo bench model=a,b size=micro [lengths=128,1024] [key=value …]`: speed and memory of models side by side.

    model=      one or several, with commas between
    size=       nano, micro (default), tiny, small, base
    lengths=    tokens per row and training step, multiples of segment_len (default: the size's window)
    rounds=     how often each is measured (default 3)
    …           everything else goes to every model: data.batch_size=4 trainer.precision=bf16-mixed

Every measurement is a separate process; models and lengths take turns in each round, so that a slow moment
of the machine affects all of them, and the table has medians over the rounds:

    train       tokens per second of a whole training step: forward, backward, clipping, AdamW
    peak        memory of training beyond the libraries': of the GPU, or else of the process
    read        tokens per second without gradient, state carried
    write       tokens per second generated, all rows together, state carried
    state       bytes carried per row; in brackets, how many of them a segment writes anew

Tokens are random: nothing is learned, and no corpus is needed.
"""

import json
import platform
import statistics
import sys

import torch
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from zoo.errors import UserError
from zoo.train.commands.cli import command, distinct, integer, list_of, parse, refuse_without_effect
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

KEYS = {"model": distinct, "lengths": list_of(integer(least=1)), "rounds": integer(least=1)}
REFUSED = dict.fromkeys(
    ("run_dir", "resume", "steps", "data.seq_len"), "lengths= are the tokens per row and step"
)
WITHOUT_EFFECT = (
    *("val_every", "checkpoint_every", "data.corpus", "data.root", "data.val_bytes"),
    *(f"trainer.{key}" for key in ("devices", "num_nodes", "strategy", "accumulate", "log_every")),
)
ROUNDS = 3
COLUMNS = ("tokens", "parameters", "train tok/s", "peak MiB", "read tok/s", "write tok/s", "state bytes")


@command
def main(args: list[str]) -> int:
    """Exit code 1 where a measurement failed."""
    if args[0] == WORKER_FLAG:
        print(json.dumps(measure(compose(args[1:]))))
        return 0
    cases, rounds = plan(args)
    results = run_rounds(cases, rounds)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table(results, rounds))
    failures = {
        case: {entry for entry in entries if isinstance(entry, str)} for case, entries in results.items()
    }
    for (name, length), reasons in failures.items():
        for reason in reasons:
            print(f"failed: {name}, {length} tokens: {reason}", file=sys.stderr)
    return int(any(failures.values()))


def plan(args: list[str]) -> tuple[dict[BenchCase, list[str]], int]:
    """The overrides of every measurement, each checked by building its model; and how often to measure."""
    options, others = parse("bench", args, KEYS, required=["model"], pass_unknown=True, refused=REFUSED)
    cases: dict[BenchCase, list[str]] = {}
    for model in options["model"]:
        for length in options.get("lengths", [None]):
            measured = [f"model={model}", *others, *([f"data.seq_len={length}"] if length else [])]
            cfg = compose(measured)
            check(cfg)
            refuse_without_effect("bench", others, WITHOUT_EFFECT, "what is measured")
            cases[model, cfg.data.seq_len] = measured
    return cases, options.get("rounds", ROUNDS)


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


def table(results: dict[BenchCase, list[Measurement | str]], rounds: int) -> Table:
    """Medians over the rounds; for training also the range. A measurement that failed is a string."""
    measured = {
        case: [entry for entry in entries if not isinstance(entry, str)] for case, entries in results.items()
    }
    first = next((entries[0] for entries in measured.values() if entries), {})
    commit = provenance.commit()
    device = torch.cuda.get_device_name() if first.get("cuda") else f"{platform.machine()} CPU"
    output = Table(
        title=f"{device}, {first.get('threads', 0):.0f} threads, {first.get('rows', 0):.0f} rows, torch "
        f"{torch.__version__}, commit {commit[:12] + commit[40:] or 'unknown'}, medians of {rounds} rounds",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    output.add_column("model")
    for column in COLUMNS:
        output.add_column(column, justify="right")
    for (name, length), entries in measured.items():
        output.add_row(name, f"{length:,}", *(cells(entries) if entries else ["failed"]))
    return output


def cells(measurements: list[Measurement]) -> list[str]:
    """A row's cells after model and tokens."""
    median = {key: statistics.median(entry[key] for entry in measurements) for key in measurements[0]}
    speeds = [entry["train"] for entry in measurements]
    return [
        f"{median['parameters']:,.0f}",
        f"{median['train']:,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})",
        f"{median['peak'] / 2**20:,.0f}",
        f"{median['read']:,.0f}",
        f"{median['write']:,.0f}",
        f"{median['state']:,.0f} ({median['written']:,.0f})",
    ]
