"""The line that a run shows on a terminal."""

import pytest

from zoo.train.loop.progress import progress_line

PARTS = ["step 119999/120000", "loss 2.345", "3.383 bits/byte", "123,456 tokens/s", "12:34:56 left"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_step_loss_speed_and_time_are_whole(width: int) -> None:
    line = progress_line(PARTS, 0.5, width - 1)
    for part in (PARTS[0], PARTS[1], PARTS[3], PARTS[4]):
        assert part in line
    assert len(line) <= width - 1 or width == 60  # these are 63 columns
    assert ("bits/byte" in line) == (width > 80)
    assert ("━" in line) == (width >= 80)


def test_the_bar_takes_what_is_left_and_shows_the_share() -> None:
    line = progress_line(["step 1/4", "loss 2.000", "0:00:09 left"], 0.25, 60)
    assert len(line) == 60
    bar = line.split("  ")[1]
    assert bar == "━" * round(len(bar) / 4) + "─" * (len(bar) - round(len(bar) / 4))


def test_no_bar_of_less_than_four_columns() -> None:
    parts = ["step 1/4", "left"]
    assert progress_line(parts, 1.0, len("  ".join(parts)) + 5) == "step 1/4  left"
    assert progress_line(parts, 1.0, len("  ".join(parts)) + 6) == "step 1/4  ━━━━  left"
