"""`zoo new`: a package that trains and passes its own tests as it is."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from zoo import plugins
from zoo.train.commands import check, new
from zoo.train.runs import build
from zoo.train.runs.config import compose


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, *words: str) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["zoo new", *words])
    code: Any = 0
    try:
        new.main()
    except SystemExit as left:
        code = left.code
    return (code, *capsys.readouterr())


def test_what_is_written_trains_resumes_and_holds_the_laws(
    zoo: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, same_checkpoints: Any
) -> None:
    code, out, err = run(monkeypatch, capsys, "gated_thing")
    assert (code, err) == (0, "")
    assert "python -m zoo check gated_thing.model.GatedThing depth=2 width=32 mlp_width=48" in out
    folder = zoo.folder / "gated_thing"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(new.renamed("gated_thing", file) for file in new.FILES)
    for file in files:
        text = (folder / file).read_text()
        assert new.NAME not in text
        assert new.CLASS not in text
        assert max(map(len, text.splitlines())) <= 110
    assert not list(zoo.folder.glob(".*"))

    monkeypatch.syspath_prepend(str(folder))
    words = ("model=gated_thing", "hydra.searchpath=[pkg://gated_thing.configs]")
    whole = zoo.run(*words, "run_dir=whole")
    assert whole.code == 0, whole.err
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill_at("on_train_batch_end", 5)]).code == "killed"
    resumed = zoo.run("resume=cut", "model._target_=gated_thing.model.GatedThing")
    assert resumed.code == 0, resumed.err
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []

    given = ["gated_thing.model.GatedThing", "depth=1", "width=16", "mlp_width=16"]
    assert check.check(check.model_builder(given)) == 0
    assert capsys.readouterr().out.endswith("every law holds\n")


def test_its_width_meets_the_budget(zoo: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert run(monkeypatch, capsys, "budgeted")[0] == 0
    monkeypatch.syspath_prepend(str(zoo.folder / "budgeted"))
    cfg = compose(["model=budgeted", "hydra.searchpath=[pkg://budgeted.configs]", "size=tiny"])
    assert abs(build.model(cfg).count_parameters() / 1_500_000 - 1) < 0.01


def test_its_entry_point_names_its_configs(zoo: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert run(monkeypatch, capsys, "named")[0] == 0
    project = tomllib.loads((zoo.folder / "named/pyproject.toml").read_text())
    assert project["project"]["entry-points"][plugins.ENTRY_POINTS] == {"named": "named.configs"}
    assert set(project["tool"]["setuptools"]["packages"]) == {"named", "named.configs"}


@pytest.mark.slow
def test_its_own_tests_pass(zoo: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert run(monkeypatch, capsys, "tested")[0] == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=zoo.folder / "tested", env=zoo.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["MyModel"], "found 'MyModel'; did you mean my_model?"),
        (["my-model"], "found 'my-model'; did you mean my_model?"),
        (["../away"], "expected a name of small letters, digits and _, found '../away'"),
        (["3d"], "expected a name of small letters"),
        ([""], "expected a name of small letters"),
        (["class"], "expected a name of small letters"),
        (["rmt"], "rmt is a model of zoo already"),
        (["json"], "json is another package's name"),
        (["zoo"], "zoo is another package's name"),
        (["decoder"], "the class Decoder would hide the zoo's"),
        (["there"], "there is there already; nothing was written"),
        (["one", "two"], "expected one name, found 'one two'"),
    ],
)
def test_a_slip(zoo: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str], says: str) -> None:
    (zoo.folder / "there").mkdir()
    (zoo.folder / "there/mine.txt").write_text("mine")
    before = sorted(zoo.folder.rglob("*"))
    code, out, err = run(monkeypatch, capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: new: ")
    assert says in err
    assert sorted(zoo.folder.rglob("*")) == before


def test_all_or_nothing(zoo: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Where writing fails half-way, no half package stands there, and the next try succeeds."""
    written = Path.write_text

    def full(path: Path, *rest: Any, **named: Any) -> int:
        if path.name.startswith("test_"):
            raise OSError(28, "No space left on device", str(path))
        return written(path, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        code, _, err = run(monkeypatch, capsys, "unlucky")
    assert code == 2
    assert err.endswith("No space left on device\n")
    assert not (zoo.folder / "unlucky").exists()
    assert run(monkeypatch, capsys, "unlucky")[0] == 0
