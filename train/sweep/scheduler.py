"""The scheduler of a sweep: skips finished runs, starts and watches the others, and stops them on a signal.

A job whose process dies is `failed` and isn't restarted in this sweep; the next `zoo sweep` with the same
arguments resumes it and all other unfinished runs.
"""

import contextlib
import json
import signal
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zoo
from zoo import trust
from zoo.errors import UserError, one_line
from zoo.train.runs import protocol
from zoo.train.runs.checkout import commit
from zoo.train.runs.files import write_text
from zoo.train.runs.folder import folders, read_config, read_json
from zoo.train.runs.overrides import path_override
from zoo.train.runs.stop_signals import stop_signals
from zoo.train.sweep.display import Display
from zoo.train.sweep.job import Job, JobState
from zoo.train.sweep.options import NAME_KEYS, SweepOptions
from zoo.train.sweep.plan import check_corpora, describe_mismatch
from zoo.train.sweep.process import RunProcess, try_lock
from zoo.train.sweep.resources import Resources

COPIED_FILES = ("config.yaml", "metrics.json", "evaluation.json", protocol.FILE)
DIVERGED = "not finite"
"""In the message of a run that stops because its loss or a gradient isn't finite."""
POLL_INTERVAL = 0.2  # seconds


class Sweep:
    """Runs jobs as processes, at most one per slot of the machine's resources, and displays their states."""

    def __init__(
        self, jobs: list[Job], options: SweepOptions, more_jobs: Callable[[], list[Job]] | None = None
    ) -> None:
        """`more_jobs`: all jobs that follow from what is done so far, those of before among them.

        Raises UserError for a folder of results that doesn't exist or takes committed code alone, and for too
        few GPUs.
        """
        check_committed(options.keep)
        self.jobs, self.copy_to, self.more_jobs = jobs, options.keep, more_jobs
        self.resources = Resources(jobs, options.max_parallel)
        self.display = Display(jobs, self.resources.num_slots)
        self.finished = finished_runs(options.results)  # to be reused: their configs by folder
        self.stop_signal = 0

    def run(self) -> int:
        """Runs until every job is done, failed or stopped, and returns the exit code."""
        for job in self.jobs:
            self.mark_if_done_or_failed(job)
        self.add_jobs()
        check_corpora([job for job in self.jobs if job.is_waiting])
        with self.handle_signals(), self.display.live() as refresh:
            while self.poll():
                refresh()
                time.sleep(POLL_INTERVAL)
        self.display.summary(interrupted=bool(self.stop_signal))
        if self.stop_signal:
            return 128 + self.stop_signal
        return int(any(job.state not in ("done", "diverged") for job in self.jobs))

    def add_jobs(self) -> None:
        """Adds the jobs that follow from what is done, until none is left that was done before."""
        while self.more_jobs is not None:
            folders = {job.folder for job in self.jobs}
            added = [job for job in self.more_jobs() if job.folder not in folders]
            self.jobs.extend(added)
            if not [job for job in added if self.mark_if_done_or_failed(job)]:
                return

    def poll(self) -> bool:
        """Handles processes that have ended and starts jobs in free slots; False once no job is waiting or
        running."""
        for job in self.jobs:
            if job.process is not None and job.process.exit_code is not None:
                self.handle_exit(job, job.process)
        if not self.stop_signal:
            self.add_jobs()
        waiting = [job for job in self.jobs if job.is_waiting]
        if self.stop_signal:
            for job in waiting:
                job.state = "stopped"
            waiting = []
        for job in waiting:
            used_slots = {job.process.slot for job in self.jobs if job.process is not None}
            free_slots = sorted(set(range(self.resources.num_slots)) - used_slots)
            if not free_slots:
                break
            self.start(job, free_slots[0])
        return any(job.is_waiting or job.state == "running" for job in self.jobs)

    # -- one job

    def set_state(self, job: Job, state: JobState, note: str = "") -> None:
        job.state, job.note = state, note
        self.display.print_change(job)

    def mark_if_done_or_failed(self, job: Job) -> bool:
        """Marks a job that is not to be started, as done or failed, and returns True for it.

        It is done if the finished run is in its folder or among the finished runs to be reused, and failed if
        its folder holds another run or can't be read.
        """
        try:
            if (job.folder / "config.yaml").is_file():
                finished = (job.folder / "metrics.json").is_file()
                if mismatch := describe_mismatch(job, job.folder, finished):
                    note = f"{job.folder} holds another run: {mismatch} (move it, or use another runs=)"
                    self.set_state(job, "failed", note)
                    return True
                if protocol.has_diverged(job.folder):
                    self.set_state(job, "diverged", f"in {job.folder}")
                    return True
                if finished and is_complete(job, job.folder):
                    self.complete(job, job.folder)
                    return True
            return self.mark_if_reused(job)
        except UserError as error:
            self.set_state(job, "failed", one_line(error))
            return True

    def mark_if_reused(self, job: Job) -> bool:
        """Marks a job as done if one of the finished runs is its run, and returns True for it."""
        identity = {key: job.config[key] for key in (*(f"names.{name}" for name in NAME_KEYS), "seed")}
        for folder, config in self.finished.items():
            if all(config.get(key) == value for key, value in identity.items()):
                has_diverged = protocol.has_diverged(folder)
                mismatch = describe_mismatch(job, folder, finished=not has_diverged)
                if not mismatch and has_diverged:
                    self.set_state(job, "diverged", f"in {folder}")
                    return True
                if not mismatch and is_complete(job, folder):
                    self.complete(job, folder)
                    return True
                job.note = f"{folder} isn't reused: {mismatch or 'it has no protocol'}"
        return False

    def start(self, job: Job, slot: int) -> None:
        """Starts or resumes a job, unless another process trains it or has finished it meanwhile."""
        with try_lock(job.folder) as lock:
            if lock is None:
                if job.state != "running elsewhere":
                    self.set_state(job, "running elsewhere", "another process trains it")
                return
            if self.mark_if_done_or_failed(job):
                return
            evaluates = (job.folder / "metrics.json").is_file()
            resumes = (job.folder / "config.yaml").is_file() and not evaluates
            if evaluates:
                arguments = [f"run={job.folder}", *job.evaluations[job.num_evaluated]]
            elif resumes:
                arguments = resume_arguments(job)
            else:
                arguments = [*job.overrides, path_override("run_dir", job.folder)]
            environment = self.resources.environment(slot)
            job.process = RunProcess(job.folder, arguments, environment, slot, lock, evaluates)
        self.set_state(job, "running", "evaluated" if evaluates else "resumed" if resumes else "")

    def handle_exit(self, job: Job, process: RunProcess) -> None:
        """Sets the state of a job whose process has ended: done, stopped or failed."""
        job.previous_seconds, job.process = job.seconds, None
        if process.exit_code == 0 and (job.folder / "metrics.json").is_file():
            job.num_evaluated += process.evaluates
            if job.num_evaluated == len(job.evaluations):
                self.complete(job, job.folder)
            else:
                job.state = "waiting"  # for its next evaluation
        elif self.stop_signal:
            saved = (job.folder / "checkpoints" / "last.ckpt").is_file()
            self.set_state(job, "stopped", "saved" if saved else "nothing saved yet")
        else:
            failure = process.failure()
            if job.purpose in protocol.CHOOSE_RATE and DIVERGED in failure:
                self.write_protocol(job, diverged=failure)
                self.set_state(job, "diverged", failure)
                self.copy_files(job)
            else:
                self.set_state(job, "failed", failure)

    def complete(self, job: Job, folder: Path) -> None:
        """Records a finished run, and copies its files if it was trained in the job's folder."""
        job.result_folder, job.result = folder, read_json(folder / "metrics.json")
        if job.purpose and folder == job.folder:
            self.write_protocol(job)
        self.set_state(job, "done", "" if folder == job.folder else f"in {folder}")
        if folder == job.folder:
            self.copy_files(job)

    def write_protocol(self, job: Job, **more: str) -> None:
        content = {"protocol": protocol.VERSION, "purpose": job.purpose, **more}
        write_text(job.folder / protocol.FILE, json.dumps(content) + "\n")

    def copy_files(self, job: Job) -> None:
        """Copies what `keep` keeps of a job's folder."""
        if self.copy_to:
            runs_root = job.folder.parents[2]  # above task/model/size-seed
            copy = Path(self.copy_to) / job.folder.relative_to(runs_root)
            for name in COPIED_FILES:
                if (job.folder / name).is_file():
                    write_text(copy / name, (job.folder / name).read_text())

    # -- signals

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Passes signals on to the runs; ends them all if the sweep itself fails."""
        signals = stop_signals()
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
        """Every run finishes its training step, saves and exits; at a second signal every run exits at
        once."""
        self.stop_signal = signum
        for job in self.jobs:
            if job.process is not None:
                job.process.stop()


def is_complete(job: Job, folder: Path) -> bool:
    """True if a finished run has all that the job is for: under a protocol it is one of its runs, and was
    evaluated if it has to be."""
    if not job.purpose:
        return True
    if folder == job.folder and not job.evaluations:
        return True
    return protocol.read(folder).get("purpose") == job.purpose


def check_committed(keep: str) -> None:
    """Raises UserError if runs of uncommitted code would be kept among the zoo's own results."""
    zoo_results = Path(zoo.__file__).parent.parent / "results"
    if keep and Path(keep).resolve().is_relative_to(zoo_results.resolve()) and commit().endswith("+"):
        raise UserError(f"sweep: keep: {keep} takes runs of committed code alone; commit the changes first")


def finished_runs(results: str) -> dict[Path, dict[str, Any]]:
    """The config of every finished run in these folders (separated by commas) and their subfolders, and of
    those that diverged, by its folder."""
    paths = [Path(folder) for folder in results.split(",") if folder]
    if missing := [str(path) for path in paths if not path.is_dir()]:
        if results != SweepOptions.results:
            raise UserError(f"sweep: results: no folder {', '.join(missing)}")
        return {}
    finished_folders, others = folders(paths)
    diverged = filter(protocol.has_diverged, others)
    return {folder: read_config(folder) for folder in (*finished_folders, *diverged)}


def resume_arguments(job: Job) -> list[str]:
    """The command line that resumes a run.

    Classes that aren't trusted are repeated as `_target_=` overrides, which trusts them, as on the command
    line of `zoo sweep`.
    """
    local_keys = ("hydra.searchpath=", "data.root=")
    machine_overrides = [override for override in job.overrides if override.startswith(local_keys)]
    targets = {f"{group}._target_": job.config[f"{group}._target_"] for group in ("model", "task")}
    repeated = [f"{key}={target}" for key, target in targets.items() if not trust.is_trusted(target)]
    return [path_override("resume", job.folder), *machine_overrides, *repeated]
