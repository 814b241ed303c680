"""Packages of Triton kernels on a machine without CUDA, and tests that run them under Triton's interpreter.

`install` puts triton, mamba_ssm and flash-linear-attention into a folder outside the environment, without
what they would build for CUDA or bring along.  `run_tests` runs a file of tests with them, in another
process: triton decides when it is imported whether kernels are interpreted, and this process mustn't see it,
since torch.compile would.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("triton==3.9.0", "mamba-ssm==2.3.1", "fla-core==0.6.0", "flash-linear-attention==0.6.0")
WITHOUT_CUDA = {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE"}  # and don't look for a wheel


def install(folder: Path, packages: Sequence[str] = PACKAGES) -> Path:
    """`folder` with the packages in it and nothing that they require, installed by the first process that
    calls (those of Triton: about 300 MB).

    AssertionError: pip's last lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    complete = folder / "complete"
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--target",
                str(folder),
                "--upgrade",
            ]
            command += ["--no-deps", "--no-build-isolation", *packages]
            ended = subprocess.run(
                command, env=os.environ | WITHOUT_CUDA, capture_output=True, text=True, check=False
            )
            assert ended.returncode == 0, f"pip installs {' '.join(packages)}: {ended.stderr[-2000:]}"
            complete.touch()
    return folder


def environment(folder: Path, *, interpret: bool) -> dict[str, str]:
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return os.environ | paths | {"TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}


def run_tests(file: Path, folder: Path, *, interpret: bool = True) -> str:
    """Pytest's output.  AssertionError unless tests ran, and none failed or was skipped."""
    command = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-o", "addopts=", "-p"]
    command += ["tests.interpreted.interpreter", "-p", "no:cacheprovider", str(file)]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(folder, interpret=interpret),
        capture_output=True,
        text=True,
        check=False,
    )
    report = f"{ended.stdout[-6000:]}\n{ended.stderr[-2000:]}"
    assert ended.returncode == 0, report
    counts = ended.stdout.splitlines()[-1]
    assert "passed" in counts, report
    assert "skipped" not in counts, report
    return ended.stdout
