"""Speed and memory of one model, measured in a process of its own."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.generate import generate
from zoo.module import Batch, SequenceModule
from zoo.state import State, leaves, nbytes
from zoo.train.runs import build
from zoo.train.runs.resources import Peak

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16}
WORKER_FLAG = "--one"  # the word before those of a single measurement
MIN_SECONDS = 1.0  # that each speed is measured for, and at least MIN_REPEATS times
MIN_REPEATS = 3
# glibc hands large blocks back after every use; faulting them in again is what would be measured
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
Measurement = dict[str, float]
# -- what was asked
BenchCase = tuple[str, int]  # a model's name and the tokens per row and step


def select_device(cfg: DictConfig) -> torch.device:
    asked, there = cfg.trainer.accelerator, torch.cuda.is_available()
    if asked in ("gpu", "cuda") and not there:
        raise UserError(f"bench: trainer.accelerator={asked}: found no CUDA device")
    if asked not in ("auto", "cpu", "gpu", "cuda"):
        raise UserError(f"bench: trainer.accelerator: expected auto, cpu or gpu, found {asked}")
    return torch.device("cuda" if there and asked != "cpu" else "cpu")


# -- all measurements
def run_rounds(cases: dict[BenchCase, list[str]], rounds: int) -> dict[BenchCase, list[Measurement | str]]:
    """What every process found, or the last line of one that failed."""
    found: dict[BenchCase, list[Measurement | str]] = {case: [] for case in cases}
    for number in range(rounds):
        for case, words in cases.items():
            found[case].append(result := measure_in_subprocess(words))
            said = result if isinstance(result, str) else f"{result['train']:,.0f} tokens/s"
            print(f"round {number + 1}/{rounds}: {case[0]}, {case[1]} tokens: {said}", file=sys.stderr)
    return found


def measure_in_subprocess(words: list[str]) -> Measurement | str:
    """One measurement, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "bench", WORKER_FLAG, *words],
        env={**os.environ, **ALLOCATOR},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return lines[-1].removeprefix("error: ")
    result: Measurement = json.loads(done.stdout.splitlines()[-1])
    return result


# -- one measurement
def measure(cfg: DictConfig) -> Measurement:
    """Speeds, peak memory and bytes of state of the model that a configuration names, in this process."""
    torch.manual_seed(cfg.seed)
    device = select_device(cfg)
    torch.nn.functional.linear(torch.ones(64, 64, requires_grad=True), torch.ones(64, 64)).sum().backward()
    peak = Peak(device)
    model = build.model(cfg).to(device)
    model.optim = build.optim(cfg)
    model.set_progress(0, cfg.steps)
    if cfg.trainer.compile:
        model.compile()
    shape = (cfg.data.batch_size, cfg.data.seq_len)
    tokens, targets = (torch.randint(cfg.task.vocab_size, shape, device=device) for _ in range(2))
    batch = Batch(tokens, targets, torch.zeros(len(tokens), dtype=torch.bool, device=device))
    dtype = PRECISIONS[cfg.trainer.precision]
    mixed = contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)
    with mixed:
        train = tokens_per_second(train_step(model.train(), batch, cfg.optim.clip), tokens.numel(), device)
        above = peak.above()
        model.eval()
        with torch.inference_mode():
            read = tokens_per_second(forward_step(model, tokens), tokens.numel(), device)
            write = tokens_per_second(decode_step(model, tokens), len(tokens), device)
            held, written = state_bytes(model, tokens)
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


def tokens_per_second(again: Callable[[], object], tokens: int, device: torch.device) -> float:
    """Tokens per second, by the median of several runs behind a first one that isn't counted."""
    again()
    times: list[float] = []
    while len(times) < MIN_REPEATS or sum(times) < MIN_SECONDS:
        began = time.perf_counter()
        again()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return tokens / statistics.median(times)


def train_step(model: SequenceModule, batch: Batch, clip: float) -> Callable[[], object]:
    """Whole steps, the state carried on from one to the next."""
    optimizer: torch.optim.Optimizer = model.configure_optimizers()["optimizer"]
    carried: State | None = None

    def step() -> None:
        nonlocal carried
        said, carried = model.compute_loss(batch, carried)
        said["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def forward_step(model: SequenceModule, tokens: torch.Tensor) -> Callable[[], object]:
    state: State | None = None

    def step() -> None:
        nonlocal state
        _, state = model(tokens, state)

    return step


def decode_step(model: SequenceModule, tokens: torch.Tensor) -> Callable[[], object]:
    """One token a time, behind a window of text."""
    stream: Iterator[Any] = generate(model, tokens)
    return lambda: next(stream)


def state_bytes(model: SequenceModule, tokens: torch.Tensor) -> tuple[float, float]:
    """Bytes of state per row, and how many of them the next segment writes: tensors that are not the old
    ones."""
    _, before = model(tokens)
    _, after = model(tokens[:, : model.segment_len], before)
    old = {leaf.data_ptr() for leaf in leaves(before)}
    written = sum(leaf.nbytes for leaf in leaves(after) if leaf.data_ptr() not in old)
    return nbytes(after) / len(tokens), written / len(tokens)
