"""State-space models side by side: the zoo's, the same token by token, `mambapy`, and `transformers`.

    python benchmarks/scan.py [--rounds 5] [--threads 2] [--only mamba] [--flat]
    (pip install -c constraints/cpu.txt mambapy transformers)

One training step (forward and backward, no optimiser) at width 256, depth 4, inner width 512, 16 states
(Mamba-2: 64, heads of 64, chunks of 64), 1 row, float32.  Each measurement is a separate process; in each
round the implementations alternate, and ratios are medians over the rounds' pairs, so that a slow moment of
the machine hits both.  transformers runs without kernels; its Mamba's backward pass takes quadratic time, so
it is measured at 128 tokens only.
The recurrences of fast weights (`recurrence.py`) are measured alone, without the rest of a model, 4 heads of
64: head, channel, head_delta, channel_delta, channel_general, each beside ssd.
Megalodon: one head of 64 (keys) and 512 (values), chunks of 128, against its moving average token by token.
`--cpu-time` counts the processor's time instead of the clock's, for a machine with other load; one thread.
Freed memory stays with every process (see ALLOCATOR): returning it costs them unequally.
`--flat` measures the zoo alone, at lengths from 2048 to 32768: time per token, against that at 2048.
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
from recurrence import FORMS, implementations
from torch import Tensor, nn

VOCABULARY, WIDTH, DEPTH, CHANNELS = 257, 256, 4, 512
LENGTHS, LONG = (512, 2048, 8192), (2048, 4096, 8192, 16384, 32768)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
SECONDS = 6.0  # of steps per measurement, but at least one step after the first

Read = Callable[[Tensor], Tensor]  # tokens -> logits


def zoo_model(name: str, **shape: Any) -> Read:
    import importlib

    build = getattr(importlib.import_module(f"zoo.models.{name}"), name.capitalize())
    model = build(VOCABULARY, 512, DEPTH, WIDTH, **shape)
    return lambda tokens: model(tokens)[0]


def mamba() -> Read:
    return zoo_model("mamba", channels=CHANNELS)


def mamba_loop() -> Read:
    """The same model, token by token."""
    from zoo.memory.state_space import mamba_mixer as module
    from zoo.memory.state_space.inputs import ScanInputs
    from zoo.memory.state_space.selective_scan import selective_scan_loop

    def loop(inputs: ScanInputs, *, backend: str) -> tuple[Tensor, Tensor]:
        return selective_scan_loop(inputs)

    module.selective_scan = loop  # type: ignore[assignment]
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
    return zoo_model("mamba2", all_heads=DEPTH * CHANNELS // 64, state_size=64)


def mamba2_loop() -> Read:
    """The same model, token by token."""
    from zoo.memory.state_space import mamba2_mixer as module
    from zoo.memory.state_space.inputs import SSDInputs
    from zoo.memory.state_space.ssd import ssd_loop

    def loop(inputs: SSDInputs, *, backend: str, chunk_size: int) -> tuple[Tensor, Tensor]:
        return ssd_loop(inputs)

    module.ssd = loop  # type: ignore[assignment]
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
    return zoo_model("megalodon", heads=1, state_size=16, **shape)


def megalodon_loop() -> Read:
    """The same model, its moving average token by token."""
    from zoo.memory.state_space import complex_ema as module

    module.ema = module.ema_loop
    return megalodon()


# architecture: {implementation: (builder, lengths)}; the zoo's comes first
ARCHITECTURES: dict[str, dict[str, tuple[Callable[[], Read], tuple[int, ...]]]] = {
    "mamba": {
        "zoo": (mamba, (128, *LENGTHS)),
        "loop": (mamba_loop, LENGTHS),
        "mambapy": (mambapy, LENGTHS),
        "transformers": (transformers_mamba, (128,)),
    },
    "mamba2": {
        "zoo": (mamba2, LENGTHS),
        "loop": (mamba2_loop, LENGTHS),
        "transformers": (transformers_mamba2, LENGTHS),
    },
    "megalodon": {"zoo": (megalodon, LENGTHS), "loop": (megalodon_loop, LENGTHS)},
    **{
        form: {
            name: (builder, LENGTHS[:1] if name in ("loop", "fla") else LENGTHS)
            for name, builder in implementations(form).items()
        }
        for form in FORMS
    },
}


def measure(
    architecture: str, implementation: str, length: int, threads: int, clock: Callable[[], float]
) -> dict[str, float]:
    """In this process: median seconds of a few steps, and peak bytes beyond those of a short step."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    read = ARCHITECTURES[architecture][implementation][0]()
    tokens = torch.randint(VOCABULARY, (1, length + 1))

    def step(tokens: Tensor) -> float:
        start = clock()
        logits = read(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) if logits.ndim else logits
        loss.backward()
        return clock() - start

    step(tokens[:, :65])  # libraries, thread pools and gradients are counted with the model
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [step(tokens)]
    while len(times) < 2 or (len(times) < 8 and sum(times) < SECONDS):
        times.append(step(tokens))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": statistics.median(times[1:]), "peak_bytes": peak * 1024}


def measure_in_subprocess(
    architecture: str, implementation: str, length: int, threads: int
) -> dict[str, float]:
    command = [sys.executable, __file__, "--threads", str(threads)]
    command += ["--cpu-time"] if "--cpu-time" in sys.argv else []
    command += ["--measure", architecture, implementation, str(length)]
    result = subprocess.run(
        command,
        check=True,
        env=os.environ | ALLOCATOR,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    measured: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return measured


def compare(architecture: str, length: int, rounds: int, threads: int) -> None:
    """Print a table of every implementation that is measured at this length."""
    forms = [form for form, (_, lengths) in ARCHITECTURES[architecture].items() if length in lengths]
    measured: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    for _ in range(rounds):
        for form in forms:
            measured[form].append(measure_in_subprocess(architecture, form, length, threads))
    print(f"{architecture}, {length} tokens (load {os.getloadavg()[0]:.1f})")
    for form, rounds_of_form in measured.items():
        speed = statistics.median(length / result["seconds"] for result in rounds_of_form)
        peak = statistics.median(result["peak_bytes"] for result in rounds_of_form)
        line = f"  {form:<13}{speed:9,.0f} tokens/s {peak / 2**20:9.1f} MiB"
        if form != "zoo":
            pairs = list(zip(measured["zoo"], rounds_of_form, strict=True))
            faster = statistics.median(result["seconds"] / zoo["seconds"] for zoo, result in pairs)
            memory = statistics.median(zoo["peak_bytes"] / result["peak_bytes"] for zoo, result in pairs)
            line += f"   zoo: {faster:6.2f}x the speed, {memory:5.2f}x the memory"
        print(line, flush=True)


def flat(architecture: str, rounds: int, threads: int) -> None:
    """The zoo at growing lengths: time per token, against the same round's at the first length."""
    times: dict[int, list[float]] = {length: [] for length in LONG}
    for _ in range(rounds):
        for length in LONG:
            seconds = measure_in_subprocess(architecture, "zoo", length, threads)["seconds"]
            times[length].append(seconds / length)
    print(f"{architecture}, time per token (load {os.getloadavg()[0]:.1f})")
    for length, per_token in times.items():
        pairs = zip(per_token, times[LONG[0]], strict=True)
        ratio = statistics.median(seconds / first for seconds, first in pairs)
        print(f"  {length:>6} tokens {statistics.median(per_token) * 1e6:9.1f} us   {ratio:5.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=ARCHITECTURES, action="append", help="these architectures")
    parser.add_argument("--lengths", type=int, nargs="+", help="these lengths")
    parser.add_argument("--flat", action="store_true", help="the zoo alone, time per token by length")
    parser.add_argument("--cpu-time", action="store_true", help="processor's time; with one thread")
    parser.add_argument("--measure", nargs=3, help="one measurement, in this process")
    options = parser.parse_args()
    if options.measure:
        architecture, implementation, length = options.measure
        clock = time.process_time if options.cpu_time else time.perf_counter
        print(json.dumps(measure(architecture, implementation, int(length), options.threads, clock)))
        return
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}", end=", ")
    print(f"{options.rounds} rounds", flush=True)
    for architecture in options.only or ARCHITECTURES:
        if options.flat:
            flat(architecture, options.rounds, options.threads)
            continue
        lengths = {length for _, lengths in ARCHITECTURES[architecture].values() for length in lengths}
        for length in sorted(lengths & set(options.lengths or lengths)):
            compare(architecture, length, options.rounds, options.threads)


if __name__ == "__main__":
    main()
