"""The keys of `zoo sweep`; read before anything large is imported."""

from dataclasses import dataclass

NAME_KEYS = ("model", "task", "size")
"""Config groups whose choices identify a run, with its seed; a config holds them as `names.…`."""


@dataclass(frozen=True)
class SweepOptions:
    """The keys of `zoo sweep` itself."""

    max_parallel: int | None = None
    """The key jobs=."""
    runs: str = "runs"
    """Where the jobs' folders are."""
    results: str = "results/runs"
    """Folders, separated by commas, of finished runs: a job that one of them did isn't run again."""
    keep: str = ""
    """A folder to copy each finished run's files to; none if empty."""
    protocol: int | None = None
    seeds: tuple[int, ...] = ()
    """Of a protocol's scores; its own if empty."""
    beyond: int | None = None
    """Of a protocol: targets with evidence so far back are beyond the reach of attention; None: the largest
    reach of the sweep's models."""
