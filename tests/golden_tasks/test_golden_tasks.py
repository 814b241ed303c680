"""Our tasks against the official generators' samples: every file below $ZOO_GOLDEN_TASKS, or our copies.

The folder of a file names its checker, tests/golden_tasks/kinds/<folder>.py, which has

    TASKS           the values that the file's `task` may have ("" where a file has no such field)
    check(data)     raises AssertionError unless the zoo's pure functions give what the file has
    UNCHECKED       fields of a sample that nothing can be held to, with the reason beside them (optional)
"""

import copy
import importlib
import json
import os
import runpy
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FIXTURES = Path(__file__).parent / "fixtures"
KINDS = Path(__file__).parent / "kinds"
FOLDER = Path(os.environ.get("ZOO_GOLDEN_TASKS") or FIXTURES)
FILES = sorted(FOLDER.rglob("*.json"))
FIXTURE_FILES = sorted(FIXTURES.rglob("*.json"))


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def checker(folder: str) -> ModuleType:
    """The module that checks the files of a folder of this name."""
    assert (KINDS / f"{folder}.py").is_file(), f"no checker for the folder {folder}"
    return importlib.import_module(f"tests.golden_tasks.kinds.{folder}")


def check(path: Path) -> None:
    module = checker(path.parent.name)
    data = json.loads(path.read_text())
    task = data.get("task", "")
    assert task in module.TASKS, f"{task or 'no task'} is no known task of {path.parent.name}"
    assert data["samples"], f"no samples in {path}"
    module.check(data)


def test_there_are_files() -> None:
    assert FILES, f"no file below {FOLDER}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_official_samples(path: Path) -> None:
    check(path)


def test_every_checker_has_a_fixture_of_each_task() -> None:
    for file in KINDS.glob("*.py"):
        tasks = {
            json.loads(path.read_text()).get("task", "") for path in (FIXTURES / file.stem).glob("*.json")
        }
        assert tasks == set(checker(file.stem).TASKS)


def changed(value: Any) -> Any:
    """A value of the same type that differs in its last part."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])] if value else [0]
    if isinstance(value, dict):
        last = list(value)[-1]
        return {**value, last: changed(value[last])}
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return 0 if value is None else value + 1


def fails_with(module: ModuleType, data: dict[str, Any], index: int, field: str) -> bool:
    """Whether another value of a sample's field is noticed."""
    mutant = copy.deepcopy(data)
    mutant["samples"][index][field] = changed(mutant["samples"][index][field])
    try:
        module.check(mutant)
    except (AssertionError, LookupError, ValueError):
        return True
    return False


@pytest.mark.parametrize("path", FIXTURE_FILES, ids=name)
def test_every_field_of_the_samples_is_held_to_something(path: Path) -> None:
    """Of each field another value fails in some sample; in all it need not, as inputs share answers."""
    module, data = checker(path.parent.name), json.loads(path.read_text())
    samples: list[dict[str, Any]] = data["samples"]
    for field in set().union(*samples) - getattr(module, "UNCHECKED", {}).keys():
        indices = (index for index, sample in enumerate(samples) if field in sample)
        assert any(fails_with(module, data, index, field) for index in indices), field


def test_a_folder_of_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$ZOO_GOLDEN_TASKS is searched to any depth, and nothing else is; unknown folders and tasks fail."""
    source = FIXTURE_FILES[0]
    known = tmp_path / "deep" / source.parent.name / "other.json"
    folder, task = tmp_path / "juggling" / "other.json", tmp_path / source.parent.name / "other.json"
    for path in (known, folder, task):
        path.parent.mkdir(parents=True)
        shutil.copy(source, path)
    task.write_text(json.dumps(json.loads(source.read_text()) | {"task": "juggling"}))
    monkeypatch.setenv("ZOO_GOLDEN_TASKS", str(tmp_path))
    collected: dict[str, Any] = runpy.run_path(__file__)
    (marker,) = collected["test_official_samples"].pytestmark
    assert marker.args == ("path", sorted([known, folder, task]))
    collected["test_official_samples"](known)
    with pytest.raises(AssertionError, match="no checker for the folder juggling"):
        collected["test_official_samples"](folder)
    with pytest.raises(AssertionError, match=f"juggling is no known task of {source.parent.name}"):
        collected["test_official_samples"](task)
    known.write_text(json.dumps(json.loads(source.read_text()) | {"samples": []}))
    with pytest.raises(AssertionError, match="no samples"):
        collected["test_official_samples"](known)
