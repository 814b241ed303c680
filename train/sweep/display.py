"""How a sweep shows its runs."""

from pathlib import Path
from typing import Any

from zoo.train.sweep.plan import Job

STYLES = {
    "waiting": "dim",
    "elsewhere": "yellow",
    "running": "cyan",
    "done": "",
    "failed": "red",
    "stopped": "yellow",
}


def place(words: list[str]) -> str:
    return words[1] if len(words) > 1 else ""


def reached(result: dict[str, Any]) -> str:
    if "val/bits_per_byte" in result:
        return f"{result['val/bits_per_byte']:.3f} bits/byte"
    return f"{result['val/accuracy']:.1%}" if "val/accuracy" in result else f"loss {result['val/loss']:.3f}"


def above(job: Job) -> Path:
    """The folder of the task, in which all models' runs lie; of a result, its own."""
    assert job.where is not None
    return job.where.parents[1] if job.where == job.folder else job.where
