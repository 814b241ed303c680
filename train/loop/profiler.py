"""Lightning's profilers, whose reports go to the run's folder."""

from pathlib import Path

from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def make_profiler(name: str | None, run_dir: Path) -> Profiler | None:
    """None without a name.  The report is run_dir/fit-profile.txt; `pytorch` writes traces beside it."""
    return None if name is None else PROFILERS[name](dirpath=run_dir, filename="profile")
