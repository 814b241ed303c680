"""All segments of a window at once, against their fold, one after another: tokens per second and peak memory.

    python benchmarks/parallel.py [--rounds 7] [--threads 2] [--only infini]

One training step (forward and backward, no optimiser) at width 256, depth 4, 4 heads of 64, window 2048,
float32.  Each measurement is a process of its own with the same allocator settings; the forms take turns, and
the ratios of each round's turns are what the medians are of, so that a slow moment of the machine hits all.

`forgetting` is a transformer of the same shape that reads the same segments each alone, all in one batch.
`package` is infini-transformer-pytorch with the same rule, heads and hidden width (its output weights are not
tied), gradients through the whole window as here.  It is no dependency, and measured where it can
be imported:

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

# glibc hands large blocks back after every use; faulting them in again is what would be measured
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
WINDOW, VOCABULARY, DEPTH, WIDTH, HEADS = 2048, 257, 4, 256, 4
HIDDEN = WIDTH * 8 // 3  # what the package makes of a multiple of 4
PACKAGE = "infini_transformer_pytorch"


class Case(NamedTuple):
    build: Callable[..., SequenceModule]  # of the shape
    segment_len: int
    rows: int
    package: dict[str, Any] | None = None  # what the package is told, where it has the model

    @property
    def shape(self) -> tuple[int, ...]:
        return VOCABULARY, self.segment_len, DEPTH, WIDTH, HEADS, HIDDEN

    @property
    def forms(self) -> list[str]:
        there = self.package is not None and importlib.util.find_spec(PACKAGE) is not None
        return ["fold", "parallel", "forgetting", *(["package"] if there else [])]


CASES = {
    f"{name}, segment {segment_len}, {rows} row{'s' * (rows > 1)}": Case(build, segment_len, rows, package)
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


def packaged(case: Case) -> nn.Module:
    made: nn.Module = importlib.import_module(PACKAGE).InfiniTransformer(
        num_tokens=VOCABULARY,
        dim=WIDTH,
        depth=DEPTH,
        dim_head=WIDTH // HEADS,
        heads=HEADS,
        **(case.package or {}),
    )
    return made


def reader(case: Case, form: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A model, and what makes logits of a window with it."""
    if form == "package":
        theirs = packaged(case)

        def in_turn(tokens: Tensor) -> Tensor:
            said, memories = [], None
            for segment in tokens.split(case.segment_len, dim=1):
                logits, _, memories = theirs(segment, past_memories=memories, return_new_memories=True)
                said.append(logits)
            return torch.cat(said, dim=1)

        return theirs, in_turn
    ours = Transformer(*case.shape) if form == "forgetting" else case.build(*case.shape)
    read = ours.fold if form == "fold" else ours.forward
    return ours, lambda tokens: read(tokens, ours.init_state(len(tokens)))[0]


def step(model: nn.Module, read: Callable[[Tensor], Tensor], tokens: Tensor) -> None:
    logits = read(tokens)
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    model.zero_grad(set_to_none=True)


def measure(case: Case, form: str, threads: int) -> dict[str, float]:
    """In this process: median tokens per second of a few steps, and bytes of peak memory above the model's
    own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, read = reader(case, form)
    tokens = torch.randint(VOCABULARY, (case.rows, WINDOW))
    step(model, read, tokens[:, : 2 * case.segment_len])  # libraries are counted as the model's own
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(4):
        began = time.perf_counter()
        step(model, read, tokens)
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "tokens_per_s": tokens.numel() / statistics.median(times[1:]),
        "peak_bytes": peak * 1024,
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


def apart(case: str, form: str, threads: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads), "--measure", case, form]
    environment = {**os.environ, **ALLOCATOR}
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    found: dict[str, float] = json.loads(said)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="cases whose name has this in it")
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
        rounds = [{form: apart(name, form, options.threads) for form in forms} for _ in range(options.rounds)]
        print(name)
        for form in forms:
            speed, peak = (
                statistics.median(one[form][what] for one in rounds)
                for what in ("tokens_per_s", "peak_bytes")
            )
            parameters = int(rounds[0][form]["parameters"])
            print(f"  {form:<10} {speed:9,.0f} tokens/s  {peak / 2**20:8.1f} MiB  {parameters:,} parameters")
        for form in (form for form in forms if form != "parallel"):
            speed, memory = (
                statistics.median(one["parallel"][what] / one[form][what] for one in rounds)
                for what in ("tokens_per_s", "peak_bytes")
            )
            print(f"  parallel / {form}: {speed:.2f}x the speed, {memory:.2f}x the memory", flush=True)


if __name__ == "__main__":
    main()
