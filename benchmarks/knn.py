"""The kNN memory's time for a segment, by backend and size of the bank, on a trained model's keys.

    python benchmarks/knn.py [--sizes 4096 16384 65536] [--kinds package torch flat ivf hnsw] [--recall 0.97]
                             [--graphs 16384] [--steps 100] [--threads 1] [--rounds 5] [--cpu] [--text FILE]

One row, 8 heads of width 64, segments of 512 tokens, 32 neighbours, float32, blocks of 512.  A Memorizing
Transformer of two layers is trained for `--steps` on the standard library's sources, then reads more of them;
keys, values and queries are its memory layer's.  Of one segment on a full bank, medians of `--rounds` in
milliseconds: `search` searches and gathers the neighbours (and extends the index by the segment before),
`add` stores the segment, `total` is their sum; `cached` is a search with an index that is up to date.
`build` builds and tunes the index of a full bank.  `new` is the storage of the blocks that a segment makes
anew, in MiB, and `recall` the share of the true nearest keys that are found; keys with equal scores count.
Building a graph takes minutes: none above `--graphs` keys.  `ivf` is tuned for each recall of `--recall`, and
for the one that the package was measured at.  `--cpu` takes the process's CPU time, which other processes on
the same cores change less.  `--text` stores the projections in a file, or reads them from it.

`package` is the memory of memorizing-transformers-pytorch (HNSW, and a file of floats) with 8 indexes, in
this process; it clears itself when it is full, so it is filled up to its capacity, which is its `build`.
`speed` is the package's `total` divided by ours.  It is no dependency, and measured where it can be imported:

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
from zoo.memory.retrieval.faiss_package import load_faiss
from zoo.memory.retrieval.ivf_index import TARGET_RECALL
from zoo.models.memorizing import Memorizing
from zoo.state import detach

# glibc hands large blocks back after every use; faulting them in again is what would be measured
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
KINDS = ("package", "torch", "flat", "ivf", "hnsw")
HEADS, WIDTH, SEGMENT, NEIGHBOURS = 8, 64, 512, 32
ROWS = 2  # in training
clock = time.perf_counter


class Projections(NamedTuple):
    """A memory layer's queries, keys and values of a text."""

    queries: Tensor  # (1, heads, tokens, width)
    keys: Tensor
    values: Tensor


class Measurement(NamedTuple):
    """Times in milliseconds."""

    search: float
    add: float
    cached: float
    build: float
    new: float  # MiB of new blocks per segment
    recall: float


def sources(count: int) -> Tensor:
    """The first `count` bytes of the standard library's modules, in the order of their names."""
    folder, text = Path(sysconfig.get_paths()["stdlib"]), bytearray()
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= count:
            return torch.tensor(list(text[:count]))
    raise SystemExit(f"expected {count} bytes of the standard library's modules, found {len(text)}")


def trained_projections(steps: int, tokens: int) -> Projections:
    """The projections of the memory layer of a model trained for `steps`, for a text of `tokens`."""
    torch.manual_seed(0)
    model = Memorizing(256, SEGMENT, 2, HEADS * WIDTH, HEADS, 2 * HEADS * WIDTH, 4 * SEGMENT, block=SEGMENT)
    optimizer, state = torch.optim.AdamW(model.parameters(), 1e-3), None
    text = sources(ROWS * (steps * SEGMENT + 1) + tokens)
    batch = text[: ROWS * (steps * SEGMENT + 1)].view(ROWS, -1)
    for step in range(steps):
        window = batch[:, step * SEGMENT :][:, : SEGMENT + 1]
        logits, state = model(window[:, :-1], state)
        loss, state = F.cross_entropy(logits.mT, window[:, 1:]), detach(state)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained for {steps} steps: {loss.item():.2f} nats per byte", flush=True)
    (memory,), outputs = model.eval().memories(), []
    memory.qkv.register_forward_hook(lambda _module, _inputs, qkv: outputs.append(memory.split_heads(qkv)))
    with torch.no_grad():
        for piece in text[-tokens:].split(SEGMENT):
            model(piece[None])
    queries, keys, values = (torch.cat(parts, dim=2) for parts in zip(*outputs, strict=True))
    return Projections(F.normalize(queries, dim=-1), F.normalize(keys, dim=-1), values)


def stored_projections(path: Path | None, steps: int, tokens: int) -> Projections:
    """`trained_projections`, from this file if it exists, else written to it."""
    if path and path.is_file():
        text = Projections(*torch.load(path, mmap=True))
        if text.keys.shape[2] < tokens:
            raise SystemExit(f"{path}: expected at least {tokens} tokens, found {text.keys.shape[2]}")
        return text
    text = trained_projections(steps, tokens)
    if path:
        torch.save(tuple(text), path)
    return text


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and the function's result."""
    start = clock()
    result = function()
    return 1000 * (clock() - start), result


def segment(text: Projections, start: int) -> Projections:
    return Projections(*(part[:, :, start : start + SEGMENT] for part in text))


def measure(text: Projections, size: int, name: str, rounds: int, recall: float) -> Measurement:
    options: dict[str, Any] = {"backend": "faiss", "index": name, "target_recall": recall}
    options = {} if name == "torch" else options
    knn = KNNMemory(size, HEADS, WIDTH, WIDTH, NEIGHBOURS, SEGMENT, **options)
    keys, values = text.keys[:, :, :size], text.values[:, :, :size]
    bank = knn.add(knn.init_state(1, keys), keys, values)

    def retrieve(queries: Tensor) -> Any:
        return knn.gather(bank, knn.search(queries, bank))

    build, _ = timed(partial(retrieve, segment(text, size).queries))
    searches, adds, cached, new = [], [], [], 0
    for step in range(rounds + 1):
        queries, keys, values = segment(text, size + step * SEGMENT)
        if step:  # from the second one on the index lacks a segment
            searches.append(timed(partial(retrieve, queries))[0])
            cached.append(timed(partial(retrieve, queries))[0])
        milliseconds, after = timed(partial(knn.add, bank, keys, values))
        adds.append(milliseconds)
        pairs = zip((*after.keys, *after.values), (*bank.keys, *bank.values), strict=True)
        new, bank = sum(block.nbytes for block, old in pairs if block is not old), after
    found = recall_at_k(queries, bank.keys, bank.length, knn.search(queries, bank))
    medians = [statistics.median(times) for times in (searches, adds, cached)]
    return Measurement(*medians, build, new / 2**20, found)


def measure_package(package: Any, text: Projections, size: int, rounds: int) -> Measurement:
    with tempfile.TemporaryDirectory() as folder:
        memory = package.KNNMemory(
            WIDTH, size, HEADS, memmap_filename=f"{folder}/memory", multiprocessing=False
        )
        searches, adds, build, nan = [], [], 0.0, float("nan")
        for start in range(0, size, SEGMENT):
            queries, keys, values = (part[0] for part in segment(text, start))
            if start >= size - rounds * SEGMENT:
                searches.append(timed(partial(memory.search, queries, NEIGHBOURS))[0])
            adds.append(timed(partial(memory.add, torch.stack([keys, values], dim=2)))[0])
            build += adds[-1]
        queries = segment(text, size).queries
        heads = zip(memory.knns, queries[0], strict=True)
        slots = numpy.stack([index.search(vectors.numpy(), NEIGHBOURS) for index, vectors in heads])
        keys = text.keys[:, :, :size]
        recall = recall_at_k(queries, (keys,), torch.tensor([size]), torch.from_numpy(slots)[None])
        search, add = statistics.median(searches), statistics.median(adds[-rounds:])
        return Measurement(search, add, nan, build, nan, recall)


def table_line(size: int, name: str, result: Measurement, package: Measurement | None) -> str:
    total = result.search + result.add
    speed = (package.search + package.add) / total if package else float("nan")
    times = f"{result.search:9.1f} {result.add:7.1f} {total:9.1f} {speed:6.2f} {result.cached:9.1f}"
    return f"{size:>7} {name:<10}{times} {result.build:10.0f} {result.new:6.1f} {result.recall:7.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--graphs", type=int, default=16384, help="the largest bank with a graph")
    parser.add_argument("--steps", type=int, default=100, help="of the model's training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recall", type=float, nargs="+", default=[TARGET_RECALL], help="targets of ivf")
    parser.add_argument("--cpu", action="store_true", help="CPU time instead of wall time")
    parser.add_argument("--text", type=Path, help="file of the projections, written if it doesn't exist")
    options = parser.parse_args()
    if any(size % SEGMENT or size < (options.rounds + 1) * SEGMENT for size in options.sizes):
        parser.error(f"sizes must be multiples of {SEGMENT} with room for {options.rounds + 1} segments")
    if not os.environ.keys() >= ALLOCATOR.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    if options.cpu:
        global clock
        clock = time.process_time
    torch.set_num_threads(options.threads)
    load_faiss().omp_set_num_threads(options.threads)
    try:
        package = importlib.import_module("memorizing_transformers_pytorch.knn_memory")
    except ImportError as error:
        package = None
        print(f"without memorizing-transformers-pytorch: {error}")
    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}; milliseconds, MiB")
    tokens = max(options.sizes) + (options.rounds + 1) * SEGMENT
    text = stored_projections(options.text, options.steps, tokens)
    columns = {"search": 9, "add": 7, "total": 9, "speed": 6, "cached": 9, "build": 10, "new": 6, "recall": 7}
    titles = " ".join(f"{name:>{width}}" for name, width in columns.items())
    print(f"{'keys':>7} {'':<10}{titles}")
    for size in options.sizes:
        baseline = None
        if package and "package" in options.kinds:
            baseline = measure_package(package, text, size, options.rounds)
            print(table_line(size, "package", baseline, baseline), flush=True)
        for name in (kind for kind in KINDS[1:] if kind in options.kinds):
            if name == "hnsw" and size > options.graphs:
                continue
            targets = [*options.recall, *([baseline.recall] if baseline else [])] if name == "ivf" else [1.0]
            for target in targets:
                label = f"ivf {target:.2f}" if name == "ivf" else name
                result = measure(text, size, name, options.rounds, target)
                print(table_line(size, label, result, baseline), flush=True)


if __name__ == "__main__":
    main()
