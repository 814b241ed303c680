"""Scores beyond a distance and in view, against sums by hand and against oracles."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train.evaluation.entries import result_at
from zoo.errors import UserError
from zoo.module import IGNORE, SequenceModule
from zoo.train.evaluation.evaluate import evaluate
from zoo.train.evaluation.evidence import Targets, beyond, by_distance, gather_targets, in_view
from zoo.train.evaluation.lengths import area, longest_length
from zoo.train.evaluation.options import EvalOptions
from zoo.train.evaluation.streaming import SamplePredictions
from zoo.train.evaluation.tables import tables
from zoo.train.loop.trainer import train
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.runs.load import load_trained
from zoo.train.tasks.base import Dataset, Subset, Task
from zoo.train.tasks.chain import Chain
from zoo.train.tasks.passkey import Passkey
from zoo.train.tasks.recall import Recall

PASSKEY = ("task=passkey", "task.form=compact", "task.vocab_size=28", "task.filler=random")


def losses_by_hand(
    model: SequenceModule, dataset: Dataset, document: int, reset: bool
) -> list[tuple[int, int, bool, float]]:
    """Position, distance, hit and nats of every target, the model called segment by segment."""
    length = int(dataset.lengths[document])
    tokens, targets = map(torch.from_numpy, dataset.window(document, 0, length))
    distances = dataset.evidence_distances(document, 0, length)
    assert distances is not None
    rows, state = [], None
    for start in range(0, length, model.segment_len):
        part = tokens[None, start : start + model.segment_len]
        with torch.no_grad():
            logits, state = model(part, None if reset else state)
        for i, target in enumerate(targets[start : start + model.segment_len].tolist()):
            if target != IGNORE:
                nats = -float(logits[0, i].double().log_softmax(-1)[target])
                hit = int(logits[0, i].argmax()) == target
                rows.append((start + i, int(distances[start + i]), hit, nats))
    return rows


def test_evidence_and_reset_memory_by_hand(tmp_path: Path) -> None:
    train(compose([*PASSKEY, "model=rmt", "size=nano", "steps=3", "task.length=40"]), tmp_path)
    entry = evaluate(tmp_path, EvalOptions(lengths=["40"], depths=[50.0], prompts=8, batch_size=3))
    result = result_at(entry, length=40)
    cfg, model, _ = load_trained(tmp_path)
    cfg.task.depth = 0.5
    dataset = Subset(build.task(cfg).split("test"), 8)
    for part, reset in ((result, False), (result["reset"], True)):
        rows = [row for document in range(8) for row in losses_by_hand(model, dataset, document, reset)]
        expected: dict[int, list[Any]] = {}
        for _, distance, hit, nats in rows:
            sums = expected.setdefault(distance, [0, 0, 0.0])
            expected[distance] = [sums[0] + 1, sums[1] + hit, sums[2] + nats]
        evidence = part["evidence"]
        assert evidence["distance"] == sorted(expected)
        for i, distance in enumerate(evidence["distance"]):
            assert [evidence["targets"][i], evidence["hits"][i]] == expected[distance][:2]
            assert evidence["nats"][i] == pytest.approx(expected[distance][2], rel=1e-5)
        far = [hit for _, distance, hit, _ in rows if distance >= model.segment_len]
        assert part["beyond"]["reach"] == model.segment_len == 16  # the model's own has no limit
        assert (part["beyond"]["hits"], part["beyond"]["of"]) == (sum(far), len(far))
        assert part["targets"]["hits"] == sum(hit for _, _, hit, _ in rows)
        assert 1 < part["targets"].get("effective", 8) <= 40
    titles = [table.title for table in tables(entry)]
    assert str(titles[-1]).startswith("worth of the memory")


def predictions(dataset: Dataset, hits_of: Any, nats_of: Any = None) -> SamplePredictions:
    positions, hits, nats = [], [], []
    for document in range(len(dataset.lengths)):
        _, targets = dataset.window(document, 0, int(dataset.lengths[document]))
        positions.append(np.flatnonzero(targets != IGNORE))
        hits.append(np.asarray(hits_of(document, positions[-1]), bool))
        nats.append(np.zeros(len(positions[-1])) if nats_of is None else nats_of(document, positions[-1]))
    counts = np.array([(len(of), of.sum()) for of in hits], np.int64).T
    return SamplePredictions(counts[0], counts[1], hits, nats, positions, 1.0)


TASKS: dict[str, Task] = {
    "passkey": Passkey(form="compact", filler="random", length=256, vocab_size=28, eval_samples=300),
    "recall": Recall(eval_samples=60),
    "chain": Chain(eval_samples=60),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_reader_of_the_segment_has_chance_beyond_it_and_the_reference_in_all(name: str) -> None:
    """Its guesses are drawn: both within four standard errors."""
    dataset, rng, segment_len = TASKS[name].split("test"), np.random.default_rng(0), 16

    def segment_reader(document: int, positions: np.ndarray) -> np.ndarray:
        chances = dataset.view_chances(document, positions, positions // segment_len * segment_len)
        return rng.random(len(positions)) < chances

    read = predictions(dataset, segment_reader)
    targets = gather_targets(dataset, read)
    view = in_view(dataset, read.positions, segment_len)
    assert targets is not None
    assert view is not None
    error = math.sqrt(view.accuracy * (1 - view.accuracy) / len(targets.hit))
    assert abs(targets.hit.mean() - view.accuracy) < 4 * error
    share = beyond(targets, 80)
    assert share is not None
    chance = (1 / 9 + 4 / 10) / 5 if name == "passkey" else 1 / 8
    assert abs(share["share"] - chance) < 4 * math.sqrt(chance * (1 - chance) / share["of"])
    if name == "passkey":  # of which each end of the axis of depths is a twelfth
        inside = 10 / 12 / 244  # chance of a place that is no end
        known = 1 / 12 + (6 + 2) * inside
        expected = known + (1 - known) * chance
        assert view.accuracy == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("name", TASKS)
def test_a_reader_of_everything_scores_1(name: str) -> None:
    dataset = TASKS[name].split("test")
    read = predictions(dataset, lambda document, positions: np.ones(len(positions)))
    targets = gather_targets(dataset, read)
    assert targets is not None
    for reach in (1, 16, 80):
        share = beyond(targets, reach)
        assert share is not None
        assert share["share"] == share["high"] == 1
    assert beyond(targets, 10**6) is None


def test_the_best_prediction_of_a_chain_gains_everything_and_a_blind_one_nothing() -> None:
    dataset = TASKS["chain"].split("test")

    def bayes(document: int, positions: np.ndarray) -> np.ndarray:
        nats = dataset.bayes_nats(document, 0, int(dataset.lengths[document]))
        assert nats is not None
        return nats[positions]

    for nats_of, gain in ((bayes, 1.0), (lambda _, positions: np.full(len(positions), math.log(8)), 0.0)):
        read = predictions(dataset, lambda document, positions: np.ones(len(positions)), nats_of)
        targets = gather_targets(dataset, read)
        assert targets is not None
        sums = by_distance(targets)
        far = np.array(sums["distance"]) >= 80
        constant, best, nats = (np.array(sums[key])[far].sum() for key in ("constant", "bayes", "nats"))
        assert constant == pytest.approx(math.log(8) * np.array(sums["targets"])[far].sum())
        assert (constant - nats) / (constant - best) == pytest.approx(gain)


def test_targets_without_evidence_count_in_all_and_never_beyond() -> None:
    targets = Targets(
        np.array([0, 0, 1]), np.array([-1, 5, 9]), np.array([True, True, False]), np.ones(3), None, None
    )
    assert by_distance(targets) == {
        "distance": [-1, 5, 9],
        "targets": [1, 1, 1],
        "hits": [1, 1, 0],
        "nats": [1.0, 1.0, 1.0],
    }
    share = beyond(targets, 5)
    assert share is not None
    assert (share["hits"], share["of"]) == (1, 2)


def test_more_samples_than_a_task_validates_with_are_drawn_but_not_of_lists(samples_run: Path) -> None:
    entry = evaluate(samples_run, EvalOptions(lengths=["32"], prompts=80))
    assert entry["settings"]["eval_samples"] == 60
    assert result_at(entry, length=32)["samples"] == 80
    words = ("task=listops", "task.min_length=5", "task.max_length=20", "task.max_depth=3", "task.samples=40")
    folder = samples_run.parent / "lists"
    train(compose([*words, "task.eval_samples=30", "model=rmt", "size=nano", "steps=2"]), folder)
    with pytest.raises(UserError, match="expected at most the 30 samples"):
        evaluate(folder, EvalOptions(prompts=31))


def test_how_far_a_share_holds() -> None:
    def share(value: float) -> dict[str, Any]:
        return {"share": value, "low": value - 0.1, "high": value + 0.1}

    shares = {
        length: share(value) for length, value in ((64, 0.2), (128, 0.9), (256, 0.8), (512, 0.5), (1024, 0.9))
    }
    assert longest_length(shares, 128) == 256  # at 512 the bound is below .45, and 1,024 lies behind it
    assert longest_length(shares, 64) is None
    assert longest_length(shares, 100) is None
    assert area(shares, 128) == (pytest.approx((0.9 + 0.8) / 2 + (0.8 + 0.5) / 2 + (0.5 + 0.9) / 2), 3)
    assert area({128: share(0.5)}, 128) is None
