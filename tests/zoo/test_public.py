"""`import zoo`: what it offers, how fast, and that every public name is declared for static checkers."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import zoo

ROOT = Path(__file__).parents[2]
PACKAGES = {"zoo": "zoo", "zoo.memory": "memory", "zoo.models": "models", "zoo.train": "train"}
LAZY = """
import sys, time
before = set(sys.modules)
start = time.perf_counter()
import zoo
seconds = time.perf_counter() - start
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
print(round(seconds, 3), *packages - set(sys.stdlib_module_names) - {"zoo"})
"""


def test_the_list() -> None:
    models = ["SequenceModule", "State", "Batch", "Mixer", "laws", "build_model", "list_models", "generate"]
    runs = ["load_run", "train_run", "evaluate_run"]
    assert sorted(zoo.__all__) == sorted([*models, *runs, "__version__"])


def test_importing_it_imports_no_other_package() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], cwd=ROOT, capture_output=True, text=True, check=True)
    _, *packages = done.stdout.split()
    assert not packages


def test_a_module_is_an_attribute_without_being_imported() -> None:
    script = (
        "import zoo; zoo.errors.UserError; zoo.state.detach; zoo.models.Decoder; print(zoo.memory.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "zoo.memory\n"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there_and_declared(package: str) -> None:
    module = importlib.import_module(package)
    stub = ast.parse((ROOT / PACKAGES[package] / "__init__.pyi").read_text())
    declared = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            declared |= {alias.asname: node.module for alias in node.names if alias.name == alias.asname}
    assert declared == module._MODULES
    assert set(module.__all__) - {"__version__"} == declared.keys() <= set(dir(module))
    for name, origin in declared.items():
        assert getattr(module, name) is getattr(importlib.import_module(origin), name)
        assert getattr(module, name).__doc__, f"{package}.{name} has no docstring"
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_every_mixer_and_every_name_of_the_base_modules_is_public() -> None:
    """A mechanism that a model may be built from can't be forgotten."""
    from zoo.memory.mixer import Mixer

    for file in sorted(set((ROOT / "memory").rglob("*.py")) - set((ROOT / "memory").rglob("triton_*.py"))):
        module = importlib.import_module(f"zoo.{'.'.join(file.relative_to(ROOT).with_suffix('').parts)}")
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, Mixer) and value.__module__ == module.__name__:
                assert name in zoo.memory.__all__, f"{name} of {module.__name__}"


@pytest.mark.parametrize("enabled", [True, False])
def test_imports_without_collections(enabled: bool) -> None:
    """Afterwards the collector is as it was, and never looks at what was imported."""
    code = "gc.enable()" if enabled else "gc.disable()"
    script = f"""
import gc
from zoo.lazy import large_imports
{code}
try:
    with large_imports():
        assert not gc.isenabled()
        import argparse
        raise ImportError
except ImportError:
    pass
assert gc.isenabled() == {enabled}
assert gc.get_freeze_count() > 1000
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("known", [True, False])
def test_torchmetrics_is_imported_when_needed(known: bool) -> None:
    """Lightning takes its Metric and no more; a version with other submodules is imported as a whole."""
    script = f"""
import sys
from zoo import lazy
if not {known}:
    lazy.TAKEN_BY_LIGHTNING["Metric"] = ["utilities", "nowhere"]
with lazy.large_imports():
    import lightning
    from lightning.pytorch.trainer.connectors.logger_connector.result import Metric
assert ("torchmetrics.text" in sys.modules) != {known}
import torchmetrics
from torchmetrics.classification import MulticlassAccuracy
assert torchmetrics.Metric is Metric and issubclass(MulticlassAccuracy, Metric)
assert torchmetrics.Accuracy(task="multiclass", num_classes=3) is not None
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
