"""What commands cost before they do anything: CPU and wall seconds of each, in processes one after another.

    OMP_NUM_THREADS=1 python benchmarks/startup.py [--rounds 3]

Medians; the last row is a training step with all that surrounds it: data, validation, checkpoint, summary.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import lightning": ["-c", "import lightning"],
    "import zoo.train.loop.launch": ["-c", "import zoo.train.loop.launch"],
    "the same, without collections": [
        "-c",
        "from zoo.lazy import uncollected_imports\nwith uncollected_imports(): import zoo.train.loop.launch",
    ],
    "zoo --help": ["-m", "zoo", "--help"],
    "zoo train --help": ["-m", "zoo", "train", "--help"],
    "zoo list tasks": ["-m", "zoo", "list", "tasks"],
    "zoo train size=nano steps=1": ["-m", "zoo", "train", "size=nano", "steps=1"],
}


def measure(arguments: list[str], folder: str) -> tuple[float, float]:
    """CPU and wall seconds of one process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, arguments in COMMANDS.items():
                measured[name].append(measure(arguments, folder))
    print("| command | CPU seconds | wall seconds |\n|---|---|---|")
    for name, pairs in measured.items():
        cpu, wall = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"| `{name}` | {cpu:.2f} | {wall:.2f} |")


if __name__ == "__main__":
    main()
