"""Figures of a run, in TensorBoard and as charts."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from zoo.train.evaluation.intervals import proportion
from zoo.train.evaluation.results import EvalResult, memory_worth, pooled
from zoo.train.loop.tensorboard import (
    HELD_OUT_LOSS,
    POSITION_TAG,
    TAGS,
    TRAINING_LOSS,
    board_tag,
    position_figure,
)
from zoo.train.plotting import charts
from zoo.train.plotting.board_images import add_images
from zoo.train.tasks.base import BUCKETS, RANGES


def labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def cell(length: int, depth: float, hits: int, of: int = 50) -> EvalResult:
    return {"axes": {"length": length, "depth": depth}, "exact": proportion(hits, of)}


def test_loss_by_position_of_the_last_validation() -> None:
    assert RANGES[0] == (0, 512)
    assert BUCKETS[-1] == "131072-end"
    latest = {"val/loss_by_position/0-512": 2.5, "val/loss_by_position/512-2048": 2.0, "val/loss": 2.2}
    figure = position_figure(latest, "rmt on lm (books)")
    assert figure.axes[0].get_title() == "rmt on lm (books): loss by position"
    assert labels(figure) == ["0-512", "512-2k"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [2.5, 2.0]
    assert "nats" in figure.axes[0].get_ylabel()


def test_images_are_logged_at_the_runs_last_step(tmp_path: Path) -> None:
    """Of a run of an earlier version where its other events are; small enough that a card shrinks no text."""
    (tmp_path / "old/tb").mkdir(parents=True)
    for run, folder in (("new", "new"), ("old", "old/tb")):
        figure = position_figure({"val/loss_by_position/0-512": 1.0}, "rmt on lm")
        add_images(tmp_path / run, {"zoo evaluate/one": figure}, 4000)
        events = EventAccumulator(str(tmp_path / folder), size_guidance={"images": 0}).Reload()
        (image,) = events.Images("zoo evaluate/one")
        assert image.step == 4000
        assert image.encoded_image_string.startswith(b"\x89PNG")
        assert (image.width, image.height) == (880, 560)  # 4.4 x 2.8 inches
    first = image.encoded_image_string
    add_images(tmp_path / "old", {"zoo evaluate/one-b": position_figure({}, "another")}, 4000)
    add_images(tmp_path / "old", {"zoo evaluate/one": position_figure({}, "drawn again")}, 4000)
    events = EventAccumulator(str(tmp_path / "old/tb"), size_guidance={"images": 0}).Reload()
    (image,) = events.Images("zoo evaluate/one")  # of two of one step TensorBoard would show the first
    assert image.encoded_image_string != first
    assert len(events.Images("zoo evaluate/one-b")) == 1


def natural(tag: str) -> list[tuple[int, str]]:
    """The order of TensorBoard's cards: "/" and "_" before any other character (tags without digits)."""
    return [(0, "") if character in "/_" else (1, character) for character in tag]


@pytest.mark.parametrize(
    "scores",
    [
        {"val/bits_per_byte": "bits per byte", "val/accuracy": "accuracy per byte"},
        {"val/exact": "exact match", "val/accuracy": "accuracy per digit"},
        {"val/accuracy": "accuracy"},
    ],
)
def test_the_first_cards_are_losses_and_the_first_column_is_the_tasks_own_score(
    scores: dict[str, str],
) -> None:
    others = ("val/beyond", "val/gain", "memory/gate", "memory/a", "train/unheard_of")
    shown = {board_tag(tag, scores) for tag in (*TAGS, *scores, *others)} | {POSITION_TAG}
    own = f"main score/{next(iter(scores.values()))}"
    assert sorted(shown, key=natural)[:3] == [HELD_OUT_LOSS, TRAINING_LOSS, own]
    assert min(shown) == own
    assert len(shown) == len(TAGS) + len(scores) + len(others) + 1


def test_a_heat_map_shows_every_cell() -> None:
    rows = [cell(64, 0.0, 50), cell(64, 100.0, 25), cell(4096, 0.0, 0)]
    figure = charts.heat_maps({"mamba": rows, "rmt": rows[:1]}, "passkey")
    left, right = figure.axes[:2]
    assert left.get_title() == "mamba"
    assert {(*text.get_position(), text.get_text()) for text in left.texts} == {
        (0, 0, "100"),
        (0, 1, "50"),
        (1, 0, "0"),
    }
    assert len(right.texts) == 1  # a cell that was not measured stays empty
    assert labels(figure) == ["64", "4k"]


def test_shares_by_length_of_several_models() -> None:
    series = {
        name: pooled([cell(64, 0.0, hits), cell(64, 50.0, 10), cell(256, 0.0, 1)], "length")
        for name, hits in (("rmt", 20), ("mamba", 50))
    }
    assert series["rmt"][64] == proportion(30, 100)
    figure = charts.by_axis(series, "length", "title", {"chance": 0.1}, trained_at=64)
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["rmt", "mamba", "training length", "chance 10.0%"]
    assert labels(figure) == ["64", "256"]
    assert figure.axes[0].lines[1].get_ydata().tolist() == [0.6, 0.02]


def test_what_memory_is_worth_is_said_of_the_same_text_only() -> None:
    def row(memory: str, loss: float, **settings: int) -> EvalResult:
        return {
            "axes": {"memory": memory, **settings},
            "by_position": [{"from": 0, "to": None, "tokens": 9, "loss": loss}],
        }

    kept, reset = row("kept", 2.0), row("reset", 2.5)
    assert memory_worth([kept, reset]) == {(0, None): pytest.approx(0.5)}
    assert memory_worth([row("kept", 2.0, first=50), reset]) == {}
    assert memory_worth([kept]) == {}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (7, "7"),
        (512, "512"),
        (2048, "2k"),
        (1 << 20, "1M"),
        (4_000_000, "4000000"),
        (12.5, "12.5"),
        (50.0, "50"),
    ],
)
def test_numbers_are_formatted_in_binary_units(number: float, text: str) -> None:
    assert charts.format_number(number) == text


@pytest.mark.parametrize("model", ["focused", "memorizing", "unlimiformer"])
def test_recall_is_logged_where_the_index_is_read(zoo: Any, model: str) -> None:
    """Also of a memory that fills in validation alone."""
    assert zoo.run(f"model={model}", "model.backend=faiss", "steps=2", "val_every=2").code == 0
    assert [0.5 < value <= 1 for _, value in zoo.scalars("run")["memory/recall"]][-1:] == [True]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0.0%"),
        (1.0, "100.0%"),
        (0.102, "10.2%"),
        (0.001, "0.1%"),
        (0.0005, "0.1%"),
        (0.00049, "1 in 2,041"),
        (1 / 90_000, "1 in 90,000"),
        (1 / 9_000_000, "1 in 9,000,000"),
        (9e6**-4, "1 in 10^28"),
    ],
)
def test_a_share_that_rounds_to_nothing_is_one_in_a_number(share: float, text: str) -> None:
    assert charts.format_share(share) == text
