"""The processes of a sweep: started, watched, resumed and ended."""

import fcntl
import itertools
import os
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from zoo import plugins
from zoo.errors import UserError, one_line
from zoo.train.plotting.terminal import WIDE
from zoo.train.runs.files import HELD, write_text
from zoo.train.runs.folder import folders, read_config, read_json
from zoo.train.sweep.display import STYLES, above, place, reached
from zoo.train.sweep.plan import AXES, OWN, Job, config_mismatch

KEPT = ("config.yaml", "metrics.json", "evaluation.json")
PROGRAM = (sys.executable, "-m", "zoo.train")
PAUSE = 0.2  # seconds between two looks
MANY = 30  # more runs than these, and the live table leaves out those that wait or are done


# -- how it is done
class Sweep:
    """Starts, watches and ends the processes."""

    def __init__(self, jobs: list[Job], own: dict[str, Any]) -> None:
        self.jobs, self.keep = jobs, own["keep"]
        self.devices = gpus(jobs)
        needs = max(int(job.config["trainer.devices"]) for job in jobs)
        self.per_run = needs if self.devices else 1
        if self.devices and needs > len(self.devices):
            raise UserError(f"trainer.devices: expected at most {len(self.devices)}, found {needs}")
        self.most = own["jobs"] or max(1, len(self.devices) // self.per_run)
        self.signal = 0
        self.words = [word for word in sys.argv[1:] if word.startswith(("hydra.searchpath=", "data.root="))]
        self.console = Console(width=None if sys.stdout.isatty() else WIDE)
        results = [Path(folder) for folder in own["results"].split(",") if folder]
        if lacking := [str(folder) for folder in results if not folder.is_dir()]:
            if own["results"] != OWN["results"]:
                raise UserError(f"sweep: results: no folder {', '.join(lacking)}")
            results = []
        self.finished = {folder: read_config(folder) for folder in folders(results)[0]}

    def run(self) -> int:
        """Until every run is done, has failed or was stopped; the exit code."""
        for job in self.jobs:
            self.skip_if_done(job)
        before = {number: signal.signal(number, self.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if self.console.is_terminal:
                with Live(self.table(), console=self.console, refresh_per_second=2) as live:
                    while self.step():
                        live.update(self.table())
                        time.sleep(PAUSE)
                    live.update(self.table(whole=True))
            else:
                while self.step():
                    time.sleep(PAUSE)
                self.console.print(self.table(whole=True))
        finally:
            for job in self.jobs:
                if job.process is not None:  # an error of our own: nothing may go on unwatched
                    job.process.terminate()
            for number, handler in before.items():
                signal.signal(number, handler)
        self.last_words()
        if self.signal:
            return 128 + self.signal
        return int(any(job.state != "done" for job in self.jobs))

    def on_signal(self, number: int, frame: types.FrameType | None) -> None:
        """Every run gets the signal: it finishes its step, saves and leaves; at a second one, at once."""
        self.signal = number
        for job in self.jobs:
            if job.process is not None and job.process.poll() is None:
                job.process.send_signal(signal.SIGTERM)

    def step(self) -> bool:
        """Look at every run once, start what there is room for; whether anything is left to wait for."""
        for job in self.jobs:
            if job.process is not None and job.process.poll() is not None:
                self.ended(job)
        waiting = [job for job in self.jobs if job.state in ("waiting", "elsewhere")]
        if self.signal:
            for job in waiting:
                job.state = "stopped"
            waiting = []
        for job in waiting:
            slots = set(range(self.most)) - {one.slot for one in self.jobs if one.process is not None}
            if not slots:
                break
            self.start(job, min(slots))
        return any(job.state in ("waiting", "elsewhere", "running") for job in self.jobs)

    def skip_if_done(self, job: Job) -> bool:
        """Whether there is nothing to train: done here, done among the results, or the folder is taken."""
        here = job.folder / "config.yaml"
        finished = (job.folder / "metrics.json").is_file()
        try:
            if here.is_file() and (why := config_mismatch(job, job.folder, finished)):
                self.say(
                    job, "failed", f"{job.folder} holds another run: {why} (move it, or take other runs=)"
                )
                return True
            if here.is_file() and finished:
                self.done(job, job.folder)
                return True
            ours = {key: job.config[key] for key in (*(f"names.{axis}" for axis in AXES), "seed")}
            for folder, config in self.finished.items():
                if all(config.get(key) == value for key, value in ours.items()):
                    if not (why := config_mismatch(job, folder, finished=True)):
                        self.done(job, folder)
                        return True
                    job.note = f"{folder} doesn't count: {why}"
        except UserError as error:
            self.say(job, "failed", one_line(error))
            return True
        return False

    def start(self, job: Job, slot: int) -> None:
        """In a process of its own, which holds the folder's lock as long as it lives, whatever ends us."""
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if job.state != "elsewhere":
                    self.say(job, "elsewhere", "another process trains it")
                return
            if self.skip_if_done(job):  # by another sweep, in the meantime
                return
            begun = (job.folder / "config.yaml").is_file()
            words = [f"resume={job.folder}", *self.words] if begun else [*job.words, f"run_dir={job.folder}"]
            if begun:
                targets = {
                    f"{group}._target_": job.config[f"{group}._target_"] for group in ("model", "task")
                }
                words += [f"{key}={name}" for key, name in targets.items() if not plugins.trusted(name)]
            with (job.folder / "output.log").open("ab") as log:
                job.process = subprocess.Popen(
                    [*PROGRAM, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self.environment(slot) | {HELD: str(lock.fileno())},
                    pass_fds=(lock.fileno(),),
                    start_new_session=True,  # Ctrl-C reaches it through us, once
                )
        job.slot, job.began = slot, time.monotonic()
        self.say(job, "running", "resumed" if begun else "")

    def environment(self, slot: int) -> dict[str, str]:
        """Its share of the cores, and of the GPUs; the same for a run however many others are left to do."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        env = {"OMP_NUM_THREADS": str(max(1, cores // self.most)), **os.environ}
        if self.devices:
            first = slot * self.per_run
            own = [self.devices[(first + n) % len(self.devices)] for n in range(self.per_run)]
            env["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return env

    def ended(self, job: Job) -> None:
        assert job.process is not None
        code, job.process = job.process.returncode, None
        job.took += time.monotonic() - job.began
        if code == 0 and (job.folder / "metrics.json").is_file():
            self.done(job, job.folder)
        elif self.signal:
            saved = (job.folder / "checkpoints" / "last.ckpt").is_file()
            self.say(job, "stopped", "saved" if saved else "nothing saved yet")
        else:
            said = tail(job.folder)[-1:] or ["nothing"]
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            self.say(job, "failed", f"{how}: {said[0].removeprefix('error: ')}")

    def done(self, job: Job, where: Path) -> None:
        job.where, job.result = where, read_json(where / "metrics.json")
        self.say(job, "done", f"in {where}")
        if self.keep and where == job.folder:
            for name in KEPT:
                if (where / name).is_file():
                    kept = Path(self.keep) / where.relative_to(where.parents[2]) / name
                    write_text(kept, (where / name).read_text())

    # -- what is said

    def say(self, job: Job, state: str, note: str = "") -> None:
        job.state, job.note = state, note
        if not self.console.is_terminal:
            score = f"  {reached(job.result)}" if state == "done" else ""
            print(f"{job.name}  {state}{score}" + (f"  {note}" if note else ""), flush=True)

    def table(self, whole: bool = False) -> Table:
        """One row per run, and a last line that counts them."""
        counts = Counter(job.state for job in self.jobs)
        table = Table(
            Column("run", no_wrap=True, overflow="fold"),
            "state",
            "step",
            Column("held-out", no_wrap=True),
            "asked tokens/s",
            "time",
            "note",
            caption=", ".join(f"{count} {state}" for state, count in counts.items()),
            box=box.SIMPLE_HEAD,
        )
        few = whole or len(self.jobs) <= MANY
        for job in self.jobs:
            if few or job.state in ("running", "failed", "elsewhere"):
                table.add_row(*self.row(job), style=STYLES[job.state])
        return table

    def row(self, job: Job) -> tuple[str, ...]:
        took = job.took + (time.monotonic() - job.began if job.state == "running" else 0)
        clock = f"{int(took) // 3600}:{int(took) // 60 % 60:02d}:{int(took) % 60:02d}" if took else ""
        if job.state == "done":
            speed = f"{job.result.get('tokens_per_s', 0):,.0f}"
            step = str(job.result.get("steps", ""))
            return job.name, job.state, f"{step}/{step}", reached(job.result), speed, clock, job.note
        words = last_step(job.folder)
        said = {word[1]: word[0] for word in itertools.pairwise(words)}
        return job.name, job.state, place(words), heard(job.folder), said.get("tokens/s", ""), clock, job.note

    def last_words(self) -> None:
        """What to do next, and why what failed did."""
        failed = [job for job in self.jobs if job.state == "failed"]
        for job in failed:
            print(f"failed: {job.name}: {job.note} (see {job.folder / 'output.log'})", file=sys.stderr)
        if self.signal:
            print("interrupted; the same command goes on from here", file=sys.stderr)
        elif not failed:
            where = sorted({str(above(job)) for job in self.jobs})
            print(f"compare them with: zoo compare {' '.join(where)}")


def gpus(jobs: list[Job]) -> list[str]:
    """Names of the GPUs as CUDA_VISIBLE_DEVICES takes them; none where the runs don't use any."""
    if all(job.config["trainer.accelerator"] not in ("auto", "gpu", "cuda") for job in jobs):
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def tail(folder: Path, size: int = 8192) -> list[str]:
    """The last lines that a run printed."""
    try:
        with (folder / "output.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - size))
            return [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []


def last_step(folder: Path) -> list[str]:
    """The last words of the form: step 20/50  loss 3.1  …"""
    lines = [line for line in tail(folder) if line.startswith("step ") and "held-out" not in line]
    return lines[-1].split() if lines else []


def heard(folder: Path) -> str:
    """What the last validation said."""
    lines = [line for line in tail(folder) if line.startswith("step ") and "held-out text: " in line]
    return lines[-1].partition("held-out text: ")[2].partition("  ")[0] if lines else ""
