"""ARMT's layers along diagonals, against the fold: CPU time of a training step.

    OMP_NUM_THREADS=1 python benchmarks/diagonal.py [rounds=5]

Forward and backward of one window, without optimiser, of untrained weights and random bytes, float32.  Both
forms are measured in one process and alternate; times are medians over the rounds, of at least 0.2 s of CPU
time each, and ratios medians of the rounds' ratios.  `elements` are rows x time x width of a segment with its
memory tokens and `weights` a layer's, in thousands: by them the model decides (models/diagonal.py), which is
switched off here: `(folded)` are those that it folds.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from zoo.models import diagonal
from zoo.models.armt import ARMT
from zoo.train.runs import build
from zoo.train.runs.config import compose

CASES = [
    *(
        ("micro", depth, segment_len, rows, length)
        for depth in (4, 8)
        for rows, length in ((16, 128), (8, 256), (1, 1024))
        for segment_len in (16, 32, 64)
        if length > 2 * segment_len
    ),
    *(("micro", depth, 64, rows, 192) for depth in (4, 8) for rows in (1, 16)),
    *(("tiny", 4, segment_len, 1, 512) for segment_len in (32, 128)),
    ("tiny", 4, 128, 8, 512),
    ("small", 4, 64, 1, 256),
]


def build_model(size: str, depth: int, segment_len: int) -> ARMT:
    """Of the size's budget of parameters at every depth."""
    settings = (f"size={size}", f"size.depth={depth}", f"size.segment_len={segment_len}")
    torch.manual_seed(0)
    model = build.model(compose(["model=armt", *settings]))
    assert isinstance(model, ARMT)
    return model


def seconds(model: ARMT, read: Callable[[Tensor], tuple[Tensor, Any]], tokens: Tensor) -> float:
    """CPU time of a training step."""
    start, steps = time.process_time(), 0
    while (elapsed := time.process_time() - start) < 0.2:
        logits, _ = read(tokens)
        cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        model.zero_grad(set_to_none=True)
        steps += 1
    return elapsed / steps


def main() -> None:
    rounds = int(dict(word.split("=") for word in sys.argv[1:]).get("rounds", "5"))
    limits = diagonal.MAX_ELEMENTS, diagonal.MAX_WEIGHTS
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, {rounds} rounds")
    print(
        "| size | depth | segment | rows x tokens | elements | weights | fold | diagonals | ratio | range |"
    )
    print("|---" * 10 + "|")
    for size, depth, segment_len, rows, length in CASES:
        model, tokens = build_model(size, depth, segment_len), torch.randint(256, (rows, length))
        elements = rows * (segment_len + model.memory_tokens) * model.width
        weights = sum(weight.numel() for weight in model.stack[0].parameters())
        is_within = elements <= limits[0] and weights <= limits[1] and length > 2 * segment_len
        diagonal.MAX_ELEMENTS = diagonal.MAX_WEIGHTS = sys.maxsize
        times = [
            (seconds(model, model.fold, tokens), seconds(model, model, tokens)) for _ in range(rounds + 1)
        ]
        fold, diagonals = (statistics.median(column) * 1000 for column in zip(*times[1:], strict=True))
        ratios = sorted(a / b for a, b in times[1:])
        print(
            f"| {size} | {depth} | {segment_len} | {rows} x {length:,} | {elements / 1000:.0f} "
            f"| {weights / 1000:.0f} | {fold:.0f} ms | {diagonals:.0f} ms "
            f"| {statistics.median(ratios):.2f}{'' if is_within else ' (folded)'} "
            f"| {ratios[0]:.2f} to {ratios[-1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
