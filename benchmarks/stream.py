"""A long text read by a model in evaluation: tokens per second and resident memory in its course.

    ZOO_DATA=… python benchmarks/stream.py [models=infini,landmark] [bytes=262144] [data.corpus=books]
                                           [size=tiny] [key=value …]

One row, the first training documents of the corpus one after another, a segment per call, untrained weights;
everything but `models` and `bytes` goes to the configuration.  Per quarter of the text: tokens per second,
and the MiB by which resident memory has grown since the end of the quarter before.  Each model runs in a
separate process.
"""

import itertools
import multiprocessing
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import zoo.configs
from zoo.state import nbytes
from zoo.train.corpora.catalog import open_corpus
from zoo.train.runs import build
from zoo.train.runs.config import compose

DEFAULTS = {"models": "", "bytes": "262144"}
QUARTERS = 4


def resident() -> float:
    """Resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def read_text(corpus: str, root: str, count: int) -> Tensor:
    documents, text = open_corpus(corpus, root).split("train"), bytearray()
    for document in range(len(documents)):
        text += documents.bytes_of(document, 0, count - len(text)).tobytes()
        if len(text) == count:
            return torch.tensor(list(text))[None]
    sys.exit(f"expected {count} bytes to train on in {corpus}, found {len(text)}")


@torch.no_grad()
def measure(name: str, count: int, words: list[str]) -> str:
    cfg = compose([f"model={name}", "task=lm", *words])
    torch.manual_seed(0)
    model = build.model(cfg).eval()
    text = read_text(cfg.data.corpus, cfg.data.root, count)
    state = model.init_state(1)
    speeds, memory = [], [resident()]
    for quarter in text.tensor_split(QUARTERS, dim=1):
        start = time.perf_counter()
        for segment in quarter.split(model.segment_len, dim=1):
            _, state = model.segment(segment, state)
        speeds.append(quarter.shape[1] / (time.perf_counter() - start))
        memory.append(resident())
    speed = " | ".join(f"{value:,.0f}" for value in speeds)
    growth = " | ".join(f"{after - before:+.1f}" for before, after in itertools.pairwise(memory))
    return f"| {name} | {nbytes(state):,} | {speed} | {growth} |"


def main() -> None:
    options, words = dict(DEFAULTS), []
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        if key in DEFAULTS:
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
    print("| model | state bytes |" + " tokens/s |" * QUARTERS + " MiB grown |" * QUARTERS)
    print("|---|---|" + "---|" * 2 * QUARTERS)
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(measure, (name, int(options["bytes"]), words)), flush=True)


if __name__ == "__main__":
    main()
