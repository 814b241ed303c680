"""The scheduler of a sweep: skips finished runs, starts, watches, resumes and stops the others."""

import contextlib
import signal
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo import plugins
from zoo.errors import UserError, one_line
from zoo.train.runs.files import write_text
from zoo.train.runs.folder import folders, read_config, read_json
from zoo.train.sweep.display import Display
from zoo.train.sweep.job import Job
from zoo.train.sweep.plan import AXES, SweepOptions, config_mismatch
from zoo.train.sweep.process import RunProcess, try_lock
from zoo.train.sweep.resources import Resources

KEPT_FILES = ("config.yaml", "metrics.json", "evaluation.json")
PAUSE = 0.2  # seconds between two steps of the scheduler


class Sweep:
    def __init__(self, jobs: list[Job], options: SweepOptions) -> None:
        """UserError: a folder of results that doesn't exist, or too few GPUs."""
        self.jobs, self.keep = jobs, options.keep
        self.resources = Resources(jobs, options.jobs)
        self.display = Display(jobs)
        self.finished = finished_runs(options.results)
        self.signal = 0

    def run(self) -> int:
        """Runs until every job is done, failed or stopped; the exit code."""
        for job in self.jobs:
            self.skip_if_done(job)
        with self.handle_signals(), self.display.live() as refresh:
            while self.step():
                refresh()
                time.sleep(PAUSE)
        self.display.summary(interrupted=bool(self.signal))
        if self.signal:
            return 128 + self.signal
        return int(any(job.state != "done" for job in self.jobs))

    def step(self) -> bool:
        """Collects processes that have ended and starts jobs in free slots; False once none is left."""
        for job in self.jobs:
            if job.process is not None and job.process.exit_code is not None:
                self.finish(job, job.process)
        waiting = [job for job in self.jobs if job.is_waiting]
        if self.signal:
            for job in waiting:
                job.state = "stopped"
            waiting = []
        for job in waiting:
            used = {job.process.slot for job in self.jobs if job.process is not None}
            free = sorted(set(range(self.resources.num_slots)) - used)
            if not free:
                break
            self.start(job, free[0])
        return any(job.is_waiting or job.state == "running" for job in self.jobs)

    # -- one job

    def skip_if_done(self, job: Job) -> bool:
        """True if nothing is left to train: done, here or among the results, or the folder is taken."""
        try:
            if (job.folder / "config.yaml").is_file():
                finished = (job.folder / "metrics.json").is_file()
                if mismatch := config_mismatch(job, job.folder, finished):
                    note = f"{job.folder} holds another run: {mismatch} (move it, or take other runs=)"
                    self.display.report(job, "failed", note)
                    return True
                if finished:
                    self.complete(job, job.folder)
                    return True
            return self.skip_if_in_results(job)
        except UserError as error:
            self.display.report(job, "failed", one_line(error))
            return True

    def skip_if_in_results(self, job: Job) -> bool:
        identity = {key: job.config[key] for key in (*(f"names.{axis}" for axis in AXES), "seed")}
        for folder, config in self.finished.items():
            if all(config.get(key) == value for key, value in identity.items()):
                mismatch = config_mismatch(job, folder, finished=True)
                if not mismatch:
                    self.complete(job, folder)
                    return True
                job.note = f"{folder} doesn't count: {mismatch}"
        return False

    def start(self, job: Job, slot: int) -> None:
        """Starts or resumes a job, unless another process trains it or has finished it meanwhile."""
        with try_lock(job.folder) as lock:
            if lock is None:
                if job.state != "elsewhere":
                    self.display.report(job, "elsewhere", "another process trains it")
                return
            if self.skip_if_done(job):
                return
            resumes = (job.folder / "config.yaml").is_file()
            words = resume_words(job) if resumes else [*job.words, f"run_dir={job.folder}"]
            job.process = RunProcess(job.folder, words, self.resources.environment(slot), slot, lock)
        self.display.report(job, "running", "resumed" if resumes else "")

    def finish(self, job: Job, process: RunProcess) -> None:
        """Takes over the outcome of a process that has ended."""
        job.finished_seconds, job.process = job.seconds, None
        if process.exit_code == 0 and (job.folder / "metrics.json").is_file():
            self.complete(job, job.folder)
        elif self.signal:
            saved = (job.folder / "checkpoints" / "last.ckpt").is_file()
            self.display.report(job, "stopped", "saved" if saved else "nothing saved yet")
        else:
            self.display.report(job, "failed", process.failure())

    def complete(self, job: Job, folder: Path) -> None:
        """Records a finished run, and copies its files if it was trained in the job's folder."""
        job.result_folder, job.result = folder, read_json(folder / "metrics.json")
        self.display.report(job, "done", f"in {folder}")
        if self.keep and folder == job.folder:
            copy = Path(self.keep) / folder.relative_to(folder.parents[2])
            for name in KEPT_FILES:
                if (folder / name).is_file():
                    write_text(copy / name, (folder / name).read_text())

    # -- signals

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Passes SIGINT and SIGTERM on to the runs; ends them all if the sweep itself fails."""
        signals = (signal.SIGINT, signal.SIGTERM)
        handlers = {signum: signal.signal(signum, self.on_signal) for signum in signals}
        try:
            yield
        finally:
            for job in self.jobs:
                if job.process is not None:
                    job.process.stop()
            for signum, handler in handlers.items():
                signal.signal(signum, handler)

    def on_signal(self, signum: int, frame: types.FrameType | None) -> None:
        """Every run finishes its step, saves and leaves; at a second signal it leaves at once."""
        self.signal = signum
        for job in self.jobs:
            if job.process is not None:
                job.process.stop()


def finished_runs(results: str) -> dict[Path, dict[str, Any]]:
    """Settings of the finished runs below folders, which are separated by commas."""
    paths = [Path(folder) for folder in results.split(",") if folder]
    if missing := [str(path) for path in paths if not path.is_dir()]:
        if results != SweepOptions.results:
            raise UserError(f"sweep: results: no folder {', '.join(missing)}")
        return {}
    return {folder: read_config(folder) for folder in folders(paths)[0]}


def resume_words(job: Job) -> list[str]:
    """Command line that resumes a run; it names classes that aren't trusted, as the sweep's did."""
    local = [word for word in job.words if word.startswith(("hydra.searchpath=", "data.root="))]
    targets = {f"{group}._target_": job.config[f"{group}._target_"] for group in ("model", "task")}
    trust = [f"{key}={target}" for key, target in targets.items() if not plugins.trusted(target)]
    return [f"resume={job.folder}", *local, *trust]
