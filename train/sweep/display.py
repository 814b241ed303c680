"""The display of a sweep: a live table on a terminal, elsewhere a line per change of state."""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.live import Live
from rich.table import Column, Table

from zoo.errors import UserError
from zoo.train.plotting.terminal import table_console
from zoo.train.runs.folder import PROGRESS_FILE, read_json
from zoo.train.sweep.job import Job, JobState
from zoo.train.sweep.process import OUTPUT
from zoo.train.tasks.base import short_name

STYLES: dict[JobState, str] = {
    "waiting": "dim",
    "running elsewhere": "yellow",
    "running": "cyan",
    "done": "",
    "failed": "red",
    "diverged": "yellow",
    "stopped": "yellow",
}
SCORE_WIDTH = len("exact match 100.0%,")
"""On a narrow terminal the next score goes to the next line."""
MAX_ROWS = 30
"""With more jobs the live table leaves out those that wait or are done."""


class Display:
    """Prints the states of a sweep's jobs while it runs, and a summary at its end."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.console = table_console()

    @contextlib.contextmanager
    def live(self) -> Iterator[Callable[[], None]]:
        """A table during the block and a function to refresh it; complete at the end unless it raises."""
        if not self.console.is_terminal:
            yield lambda: None
            self.console.print(self.table(complete=True))
            return
        with Live(self.table(), console=self.console, refresh_per_second=2) as live:
            yield lambda: live.update(self.table())
            live.update(self.table(complete=True))

    def print_change(self, job: Job) -> None:
        """Prints a job's new state where there is no live table."""
        if not self.console.is_terminal:
            scores = ", ".join(format_scores(job, job.result)) if job.state == "done" else ""
            parts = [job.name, job.state, scores, job.note]
            print("  ".join(part for part in parts if part), flush=True)

    def summary(self, interrupted: bool) -> None:
        """Prints the failed jobs' notes, and the command to run next."""
        failed = [job for job in self.jobs if job.state == "failed"]
        for job in failed:
            print(f"failed: {job.name}: {job.note} (see {job.folder / OUTPUT})", file=sys.stderr)
        if interrupted:
            print("interrupted; the same command resumes the sweep", file=sys.stderr)
        elif not failed:
            folders = sorted({str(task_folder(job)) for job in self.jobs if job.state == "done"})
            print(f"compare them with: zoo compare {' '.join(folders)}")

    def table(self, complete: bool = False) -> Table:
        """One row per job, and a caption that counts them by state."""
        counts = Counter(job.state for job in self.jobs)
        several_scores = any("val/exact" in job.scores for job in self.jobs)
        table = Table(
            Column("run", no_wrap=True, overflow="fold"),
            "state",
            "step",
            Column("held-out", min_width=SCORE_WIDTH if several_scores else None, no_wrap=not several_scores),
            "targets/s",
            "time",
            "note",
            caption=", ".join(f"{count} {state}" for state, count in counts.items()),
            box=box.SIMPLE_HEAD,
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
        f"{progress['step']}/{progress['steps']}" if progress else "",
        ", ".join(scores),
        "" if speed is None else f"{speed:,.0f}",
        format_time(int(job.seconds)) if job.seconds else "",
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
    """Bits per byte, or the shares by which a task of samples is judged, with their names."""
    if "val/bits_per_byte" in metrics:
        return [f"{metrics['val/bits_per_byte']:.3f} bits/byte"]
    shares = [f"{short_name(name)} {metrics[tag]:.1%}" for tag, name in job.scores.items() if tag in metrics]
    return shares or ([f"loss {metrics['val/loss']:.3f}"] if "val/loss" in metrics else [])


def format_time(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def task_folder(job: Job) -> Path:
    """The folder of all models' runs on the job's task; or that of a run among the results."""
    assert job.result_folder is not None
    return job.folder.parents[1] if job.result_folder == job.folder else job.result_folder
