"""Forward and backward passes of all models in several checkouts: CPU milliseconds per step, side by side.

    git worktree add DIR COMMIT
    OMP_NUM_THREADS=1 python benchmarks/steps.py DIR … [--models rmt,mamba] [--shapes 16x128,8x256]
                                                       [--rounds 7] [--csv steps.csv]

The last column is this checkout.  At size=micro, untrained weights, random bytes, one thread; a step reads a
window with the state that the step before left, and computes the loss and its gradients, without optimiser.
There is one process per checkout, and they take turns step by step, so that a slow moment of the machine hits
all; medians of CPU time.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORKER = """
import gc, sys, time
import torch
from zoo.module import Batch
try:
    from zoo.train.runs import build
    from zoo.train.runs.config import compose
    rows_key, length_key = "data.batch_size", "data.seq_len"
except ImportError:  # before train/ had rooms
    from zoo.train import build
    compose, rows_key, length_key = build.compose, "data.rows", "data.window"

torch.set_num_threads(1)
for line in sys.stdin:
    if line.strip():  # the name of a model and the shape of its steps: a new model
        name, *shape = line.split()
        rows, length = map(int, shape)
        torch.manual_seed(0)
        words = [f"model={name}", "size=micro", "task=lm", f"{rows_key}={rows}", f"{length_key}={length}"]
        try:
            model = build.model(compose(words)).train()
        except Exception as error:
            print(f"no {type(error).__name__}", flush=True)
            continue
        compute_loss = getattr(model, "compute_loss", None) or model.read
        text, state = torch.randint(256, (rows, length + 1)), None
        gc.collect()
    start = time.process_time()
    fresh = torch.full((rows,), state is None)
    outputs, state = compute_loss(Batch(text[:, :-1], text[:, 1:], fresh), state)
    model.zero_grad()
    outputs["loss"].backward()
    print(time.process_time() - start, flush=True)
"""


class Worker:
    """The process of one checkout."""

    def __init__(self, checkout: Path) -> None:
        command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=7"]
        self.commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self, model: str = "") -> float | None:
        """CPU seconds of a step, of a new model if one is named; None if the checkout lacks it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{model}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return None if answer.startswith("no") else float(answer)


def compare(workers: list[Worker], model: str, rows: int, length: int, rounds: int) -> dict[str, Any]:
    """A row of the table."""
    live = [worker for worker in workers if worker.step(f"{model} {rows} {length}") is not None]
    seconds: dict[Worker, list[float]] = {worker: [] for worker in live}
    for _ in range(rounds + 1):
        for worker in live:
            seconds[worker].append(worker.step() or 0.0)
    medians = {worker: statistics.median(times[1:]) for worker, times in seconds.items()}
    row: dict[str, Any] = {"model": model, "rows": rows, "length": length}
    row |= {
        f"ms {worker.commit}": round(1000 * medians[worker], 1) if worker in live else ""
        for worker in workers
    }
    newest = medians.get(workers[-1])
    for worker in workers[:-1]:
        both = worker in live and newest is not None
        row[f"speed against {worker.commit}"] = round(medians[worker] / newest, 2) if both else ""
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", type=Path, nargs="+", help="folders of earlier commits")
    parser.add_argument("--models", default="", help="these, by comma")
    parser.add_argument("--shapes", default="16x128,8x256", help="rows x tokens of a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", type=Path, help="write the table here too")
    options = parser.parse_args()
    workers = [Worker(folder.resolve()) for folder in [*options.checkouts, ROOT]]
    models = options.models.split(",") if options.models else all_models()
    table: list[dict[str, Any]] = []
    for shape in options.shapes.split(","):
        rows, length = map(int, shape.split("x"))
        for model in models:
            table.append(compare(workers, model, rows, length, options.rounds))
            if len(table) == 1:
                print(f"| {' | '.join(table[0])} |\n{'|---' * len(table[0])}|")
            print(f"| {' | '.join(map(str, table[-1].values()))} |", flush=True)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


def all_models() -> list[str]:
    return sorted(path.stem for path in ROOT.glob("configs/model/*.yaml"))


if __name__ == "__main__":
    main()
