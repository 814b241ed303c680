"""The cost of a generated token by the length of the text before it, and the memory that this takes.

    python benchmarks/generate.py [models=rmt,mamba] [size=micro] [at=100,1000,10000,100000] [steps=8]
    python benchmarks/generate.py [models=rmt,mamba] [size=nano] write=100000

A row per model: milliseconds per token at each length (mean over `steps` positions of an open segment, with
the share of closing it), the same with the open segment read again at every token, and the growth of
resident memory between the last two lengths.

With `write`, that many tokens are generated one by one: milliseconds per token in the second and in the last
tenth, and the growth of resident memory over the last nine tenths.
"""

import sys
import time
from pathlib import Path

import torch

import zoo.configs
from zoo.generation import Reader, sampler, stream_tokens
from zoo.module import SequenceModule
from zoo.train.runs import build
from zoo.train.runs.config import compose

DEFAULTS = {"models": "", "size": "micro", "at": "100,1000,10000,100000", "steps": "8", "write": ""}


def resident() -> int:
    """Bytes of resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def random_text(model: SequenceModule, length: int) -> torch.Tensor:
    return torch.randint(257, (1, length), generator=torch.Generator().manual_seed(length))


def timed(reader: Reader, tokens: torch.Tensor) -> float:
    start = time.perf_counter()
    reader.read(tokens)
    return time.perf_counter() - start


class Rereading(Reader):
    """Without a cache: the definition."""

    def _read_open(self, new: int) -> torch.Tensor:
        return self.model(self.open_tokens, self.state)[0]


def per_token(reader: Reader, steps: int) -> float:
    """Seconds per token over one segment from a segment boundary."""
    model, segment_len = reader.model, reader.model.segment_len
    if model.cuts_anywhere:
        return sum(timed(reader, random_text(model, 1)) for _ in range(steps)) / steps
    costs, position = [], 0
    for step in range(steps):
        target = round((step + 0.5) / steps * (segment_len - 2))
        if target > position:
            reader.read(random_text(model, target - position))
        costs.append(timed(reader, random_text(model, 1)))
        position = max(position, target) + 1
    if segment_len - 1 > position:
        reader.read(random_text(model, segment_len - 1 - position))
    closing = timed(reader, random_text(model, 1))
    return (sum(costs) / steps * (segment_len - 1) + closing) / segment_len


def measure(name: str, size: str, lengths: list[int], steps: int) -> str:
    model = build.model(compose([f"model={name}", f"size={size}", "task=lm"])).eval()
    segment_len = model.segment_len
    reader, position, costs, memory = Reader(model, 1), 0, [], []
    for length in lengths:
        start = max(1, length // segment_len) * segment_len
        reader.read(random_text(model, max(segment_len, start - position)))
        position = start + segment_len
        costs.append(per_token(reader, steps))
        memory.append(resident())
        reader.read(random_text(model, segment_len - (steps if model.cuts_anywhere else 0) or 1))
    rereading = Rereading(model, 1)
    rereading.read(random_text(model, segment_len))
    reread = costs[0] if model.cuts_anywhere else per_token(rereading, steps)
    kind = "continues" if model.cuts_anywhere else "cache" if model.decodes else "reads again"
    figures = " | ".join(f"{1e3 * cost:.2f}" for cost in costs)
    growth = (memory[-1] - memory[-2:][0]) / 2**20
    return f"| {name} | {kind} | {figures} | {1e3 * reread:.2f} | {growth:+.1f} |"


def write(name: str, size: str, tokens: int) -> str:
    model = build.model(compose([f"model={name}", f"size={size}", "task=lm"])).eval()
    pick = sampler(generator=torch.Generator().manual_seed(0))
    stream, marks, part = stream_tokens(model, random_text(model, 1), pick), [], tokens // 10
    for _ in range(10):
        for _ in range(part):
            next(stream)
        marks.append((time.perf_counter(), resident()))
    costs = (1e3 * (marks[at][0] - marks[at - 1][0]) / part for at in (1, -1))
    figures = " | ".join(f"{cost:.2f}" for cost in costs)
    return f"| {name} | {figures} | {(marks[-1][1] - marks[0][1]) / 2**20:+.1f} |"


def main() -> None:
    words = DEFAULTS | dict(word.split("=", 1) for word in sys.argv[1:])
    if unknown := words.keys() - DEFAULTS.keys():
        sys.exit(f"expected {', '.join(DEFAULTS)}, found {', '.join(unknown)}")
    folder = Path(str(next(iter(zoo.configs.__path__)))) / "model"
    names = words["models"].split(",") if words["models"] else sorted(p.stem for p in folder.glob("*.yaml"))
    if words["write"]:
        tokens = int(words["write"])
        print(f"size={words['size']}, 1 row, {torch.get_num_threads()} thread(s), {tokens:,} tokens written")
        print("| model | ms per token, second tenth | last tenth | MiB grown |\n|---|---|---|---|")
        for name in names:
            print(write(name, words["size"], tokens), flush=True)
        return
    lengths = [int(length) for length in words["at"].split(",")]
    print(f"size={words['size']}, 1 row, {torch.get_num_threads()} thread(s): ms per token")
    print(f"| model | open segment | {' | '.join(f'{p:,}' for p in lengths)} | reading again | MiB grown |")
    print("|---|---|" + "---|" * (len(lengths) + 2))
    for name in names:
        print(measure(name, words["size"], lengths, int(words["steps"])), flush=True)


if __name__ == "__main__":
    main()
