"""The parallel form of an architecture against the fold of its segments: tokens per second and peak memory.

    python benchmarks/parallel.py [--rounds 7] [--threads 2]

One training step (forward and backward, no optimiser) at width 256, depth 4, window 2048, float32.  Each
measurement is a process of its own with the same allocator settings; fold and parallel form take turns, and
the ratios of each pair of turns are what the medians are of, so that a slow moment of the machine hits both.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch

from zoo.models.transformer_xl import TransformerXL
from zoo.module import SequenceModule

# glibc hands large blocks back after every use; faulting them in again is what would be measured
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
WINDOW, VOCABULARY = 2048, 257
CASES = {  # name: (segment_len, rows, the model)
    "transformer_xl, segment 64, memory 64, 1 row": (
        64,
        1,
        lambda: TransformerXL(VOCABULARY, 64, 4, 256, 4, 1024, 64),
    ),
    "transformer_xl, segment 256, memory 256, 4 rows": (
        256,
        4,
        lambda: TransformerXL(VOCABULARY, 256, 4, 256, 4, 1024, 256),
    ),
}


def step(model: SequenceModule, form: str, tokens: torch.Tensor) -> None:
    read = model.fold if form == "fold" else model.forward
    logits, _ = read(tokens, model.init_state(len(tokens)))
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    model.zero_grad(set_to_none=True)


def measure(case: str, form: str, threads: int) -> dict[str, float]:
    """In this process: median tokens per second of a few steps, and bytes of peak memory above the model's
    own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    _, rows, build = CASES[case]
    model = build()
    tokens = torch.randint(VOCABULARY, (rows, WINDOW))
    step(
        model, form, tokens[:, : 2 * model.segment_len]
    )  # libraries and thread pools are counted as the model's own
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(4):
        began = time.perf_counter()
        step(model, form, tokens)
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"tokens_per_s": tokens.numel() / statistics.median(times[1:]), "peak_bytes": peak * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--measure", nargs=2, metavar=("CASE", "FORM"), help="one measurement, in this process"
    )
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.threads)))
        return
    print(
        f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, {options.rounds} rounds"
    )
    for case in CASES:
        found: dict[str, list[dict[str, float]]] = {"fold": [], "parallel": []}
        for _ in range(options.rounds):
            for form in found:
                command = [
                    sys.executable,
                    __file__,
                    "--threads",
                    str(options.threads),
                    "--measure",
                    case,
                    form,
                ]
                said = subprocess.run(
                    command, check=True, capture_output=True, text=True, env={**os.environ, **ALLOCATOR}
                ).stdout
                found[form].append(json.loads(said))
        print(case)
        for form, rounds in found.items():
            speed = statistics.median(one["tokens_per_s"] for one in rounds)
            peak = statistics.median(one["peak_bytes"] for one in rounds)
            print(f"  {form:<9} {speed:9,.0f} tokens/s  {peak / 2**20:8.1f} MiB")
        pairs = list(zip(found["fold"], found["parallel"], strict=True))
        speed = statistics.median(two["tokens_per_s"] / one["tokens_per_s"] for one, two in pairs)
        memory = statistics.median(two["peak_bytes"] / one["peak_bytes"] for one, two in pairs)
        print(f"  parallel / fold: {speed:.2f}x the speed, {memory:.2f}x the memory")


if __name__ == "__main__":
    main()
