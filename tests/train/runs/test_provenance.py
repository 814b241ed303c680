"""The fingerprint of code outside the zoo: files that change it, and files that don't."""

import importlib
import sys
from pathlib import Path

import pytest

from zoo.models.rmt import RMT
from zoo.train.runs.provenance import code_fingerprint

FILES = {
    "made_model.py": "import torch\nfrom made_layers import Layer\nimport made_package.deep as deep\n"
    "class Model(Layer): pass\n",
    "made_layers.py": "import made_model\nclass Layer: pass\n",  # in a circle
    "made_package/__init__.py": "",
    "made_package/deep.py": "x = 1\n",
    "made_stranger.py": "",
    "site-packages/made_library.py": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "made_layers.py").write_text("import made_library\n" + FILES["made_layers.py"])
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "site-packages"), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def fingerprint(module: str = "made_model") -> str:
    """The fingerprint in a new process."""
    for name in [name for name in sys.modules if name.startswith("made_")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    return code_fingerprint(importlib.import_module(module).Model)


@pytest.mark.parametrize(
    ("file", "counts"),
    {
        "made_model.py": True,
        "made_layers.py": True,
        "made_package/deep.py": True,
        "made_stranger.py": False,
        "site-packages/made_library.py": False,
    }.items(),
)
def test_modules_in_the_same_folder(folder: Path, file: str, counts: bool) -> None:
    before = fingerprint()
    assert len(before) == 16
    assert fingerprint() == before
    with (folder / file).open("a") as changed:
        changed.write("y = 2\n")
    assert (fingerprint() != before) == counts


def test_a_package_is_the_boundary(folder: Path) -> None:
    (folder / "made_package/model.py").write_text(
        "import made_stranger\nfrom made_package import deep\nclass Model: pass\n"
    )
    before = fingerprint("made_package.model")
    (folder / "made_stranger.py").write_text("z = 3\n")
    assert fingerprint("made_package.model") == before
    (folder / "made_package/deep.py").write_text("x = 3\n")
    assert fingerprint("made_package.model") != before


def test_a_package_without_an_init(folder: Path) -> None:
    (folder / "made_plain").mkdir()
    (folder / "made_plain/model.py").write_text("class Model: pass\n")
    before = fingerprint("made_plain.model")
    (folder / "made_plain/model.py").write_text("class Model: y = 1\n")
    assert fingerprint("made_plain.model") != before


def test_a_class_without_a_file() -> None:
    assert len(code_fingerprint(type("Made", (), {"__module__": "builtins"}))) == 16


def test_classes_of_the_zoo_have_its_commit() -> None:
    assert code_fingerprint(RMT) == ""
