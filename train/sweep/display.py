"""The display of a sweep: a live table on a terminal, elsewhere a line per change of state."""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from zoo.errors import UserError
from zoo.train.plotting.terminal import new_table, parts, print_table, table_console
from zoo.train.runs.folder import PROGRESS_FILE, read_json
from zoo.train.sweep.compare_commands import compare_commands
from zoo.train.sweep.job import Job, JobState
from zoo.train.sweep.process import OUTPUT
from zoo.train.sweep.time_left import seconds_left
from zoo.train.tasks.score_name import short_name

STYLES: dict[JobState, str] = {
    "waiting": "dim",
    "running elsewhere": "yellow",
    "running": "cyan",
    "done": "",
    "failed": "red",
    "diverged": "yellow",
    "stopped": "yellow",
}
MAX_ROWS = 30
"""With more jobs the live table leaves out those that wait or are done."""


class Display:
    """Prints the states of a sweep's jobs while it runs, and a summary at its end."""

    def __init__(self, jobs: list[Job], num_slots: int = 1) -> None:
        self.jobs, self.num_slots = jobs, num_slots
        self.console = table_console()

    @contextlib.contextmanager
    def live(self) -> Iterator[Callable[[], None]]:
        """A table during the block and a function to refresh it; complete at the end unless it raises."""
        if not self.console.is_terminal:
            yield lambda: None
            print_table(self.console, self.table(complete=True))
            return
        with Live(self.fitting(), console=self.console, refresh_per_second=2) as live:
            yield lambda: live.update(self.fitting())
            live.update(self.fitting(complete=True))

    def fitting(self, complete: bool = False) -> Group:
        """The table; in a narrow terminal its first columns alone, until it is complete."""
        table = self.table(complete)
        shown = parts(table, self.console.width)
        return Group(*(shown if complete else shown[:1]), Text(str(table.caption), style="table.caption"))

    def time_left(self) -> str:
        """How long the sweep will take, "" before a run has ended and once all have."""
        left = seconds_left(self.jobs, self.num_slots)
        return f"about {format_time(round(left))} left" if left else ""

    def print_change(self, job: Job) -> None:
        """Prints a job's new state where there is no live table."""
        if not self.console.is_terminal:
            scores = ", ".join(format_scores(job, job.result)) if job.state == "done" else ""
            cells = [job.name, job.state, scores, job.note, self.time_left() if job.state == "done" else ""]
            print("  ".join(cell for cell in cells if cell), flush=True)

    def summary(self, interrupted: bool) -> None:
        """Prints the failed jobs' notes, and the command to run next."""
        failed = [job for job in self.jobs if job.state == "failed"]
        for job in failed:
            print(f"failed: {job.name}: {job.note} (see {job.folder / OUTPUT})", file=sys.stderr)
        if interrupted:
            print("interrupted; the same command resumes the sweep", file=sys.stderr)
        elif not failed:
            for command in compare_commands(self.jobs):
                print(f"compare them with: {command}")

    def table(self, complete: bool = False) -> Table:
        """One row per job, and a caption that counts them by state."""
        counts = Counter(job.state for job in self.jobs)
        caption = ", ".join(f"{count} {state}" for state, count in counts.items())
        table = new_table(
            *("run", "state", "held-out", "step", "time", "targets/s", "note"),
            caption="; ".join(filter(None, [caption, self.time_left()])),
            prose=["note"],
        )
        for job in self.jobs:
            active = job.state in ("running", "failed", "running elsewhere")
            if active or complete or len(self.jobs) <= MAX_ROWS:
                table.add_row(*job_row(job), style=STYLES[job.state])
        return table


def job_row(job: Job) -> tuple[str, ...]:
    if job.state == "done":
        steps = job.result.get("steps", "")
        progress = {"step": steps, "steps": steps, "tokens_per_s": job.result.get("tokens_per_s", 0)}
        scores = format_scores(job, job.result)
    else:
        progress = read_progress(job.folder)
        latest = {f"val/{key}": value for key, value in progress.get("val", {}).items()}
        scores = format_scores(job, latest)
    speed = progress.get("tokens_per_s")
    return (
        job.name,
        job.state,
        "\n".join(scores),
        f"{progress['step']}/{progress['steps']}" if progress else "",
        format_time(int(job.seconds)) if job.seconds else "",
        "" if speed is None else f"{speed:,.0f}",
        job.note,
    )


def read_progress(folder: Path) -> dict[str, Any]:
    """The content of a run's progress.json; empty before its first report."""
    try:
        progress: dict[str, Any] = read_json(folder / PROGRESS_FILE)
    except UserError:
        return {}
    return progress


def format_scores(job: Job, metrics: dict[str, Any]) -> list[str]:
    """Bits per byte, or the shares by which a task of samples is judged, with their names; nothing in nats
    beside them."""
    if "val/bits_per_byte" in metrics:
        return [f"{metrics['val/bits_per_byte']:.3f} bits/byte"]
    return [f"{short_name(name)} {metrics[tag]:.1%}" for tag, name in job.scores.items() if tag in metrics]


def format_time(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
