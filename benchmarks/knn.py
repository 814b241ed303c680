"""The kNN memory: time of a search by each backend and of a write, by the bank's size, and what is found.

    python benchmarks/knn.py [--sizes 4096 16384 65536 262144] [--graphs 65536] [--threads 2] [--rounds 5]

One row and head, keys and queries of length 1 and width 64 scattered around 1024 centres, 256 queries, 32
neighbours, float32, blocks of 512 tokens.  `first` is the first search of a full bank, in which the index is
made; `next` follows a segment of 256 tokens that has overwritten the oldest, `same` asks again of the same
bank.  A graph takes minutes to make: none above `--graphs`.  Recall depends on the keys: for a model's,
tests/memory/test_knn.py has a bound and a run logs memory/recall.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from zoo.memory.knn import KNN, Bank
from zoo.memory.neighbours import exact

WIDTH, SEGMENT, NEIGHBOURS, BLOCK, CENTRES = 64, 256, 32, 512, 1024


def draw(count: int, seed: int) -> Tensor:
    """Keys (1, 1, count, width)."""
    centres = torch.randn(CENTRES, WIDTH, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(seed)
    near = centres[torch.randint(CENTRES, (count,), generator=random)]
    keys = near + 0.7 * torch.randn(count, WIDTH, generator=random)
    return torch.nn.functional.normalize(keys, dim=-1)[None, None]


def timed(act: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - began)


def measure(size: int, name: str, full: Bank, rounds: int) -> str:
    if name == "torch":
        knn = KNN(size, 1, WIDTH, WIDTH, NEIGHBOURS, BLOCK)
    else:
        knn = KNN(size, 1, WIDTH, WIDTH, NEIGHBOURS, BLOCK, "faiss", name)  # type: ignore[arg-type]
    bank, queries = full, draw(SEGMENT, 1)
    first = timed(partial(knn.search, queries, bank))
    later, same, writes = [], [], []
    for turn in range(rounds):
        keys = draw(SEGMENT, 2 + turn)
        writes.append(timed(partial(knn.add, bank, keys, keys)))
        bank = knn.add(bank, keys, keys)
        later.append(timed(partial(knn.search, queries, bank)))
        same.append(timed(partial(knn.search, queries, bank)))
    wanted, found = exact(queries, bank.keys, bank.written, NEIGHBOURS), knn.search(queries, bank)
    recall = (wanted[..., None] == found[..., None, :]).any(-1).float().mean().item()
    middle = [statistics.median(times) for times in (later, same, writes)]
    return (
        f"{size:>8} {name:<6} {first:10.1f} {middle[0]:9.2f} {middle[1]:9.2f} {middle[2]:9.2f} {recall:8.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384, 65536, 262144])
    parser.add_argument("--graphs", type=int, default=65536, help="the largest bank that gets a graph")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}; milliseconds")
    print(f"{'keys':>8} {'':<6} {'first':>10} {'next':>9} {'same':>9} {'write':>9} {'recall':>8}")
    for size in options.sizes:
        knn, keys = KNN(size, 1, WIDTH, WIDTH, NEIGHBOURS, BLOCK), draw(size, 0)
        full = knn.add(knn.init_state(1, keys), keys, keys)
        for name in ("torch", "flat", "ivf", "hnsw"):
            if name != "hnsw" or size <= options.graphs:
                print(measure(size, name, full, options.rounds), flush=True)


if __name__ == "__main__":
    main()
