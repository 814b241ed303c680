"""A page under protocol 1 of runs that train: four models, two tasks, three seeds; every number on it is
computed again from the runs' files."""

import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.train.comparison import recompute
from tests.train.comparison.recompute import Row
from tests.train.sweep.in_process import run_sweep

MODELS = ("transformer", "rmt", "mamba2", "lstm")
REACHES = {"transformer": "16", "rmt": "∞", "mamba2": "∞", "lstm": "∞"}  # of a segment; without limit
WORDS = (
    f"model={','.join(MODELS)}",
    "size=nano",
    "steps=8",
    "val_every=4",
    "data.batch_size=4",
    "trainer.accelerator=cpu",
    "protocol=1",
    "seeds=0:3",
)
RECALL = ("task=recall", "task.length=64", "task.samples=1000", "task.eval_samples=16")


class Tables(HTMLParser):
    """The cells of every table by its id, under the heads of their columns."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows = dict[str, list[Row]]()
        self._heads, self._cells, self._text = list[str](), list[str](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._text = ""
        if tag == "table":
            self._name, self._heads = dict(attrs)["id"] or "", []
            self.rows[self._name] = []

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "th":
            self._heads.append(self._text)
        if tag == "td":
            self._cells.append(self._text)
        if tag == "tr" and self._cells:
            self.rows[self._name].append(dict(zip(self._heads, self._cells, strict=True)))
            self._cells = []


@pytest.mark.slow
def test_every_number_of_a_page_is_computed_again(
    zoo: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("text/val", "text/test")
    assert run_sweep(monkeypatch, *WORDS, *RECALL) == 0
    assert run_sweep(monkeypatch, *WORDS, "task=lm", "data.corpus=text") == 0
    code, _, err = run("runs", "mix=tokens", pages=True)  # in so few steps much is padding
    assert (code, err) == (0, "")
    tables = Tables(Path("runs/comparison/index.html").read_text()).rows
    runs = recompute.read(Path("runs"))
    assert {r.seed for r in runs if r.purpose == "score"} == {0, 1, 2}
    aggregates = {row.pop("model"): row for row in tables["tasks"]}
    assert aggregates == recompute.over_tasks(runs, ["lm", "recall"], "transformer", 16)
    rules = {"lm": ("", 0.02, 3.5), "recall": ("1", 0.1, 2.0)}  # the table's id, effect and loss of the yaml
    for task, (suffix, effect, loss) in rules.items():
        rows = {row.pop("model"): row for row in tables[f"comparison{suffix}"]}
        assert {row.pop("seeds") for row in rows.values()} == {"0, 1, 2"}
        assert rows == recompute.comparison(runs, task, "transformer", 16, REACHES, effect, loss)
        key = lambda row: sorted(row.items())  # noqa: E731
        expected = recompute.run_rows(runs, task, 16)
        listed = [list(row.values()) for row in tables[f"runs{suffix}"]]
        assert sorted(row[:3] for row in listed) == sorted(list(row.values()) for row in expected)
        tried = [
            {head: cell for head, cell in row.items() if head not in ("task", "commit", "folder")}
            for row in tables[f"rates{suffix}"]
        ]
        assert sorted(tried, key=key) == sorted(recompute.rate_rows(runs, task), key=key)
