"""Shares of a machine's cores and GPUs for processes that run side by side."""

import os
from collections.abc import Sequence

import torch

from zoo.errors import UserError
from zoo.train.sweep.job import Job


class Resources:
    """Slots for processes, each with the same share of the cores and its GPUs."""

    def __init__(self, jobs: Sequence[Job], num_slots: int | None) -> None:
        """`num_slots`: None for one per GPU, or one.

        Raises UserError if a run needs more GPUs than there are.
        """
        self.gpus = visible_gpus(jobs)
        needed = max(int(job.config["trainer.devices"]) for job in jobs)
        if self.gpus and needed > len(self.gpus):
            raise UserError(f"trainer.devices: expected at most {len(self.gpus)}, found {needed}")
        self.gpus_per_run = needed if self.gpus else 1
        self.num_slots = num_slots or max(1, len(self.gpus) // self.gpus_per_run)

    def environment(self, slot: int) -> dict[str, str]:
        """Variables for the process in a slot; they don't depend on how many other slots are in use."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        env = {"OMP_NUM_THREADS": str(max(1, cores // self.num_slots)), **os.environ}
        if self.gpus:
            first = slot * self.gpus_per_run
            gpus = [self.gpus[(first + i) % len(self.gpus)] for i in range(self.gpus_per_run)]
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return env


def visible_gpus(jobs: Sequence[Job]) -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them; none where the runs don't use any."""
    if all(job.config["trainer.accelerator"] not in ("auto", "gpu", "cuda") for job in jobs):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(i) for i in range(count)]
