"""State-space models side by side: ours, token by token, `mambapy`, and `transformers` without kernels.

    python benchmarks/scan.py [--rounds 5] [--threads 2] [--only mamba] [--flat]
    (pip install -c constraints/cpu.txt mambapy transformers)

One training step (forward and backward, no optimiser) at width 256, depth 4, inner width 512, 16 states
(Mamba-2: 64, heads of 64, chunks of 64), 1 row, float32.  Each measurement is a process of its own; in each
round all implementations take turns, and ratios are medians over the rounds' pairs, so that a slow moment of
the machine hits both.  transformers' Mamba goes back in quadratic time: 128 tokens are all it is given.
Megalodon: one head of 64 (keys) and 512 (values), chunks of 128, against its moving average token by token.
Freed memory stays with the process on all sides (see ALLOCATOR): handing it back costs them unequally.
`--flat` measures ours alone, at lengths from 2048 to 32768: time per token, against that at 2048.
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
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH, DEPTH, CHANNELS = 257, 256, 4, 512
LENGTHS, LONG = (512, 2048, 8192), (2048, 4096, 8192, 16384, 32768)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
SECONDS = 6.0  # of steps per measurement, but at least one step after the first

Read = Callable[[Tensor], Tensor]  # tokens -> logits


def ours(name: str, **shape: Any) -> Read:
    import importlib

    made = getattr(importlib.import_module(f"zoo.models.{name}"), name.capitalize())
    model = made(VOCABULARY, 512, DEPTH, WIDTH, **shape)
    return lambda tokens: model(tokens)[0]


def mamba() -> Read:
    return ours("mamba", channels=CHANNELS)


def mamba_loop() -> Read:
    """The same model, token by token."""
    from zoo.memory.state_space import mamba_mixer as room
    from zoo.memory.state_space.inputs import ScanInputs
    from zoo.memory.state_space.selective_scan import selective_scan_loop

    def loop(inputs: ScanInputs, *, backend: str) -> tuple[Tensor, Tensor]:
        return selective_scan_loop(inputs)

    room.selective_scan = loop  # type: ignore[assignment]
    return mamba()


def mambapy() -> Read:
    from mambapy.mamba import Mamba, MambaConfig

    body = Mamba(MambaConfig(d_model=WIDTH, n_layers=DEPTH, d_state=16))
    embed, norm = nn.Embedding(VOCABULARY, WIDTH), nn.RMSNorm(WIDTH)
    return lambda tokens: norm(body(embed(tokens))) @ embed.weight.T


def transformers_mamba() -> Read:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=DEPTH, state_size=16)
    model = MambaForCausalLM(config)
    return lambda tokens: model(tokens, use_cache=False).logits


def mamba2() -> Read:
    return ours("mamba2", all_heads=DEPTH * CHANNELS // 64, state_size=64)


def mamba2_loop() -> Read:
    """The same model, token by token."""
    from zoo.memory.state_space import mamba2_mixer as room
    from zoo.memory.state_space.inputs import SSDInputs
    from zoo.memory.state_space.ssd import ssd_loop

    def loop(inputs: SSDInputs, *, backend: str, chunk_size: int) -> tuple[Tensor, Tensor]:
        return ssd_loop(inputs)

    room.ssd = loop  # type: ignore[assignment]
    return mamba2()


def transformers_mamba2() -> Read:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        state_size=64,
        num_heads=CHANNELS // 64,
        head_dim=64,
        n_groups=1,
        chunk_size=64,
        tie_word_embeddings=True,
    )
    model = Mamba2ForCausalLM(config)
    return lambda tokens: model(tokens, use_cache=False).logits


def megalodon() -> Read:
    shape = {"key_width": 64, "value_width": CHANNELS, "mlp_width": 512, "chunk_size": 128, "norm_groups": 8}
    return ours("megalodon", heads=1, state_size=16, **shape)


def megalodon_loop() -> Read:
    """The same model, its moving average token by token."""
    from zoo.memory.state_space import complex_ema as room

    room.ema = room.ema_loop
    return megalodon()


# architecture: {implementation: (how it is built, the lengths it is measured at)}; ours comes first
ARCHITECTURES: dict[str, dict[str, tuple[Callable[[], Read], tuple[int, ...]]]] = {
    "mamba": {
        "ours": (mamba, (128, *LENGTHS)),
        "loop": (mamba_loop, LENGTHS),
        "mambapy": (mambapy, LENGTHS),
        "transformers": (transformers_mamba, (128,)),
    },
    "mamba2": {
        "ours": (mamba2, LENGTHS),
        "loop": (mamba2_loop, LENGTHS),
        "transformers": (transformers_mamba2, LENGTHS),
    },
    "megalodon": {"ours": (megalodon, LENGTHS), "loop": (megalodon_loop, LENGTHS)},
}


def measure(architecture: str, implementation: str, length: int, threads: int) -> dict[str, float]:
    """In this process: median seconds of a few steps, and bytes of peak memory above what a short step
    needed."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    read = ARCHITECTURES[architecture][implementation][0]()
    tokens = torch.randint(VOCABULARY, (1, length + 1))

    def step(tokens: Tensor) -> float:
        began = time.perf_counter()
        F.cross_entropy(read(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        return time.perf_counter() - began

    step(tokens[:, :33])  # libraries, thread pools and gradients are counted as the model's own
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [step(tokens)]
    while len(times) < 2 or (len(times) < 8 and sum(times) < SECONDS):
        times.append(step(tokens))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": statistics.median(times[1:]), "peak_bytes": peak * 1024}


def measured(architecture: str, implementation: str, length: int, threads: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads)]
    command += ["--measure", architecture, implementation, str(length)]
    said = subprocess.run(
        command,
        check=True,
        env=os.environ | ALLOCATOR,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return json.loads(said.stdout.splitlines()[-1])


def compare(architecture: str, length: int, rounds: int, threads: int) -> None:
    """One table: every implementation measured at this length."""
    forms = [form for form, (_, lengths) in ARCHITECTURES[architecture].items() if length in lengths]
    found: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    for _ in range(rounds):
        for form in forms:
            found[form].append(measured(architecture, form, length, threads))
    print(f"{architecture}, {length} tokens (load {os.getloadavg()[0]:.1f})")
    for form, turns in found.items():
        speed = statistics.median(length / turn["seconds"] for turn in turns)
        peak = statistics.median(turn["peak_bytes"] for turn in turns)
        line = f"  {form:<13}{speed:9,.0f} tokens/s {peak / 2**20:9.1f} MiB"
        if form != "ours":
            pairs = list(zip(found["ours"], turns, strict=True))
            faster = statistics.median(it["seconds"] / us["seconds"] for us, it in pairs)
            memory = statistics.median(us["peak_bytes"] / it["peak_bytes"] for us, it in pairs)
            line += f"   ours: {faster:6.2f}x the speed, {memory:5.2f}x the memory"
        print(line, flush=True)


def flat(architecture: str, rounds: int, threads: int) -> None:
    """Ours at growing lengths: time per token, against the same round's at the first length."""
    found: dict[int, list[float]] = {length: [] for length in LONG}
    for _ in range(rounds):
        for length in LONG:
            found[length].append(measured(architecture, "ours", length, threads)["seconds"] / length)
    print(f"{architecture}, time per token (load {os.getloadavg()[0]:.1f})")
    for length, turns in found.items():
        against = statistics.median(now / then for now, then in zip(turns, found[LONG[0]], strict=True))
        print(f"  {length:>6} tokens {statistics.median(turns) * 1e6:9.1f} us   {against:5.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=ARCHITECTURES, action="append", help="these architectures")
    parser.add_argument("--lengths", type=int, nargs="+", help="these lengths")
    parser.add_argument("--flat", action="store_true", help="ours alone, time per token by length")
    parser.add_argument("--measure", nargs=3, help="one measurement, in this process")
    options = parser.parse_args()
    if options.measure:
        architecture, implementation, length = options.measure
        print(json.dumps(measure(architecture, implementation, int(length), options.threads)))
        return
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}", end=", ")
    print(f"{options.rounds} rounds", flush=True)
    for architecture in options.only or ARCHITECTURES:
        if options.flat:
            flat(architecture, options.rounds, options.threads)
            continue
        known = {length for _, lengths in ARCHITECTURES[architecture].values() for length in lengths}
        for length in sorted(known & set(options.lengths or known)):
            compare(architecture, length, options.rounds, options.threads)


if __name__ == "__main__":
    main()
