"""Triton kernels, those of packages and the zoo's, on a machine without a GPU: interpreted, and compiled.

Each file of cases runs in a process that has the packages (packages.py).  If they can't be installed, all of
these tests fail.
"""

import os
from pathlib import Path

import pytest

from tests.interpreted.packages import install, run_tests

CASES = Path(__file__).parent


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of this session."""
    base = tmp_path_factory.getbasetemp()
    return install((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "triton-packages")


@pytest.mark.slow
@pytest.mark.parametrize("cases", ["scan", "ssd", "fla", "fla_models"])
def test_interpreted(cases: str, packages: Path) -> None:
    run_tests(CASES / f"cases_{cases}.py", packages)


@pytest.mark.slow
def test_compiled_for_gpus(packages: Path) -> None:
    run_tests(CASES / "cases_compiled.py", packages, interpret=False)


def test_a_file_in_which_nothing_ran_fails(tmp_path: Path) -> None:
    (tmp_path / "pytest.py").write_text("print('1 skipped')")
    with pytest.raises(AssertionError, match="1 skipped"):
        run_tests(tmp_path / "cases.py", tmp_path)
