"""How long a sweep will still take."""

from collections.abc import Sequence
from statistics import mean

from zoo.train.sweep.job import Job


def seconds_left(jobs: Sequence[Job], num_slots: int) -> float | None:
    """What is left to do, shared by the slots: a run takes as long as those of its model, task and size that
    ended in this sweep, or else as all that ended; None before the first has ended."""
    ended = [job for job in jobs if job.state in ("done", "diverged") and job.previous_seconds > 0]
    if not ended:
        return None
    remaining = []
    for job in jobs:
        if job.is_waiting or job.state == "running":
            alike = [other.previous_seconds for other in ended if other.kind == job.kind]
            expected = mean(alike or [other.previous_seconds for other in ended])
            remaining.append(max(0.0, expected - job.seconds))
    return max([sum(remaining) / num_slots, *remaining], default=0.0)
