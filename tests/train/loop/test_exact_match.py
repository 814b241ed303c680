"""Exact match beside accuracy per target: counted in validation, named on the screen and in every file."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.plugins.custom_scalar import layout_pb2

from tests.train.data.numbered import DOCUMENT, Numbered, shapes
from zoo.module import IGNORE
from zoo.train.data.loaders import EvalLoader
from zoo.train.loop.exact_match import ExactMatchCounter
from zoo.train.runs import build
from zoo.train.runs.load import load_trained

WORDS = (  # targets at positions 15, 16 and 17, so that the window's end divides each sample
    "task=selective_copy",
    "task.length=18",
    "task.remembered=3",
    "task.vocab_size=4",
    "task.eval_samples=41",
    "task.samples=60",
    "model=rmt",
    "size=nano",
    "data.seq_len=16",
    "data.batch_size=7",
    "steps=4",
    "val_every=2",
    "trainer.accelerator=cpu",
    "run_dir=run",
)


class Sparse(Numbered):
    """The same, with targets at a random third of the positions: of some documents none."""

    def window(self, document: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, targets = super().window(document, start, stop)
        chosen = np.array([np.random.default_rng([7, token]).random() < 1 / 3 for token in tokens.tolist()])
        return tokens, np.where(chosen, targets, IGNORE)


@settings(max_examples=100, deadline=None)
@given(shapes, st.integers(1, 3), st.integers(0, 5))
def test_every_document_counts_once_at_any_batch_size_window_and_number_of_ranks(
    shape: dict[str, Any], world: int, one_in: int
) -> None:
    dataset, missed = Sparse(shape["lengths"]), set[int]()
    counts = torch.zeros(2)
    for rank in range(world):
        counter = ExactMatchCounter()
        for batch in EvalLoader(dataset, shape["batch_size"], shape["seq_len"], rank, world):
            hits = (batch.tokens * 31 + shape["seed"]) % 7 < one_in + 2
            is_target = batch.targets != IGNORE
            missed |= {token // DOCUMENT for token in batch.tokens[is_target & ~hits].tolist()}
            counts += counter.add(batch.fresh, is_target, hits)
        last = counter.end()
        assert last is not None
        counts += last
        assert counter.end() is None
    documents = [i for i, n in enumerate(shape["lengths"]) if (dataset.window(i, 0, n)[1] != IGNORE).any()]
    assert counts.tolist() == [len(set(documents) - missed), len(documents)]


def test_both_scores_by_hand(zoo: Any) -> None:
    ended = zoo.run(*WORDS, as_given=True)
    assert ended.code == 0, ended.err
    metrics = zoo.metrics("run")
    cfg, model, _ = load_trained(zoo.folder / "run")
    dataset, exact, targets_hit = build.task(cfg).split("val"), 0, 0
    for document in range(41):
        tokens, targets = map(torch.from_numpy, dataset.window(document, 0, 18))
        with torch.no_grad():
            hits = model(tokens[None])[0][0, 15:].argmax(-1) == targets[15:]
        exact, targets_hit = exact + int(hits.all()), targets_hit + int(hits.sum())
    assert 0 < exact < 41
    assert metrics["val/exact"] == pytest.approx(exact / 41)
    assert metrics["val/accuracy"] == pytest.approx(targets_hit / (3 * 41))  # of targets, as ever
    assert metrics["unit"] == "accuracy"
    assert metrics["score_names"] == {"val/exact": "exact match", "val/accuracy": "accuracy per symbol"}
    assert metrics["reference"] == {"chance": 1 / 2}
    assert metrics["reference_exact"] == {"chance": 1 / 8}
    assert [point["val/exact"] for point in metrics["curve"]][-1] == metrics["val/exact"]
    both = {key: metrics[f"val/{key}"] for key in ("loss", "exact", "accuracy")}
    assert json.loads((zoo.folder / "run/progress.json").read_text())["val"] == both
    shares = f"exact match {exact / 41:.1%}", f"per symbol {targets_hit / 123:.1%}"
    assert f"step 4/4  held-out samples: loss {metrics['val/loss']:.3f}  {'  '.join(shares)}" in ended.out
    assert f"rmt reached {shares[0]} on held-out samples (chance 12.5%)\n" in ended.out
    assert f"rmt reached accuracy {shares[1]} on held-out samples (chance 50.0%)\n" in ended.out
    check_tensorboard(zoo, metrics)


def check_tensorboard(zoo: Any, metrics: dict[str, Any]) -> None:
    """The score by which the task is judged has a chart of its own, and no text's score has one."""
    events = zoo.events("run")
    (packed,) = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val
    charts = {
        chart.title: list(chart.multiline.tag)
        for category in layout_pb2.Layout.FromString(packed).category
        for chart in category.chart
    }
    assert charts["held-out exact match"] == ["^main score/exact match$"]
    assert not any("bits" in title for title in charts)
    assert events.Scalars("main score/exact match")[-1].value == pytest.approx(metrics["val/exact"])
    assert events.Scalars("score/accuracy per symbol")[-1].value == pytest.approx(metrics["val/accuracy"])


def test_a_sample_with_one_target_has_one_score(zoo: Any) -> None:
    words = [word for word in WORDS if not word.startswith("task")]
    ended = zoo.run("task=induction", "task.length=16", "task.eval_samples=20", *words, as_given=True)
    assert ended.code == 0, ended.err
    metrics = zoo.metrics("run")
    assert metrics["score_names"] == {"val/accuracy": "accuracy"}
    assert not {"val/exact", "reference_exact"} & metrics.keys()
    reached = f"rmt reached accuracy {metrics['val/accuracy']:.1%} on held-out samples (chance 6.7%)\n"
    assert reached in ended.out
