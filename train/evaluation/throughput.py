"""Speed and memory of one model, each measurement in a separate process."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.generation import stream_tokens
from zoo.host import known_lengths
from zoo.module import Batch, SequenceModule
from zoo.state import State, leaves, nbytes
from zoo.train.evaluation.flops import count_flops, product_rate
from zoo.train.runs import build
from zoo.train.runs.precision import ForwardContext, make_precision
from zoo.train.runs.resources import PeakMemory

PRECISIONS = ("32-true", "bf16-mixed")
WORKER_FLAG = "--one"
"""First argument of the command line of a process that makes one measurement."""
MIN_SECONDS, MIN_REPEATS = 1.0, 3  # of every speed
# glibc returns large blocks after every use, and faulting them in again would be measured
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
Measurement = dict[str, float]
BenchCase = tuple[str, int]
"""A model's name and the tokens per row and step."""


def run_rounds(cases: dict[BenchCase, list[str]], rounds: int) -> dict[BenchCase, list[Measurement | str]]:
    """Measures every case once a round; the last line of stderr stands for a process that failed."""
    results: dict[BenchCase, list[Measurement | str]] = {case: [] for case in cases}
    for i in range(rounds):
        for case, overrides in cases.items():
            result = measure_in_subprocess(overrides)
            results[case].append(result)
            outcome = result if isinstance(result, str) else f"{result['train']:,.0f} tokens/s"
            print(f"round {i + 1}/{rounds}: {case[0]}, {case[1]} tokens: {outcome}", file=sys.stderr)
    return results


def measure_in_subprocess(overrides: list[str]) -> Measurement | str:
    process = subprocess.run(
        [sys.executable, "-m", "zoo", "bench", WORKER_FLAG, *overrides],
        env={**os.environ, **ALLOCATOR},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        return lines[-1].removeprefix("error: ")
    measurement: Measurement = json.loads(process.stdout.splitlines()[-1])
    return measurement


def select_device(cfg: DictConfig) -> torch.device:
    accelerator, has_cuda = cfg.trainer.accelerator, torch.cuda.is_available()
    if accelerator in ("gpu", "cuda") and not has_cuda:
        raise UserError(f"bench: trainer.accelerator={accelerator}: found no CUDA device")
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise UserError(f"bench: trainer.accelerator: expected auto, cpu or gpu, found {accelerator}")
    return torch.device("cuda" if has_cuda and accelerator != "cpu" else "cpu")


# -- one measurement


class Training(NamedTuple):
    """A training step that was measured, and what is needed to measure more."""

    model: SequenceModule
    step: Callable[[], object]
    tokens: torch.Tensor
    context: ForwardContext
    measurement: Measurement


def measure(cfg: DictConfig) -> Measurement:
    """Speeds, peak memory, operations and bytes of state of a configured model, in this process."""
    device = select_device(cfg)
    model, step, tokens, context, measurement = measure_training(cfg)
    with torch.compiler.set_stance("force_eager"):  # operations inside a compiled graph are not seen
        flops = count_flops(step)
    model.eval()
    with torch.inference_mode():
        read = tokens.numel() / seconds_per_step(forward_step(model, tokens, context), device)
        write = len(tokens) / seconds_per_step(decode_step(model, tokens, context), device)
        with context():
            state, written = state_bytes(model, tokens)
        dtype = torch.bfloat16 if cfg.trainer.precision == "bf16-mixed" else torch.float32
        limit = product_rate(device, dtype, lambda product: seconds_per_step(product, device))
    return measurement | {
        "products": flops.products / tokens.numel(),
        "elementwise": flops.elementwise / tokens.numel(),
        "product_rate": limit,
        "read": read,
        "write": write,
        "state": state,
        "written": written,
    }


def measure_training(cfg: DictConfig) -> Training:
    """Speed and peak memory of a training step of a configured model."""
    device = select_device(cfg)
    peak = start_measuring(cfg.seed, device)
    model = build.model(cfg).to(device)
    model.optim = build.optim(cfg)
    model.set_progress(0, cfg.steps)
    if cfg.trainer.compile:
        model.compile()
    tokens, targets = random_window(cfg, device)
    batch = Batch(tokens, targets, torch.zeros(len(tokens), dtype=torch.bool))
    context = make_precision(cfg.trainer.precision, device).forward_context
    step = train_step(model.train(), batch, cfg.optim.clip, context)
    measurement = time_training(step, tokens, peak, model.count_parameters())
    return Training(model, step, tokens, context, measurement)


def start_measuring(seed: int, device: torch.device) -> PeakMemory:
    """Seeds, and returns the memory in use after the libraries have allocated theirs."""
    torch.manual_seed(seed)
    torch.nn.functional.linear(torch.ones(64, 64, requires_grad=True), torch.ones(64, 64)).sum().backward()
    return PeakMemory(device)


def random_window(cfg: DictConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets of a training step."""
    shape = (cfg.data.batch_size, cfg.data.seq_len)
    tokens, targets = (torch.randint(cfg.task.vocab_size, shape, device=device) for _ in range(2))
    return tokens, targets


def time_training(
    step: Callable[[], object], tokens: torch.Tensor, peak: PeakMemory, parameters: int
) -> Measurement:
    return {
        "train": tokens.numel() / seconds_per_step(step, tokens.device),
        "peak": peak.above(),
        "parameters": parameters,
        "rows": len(tokens),
        "threads": torch.get_num_threads(),
        "cuda": float(tokens.device.type == "cuda"),
    }


def seconds_per_step(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of a step: the median over repeats after one that isn't counted."""
    step()
    times: list[float] = []
    while len(times) < MIN_REPEATS or sum(times) < MIN_SECONDS:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def train_step(
    model: SequenceModule, batch: Batch, clip: float, context: ForwardContext
) -> Callable[[], object]:
    """A complete training step, with the state carried from one to the next."""
    optimizer: torch.optim.Optimizer = model.configure_optimizers()["optimizer"]
    state: State | None = None
    read = 0  # tokens of each row; as the loader does, the step states them, and nothing asks the device

    def step() -> None:
        nonlocal state, read
        with context():
            outputs, state = model.compute_loss(batch._replace(lengths=(read,) * len(batch.tokens)), state)
        read += batch.tokens.shape[1]
        outputs["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def forward_step(
    model: SequenceModule, tokens: torch.Tensor, context: ForwardContext
) -> Callable[[], object]:
    state: State | None = None
    read = 0

    def step() -> None:
        nonlocal state, read
        with context(), known_lengths((read,) * len(tokens), tokens.shape[1]):
            _, state = model(tokens, state)
        read += tokens.shape[1]

    return step


def decode_step(model: SequenceModule, tokens: torch.Tensor, context: ForwardContext) -> Callable[[], object]:
    """One token per row, after a window of text."""
    stream: Iterator[Any] = stream_tokens(model, tokens)

    def step() -> None:
        with context():
            next(stream)

    return step


def state_bytes(model: SequenceModule, tokens: torch.Tensor) -> tuple[float, float]:
    """Bytes of state per row, and those in tensors that the next segment replaces."""
    _, before = model(tokens)
    _, after = model(tokens[:, : model.segment_len], before)
    pointers = {leaf.data_ptr() for leaf in leaves(before)}
    written = sum(leaf.nbytes for leaf in leaves(after) if leaf.data_ptr() not in pointers)
    return nbytes(after) / len(tokens), written / len(tokens)
