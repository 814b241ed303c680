"""The same command trains in a clone, from an editable install and from a wheel, and in a user's folder that
has packages of our rooms' names."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = ["-m", "zoo.train", "model=rmt", "size=nano", "steps=2", "data.corpus=text.txt", "run_dir=run"]
LIBRARIES = sysconfig.get_paths()["purelib"]  # torch and so on; .pth files on PYTHONPATH aren't read


def run(python: Path | str, *words: str, cwd: Path, path: str = LIBRARIES) -> str:
    environment = {**os.environ, "PYTHONPATH": path, "ZOO_CACHE": str(cwd / "cache")}
    result = subprocess.run([str(python), *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def trains(python: Path | str, folder: Path, path: str = LIBRARIES) -> None:
    (folder / "text.txt").write_text("One command trains. " * 500)
    assert "rmt reached" in run(python, *COMMAND, cwd=folder, path=path)
    assert (folder / "run" / "metrics.json").is_file()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    return tmp_path / "clone"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A new virtual environment with the libraries of this one, but without the zoo."""
    venv.create(tmp_path / "venv", with_pip=True)
    return tmp_path / "venv" / "bin" / "python"


def install(python: Path, folder: Path, *words: str) -> None:
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    run(python, "-m", "pip", "install", *options, *words, cwd=folder)


@pytest.mark.slow
def test_fresh_clone(clone: Path) -> None:
    trains(sys.executable, clone)


@pytest.mark.slow
def test_editable_install(clone: Path, python: Path, tmp_path: Path) -> None:
    install(python, tmp_path, "-e", str(clone))
    (tmp_path / "elsewhere").mkdir()
    trains(python, tmp_path / "elsewhere")
    output = run(
        python, "-c", "import zoo.models.rmt; print(zoo.models.rmt.__file__)", cwd=tmp_path / "elsewhere"
    )
    assert Path(output.strip()) == clone / "models" / "rmt.py"


@pytest.mark.slow
def test_wheel_in_a_folder_with_packages_of_the_same_names(clone: Path, python: Path, tmp_path: Path) -> None:
    install(python, tmp_path, str(clone))
    folder = tmp_path / "project"
    for room in ("models", "train", "memory", "configs"):
        (folder / room).mkdir(parents=True)
        (folder / room / "__init__.py").write_text("raise ImportError('the user\\'s own, not the zoo\\'s')\n")
    trains(python, folder)
    output = run(
        python, "-c", "import zoo.train.commands.train; print(zoo.train.commands.train.__file__)", cwd=folder
    )
    assert "site-packages" in output


@pytest.mark.slow
def test_console_script(clone: Path, python: Path, tmp_path: Path) -> None:
    install(python, tmp_path, str(clone))
    output = run(python.parent / "zoo", "--help", cwd=tmp_path)
    assert "train an architecture" in output


@pytest.mark.slow
def test_source_distribution_has_tests_docs_and_constraints(clone: Path, tmp_path: Path) -> None:
    build = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    archive = run(sys.executable, "-c", build, cwd=clone).splitlines()[-1]
    with tarfile.open(tmp_path / archive) as packed:
        files = {name.partition("/")[2] for name in packed.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=clone, capture_output=True, text=True, check=True)
    folders = ("tests/", "docs/", "constraints/", "zoo/", "memory/", "models/", "train/", "configs/")
    expected = {file for file in tracked.stdout.splitlines() if file.startswith(folders)}
    assert expected <= files, sorted(expected - files)[:5]
