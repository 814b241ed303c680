"""A long text read by a model in evaluation: CPU time per token and resident memory in its course.

    ZOO_DATA=… python benchmarks/stream.py [models=infini,landmark] [bytes=262144] [csv=FILE]
                                           [data.corpus=books] [size=tiny] [key=value …]

One row, the first training documents of the corpus one after another, a segment per call, untrained weights;
everything but `models`, `bytes` and `csv` goes to the configuration.  Read are the first 4,096 tokens, those
up to 65,536, and what follows in quarters of the text; each of these pieces has its tokens per second of
CPU time, and the resident memory of the process at its end, in MiB.  `cost` is the last quarter's time per
token by the second's, and `memory` the resident memory at the end by that after 65,536 tokens (or the first
quarter, if it is longer): both are 1 for a reader whose cost doesn't grow with the text.  Each model runs
in a separate process; the CSV file gets a line for each as it ends, and a model that it has isn't read again.
"""

import csv
import multiprocessing
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

import zoo.configs
from zoo.state import nbytes
from zoo.train.corpora.catalog import open_corpus
from zoo.train.runs import build
from zoo.train.runs.config import compose

OPTIONS = {"models": "", "bytes": "262144", "csv": ""}
EARLY = (4_096, 65_536)


def resident() -> float:
    """Resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def read_text(corpus: str, root: str, count: int) -> Tensor:
    documents, text = open_corpus(corpus, root).split("train"), bytearray()
    for document in range(len(documents)):
        length = min(int(documents.lengths[document]), count - len(text))
        text += documents.bytes_of(document, 0, length).tobytes()
        if len(text) == count:
            return torch.tensor(list(text))[None]
    sys.exit(f"expected {count} bytes to train on in {corpus}, found {len(text)}")


def marks(count: int) -> list[int]:
    """Where the pieces of a text of `count` tokens end."""
    return sorted({*(mark for mark in EARLY if mark < count), *(count * k // 4 for k in (1, 2, 3, 4))})


@torch.no_grad()
def measure(name: str, count: int, words: list[str]) -> dict[str, str]:
    cfg = compose([f"model={name}", "task=lm", *words])
    torch.manual_seed(0)
    model = build.model(cfg).eval()
    text = read_text(cfg.data.corpus, cfg.data.root, count)
    state = model.init_state(1)
    cost, memory = {}, {}
    for start, end in pairwise([0, *marks(count)]):
        began = time.process_time()
        for segment in text[:, start:end].split(model.segment_len, dim=1):
            _, state = model.segment(segment, state)
        cost[end] = (time.process_time() - began) / (end - start)
        memory[end] = resident()
    settled = max(EARLY[-1], count // 4) if count > EARLY[-1] else count // 4
    return {
        "model": name,
        "state bytes": str(nbytes(state)),
        **{f"tokens/s to {end}": f"{1 / seconds:.0f}" for end, seconds in cost.items()},
        "cost": f"{cost[count] / cost[count // 2]:.2f}",
        **{f"MiB at {end}": f"{size:.1f}" for end, size in memory.items()},
        "memory": f"{memory[count] / memory[settled]:.3f}",
    }


def read_before(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    options, words = dict(OPTIONS), []
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        if key in OPTIONS:
            options[key] = value
        else:
            words.append(word)
    words = ["size=tiny", "data.corpus=books", *words]
    folder = Path(str(next(iter(zoo.configs.__path__)))) / "model"
    names = (
        options["models"].split(",") if options["models"] else sorted(p.stem for p in folder.glob("*.yaml"))
    )
    threads = f"{torch.get_num_threads()} thread(s), torch {torch.__version__}"
    print(f"{options['bytes']} bytes, {' '.join(words)}, {threads}")
    rows = read_before(Path(options["csv"])) if options["csv"] else []
    known = {row["model"] for row in rows}
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")
    for name in names:
        if name in known:
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (name, int(options["bytes"]), words)))
        if len(rows) == 1:
            print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
        print("| " + " | ".join(rows[-1].values()) + " |", flush=True)
        if options["csv"]:
            with Path(options["csv"]).open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
