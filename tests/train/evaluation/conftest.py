"""Trained runs to evaluate, and a cache for each test."""

import shutil
from pathlib import Path

import pytest

from zoo.train.loop.trainer import train
from zoo.train.runs.config import compose


@pytest.fixture
def samples_run(_samples_run: Path, tmp_path: Path) -> Path:
    """A run on induction, of a model with a short memory."""
    return shutil.copytree(_samples_run, tmp_path / "samples_run")


@pytest.fixture
def text_run(_text_run: Path, tmp_path: Path) -> Path:
    """A run on bytes, with three test documents of different lengths."""
    return shutil.copytree(_text_run, tmp_path / "text_run")


@pytest.fixture(scope="session")
def _samples_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    words = ["task=induction", "model=sliding_window", "size=nano", "steps=3", "task.length=32"]
    train(compose([*words, "task.eval_samples=60"]), folder)
    return folder


@pytest.fixture(scope="session")
def _text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for split, sizes in {"train": (400, 300), "val": (90,), "test": (70, 45, 6)}.items():
        (folder / "corpus" / split).mkdir(parents=True)
        for i, size in enumerate(sizes):
            line = f"{i} {split}: what was\tsaid before\nis said again, " * 20
            (folder / "corpus" / split / f"{i}.txt").write_text(line[:size])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        words = ["model=rmt", "size=nano", "steps=4", f"data.corpus={folder / 'corpus'}", "optim.warmup=1"]
        train(compose([*words, "optim.lr=0.01"]), folder / "run")
    return folder / "run"


@pytest.fixture(autouse=True)
def _separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
