"""What commands cost before they do anything: CPU and wall seconds of each, in processes one after another.

    OMP_NUM_THREADS=1 python benchmarks/startup.py [--rounds 3] [--csv results/bench/startup.csv]

Medians of CPU seconds, with their range: on a machine that does other things too, they alone compare.  The
last row is a training step with all that surrounds it: data, validation, checkpoint, summary.
"""

import argparse
import csv
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from zoo.train.runs.checkout import commit

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import lightning": ["-c", "import lightning"],
    "import zoo.train.loop.launch": ["-c", "import zoo.train.loop.launch"],
    "the same, without collections": [
        "-c",
        "from zoo.lazy import large_imports\nwith large_imports(): import zoo.train.loop.launch",
    ],
    "zoo --help": ["-m", "zoo", "--help"],
    "zoo train --help": ["-m", "zoo", "train", "--help"],
    "zoo evaluate --help": ["-m", "zoo", "evaluate", "--help"],
    "zoo list tasks": ["-m", "zoo", "list", "tasks"],
    "zoo list corpora": ["-m", "zoo", "list", "corpora"],
    "zoo list models": ["-m", "zoo", "list", "models"],
    "zoo doctor": ["-m", "zoo", "doctor"],
    "zoo train steps=0 (refused)": ["-m", "zoo", "train", "steps=0"],
    "zoo train size=nano steps=1": ["-m", "zoo", "train", "size=nano", "steps=1"],
}


def measure(arguments: list[str], folder: str) -> tuple[float, float]:
    """CPU and wall seconds of one process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path, help="write the table here too")
    options = parser.parse_args()
    rounds = options.rounds
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, arguments in COMMANDS.items():
                measured[name].append(measure(arguments, folder))
    table = [summary(name, pairs) for name, pairs in measured.items()]
    print("| command | CPU seconds | from | to | wall seconds |\n|---|---|---|---|---|")
    for row in table:
        figures = (f"{row[key]:.2f}" for key in ("cpu_s", "cpu_s_min", "cpu_s_max", "wall_s"))
        print(f"| `{row['command']}` | {' | '.join(figures)} |")
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


def summary(name: str, pairs: list[tuple[float, float]]) -> dict[str, str | int | float]:
    """A row of the table."""
    cpu, wall = (list(values) for values in zip(*pairs, strict=True))
    return {
        "command": name,
        "cpu_s": round(statistics.median(cpu), 2),
        "cpu_s_min": round(min(cpu), 2),
        "cpu_s_max": round(max(cpu), 2),
        "wall_s": round(statistics.median(wall), 2),
        "rounds": len(pairs),
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores, 1 thread",
        "torch": version("torch"),
        "lightning": version("lightning"),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
