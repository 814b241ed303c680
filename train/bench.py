"""`zoo bench model=a,b size=micro [lengths=128,1024] [key=value …]`: speed and memory of models side by side.

    model=      one or several, with commas between
    size=       nano, micro (default), tiny, small, base
    lengths=    tokens per row and training step, multiples of segment_len (default: the size's window)
    rounds=     how often each is measured (default 3)
    …           everything else goes to every model: data.rows=4 trainer.precision=bf16-mixed

Every measurement is a process of its own; models and lengths take turns in each round, so that a slow moment
of the machine hits all of them alike, and the table says medians over the rounds:

    train       tokens per second of a whole training step: forward, backward, clipping, AdamW
    peak        memory of training above what the libraries take: of the GPU, or else of the process
    read        tokens per second without gradient, state carried on
    write       tokens per second generated, all rows together, state carried on
    state       bytes carried per row; in brackets, how many of them a segment writes anew

Tokens are random: nothing is learned, and no corpus is needed.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.console import Console
from rich.table import Table

from zoo.errors import UserError
from zoo.generate import generate
from zoo.module import Batch, SequenceModule
from zoo.state import State, leaves, nbytes
from zoo.train import build, loop
from zoo.train.cli import one_line, stop, words_or_help
from zoo.train.metrics import Peak

OWN = {"lengths": "", "rounds": "3"}
REFUSED = ("run_dir", "resume", "steps", "data.window")
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16}
ONE = "--one"  # the word before those of a single measurement
SECONDS = 1.0  # that each speed is measured for, and at least LEAST times
LEAST = 3
COLUMNS = ("tokens", "parameters", "train tok/s", "peak MiB", "read tok/s", "write tok/s", "state bytes")
# glibc hands large blocks back after every use; faulting them in again is what would be measured
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}

Found = dict[str, float]


def main() -> None:
    """Exit code 0, 1 where a measurement failed, 2 for a slip of the user's."""
    words = words_or_help(__doc__)
    try:
        if words[0] == ONE:
            print(json.dumps(measure(build.compose(words[1:]))))
            return
        cases, rounds = plan(words)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    try:
        found = bench(cases, rounds)
    except KeyboardInterrupt:
        stop("interrupted", 130)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table(found, rounds))
    for (name, length), results in found.items():
        for why in {result for result in results if isinstance(result, str)}:
            print(f"failed: {name}, {length} tokens: {why}", file=sys.stderr)
    sys.exit(1 if any(isinstance(one, str) for results in found.values() for one in results) else 0)


# -- what was asked

Case = tuple[str, int]  # a model's name and the tokens per row and step


def plan(words: list[str]) -> tuple[dict[Case, list[str]], int]:
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
    cases: dict[Case, list[str]] = {}
    for model in models:
        lengths = [f"data.window={length}" for length in whole("lengths", given["lengths"])]
        for window in ([length] for length in lengths) if lengths else [[]]:
            asked = [f"model={model}", *others, *window]
            cfg = build.compose(asked)
            check(cfg)
            cases[model, cfg.data.window] = asked
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
    loop.check(cfg)
    if cfg.trainer.precision not in PRECISIONS:
        raise UserError(
            f"bench: trainer.precision: expected {' or '.join(PRECISIONS)}, found {cfg.trainer.precision}"
        )
    device_of(cfg)
    with torch.device("meta"):
        segment_len = build.model(cfg).segment_len
    if cfg.data.window % segment_len:
        raise UserError(
            f"bench: lengths: expected multiples of segment_len={segment_len}, found {cfg.data.window}"
        )


def device_of(cfg: DictConfig) -> torch.device:
    asked, there = cfg.trainer.accelerator, torch.cuda.is_available()
    if asked in ("gpu", "cuda") and not there:
        raise UserError(f"bench: trainer.accelerator={asked}: found no CUDA device")
    if asked not in ("auto", "cpu", "gpu", "cuda"):
        raise UserError(f"bench: trainer.accelerator: expected auto, cpu or gpu, found {asked}")
    return torch.device("cuda" if there and asked != "cpu" else "cpu")


# -- all measurements


def bench(cases: dict[Case, list[str]], rounds: int) -> dict[Case, list[Found | str]]:
    """What every process found, or the last line of one that failed."""
    found: dict[Case, list[Found | str]] = {case: [] for case in cases}
    for number in range(rounds):
        for case, words in cases.items():
            found[case].append(result := alone(words))
            said = result if isinstance(result, str) else f"{result['train']:,.0f} tokens/s"
            print(f"round {number + 1}/{rounds}: {case[0]}, {case[1]} tokens: {said}", file=sys.stderr)
    return found


def alone(words: list[str]) -> Found | str:
    """One measurement, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "bench", ONE, *words],
        env={**os.environ, **ALLOCATOR},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return lines[-1].removeprefix("error: ")
    result: Found = json.loads(done.stdout.splitlines()[-1])
    return result


def table(found: dict[Case, list[Found | str]], rounds: int) -> Table:
    """Medians; of training the range over the rounds too."""
    good = {case: [one for one in results if not isinstance(one, str)] for case, results in found.items()}
    first = next((results[0] for results in good.values() if results), {})
    commit = loop.commit()
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


# -- one measurement


def measure(cfg: DictConfig) -> Found:
    """Speeds, peak memory and bytes of state of the model that a configuration names, in this process."""
    torch.manual_seed(cfg.seed)
    device = device_of(cfg)
    torch.nn.functional.linear(torch.ones(64, 64, requires_grad=True), torch.ones(64, 64)).sum().backward()
    peak = Peak(device)
    model = build.model(cfg).to(device)
    model.optim = loop.optim(cfg)
    model.set_progress(0, cfg.steps)
    if cfg.trainer.compile:
        model.compile()
    shape = (cfg.data.rows, cfg.data.window)
    tokens, targets = (torch.randint(cfg.task.vocab_size, shape, device=device) for _ in range(2))
    batch = Batch(tokens, targets, torch.zeros(len(tokens), dtype=torch.bool, device=device))
    dtype = PRECISIONS[cfg.trainer.precision]
    mixed = contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)
    with mixed:
        train = speed(training(model.train(), batch, cfg.optim.clip), tokens.numel(), device)
        above = peak.above()
        model.eval()
        with torch.inference_mode():
            read = speed(reading(model, tokens), tokens.numel(), device)
            write = speed(writing(model, tokens), len(tokens), device)
            held, written = state_of(model, tokens)
    return {
        "train": train,
        "peak": above,
        "read": read,
        "write": write,
        "state": held,
        "written": written,
        "parameters": model.count_parameters(),
        "rows": len(tokens),
        "threads": torch.get_num_threads(),
        "cuda": float(device.type == "cuda"),
    }


def speed(again: Callable[[], object], tokens: int, device: torch.device) -> float:
    """Tokens per second, by the median of several runs behind a first one that isn't counted."""
    again()
    times: list[float] = []
    while len(times) < LEAST or sum(times) < SECONDS:
        began = time.perf_counter()
        again()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return tokens / statistics.median(times)


def training(model: SequenceModule, batch: Batch, clip: float) -> Callable[[], object]:
    """Whole steps, the state carried on from one to the next."""
    optimizer: torch.optim.Optimizer = model.configure_optimizers()["optimizer"]
    carried: State | None = None

    def step() -> None:
        nonlocal carried
        said, carried = model.read(batch, carried)
        said["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def reading(model: SequenceModule, tokens: torch.Tensor) -> Callable[[], object]:
    state: State | None = None

    def step() -> None:
        nonlocal state
        _, state = model(tokens, state)

    return step


def writing(model: SequenceModule, tokens: torch.Tensor) -> Callable[[], object]:
    """One token a time, behind a window of text."""
    stream: Iterator[Any] = generate(model, tokens)
    return lambda: next(stream)


def state_of(model: SequenceModule, tokens: torch.Tensor) -> tuple[float, float]:
    """Bytes of state per row, and how many of them the next segment writes: tensors that are not the old
    ones."""
    _, before = model(tokens)
    _, after = model(tokens[:, : model.segment_len], before)
    old = {leaf.data_ptr() for leaf in leaves(before)}
    written = sum(leaf.nbytes for leaf in leaves(after) if leaf.data_ptr() not in old)
    return nbytes(after) / len(tokens), written / len(tokens)
