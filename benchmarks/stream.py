"""A long text read by a model in evaluation: CPU time per token and resident memory in its course.

    ZOO_DATA=… python benchmarks/stream.py [models=infini,landmark] [bytes=262144] [data.corpus=books]
                                           [size=tiny] [key=value …]

One row, the first training documents of the corpus one after another, a segment per call, untrained weights;
everything but `models` and `bytes` goes to the configuration.  Per quarter of the text: microseconds of CPU
time per token, and the MiB by which resident memory has grown since the end of the quarter before; and the
last quarter's time by the second's, which is 1 for a reader whose cost doesn't grow with the text.  Each
model runs in a separate process.
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
        length = min(int(documents.lengths[document]), count - len(text))
        text += documents.bytes_of(document, 0, length).tobytes()
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
    costs, memory = [], [resident()]
    for quarter in text.tensor_split(QUARTERS, dim=1):
        start = time.process_time()
        for segment in quarter.split(model.segment_len, dim=1):
            _, state = model.segment(segment, state)
        costs.append(1e6 * (time.process_time() - start) / quarter.shape[1])
        memory.append(resident())
    cost = " | ".join(f"{value:,.1f}" for value in costs)
    growth = " | ".join(f"{after - before:+.1f}" for before, after in itertools.pairwise(memory))
    return f"| {name} | {nbytes(state):,} | {cost} | {costs[3] / costs[1]:.2f} | {growth} |"


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
    print("| model | state bytes |" + " us/token |" * QUARTERS + " last / 2nd |" + " MiB grown |" * QUARTERS)
    print("|---|---|" + "---|" * (2 * QUARTERS + 1))
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(measure, (name, int(options["bytes"]), words)), flush=True)


if __name__ == "__main__":
    main()
