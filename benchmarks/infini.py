"""Infini-attention's parallel form against the fold of its segments, and against a transformer that forgets.

    python benchmarks/infini.py [--rounds 7] [--threads 2] [--only delta]

One training step (forward and backward, no optimiser) at width 256, depth 4, 4 heads of 64, hidden 704,
window 2048, float32.  Each measurement is a process of its own with the same allocator settings; all forms
take turns, and the ratios of each round's turns are what the medians are of, so that a slow moment of the
machine hits all.  The transformer reads the same segments, each alone, all of them in one batch.
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
from typing import Literal

import torch

from zoo.models.infini import Infini
from zoo.models.transformer import Transformer
from zoo.module import SequenceModule

# glibc hands large blocks back after every use; faulting them in again is what would be measured
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
WINDOW, VOCABULARY, DEPTH, WIDTH, HEADS, HIDDEN = 2048, 257, 4, 256, 4, 704
CASES: dict[str, tuple[Literal["linear", "delta"], int, int]] = {  # name: (rule, segment_len, rows)
    f"{rule}, segment {segment_len}, {rows} row{'s' * (rows > 1)}": (rule, segment_len, rows)
    for segment_len, rows in ((64, 1), (256, 4))
    for rule in ("linear", "delta")
}
FORMS = ("fold", "parallel", "forgetting")


def build(case: str, form: str) -> SequenceModule:
    rule, segment_len, _ = CASES[case]
    shape = VOCABULARY, segment_len, DEPTH, WIDTH, HEADS, HIDDEN
    return Transformer(*shape) if form == "forgetting" else Infini(*shape, rule=rule)


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
    model = build(case, form)
    tokens = torch.randint(VOCABULARY, (CASES[case][2], WINDOW))
    step(model, form, tokens[:, : 2 * model.segment_len])  # libraries are counted as the model's own
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(4):
        began = time.perf_counter()
        step(model, form, tokens)
        times.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"tokens_per_s": tokens.numel() / statistics.median(times[1:]), "peak_bytes": peak * 1024}


def apart(case: str, form: str, threads: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads), "--measure", case, form]
    environment = {**os.environ, **ALLOCATOR}
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    found: dict[str, float] = json.loads(said)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument(
        "--measure", nargs=2, metavar=("CASE", "FORM"), help="one measurement, in this process"
    )
    options = parser.parse_args()
    if options.measure:
        case, form = options.measure
        print(json.dumps(measure(case, form, options.threads)))
        return
    print(
        f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, {options.rounds} rounds"
    )
    for case in (name for name in CASES if options.only in name):
        rounds = [{form: apart(case, form, options.threads) for form in FORMS} for _ in range(options.rounds)]
        print(case)
        for form in FORMS:
            speed = statistics.median(one[form]["tokens_per_s"] for one in rounds)
            peak = statistics.median(one[form]["peak_bytes"] for one in rounds)
            print(f"  {form:<10} {speed:9,.0f} tokens/s  {peak / 2**20:8.1f} MiB")
        for form in ("fold", "forgetting"):
            speed, memory = (
                statistics.median(one["parallel"][what] / one[form][what] for one in rounds)
                for what in ("tokens_per_s", "peak_bytes")
            )
            print(f"  parallel / {form}: {speed:.2f}x the speed, {memory:.2f}x the memory")


if __name__ == "__main__":
    main()
