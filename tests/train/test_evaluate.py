"""Evaluation by length: streamed in windows, and the same as reading each sample at once."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from zoo.errors import UserError
from zoo.train import build, evaluate
from zoo.train.loop import train
from zoo.train.task import First


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = [
        "task=induction",
        "model=sliding_window",
        "size=nano",
        "steps=3",
        "task.length=32",
        "task.held_out=20",
    ]
    train(build.compose(words), folder)
    return folder


def test_streamed_accuracy_is_that_of_samples_read_at_once(run_dir: Path) -> None:
    results = evaluate.evaluate(run_dir, [20, 100], tokens=2000, rows=3, window=32)
    cfg, model = evaluate.trained(run_dir)
    for row, samples in zip(results, (20, 20), strict=True):
        cfg.task.length = row["length"]
        texts = First(build.task(cfg).split("test"), samples)
        hits = 0
        with torch.no_grad():
            for document in range(samples):
                tokens, targets = texts.window(document, 0, row["length"])
                logits, _ = model(torch.from_numpy(tokens)[None])
                hits += int(logits[0, -1].argmax() == targets[-1])
        assert row["samples"] == samples
        assert row["accuracy"] == hits / samples
        assert row["low"] <= row["accuracy"] <= row["high"]
    assert json.loads((run_dir / "evaluation.json").read_text()) == results


def test_at_least_sixteen_samples_at_any_length(run_dir: Path) -> None:
    (row,) = evaluate.evaluate(run_dir, [64], tokens=1, rows=16, window=64)
    assert row["samples"] == 16


def test_wilson_by_its_definition() -> None:
    # the bounds are the shares p for which the observed one lies z standard errors away
    for hits, asked in ((0, 16), (3, 50), (16, 16), (250, 512)):
        for bound in evaluate.wilson(hits, asked):
            distance = 1.96 * math.sqrt(bound * (1 - bound) / asked)
            assert abs(hits / asked - bound) == pytest.approx(distance, abs=1e-12)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=nowhere", "lengths=8"], "found none in 'nowhere'"),
        (["lengths=8"], "expected run="),
        (["run=x", "lengths=8,many"], "lengths: expected a whole number of at least 1, found many"),
        (["run=x", "lengths=8", "rows=0"], "rows: expected a whole number of at least 1, found 0"),
        (["run=x", "lengths=8", "row=1"], "unknown key 'row'"),
    ],
)
def test_slips_are_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["zoo evaluate", *words])
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_task_without_lengths_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("some words again and again " * 200)
    words = ["model=rmt", "size=nano", "steps=1", f"data.corpus={tmp_path / 'text.txt'}"]
    train(build.compose(words), tmp_path / "run")
    with pytest.raises(UserError, match="has no length"):
        evaluate.evaluate(tmp_path / "run", [64], tokens=1, rows=1, window=64)
