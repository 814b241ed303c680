"""Positions drawn in training: their bounds, and that a step decides them and nothing else does."""

from typing import Any

import pytest
import torch

from zoo.memory.attention.core import Attention
from zoo.memory.attention.position_draws import Draw, clex_positions, clex_time, draw_positions

CPU = torch.device("cpu")


@pytest.mark.parametrize("step", range(30))
def test_random_positions_are_sorted_and_distinct(step: int) -> None:
    positions = draw_positions(Draw("random", 40), step, 3, 12, CPU)
    assert positions.shape == (1, 1, 12)
    assert (positions.diff() > 0).all()
    assert 0 <= positions.min() <= positions.max() < 40


@pytest.mark.parametrize("step", range(30))
def test_pose_skips_once_in_every_row(step: int) -> None:
    positions = draw_positions(Draw("pose", 64), step, 5, 16, CPU)[:, 0]
    assert positions.shape == (5, 16)
    assert not positions[:, 0].any()
    assert positions.max() < 64
    for row in positions.diff():
        assert (row != 1).sum() <= 1
        assert (row[8:] == 1).all()  # the first chunk is at most half


def test_pose_reaches_its_bounds() -> None:
    rows = torch.cat([draw_positions(Draw("pose", 64), step, 50, 16, CPU)[:, 0] for step in range(20)])
    assert (rows.max(), rows[:, -1].min()) == (63, 15)
    assert len(set(map(tuple, rows.tolist()))) > 200


@pytest.mark.parametrize("step", range(30))
def test_scaled_positions_are_at_equal_distances(step: int) -> None:
    positions = draw_positions(Draw("scale", 64), step, 2, 16, CPU)[0, 0]
    g = 1 / float(positions[1] - positions[0])
    assert g == pytest.approx(round(g), rel=1e-4)
    assert 1 <= round(g) <= 4
    assert positions.max() < 16 + 1e-4
    assert positions.min() >= 0


@pytest.mark.parametrize("time", [5, 8, 20])
def test_clex_stretches_a_text_to_t_times_its_length(time: int) -> None:
    for t in (2, 3):
        positions = clex_positions(7, t, 8, time, CPU)[0, 0]
        assert len(positions) == time
        assert (positions.diff() > 0).all()
        assert (positions[0], positions[-1]) == (0, time * t // max(1, time // 8) - 1)
    assert torch.equal(clex_positions(7, 1, 8, time, CPU)[0, 0], torch.arange(time))
    assert {clex_time(step, 3) for step in range(40)} == {1, 2, 3}


@pytest.mark.parametrize(
    "position",
    [
        *({"draw": draw, "longest": 40} for draw in ("random", "pose", "scale")),
        {"kind": "alibi", "draw": "random"},
        {"kind": "kerple", "draw": "random"},
        *({"kind": kind, "draw": "scale"} for kind in ("alibi", "kerple", "fire")),
        {"kind": "sandwich", "draw": "pose"},
        {"scaling": "yarn", "trained": 4, "draw": "pose"},
        {"scaling": "clex", "factor": 4},
    ],
)
def test_a_training_step_decides_what_is_drawn(position: dict[str, Any]) -> None:
    layer, x = Attention(16, 2, position=position, context=12), torch.randn(3, 12, 16)
    before = layer.train()(x, ())[0]
    assert torch.equal(before, layer.eval()(x, ())[0])  # nothing is drawn before the first step
    outputs = []
    for step in (3, 4, 3):
        layer.positions.step = step
        outputs.append(layer.train()(x, ())[0])
        assert torch.equal(layer.eval()(x, ())[0], before)
    assert torch.equal(outputs[0], outputs[2])
    assert any((output - before).abs().max() > 1e-4 for output in outputs[:2])


def test_a_draw_needs_room() -> None:
    with pytest.raises(ValueError, match="at least the 9 tokens of a segment, found 8"):
        draw_positions(Draw("random", 8), 0, 1, 9, CPU)
