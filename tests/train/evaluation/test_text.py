"""Losses of text against sums by hand: memory kept, memory reset, sliding windows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.train.evaluation.entries import result_at
from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.evaluation import results
from zoo.train.evaluation.evaluate import evaluate
from zoo.train.evaluation.options import EvalOptions
from zoo.train.evaluation.streaming import PositionLosses, position_losses
from zoo.train.runs import build
from zoo.train.runs.load import load_trained
from zoo.train.tasks.lm import END


def documents(run_dir: Path) -> list[list[int]]:
    """END, bytes, END of every test document."""
    dataset = build.task(load_trained(run_dir)[0]).split("test")
    return [[END, *(dataset.text(i) or b""), END] for i in range(len(dataset.lengths))]


def losses_of(model: SequenceModule, line: list[int], start: int, stop: int, first: int) -> list[float]:
    """Nats of the targets at positions first … stop-1 of a line that the model reads from `start`."""
    with torch.no_grad():
        logits, _ = model(torch.tensor([line[start:stop]]))
    losses = F.cross_entropy(logits[0], torch.tensor(line[start + 1 : stop + 1]), reduction="none")
    return losses[first - start :].tolist()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_memory_kept_and_reset_by_position(text_run: Path, batch_size: int) -> None:
    edges = [8, 32, 64]
    entry = evaluate(text_run, EvalOptions(batch_size=batch_size, seq_len=32, positions=edges))
    _, model, _ = load_trained(text_run)
    lines = documents(text_run)
    for memory in ("kept", "reset"):
        losses = []
        for line in lines:
            size = len(line) - 1
            step = size if memory == "kept" else 16  # the segment's length
            cuts = [(start, min(start + step, size)) for start in range(0, size, step)]
            losses.append([x for start, stop in cuts for x in losses_of(model, line, start, stop, start)])
        result = result_at(entry, memory=memory)
        total = sum(map(sum, losses))
        assert result["tokens"] == sum(map(len, losses))
        assert result["bytes"] == result["tokens"] - len(lines)
        assert result["nats"] == pytest.approx(total, rel=1e-5)
        assert result["bits_per_byte"] == pytest.approx(total / math.log(2) / result["bytes"], rel=1e-5)
        words = sum(len(bytes(line[1:-1]).split()) for line in lines)
        assert result["words"] == words
        assert result["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-3)
        for bucket, low, high in zip(result["by_position"], [0, *edges], [*edges, None], strict=True):
            in_bucket = [x for document in losses for x in document[low:high]]
            assert (bucket["from"], bucket["to"]) == (low, high)
            assert bucket["tokens"] == len(in_bucket)
            assert bucket["loss"] == pytest.approx(np.mean(in_bucket), rel=1e-5)
    worth = results.memory_worth(entry["results"])
    assert abs(worth[0, 8]) < 1e-6  # the first segment has no memory
    assert any(abs(value) > 1e-4 for value in worth.values())


@pytest.mark.parametrize(("stride", "context"), [(1, 3), (5, 20), (7, 7), (16, 200)])
def test_sliding_window(text_run: Path, stride: int, context: int) -> None:
    options = EvalOptions(stride=stride, context=context, batch_size=4, seq_len=16, positions=[30])
    result = result_at(evaluate(text_run, options), memory="sliding", stride=stride, context=context)
    _, model, _ = load_trained(text_run)
    buckets: tuple[list[float], list[float]] = ([], [])  # before position 30, and from there
    for line in documents(text_run):
        size, position, start = len(line) - 1, 0, 0
        while position < size:
            stop = min(start + context, size)
            losses = losses_of(model, line, start, stop, position)
            for i, loss in enumerate(losses, position):
                buckets[i >= 30].append(loss)
            position, start = stop, start + stride
    assert result["tokens"] == sum(map(len, buckets))
    assert result["nats"] == pytest.approx(sum(map(sum, buckets)), rel=1e-5)
    means = [np.mean(bucket) for bucket in buckets]
    assert [bucket["loss"] for bucket in result["by_position"]] == pytest.approx(means, rel=1e-5)


def test_speed_counts_targets_once(text_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_two_seconds(*args: Any, **kwargs: Any) -> PositionLosses:
        return position_losses(*args, **kwargs)._replace(seconds=2.0)

    monkeypatch.setattr("zoo.train.evaluation.text.position_losses", in_two_seconds)
    for options in (EvalOptions(), EvalOptions(stride=1, context=16)):
        for result in evaluate(text_run, options)["results"]:
            assert result["tokens_per_s"] == result["tokens"] / 2


def test_a_window_over_everything_equals_the_memory_kept(text_run: Path) -> None:
    evaluate(text_run)
    entry = evaluate(text_run, EvalOptions(stride=100, context=100))
    with_memory, sliding = (
        result_at(entry, memory="kept"),
        result_at(entry, memory="sliding", context=100),
    )
    assert sliding["nats"] == pytest.approx(with_memory["nats"], rel=1e-6)


def evaluated(run_dir: Path, corpus: Path | str) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []
    options = EvalOptions(overrides=(f"data.corpus={corpus}",))
    return evaluate(run_dir, options, lines.append)["results"][0], lines


def test_a_text_without_words_has_no_perplexity_per_word(text_run: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "dots.txt"
    corpus.write_text("0" * 5400 + " " * 600)
    result, lines = evaluated(text_run, corpus)
    assert result["bytes"] == 300
    assert math.isfinite(result["bits_per_byte"])
    assert not {"words", "word_unit", "word_perplexity"} & result.keys()
    assert not any("too little" in line for line in lines)
    assert result["reference"]["order-0"] == 0
    assert math.copysign(1, result["reference"]["order-0"]) == 1


def test_a_text_too_short_to_say_anything_is_said_to_be(text_run: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "few.txt"
    for size, held_out in ((6, 1), (1980, 99), (2000, 100)):
        corpus.write_text("ab" * (size // 2))
        result, lines = evaluated(text_run, corpus)
        warning = f"test split: too little text for a score that says anything (bytes: {held_out})"
        assert result["bytes"] == held_out
        assert (warning in lines) == (held_out < 100)


def test_a_corpus_that_moved_is_named_by_its_new_place(text_run: Path) -> None:
    place = load_trained(text_run)[0].data.corpus
    config = text_run / "config.yaml"
    config.write_text(config.read_text().replace(place, "gone"))
    with pytest.raises(UserError, match=r"no corpus 'gone'.*relative to the folder where it was started"):
        evaluate(text_run)
    assert evaluated(text_run, place)[0]["bytes"] == 121
