"""Widths of what is printed."""

import pytest

from zoo.__main__ import COMMANDS, overview
from zoo.terminal import output_width, reflow
from zoo.train.commands.help import page

PAGE = """Begins here.  Two spaces follow a full stop,
and the paragraph goes on.

    key=      a value that has
              two lines
    another key=   of another
              column
    a/long/path/that/nobody/breaks   its text

Last."""


def test_a_page_that_fits_stays_as_it_is() -> None:
    assert reflow(PAGE, 45) == PAGE


def test_entries_wrap_below_their_text() -> None:
    assert reflow(PAGE, 30).splitlines() == [
        "Begins here.  Two spaces",
        "follow a full stop, and the",
        "paragraph goes on.",
        "",
        "    key=      a value that has",
        "              two lines",
        "    another key=",
        "        of another column",
        "    a/long/path/that/nobody/breaks",
        "        its text",
        "",
        "Last.",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_keeps_to_the_terminal(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    module = COMMANDS[name].target.partition(":")[0] if name else ""
    text = page(module) if name else overview()
    breakable = [line for line in text.splitlines() if " " in line.strip()]
    assert max(map(len, breakable)) <= width
    monkeypatch.setenv("COLUMNS", "1000")
    wide = page(module) if name else overview()
    assert set(text.split()) == set(wide.split()) or not name  # no word is broken or lost


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("", 33), ("0", 33), ("wide", 33)])
def test_columns_say_the_width(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert output_width(33) == width
