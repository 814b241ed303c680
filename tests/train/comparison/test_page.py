"""The page of a comparison: figures, names, nothing loaded."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.train.comparison.cases import make_three_models
from tests.train.stored_runs import make_evaluation, make_run


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


def test_names_are_escaped(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "<b>|&")
    assert run("runs", pages=True)[0] == 0
    assert "<b>" not in (tmp_path / "runs/comparison/index.html").read_text()
    assert "<b>\\|&" in (tmp_path / "runs/comparison/comparison.md").read_text()
