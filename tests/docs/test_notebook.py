"""examples/look_at_a_run.ipynb: its cells run, in order, and its stored outputs are those of its code."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "look_at_a_run.ipynb"
SMALLER = {
    '"steps=300", "trainer.log_every=10", "val_every=50"': '"steps=4", "trainer.log_every=2", "val_every=2"'
}


def cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_its_cells_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    matplotlib.use("Agg")
    source = "\n".join("".join(cell["source"]) for cell in cells())
    for words, fewer in SMALLER.items():
        assert words in source
        source = source.replace(words, fewer)
    text = tmp_path / "text.txt"
    text.write_text("A keeper who remembers needs no list. " * 100)
    source = source.replace('"size=nano"', f'"size=nano", "data.corpus={text}"')
    scope: dict[str, Any] = {"__name__": "notebook"}
    exec(compile(source, str(NOTEBOOK), "exec"), scope)
    assert len(scope["val"]["step"]) == 2
    assert scope["similarity"].shape == (len(scope["memories"]),) * 2
    assert "kept" in capsys.readouterr().out


def test_it_was_run_from_top_to_bottom() -> None:
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    assert all(output["output_type"] != "error" for cell in cells() for output in cell["outputs"])
    assert sum("image/png" in output.get("data", {}) for cell in cells() for output in cell["outputs"]) == 2
    text = NOTEBOOK.read_text()
    assert all(word not in text for word in ("/tmp", "/home", "/root", "/work"))
