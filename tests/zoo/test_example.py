"""The plug-in in examples/: its page is true, and it does all that a built-in model does."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "attention_free_transformer"
PAGE = ROOT / "docs" / "adding-a-model.md"
SOURCES = (  # the files that an author writes
    "attention_free_transformer/model.py",
    "attention_free_transformer/configs/model/aft.yaml",
)
QUOTED = (*SOURCES, "pyproject.toml", "tests/test_laws.py")


@pytest.fixture
def model() -> Iterator[Any]:
    """The example's module, not installed."""
    sys.path.insert(0, str(EXAMPLE))
    from attention_free_transformer import model

    yield model
    sys.path.remove(str(EXAMPLE))
    for name in [name for name in sys.modules if name.startswith("attention_free_transformer")]:
        del sys.modules[name]


def test_fewer_than_60_lines() -> None:
    lines = [line for file in SOURCES for line in (EXAMPLE / file).read_text().splitlines() if line.strip()]
    assert len(lines) < 60


@pytest.mark.parametrize("file", QUOTED)
def test_the_page_quotes_it_as_it_is(file: str) -> None:
    blocks = re.findall(r"^```\w+\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert (EXAMPLE / file).read_text() in blocks


@pytest.mark.parametrize("time", [1, 15, 16, 50])
def test_its_memory_is_the_paper_s_average(model: Any, time: int) -> None:
    """Token by token, in float64, with gradients, from a state that isn't empty."""
    torch.manual_seed(0)
    rows, width = 2, 6
    memory = model.AFTMemory(width).double()
    x = torch.randn(rows, time, width, dtype=torch.float64, requires_grad=True)
    mean, log_weight = torch.randn(2, rows, width, dtype=torch.float64).unbind()
    start = mean.requires_grad_(), log_weight.requires_grad_()

    outputs = []
    weight, total = log_weight.exp(), log_weight.exp() * mean
    for token in x.unbind(1):
        q, k, v = memory.in_proj(token).view(rows, 3, width).unbind(1)
        weight, total = weight + k.exp(), total + k.exp() * v
        outputs.append(memory.out_proj(q.sigmoid() * total / weight))
    expected = torch.stack(outputs, dim=1), total / weight, weight.log()

    y, after = memory(x, model.AFTState(*start))
    actual = y, *after
    assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    weights = [torch.randn_like(part) for part in expected]
    inputs = [x, *start, *memory.parameters()]
    grads = [
        torch.autograd.grad(sum((p * weight).sum() for p, weight in zip(parts, weights, strict=True)), inputs)
        for parts in (actual, expected)
    ]
    assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_large_keys_overflow_nowhere(model: Any) -> None:
    memory = model.AFTMemory(8)
    with torch.no_grad():
        memory.in_proj.weight.mul_(1e4)
    x = torch.randn(1, 64, 8, requires_grad=True)
    y, after = memory(x, memory.init_state(1))
    y.sum().backward()
    assert all(part.isfinite().all() for part in (y, *after, x.grad))


class Installed:
    """A working directory, and a folder into which pip has installed the example."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = [str(folder / "site"), str(ROOT)]
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ZOO", "PYTEST"))},
            "PYTHONPATH": os.pathsep.join(paths),
            "ZOO_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        self.run(
            *("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"),
            *("--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "example")),
        )

    def run(self, *words: str, code: int = 0) -> str:
        result = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=self.env, capture_output=True, text=True
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    for path in EXAMPLE.rglob("*"):  # pip builds in the source folder
        if path.is_file() and path.suffix in (".py", ".yaml", ".toml"):
            copy = tmp_path / "example" / path.relative_to(EXAMPLE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (tmp_path / "text.txt").write_text("Two keepers read one book aloud. " * 400)
    return Installed(tmp_path)


@pytest.mark.slow
def test_installed_it_does_what_a_built_in_model_does(installed: Installed) -> None:
    run = installed.run
    words = ("size=nano", "data.corpus=text.txt", "trainer.accelerator=cpu")
    assert "aft (attention_free_transformer)" in run("-m", "zoo", "list", "models", "size=nano")
    assert "attention_free_transformer.configs" in run("-m", "zoo", "doctor")
    assert "every law holds" in run("-m", "zoo", "check", "model=aft")
    run("-m", "zoo.train", "model=aft", *words, "steps=6", "checkpoint_every=3", "run_dir=run")
    run("-m", "zoo.train", "resume=run", "steps=9")
    assert "bits per byte" in run("-m", "zoo", "evaluate", "run=run", "split=val")
    run("-m", "zoo", "sweep", "model=aft,transformer", *words, "steps=4", "seeds=0:2", "runs=swept")
    assert "aft" in run("-m", "zoo", "compare", "swept/lm", "out=compared")
    assert (installed.folder / "compared" / "index.html").is_file()


@pytest.mark.slow
def test_its_own_tests_pass(installed: Installed) -> None:
    assert " passed" in installed.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "example/tests")


@pytest.mark.slow
def test_with_nothing_installed(tmp_path: Path) -> None:
    """Its class in a module and its yaml in configs/model, in a folder with packages of our rooms' names."""
    for room in ("models", "train", "memory"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise ImportError('the user\\'s own')\n")
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / "my_models.py").write_bytes((EXAMPLE / SOURCES[0]).read_bytes())
    yaml = (EXAMPLE / SOURCES[1]).read_text().replace("attention_free_transformer.model", "my_models")
    (tmp_path / "configs" / "model" / "aft.yaml").write_text(yaml)
    (tmp_path / "text.txt").write_text("Two keepers read one book aloud. " * 400)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ZOO_CACHE": str(tmp_path / "cache")}
    for words in (
        ["zoo.train", "model=aft", "size=nano", "steps=2", "data.corpus=text.txt", "run_dir=run"],
        ["zoo.train", "resume=run", "steps=4"],
        ["zoo", "evaluate", "run=run", "split=val"],
    ):
        command = [sys.executable, "-m", *words]
        result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
