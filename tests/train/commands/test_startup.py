"""What commands import before they answer."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zoo.__main__ import COMMANDS
from zoo.train.tasks.base import score_names
from zoo.train.tasks.score_name import score_name

ROOT = Path(__file__).parents[3]
PROGRAM = """import sys
from zoo.__main__ import main
try:
    main()
except SystemExit as ended:
    print("code", ended.code)
finally:
    print(*sys.modules)
"""
LARGE = {"torch", "lightning", "matplotlib", "scipy"}


def imported(folder: Path, *words: str) -> tuple[str, set[str]]:
    """What a command prints, and the modules that its process has imported at its end."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "COLUMNS": "110"},
        capture_output=True,
        text=True,
        check=True,
    )
    *lines, modules = done.stdout.splitlines()
    return "\n".join([*lines, done.stderr]), set(modules.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_large(name: str, tmp_path: Path) -> None:
    text, modules = imported(tmp_path, name, "--help")
    assert text.startswith(f"`zoo {name}")
    assert not modules & (LARGE | {"hydra", "omegaconf", "numpy", "rich"})


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["list", "tasks"], "  selective_copy   exact match"),
        (["list", "corpora"], "  wikitext-103 "),
        (["train", "rmt"], "model=rmt"),
        (["train", "bogus=1"], "Could not override 'bogus'"),
        (["train", "model.bogus=1", "model=rmt"], "memory_tokens"),
        (["train", "model=rtm"], "did you mean model=rmt?"),
        (["train", "model=RMT"], "did you mean model=rmt?"),
        (["train", "size=huge"], "'size': base micro nano small tiny"),
        (["train", "data.corpsu=1"], "did you mean data.corpus?"),
        (["sweep", "seed=1"], "use seeds="),
        (["evaluate", "rnu=runs"], "did you mean run?"),
        (["compare", "nowhere"], "compare: no folder nowhere"),
        (["bench", "rounds=0", "model=rmt"], "expected a whole number of at least 1"),
        (["generate", "top_p=2", "run=runs"], "top_p: expected a number from"),
        (["export", "run=runs"], "expected to=…"),
        (["import", "from=a", "rn_dir=b"], "did you mean run_dir?"),
        (["evaluate", "run=nowhere"], "expected a run's folder with a config.yaml, found none in 'nowhere'"),
        (["generate", "run=nowhere"], "expected a run's folder with a config.yaml, found none in 'nowhere'"),
        (["inspect", "run=nowhere"], "expected a run's folder with a config.yaml, found none in 'nowhere'"),
        (["export", "run=nowhere", "to=x"], "expected a run's folder with a config.yaml, found none in"),
        (["import", "from=nowhere", "run_dir=x"], "import: from: expected a folder or a file of weights"),
        (["check", "nowhere.Model"], "model: can't import nowhere.Model: No module named 'nowhere'"),
        (["sweep", "model=rmt,rtm"], "did you mean model=rmt?"),
        (["sweep", "model=rmt", "task=lm2"], "Could not find 'task/lm2'"),
        (["train", "data.corpus=nowhere"], "no corpus 'nowhere'"),
        (["train", "data.corpus=enwik8"], "corpus enwik8 not found: expected"),
        (["sweep", "model=rmt", "steps=1", "steps=2"], "steps is given twice"),
        (["bench", "model=rmt", "size=nano", "++size=nano"], "size is given twice"),
        (["evaluate", "run=runs", "task.length=1", "task.length=2"], "task.length is given twice"),
        (["import", "from=a", "run_dir=b", "task.length=1", "task.length=2"], "task.length is given twice"),
        (["check", "model=rmt", "size=nano", "logger=csv"], "logger has no effect on the laws"),
        (["bench", "model=rmt", "callbacks=early_stopping"], "callbacks has no effect on what is measured"),
        (["doctor", "torch"], "expected no further arguments"),
    ],
)
def test_slips_and_lists_are_answered_without_torch(words: list[str], answer: str, tmp_path: Path) -> None:
    text, modules = imported(tmp_path, *words)
    assert answer in text
    assert not modules & LARGE


def test_doctor_imports_no_more_than_the_packages_it_looks_for(tmp_path: Path) -> None:
    text, modules = imported(tmp_path, "doctor")
    assert "torch.compile" in text
    assert "torch" in modules
    assert not modules & (LARGE - {"torch"})


def test_training_names_the_run_before_it_imports_torch(zoo: Any) -> None:
    """`zoo.train.runs.build`, which needs torch, can't be imported: the line was printed before."""
    program = "import sys; sys.modules['torch'] = None\n" + PROGRAM
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "model=rmt", "size=nano", "seed=3"],
        cwd=zoo.folder,
        env=zoo.env,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("rmt on lm at size=nano, seed 3\n")
    assert "No module named 'torch'" in done.stderr or "import of torch halted" in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs/task").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_task_class_is_read_as_it_is(path: Path) -> None:
    from hydra.utils import get_class
    from omegaconf import OmegaConf

    target = OmegaConf.load(path)["task"]["_target_"]
    assert score_name(target) == next(iter(score_names(get_class(target)).values()))


def test_a_class_that_the_source_does_not_give() -> None:
    assert score_name("zoo.train.tasks.lm.Nothing") == ""
    assert score_name("no_such_module.Task") == ""
    assert score_name("zoo.train.tasks.lm.ByteDataset") == ""


def test_a_plug_in_that_is_not_installed_is_told_how(tmp_path: Path) -> None:
    project = '[project]\nname = "mine"\n[project.entry-points."zoo.configs"]\nmine = "mine.configs"\n'
    (tmp_path / "pyproject.toml").write_text(project)
    text, modules = imported(tmp_path, "train", "model=mine")
    assert text.endswith("; this folder's package mine isn't installed: pip install -e .\n")
    assert not modules & LARGE
    (tmp_path / "pyproject.toml").write_text(project.replace("zoo.configs", "pytest11"))
    assert "pip install" not in imported(tmp_path, "train", "model=mine")[0]
    (tmp_path / "pyproject.toml").write_text("not toml")
    assert "pip install" not in imported(tmp_path, "train", "model=mine")[0]


@pytest.mark.parametrize("module", ["zoo", "zoo.train"])
def test_a_system_without_file_locks_is_refused_in_a_line(module: str) -> None:
    """As Windows is, which has neither of these modules."""
    script = f"""
import runpy, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
sys.argv = ["zoo", "list"]
runpy.run_module({module!r}, run_name="__main__")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert ended.returncode == 1
    assert (
        ended.stderr
        == f"error: expected Linux or macOS, found {sys.platform}; on Windows the zoo works inside WSL\n"
    )
