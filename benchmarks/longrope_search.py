"""LongRoPE's search for the factors of rotary frequencies (arXiv:2402.13753), on a trained run.

    python benchmarks/longrope_search.py run=runs/lm/transformer/… context=512

Evolution from the factors of YaRN's ramp, interpolation, NTK and plain positions: each round the best parents
have mutants, whose factors are drawn again between their neighbours, and crossings, which take one factor of
another parent; all stay monotone.  Fitness is the loss of the last tokens of `texts` windows of the
validation split.  Prints the best factors as `model.position.long=[…]`, with the attention_factor to use.

Differs from the paper: fewer and smaller rounds, no unscaled first tokens, no temperature; plain positions
are among the first factors, so that those with the lowest loss are never worse.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from zoo.memory.attention.position_options import position_options
from zoo.memory.attention.rotary_scaling import yarn_ramp
from zoo.module import Batch
from zoo.train.runs.data_identity import stored_task
from zoo.train.runs.load import load_trained

POPULATION, ROUNDS, PARENTS, CHILDREN = 12, 5, 6, 8
GRID, MUTATION, CROSSING, TRIES = 0.01, 0.3, 0.15, 20
Factors = tuple[float, ...]


def mutant(parent: Factors, s: float, rng: np.random.Generator) -> Factors:
    """Each factor is drawn again with probability MUTATION, on a grid between its neighbours."""
    factors = list(parent)
    for m in range(len(factors)):
        if rng.random() < MUTATION:
            low = factors[m - 1] if m else 1.0
            high = factors[m + 1] if m + 1 < len(factors) else 1 + s
            factors[m] = low + GRID * float(rng.integers(round((high - low) / GRID) + 1))
    return tuple(factors)


def crossing(
    better: Factors, other: Factors, population: set[Factors], rng: np.random.Generator
) -> Factors | None:
    """The better parent with a factor of the other one; None if no try is new and monotone."""
    for _ in range(TRIES):
        factors = list(better)
        for m in range(len(factors)):
            if rng.random() < CROSSING:
                factors[m] = other[m]
                child = tuple(factors)
                if child not in population and list(child) == sorted(child):
                    return child
    return None


def search(
    fitness: Callable[[Factors], float], starts: list[Factors], s: float, seed: int = 0
) -> tuple[Factors, float]:
    """The factors with the lowest fitness, and it; the first population has `starts` and mutants of the first
    of them."""
    rng = np.random.default_rng(seed)
    scores = {start: fitness(start) for start in starts}
    while len(scores) < POPULATION:
        child = mutant(starts[0], s, rng)
        scores.setdefault(child, fitness(child) if child not in scores else 0.0)
    for _ in range(ROUNDS):
        parents = sorted(scores, key=lambda factors: scores[factors])[:PARENTS]
        for index in range(CHILDREN):
            first, second = sorted(rng.choice(len(parents), 2, replace=False))
            child = crossing(parents[first], parents[second], set(scores), rng) if index % 2 else None
            child = mutant(parents[first], s, rng) if child is None else child
            if child not in scores:
                scores[child] = fitness(child)
    best = min(scores, key=lambda factors: scores[factors])
    return best, scores[best]


def main(run: Path, context: int, texts: int = 5) -> None:
    torch.manual_seed(0)
    cfg, plain, _ = load_trained(run)
    trained = int(cfg.model.segment_len)
    s, pairs = context / trained, int(cfg.model.width) // int(cfg.model.heads) // 2
    dataset = stored_task(cfg, run).split("val")
    windows = [
        dataset.window(i, 0, context) for i in range(len(dataset.lengths)) if dataset.lengths[i] >= context
    ]
    tokens, targets = (torch.from_numpy(np.stack(part[:texts])) for part in zip(*windows, strict=True))
    batch = Batch(tokens, targets, torch.ones(len(tokens), dtype=torch.bool))
    rounds = {"evaluations": 0}

    @torch.no_grad()
    def fitness(factors: Factors) -> float:
        rounds["evaluations"] += 1
        long = "[" + ",".join(f"{factor:.4f}" for factor in factors) + "]"
        overrides = (
            f"model.segment_len={context}",
            "model.position.scaling=longrope",
            f"model.position.long={long}",
            "model.position.attention_factor=1.0",
        )
        model = load_trained(run, overrides=overrides)[1]
        outputs, _ = model.compute_loss(batch.to(plain.device), None)
        return float(outputs["nats"][:, -trained:].mean())

    ramp = yarn_ramp(pairs, trained, position_options({"scaling": "yarn"}))
    start = tuple(s * (1 - g) + g for g in ramp)
    ntk = tuple(s ** (m / max(1, pairs - 1)) for m in range(pairs))
    best, loss = search(fitness, [start, (s,) * pairs, ntk, (1.0,) * pairs], s)
    print(f"started at {fitness(start):.4f} nats, found {loss:.4f} in {rounds['evaluations']} evaluations")
    factors = ",".join(f"{factor:.4f}" for factor in best)
    print(f"model.position.long=[{factors}] model.position.attention_factor=1.0")


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    main(Path(words["run"]), int(words["context"]), int(words.get("texts", "5")))
