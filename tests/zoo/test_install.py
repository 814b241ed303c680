"""However the zoo comes to a machine, the same command trains: a clone, an editable install, a wheel, and in
a user's folder that has rooms of the same names."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = ["-m", "zoo.train", "model=rmt", "size=nano", "steps=2", "data.corpus=text.txt", "run_dir=run"]
LIBRARIES = sysconfig.get_paths()[
    "purelib"
]  # torch and the others; its .pth files are not read from PYTHONPATH


def run(python: Path | str, *words: str, cwd: Path, path: str = LIBRARIES) -> str:
    environment = {**os.environ, "PYTHONPATH": path, "ZOO_CACHE": str(cwd / "cache")}
    done = subprocess.run([str(python), *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
    """A fresh virtual environment that finds the libraries of this one, but no zoo."""
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
    said = run(
        python, "-c", "import zoo.models.rmt; print(zoo.models.rmt.__file__)", cwd=tmp_path / "elsewhere"
    )
    assert Path(said.strip()) == clone / "models" / "rmt.py"


@pytest.mark.slow
def test_wheel_in_a_folder_with_rooms_of_its_own(clone: Path, python: Path, tmp_path: Path) -> None:
    install(python, tmp_path, str(clone))
    folder = tmp_path / "mine"
    for room in ("models", "train", "memory", "configs"):
        (folder / room).mkdir(parents=True)
        (folder / room / "__init__.py").write_text("raise ImportError('the user\\'s own, not the zoo\\'s')\n")
    trains(python, folder)
    said = run(
        python, "-c", "import zoo.train.commands.train; print(zoo.train.commands.train.__file__)", cwd=folder
    )
    assert "site-packages" in said


@pytest.mark.slow
def test_console_script(clone: Path, python: Path, tmp_path: Path) -> None:
    install(python, tmp_path, str(clone))
    said = run(python.parent / "zoo", "--help", cwd=tmp_path)
    assert "train one architecture" in said
