"""All segments of a window at once, against their fold, one after another: tokens per second and peak memory.

    python benchmarks/parallel.py [--rounds 7] [--threads 2] [--only infini]

One training step (forward and backward, no optimiser) at width 256, depth 4, 4 heads of 64, window 2048,
float32.  Each measurement is a separate process with the same allocator settings; the forms alternate, and
ratios are medians over the rounds' ratios, so that a slow moment of the machine hits all.

`forgetting` is a transformer of the same shape that reads each segment alone, all in one batch.
`package` is infini-transformer-pytorch with the same rule, heads and hidden width (its output weights are not
tied), with gradients through all of the window as here.  It is no dependency, and measured if installed:

    pip install --target DIR --no-deps infini-transformer-pytorch rotary-embedding-torch tqdm
    PYTHONPATH=DIR python benchmarks/parallel.py --only infini
"""

import argparse
import importlib
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.models.infini import Infini
from zoo.models.landmark import Landmark
from zoo.models.transformer import Transformer
from zoo.models.transformer_xl import TransformerXL
from zoo.module import SequenceModule

# glibc frees large blocks after every use; page faults would dominate the measurement
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
WINDOW, VOCABULARY, DEPTH, WIDTH, HEADS = 2048, 257, 4, 256, 4
HIDDEN = WIDTH * 8 // 3  # the package's hidden width, for multiples of 4
PACKAGE = "infini_transformer_pytorch"


class Case(NamedTuple):
    build: Callable[..., SequenceModule]  # of the shape
    segment_len: int
    rows: int
    package: dict[str, Any] | None = None  # the package's options, if it has the model

    @property
    def shape(self) -> tuple[int, ...]:
        return VOCABULARY, self.segment_len, DEPTH, WIDTH, HEADS, HIDDEN

    @property
    def forms(self) -> list[str]:
        forms = ["fold", "parallel", "forgetting"]
        installed = importlib.util.find_spec(PACKAGE) is not None
        return [*forms, "package"] if self.package is not None and installed else forms


CASES = {
    f"{name}, segment {segment_len}, {rows} {'row' if rows == 1 else 'rows'}": Case(
        build, segment_len, rows, package
    )
    for name, sizes, build, package in (
        ("transformer_xl, memory 64", [(64, 1)], partial(TransformerXL, memory_len=64), None),
        ("transformer_xl, memory 256", [(256, 4)], partial(TransformerXL, memory_len=256), None),
        ("infini, linear", [(64, 1), (256, 2)], partial(Infini, rule="linear"), {}),
        ("infini, delta", [(64, 1), (256, 2)], partial(Infini, rule="delta"), {"use_mem_delta_rule": True}),
        (
            "landmark, every 16",
            [(64, 1), (256, 2)],
            partial(Landmark, mem_freq=16, capacity=WINDOW, topk=4),
            None,
        ),
    )
    for segment_len, rows in sizes
}


def package_model(case: Case) -> nn.Module:
    model: nn.Module = importlib.import_module(PACKAGE).InfiniTransformer(
        num_tokens=VOCABULARY,
        dim=WIDTH,
        depth=DEPTH,
        dim_head=WIDTH // HEADS,
        heads=HEADS,
        **(case.package or {}),
    )
    return model


def reader(case: Case, form: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A model, and its function from a window's tokens to logits."""
    if form == "package":
        package = package_model(case)

        def read_segments(tokens: Tensor) -> Tensor:
            outputs, memories = [], None
            for segment in tokens.split(case.segment_len, dim=1):
                logits, _, memories = package(segment, past_memories=memories, return_new_memories=True)
                outputs.append(logits)
            return torch.cat(outputs, dim=1)

        return package, read_segments
    model = Transformer(*case.shape) if form == "forgetting" else case.build(*case.shape)
    read = model.fold if form == "fold" else model.forward
    return model, lambda tokens: read(tokens, model.init_state(len(tokens)))[0]


def step(model: nn.Module, read: Callable[[Tensor], Tensor], tokens: Tensor) -> None:
    logits = read(tokens)
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    model.zero_grad(set_to_none=True)


def measure(case: Case, form: str, threads: int) -> dict[str, float]:
    """In this process: median tokens per second of a few steps, and bytes of peak memory beyond the model."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, read = reader(case, form)
    tokens = torch.randint(VOCABULARY, (case.rows, WINDOW))
    step(model, read, tokens[:, : 2 * case.segment_len])  # libraries are counted with the model
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(4):
        start = time.perf_counter()
        step(model, read, tokens)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "tokens_per_s": tokens.numel() / statistics.median(times[1:]),
        "peak_bytes": peak * 1024,
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


def measure_in_subprocess(case: str, form: str, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--threads", str(threads), "--measure", case, form]
    environment = {**os.environ, **ALLOCATOR}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    measured: dict[str, float] = json.loads(output)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument(
        "--measure", nargs=2, metavar=("CASE", "FORM"), help="one measurement, in this process"
    )
    options = parser.parse_args()
    if options.measure:
        case, form = options.measure
        print(json.dumps(measure(CASES[case], form, options.threads)))
        return
    print(
        f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, {options.rounds} rounds"
    )
    for name in (name for name in CASES if options.only in name):
        forms = CASES[name].forms
        rounds = [
            {form: measure_in_subprocess(name, form, options.threads) for form in forms}
            for _ in range(options.rounds)
        ]
        print(name)
        for form in forms:
            speed, peak = (
                statistics.median(measured[form][key] for measured in rounds)
                for key in ("tokens_per_s", "peak_bytes")
            )
            parameters = int(rounds[0][form]["parameters"])
            print(f"  {form:<10} {speed:9,.0f} tokens/s  {peak / 2**20:8.1f} MiB  {parameters:,} parameters")
        for form in (form for form in forms if form != "parallel"):
            speed, memory = (
                statistics.median(measured["parallel"][key] / measured[form][key] for measured in rounds)
                for key in ("tokens_per_s", "peak_bytes")
            )
            print(f"  parallel / {form}: {speed:.2f}x the speed, {memory:.2f}x the memory", flush=True)


if __name__ == "__main__":
    main()
