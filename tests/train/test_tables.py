"""Every table at 60, 80 and 120 columns: no line is wider, and every number and name is whole."""

from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Column, Table

from tests.train.sweep.test_display import finished_job
from zoo.train.evaluation.throughput_report import table as bench_table
from zoo.train.plotting.terminal import new_table, parts, print_table
from zoo.train.sweep.display import Display

WIDTHS = pytest.mark.parametrize("width", [60, 80, 120])
SENTENCE = "some words that may go to the next line where the terminal is narrow"


def printed(table: Table, width: int, capsys: pytest.CaptureFixture[str]) -> str:
    print_table(Console(width=width, highlight=False), table)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    return out


def plain_table() -> Table:
    columns = [Column(f"quantity {index}", justify="right") for index in range(12)]
    table = new_table("model", *columns, "what", title="title", caption="caption", prose=["what"])
    for name, scale in (("transformer_xl", 10**9), ("a", 1)):
        table.add_row(name, *(f"{scale + index:,} to {2 * scale:,}" for index in range(12)), SENTENCE)
    return table


@WIDTHS
def test_a_table_that_is_too_wide_is_printed_in_parts(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    table = plain_table()
    out = printed(table, width, capsys)
    for column in table.columns[1:-1]:
        assert all(str(cell) in out for cell in column.cells)
    assert set(SENTENCE.split()) <= set(out.split())
    assert (out.count("title"), out.count("caption")) == (1, 1)
    assert out.count("transformer_xl") == len(parts(table, width)) > 1


def test_a_table_that_fits_is_one_part() -> None:
    assert len(parts(plain_table(), 1000)) == 1


def test_a_part_leaves_out_rows_that_have_nothing_in_it_and_the_caption_has_the_whole_width(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = new_table("run", "score", "note", caption=SENTENCE, prose=["note"])
    table.add_row("a" * 30, "99.9 %", "")
    table.add_row("b" * 30, "", "stopped at step 10 by a limit")
    table.add_row("c" * 30, "", "")
    out = printed(table, 69, capsys)
    assert [out.count(letter * 30) for letter in "abc"] == [1, 2, 1]
    assert SENTENCE in out
    without_notes = new_table("run", *(f"quantity {index}" for index in range(8)))
    without_notes.add_row("a" * 30, *"1234", "", "", "", "")
    assert [len(part.columns) for part in parts(without_notes, 60)] == [3, 3]


@WIDTHS
def test_a_bench(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    keys = (
        "parameters train peak read write state written products elementwise product_rate threads rows cuda"
    )
    entry = {key: 123456789.0 + index for index, key in enumerate(keys.split())} | {"cuda": 0.0}
    out = printed(bench_table({("gated_deltanet_hybrid", 1024): [entry]}, 3), width, capsys)
    for index in (0, 1, 3, 4, 5, 6):
        assert f"{123456789 + index:,}" in out
    assert "123.46 + 123.46" in out


@WIDTHS
def test_a_sweep(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [finished_job("passkey", **{"val/exact": 1.0, "val/accuracy": 0.998}), finished_job("lm")]
    jobs[1].result["val/bits_per_byte"] = 2.345
    jobs[1].result["tokens_per_s"] = 1234567.0
    jobs[1].note = f"in {Path('results/runs/lm/rmt/nano-s0')}"
    out = printed(Display(jobs).table(complete=True), width, capsys)
    for cell in ("exact match 100.0%", "per digit 99.8%", "2.345 bits/byte", "1,234,567", "8/8"):
        assert cell in out
    assert jobs[1].note in out


@WIDTHS
def test_a_sweep_that_runs_shows_its_first_columns(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    display = Display([finished_job("passkey", **{"val/exact": 1.0, "val/accuracy": 0.998})])
    display.console = Console(width=width)
    display.console.print(display.fitting())
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert out.count("passkey/rmt/nano-s0") == 1
    assert "exact match 100.0%" in out
    assert "1 done" in out
