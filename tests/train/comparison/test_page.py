"""The page of a comparison: figures, names, nothing loaded."""

import html
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from tests.train.comparison.cases import make_three_models
from tests.train.stored_runs import make_evaluation, make_run
from zoo.train.comparison.figures import page_figures
from zoo.train.comparison.latex import escape
from zoo.train.comparison.report import report
from zoo.train.comparison.reproduce import merged
from zoo.train.plotting import charts


class Page(HTMLParser):
    """A page's loaded resources, ids and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads, self.ids, self.tags = list[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "srcset") and value and value[0] != "#":
                self.loads.append(value)
            if name == "id" and value:
                self.ids.append(value)


def test_the_page_loads_nothing(run: Any, tmp_path: Path) -> None:
    make_three_models(tmp_path / "runs")
    for model in ("rmt", "mamba"):
        make_evaluation(tmp_path / f"runs/{model}/0", 0.8)
    make_evaluation(tmp_path / "runs/rmt/1", 0.4)
    assert run("runs", pages=True)[0] == 0
    text = (tmp_path / "runs/comparison/index.html").read_text()
    page = Page(text)
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert page.loads  # the heat maps' cells
    assert "link" not in page.tags
    for figure in (
        "loss-by-tokens",
        "loss-by-position",
        "score-by-state",
        "length",
        "grid-per-target",
        "memory1",
    ):
        assert figure in page.ids
        assert (tmp_path / f"runs/comparison/{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert page.tags.count("svg") == 11  # a heat map of each measure for each of two models
    assert len(page.ids) == len(set(page.ids))
    for word in ("mamba", "2.100 ± 0.248", "012345678", "runs/rmt/0", "zoo compare runs"):
        assert word in text


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of the sortable table that are marked as best, by model."""
    table = text[text.index('<table id="comparison"') :].partition("</table>")[0]
    cell = re.compile(r"<td( class=best)? data-value=[^>]*>([^<]*)</td>")
    rows = [cell.findall(row) for row in table.split("<tr>")[2:]]
    return {cells[0][1]: [text for best, text in cells if best] for cells in rows}


def test_the_best_of_each_column_is_marked(run: Any, tmp_path: Path) -> None:
    """Where there is a better and a worse: not in a column in which all are the same, nor of sizes."""
    make_run(tmp_path / "runs/a", "rmt", 0, 2.0, metrics={"state_bytes": 512, "tokens_per_s": 9_000.0})
    make_run(tmp_path / "runs/b", "mamba", 0, 2.5, metrics={"parameters": 16_999})
    assert run("runs", pages=True)[0] == 0
    marked = rows_of((tmp_path / "runs/comparison/index.html").read_text())
    assert marked == {"rmt": ["2.000", "9,000", "20"], "mamba": ["256"]}


def test_speeds_of_several_devices_have_no_best(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", 0, 2.0, metrics={"tokens_per_s": 9_000.0, "device": "H200"})
    make_run(tmp_path / "runs/b", "mamba", 0, 2.0)
    assert run("runs", pages=True)[0] == 0
    marked = rows_of((tmp_path / "runs/comparison/index.html").read_text())
    assert marked == {"rmt": [], "mamba": []}


def test_the_page_names_text_steps_and_settings_of_the_task(run: Any, tmp_path: Path) -> None:
    for seed, length in enumerate((256, 512)):
        file = make_run(tmp_path / f"runs/{seed}", "rmt", seed) / "config.yaml"
        config = yaml.safe_load(file.read_text())
        config["task"]["length"] = length
        file.write_text(yaml.safe_dump(config))
    assert run("runs", "mix=task", pages=True)[0] == 0
    facts = "Text text, 40 steps, 4 x 64 tokens each, learning rate 0.001, task.length=256 or 512"
    assert f"<p>{facts}</p>" in (tmp_path / "runs/comparison/index.html").read_text()
    assert f"{facts}." in (tmp_path / "runs/comparison/comparison.md").read_text()


def test_the_command_at_the_foot_makes_this_page_again(run: Any, tmp_path: Path) -> None:
    make_three_models(tmp_path / "runs")
    assert run("runs", "baseline=rmt", "out=a folder", pages=True)[0] == 0
    page = tmp_path / "a folder/index.html"
    text = page.read_text()
    (command,) = re.findall(r'<pre id="command">(.*)</pre>', text)
    assert html.unescape(command) == "zoo compare runs baseline=rmt 'out=a folder'"
    assert text.index(command) > text.index("runs/rmt/0")
    page.unlink()
    assert run(*shlex.split(html.unescape(command))[2:], pages=True)[0] == 0
    assert page.read_text() == text


def test_models_trained_alike_are_one_command() -> None:
    commands = ["zoo sweep model=rmt steps=4 seeds=0,1", "zoo sweep model=mamba steps=4 seeds=0"]
    assert merged([*commands, "zoo sweep model=gru steps=4 seeds=0,1", commands[0]]) == [
        "zoo sweep model=rmt,gru steps=4 seeds=0,1",
        "zoo sweep model=mamba steps=4 seeds=0",
    ]


def test_formats_of_figures_and_tables(run: Any, tmp_path: Path) -> None:
    make_three_models(tmp_path / "runs")
    assert run("runs", "formats=pdf,svg,tex", pages=True)[0] == 0
    out = tmp_path / "runs/comparison"
    stems = {path.stem for path in out.glob("*.pdf")}
    assert "loss-by-tokens" in stems
    assert stems == {path.stem for path in out.glob("*.svg")}
    assert not [*out.glob("*.png")]
    assert (out / "seeds.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (out / "seeds.svg").read_text()
    lines = (out / "comparison.tex").read_text().splitlines()
    assert lines[0] == "% zoo compare runs formats=pdf,svg,tex"
    row = next(line for line in lines if line.startswith("rmt &"))
    assert row.startswith(r"rmt & 0, 1, 2 & 2.100 $\pm$ 0.248 & $-$0.500 $\pm$ ")
    assert row.endswith(r" \\")
    assert row.count(" & ") == next(line for line in lines if line.startswith("model &")).count(" & ")
    assert any(line.startswith(r"mamba & 0 & \textbf{1.900} & ") for line in lines)
    code, _, err = run("runs", "formats=jpg")
    assert code == 2
    assert "expected png | pdf | svg | tex, found jpg" in err


def test_latex_has_no_bare_special_characters() -> None:
    assert escape(r"a_b 50% <&> -3 x-2 \ ") == r"a\_b 50\% $<$\&$>$ $-$3 x-2 \textbackslash{} "


def test_references_are_lines_of_the_figures(tmp_path: Path) -> None:
    make_three_models(tmp_path)
    figures = {figure.name: figure for figure in page_figures(report([tmp_path]).comparisons[0])}
    for name in ("seeds", "score-by-state"):
        (legend,) = figures[name].draw().legends
        assert [text.get_text() for text in legend.get_texts()] == ["xz -9 1.900"]


def test_more_than_four_maps_wrap() -> None:
    cells = [{"axes": {"length": 64, "depth": 0.0}, "exact": {"share": 0.5}}]
    figure = charts.heat_maps({str(index): cells for index in range(6)}, "")
    specs = [axes.get_subplotspec() for axes in figure.axes if axes.get_title()]
    places = [(spec.rowspan.start, spec.colspan.start) for spec in specs]
    assert places == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert len(figure.axes) == 7  # and the scale: none is empty


def test_names_are_escaped(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "<b>|&")
    assert run("runs", pages=True)[0] == 0
    assert "<b>" not in (tmp_path / "runs/comparison/index.html").read_text()
    assert "<b>\\|&" in (tmp_path / "runs/comparison/comparison.md").read_text()
