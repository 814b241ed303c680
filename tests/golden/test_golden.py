"""Our models against the published ones, tensor by tensor: every case below $ZOO_GOLDEN, or our copies."""

import hashlib
import importlib
import json
import os
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden.cases import Case, read_case

FIXTURES = Path(__file__).parent / "fixtures"
FOLDER = Path(os.environ.get("ZOO_GOLDEN") or FIXTURES)
CASES = sorted(FOLDER.rglob("*.json"))

Change = Callable[[dict[str, Tensor]], object]

KINDS: dict[str, Callable[[Case], None]] = {}
LEFT_OUT: dict[str, str] = {}  # kind: why it isn't run
for file in sorted((Path(__file__).parent / "kinds").glob("*.py")):
    family = importlib.import_module(f"tests.golden.kinds.{file.stem}")
    assert not KINDS.keys() & family.KINDS.keys(), f"{file.name} and another file have the same kinds"
    KINDS |= family.KINDS
    LEFT_OUT |= getattr(family, "LEFT_OUT", {})


def check(path: Path) -> None:
    kind = json.loads(path.read_text())["kind"]
    if kind in LEFT_OUT:
        pytest.skip(f"{kind} is left out: {LEFT_OUT[kind]}")
    assert kind in KINDS, f"{kind} is no known kind"
    case = read_case(path)
    KINDS[kind](case)
    case.close()


def test_there_are_cases() -> None:
    assert CASES, f"no case below {FOLDER}"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.relative_to(FOLDER).with_suffix("").as_posix())
def test_golden(path: Path) -> None:
    check(path)


def copy(name: str, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".json", ".safetensors"):
        shutil.copy(FIXTURES / f"{name}{suffix}", to.with_suffix(suffix))
    return to.with_suffix(".json")


def test_a_folder_of_other_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$ZOO_GOLDEN is searched to any depth, and nothing else is; a kind that nobody knows fails."""
    known, unknown = (
        copy("rmt_cell", tmp_path / "deep" / "down" / "hidden"),
        copy("rmt_cell", tmp_path / "unknown"),
    )
    unknown.write_text(unknown.read_text().replace('"kind": "rmt/cell"', '"kind": "rmt/cello"'))
    monkeypatch.setenv("ZOO_GOLDEN", str(tmp_path))
    collected: dict[str, Any] = runpy.run_path(__file__)
    (marker,) = collected["test_golden"].pytestmark
    assert marker.args == ("path", [known, unknown])
    collected["test_golden"](known)
    with pytest.raises(AssertionError, match="rmt/cello is no known kind"):
        collected["test_golden"](unknown)


def test_a_changed_file_fails(tmp_path: Path) -> None:
    case = copy("rmt_cell", tmp_path / "case")
    file = case.with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(AssertionError, match="isn't the file"):
        check(case)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("out/logits", lambda tensors: tensors["out/logits"].add_(1e-7), "out/logits: off by 1e-07"),
        (
            "grad/memory_state",
            lambda tensors: tensors["grad/memory_state"].mul_(2),
            "grad/memory_state: off by",
        ),
        (
            "out/more",
            lambda tensors: tensors.update({"out/more": torch.zeros(2)}),
            "out/more: never compared",
        ),
        ("in/more", lambda tensors: tensors.update({"in/more": torch.zeros(2)}), "in/more: never compared"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_wrong_tensor_fails(tmp_path: Path, name: str, change: Change, complaint: str) -> None:
    case = copy("rmt_cell", tmp_path / "case")
    tensors = load_file(case.with_suffix(".safetensors"))
    change(tensors)
    save_file(tensors, case.with_suffix(".safetensors"))
    record = json.loads(case.read_text())
    record["sha256"] = hashlib.sha256(case.with_suffix(".safetensors").read_bytes()).hexdigest()
    record["tensors"][name] = {}
    case.write_text(json.dumps(record))
    with pytest.raises(AssertionError, match=complaint):
        check(case)
