"""The kNN memory's time for a segment, by backend and size of the bank, on a trained model's keys.

    python benchmarks/knn.py [--sizes 4096 16384 65536] [--kinds package torch flat ivf hnsw]
                             [--graphs 16384] [--steps 100] [--threads 1] [--rounds 5]

One row, 8 heads of width 64, segments of 512 tokens, 32 neighbours, float32, blocks of 512.  A Memorizing
Transformer of two layers is trained for `--steps` on the standard library's sources, then reads on; keys,
values and queries are its memory layer's.  Of one segment on a full bank, medians of `--rounds` in
milliseconds: `search` finds and gathers its neighbours (here the index gets what the segment before has
written), `add` stores it, `both` is their sum; `again` is the search of a bank whose index is up to date.
`first` makes the index of a full bank, and tunes it.  `new` is the storage of the blocks that a segment makes
anew, in MiB, and `recall` the share of the true nearest that is found, or of others with the same scores.  A
graph takes minutes to make: none above `--graphs`.

`package` is the memory of memorizing-transformers-pytorch (HNSW, and a file of floats) with 8 indexes, in
this process; it wipes itself when it is full, so it is filled up to its capacity, which is its `first`.  `x`
is its `both` by ours.  It is no dependency, and measured where it can be imported:

    pip install --target DIR joblib loky
    pip install --target DIR --no-deps memorizing-transformers-pytorch einops-exts
    PYTHONPATH=DIR python benchmarks/knn.py
"""

import argparse
import importlib
import os
import platform
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.memory.retrieval.bank import KNNMemory, recall_at_k
from zoo.memory.retrieval.faiss_index import load_faiss
from zoo.models.memorizing import Memorizing
from zoo.state import detach

# glibc hands large blocks back after every use; faulting them in again is what would be measured
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
KINDS = ("package", "torch", "flat", "ivf", "hnsw")
HEADS, WIDTH, SEGMENT, NEIGHBOURS = 8, 64, 512, 32
ROWS = 2  # in training


class Read(NamedTuple):
    """What a memory layer made of a text."""

    queries: Tensor  # (1, heads, tokens, width)
    keys: Tensor
    values: Tensor


class Measured(NamedTuple):
    """Times in milliseconds."""

    search: float
    add: float
    again: float
    first: float
    new: float  # MiB of new blocks per segment
    recall: float


def sources(count: int) -> Tensor:
    """So many bytes of the standard library's own modules, in the order of their names."""
    folder, text = Path(sysconfig.get_paths()["stdlib"]), bytearray()
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= count:
            return torch.tensor(list(text[:count]))
    raise SystemExit(f"expected {count} bytes of the standard library's modules, found {len(text)}")


def trained(steps: int, tokens: int) -> Read:
    """What the memory layer of a model trained so long keeps and asks, reading so many tokens."""
    torch.manual_seed(0)
    model = Memorizing(256, SEGMENT, 2, HEADS * WIDTH, HEADS, 2 * HEADS * WIDTH, 4 * SEGMENT, block=SEGMENT)
    optimizer, state = torch.optim.AdamW(model.parameters(), 1e-3), None
    text = sources(ROWS * (steps * SEGMENT + 1) + tokens)
    lanes = text[: ROWS * (steps * SEGMENT + 1)].view(ROWS, -1)
    for step in range(steps):
        window = lanes[:, step * SEGMENT :][:, : SEGMENT + 1]
        logits, state = model(window[:, :-1], state)
        loss, state = F.cross_entropy(logits.mT, window[:, 1:]), detach(state)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained for {steps} steps: {loss.item():.2f} nats per byte", flush=True)
    (memory,), heard = model.eval().memories(), []
    memory.qkv.register_forward_hook(lambda _module, _read, said: heard.append(memory.separate(said)))
    with torch.no_grad():
        for piece in text[-tokens:].split(SEGMENT):
            model(piece[None])
    queries, keys, values = (torch.cat(parts, dim=2) for parts in zip(*heard, strict=True))
    return Read(F.normalize(queries, dim=-1), F.normalize(keys, dim=-1), values)


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what came of it."""
    began = time.perf_counter()
    result = act()
    return 1000 * (time.perf_counter() - began), result


def segment(read: Read, start: int) -> Read:
    return Read(*(part[:, :, start : start + SEGMENT] for part in read))


def measure(read: Read, size: int, name: str, rounds: int) -> Measured:
    how: dict[str, Any] = {} if name == "torch" else {"backend": "faiss", "index": name}
    knn = KNNMemory(size, HEADS, WIDTH, WIDTH, NEIGHBOURS, SEGMENT, **how)
    keys, values = read.keys[:, :, :size], read.values[:, :, :size]
    bank = knn.add(knn.init_state(1, keys), keys, values)

    def look_up(queries: Tensor) -> Any:
        return knn.gather(bank, knn.search(queries, bank))

    first, _ = timed(partial(look_up, segment(read, size).queries))
    searches, adds, again, new = [], [], [], 0
    for turn in range(rounds + 1):
        queries, keys, values = segment(read, size + turn * SEGMENT)
        if turn:  # the index is behind from the second one on
            searches.append(timed(partial(look_up, queries))[0])
            again.append(timed(partial(look_up, queries))[0])
        took, after = timed(partial(knn.add, bank, keys, values))
        adds.append(took)
        pairs = zip((*after.keys, *after.values), (*bank.keys, *bank.values), strict=True)
        new, bank = sum(block.nbytes for block, old in pairs if block is not old), after
    recall = recall_at_k(queries, bank.keys, bank.length, knn.search(queries, bank))
    middle = [statistics.median(times) for times in (searches, adds, again)]
    return Measured(*middle, first, new / 2**20, recall)


def measure_package(package: Any, read: Read, size: int, rounds: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        memory = package.KNNMemory(
            WIDTH, size, HEADS, memmap_filename=f"{folder}/memory", multiprocessing=False
        )
        searches, adds, first, nan = [], [], 0.0, float("nan")
        for start in range(0, size, SEGMENT):
            queries, keys, values = (part[0] for part in segment(read, start))
            if start >= size - rounds * SEGMENT:
                searches.append(timed(partial(memory.search, queries, NEIGHBOURS))[0])
            adds.append(timed(partial(memory.add, torch.stack([keys, values], dim=2)))[0])
            first += adds[-1]
        queries = segment(read, size).queries
        ids = [
            knn.search(asked.numpy(), NEIGHBOURS) for knn, asked in zip(memory.knns, queries[0], strict=True)
        ]
        found = torch.from_numpy(numpy.stack(ids))[None]
        recall = recall_at_k(queries, (read.keys[:, :, :size],), torch.tensor([size]), found)
        return Measured(
            statistics.median(searches), statistics.median(adds[-rounds:]), nan, first, nan, recall
        )


def line(size: int, name: str, found: Measured, package: Measured | None) -> str:
    both = found.search + found.add
    ratio = (package.search + package.add) / both if package else float("nan")
    numbers = f"{found.search:9.1f} {found.add:7.1f} {both:9.1f} {ratio:6.2f} {found.again:9.1f}"
    return f"{size:>7} {name:<8}{numbers} {found.first:10.0f} {found.new:6.1f} {found.recall:7.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--graphs", type=int, default=16384, help="the largest bank that gets a graph")
    parser.add_argument("--steps", type=int, default=100, help="that the model is trained for")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if any(size % SEGMENT or size < (options.rounds + 1) * SEGMENT for size in options.sizes):
        parser.error(f"sizes must be multiples of {SEGMENT} with room for {options.rounds + 1} segments")
    if not os.environ.keys() >= ALLOCATOR.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    torch.set_num_threads(options.threads)
    load_faiss().omp_set_num_threads(options.threads)
    try:
        package = importlib.import_module("memorizing_transformers_pytorch.knn_memory")
    except ImportError as error:
        package = None
        print(f"without memorizing-transformers-pytorch: {error}")
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}; milliseconds, MiB")
    read = trained(options.steps, max(options.sizes) + (options.rounds + 1) * SEGMENT)
    titles = (
        f"{'search':>9} {'add':>7} {'both':>9} {'x':>6} {'again':>9} {'first':>10} {'new':>6} {'recall':>7}"
    )
    print(f"{'keys':>7} {'':<8}{titles}")
    for size in options.sizes:
        asked = package if "package" in options.kinds else None
        theirs = measure_package(asked, read, size, options.rounds) if asked else None
        if theirs:
            print(line(size, "package", theirs, theirs), flush=True)
        for name in (kind for kind in KINDS[1:] if kind in options.kinds):
            if name != "hnsw" or size <= options.graphs:
                print(line(size, name, measure(read, size, name, options.rounds), theirs), flush=True)


if __name__ == "__main__":
    main()
