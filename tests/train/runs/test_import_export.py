"""Export of runs, and their import."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.conftest import Workspace
from tests.train.runs.commands import assert_same, call, refused
from zoo.train.commands import compare, evaluate, export, generate, import_weights
from zoo.train.runs.load import load_trained


@pytest.fixture
def exported(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> Path:
    zoo.train_whole()
    assert call(zoo, capsys, export.main, "run=whole", "to=out").code == 0
    return Path("out")


def test_the_contents_of_an_export(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((exported / "config.json").read_text())
    assert config["model"]["_target_"] == "zoo.models.rmt.RMT"
    assert config["task"]["_target_"] == "zoo.train.tasks.lm.LanguageModelling"
    assert config["vocabulary"]["size"] == 257
    assert config["step"] == 8
    assert config["metrics"] == json.loads(Path("whole/metrics.json").read_text())
    assert config["commit"] == config["metrics"]["commit"]
    assert str(Path.cwd()) not in json.dumps(config)
    _, model, _ = load_trained(Path("whole"))
    weights = load_file(exported / "model.safetensors")
    assert config["weights"]["tied"] == {"head.weight": "embed.weight"}
    assert weights.keys() | {"head.weight"} == model.state_dict().keys()
    for name, weight in weights.items():
        assert torch.equal(weight, model.state_dict()[name])


def test_an_import_of_an_export_is_the_same_run(
    zoo: Workspace, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(zoo, capsys, import_weights.main, "from=out", "run_dir=back").code == 0
    (_, before, progress), (_, after, same_progress) = load_trained(Path("whole")), load_trained(Path("back"))
    assert progress == same_progress
    assert_same(before, after)
    assert before.state_dict().keys() == after.state_dict().keys()
    assert (Path("back") / "metrics.json").read_text() == (Path("whole") / "metrics.json").read_text()
    words = ("prompt=the", "tokens=20")
    captured = [call(zoo, capsys, generate.main, f"run={run}", *words).out for run in ("whole", "back")]
    assert captured[0] == captured[1]
    tables = [call(zoo, capsys, evaluate.main, f"run={run}", "split=val") for run in ("whole", "back")]
    assert [ended.code for ended in tables] == [0, 0], tables[1].err
    rows = [
        json.loads(Path(run, "evaluation.json").read_text())["evaluations"][0]["results"][0]["bits_per_byte"]
        for run in ("whole", "back")
    ]
    assert rows[0] == rows[1]
    assert call(zoo, capsys, compare.main, "back", "out=side").code == 0
    assert call(zoo, capsys, export.main, "run=back", "to=again").code == 0
    first, second = (json.loads(Path(at, "config.json").read_text()) for at in ("out", "again"))
    assert first == second


def test_an_imported_run_has_nothing_to_resume_from(
    zoo: Workspace, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(zoo, capsys, import_weights.main, "from=out", "run_dir=back").code == 0
    before = Path("back/checkpoints/last.ckpt").read_bytes()
    ended = zoo.run("resume=back", "steps=10")
    assert ended.code == 2
    assert "optimizer_states: expected one optimiser" in ended.err
    assert ended.err.count("\n") == 1
    assert Path("back/checkpoints/last.ckpt").read_bytes() == before


def test_nothing_is_overwritten(zoo: Workspace, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("all of it")
    Path("file").write_text("x")
    for main, words in (
        (export.main, ("run=whole", "to=mine")),
        (export.main, ("run=whole", "to=out")),
        (export.main, ("run=whole", "to=file")),
        (import_weights.main, ("from=out", "run_dir=mine")),
        (import_weights.main, ("from=out", "run_dir=whole")),
    ):
        assert "nothing is overwritten" in refused(call(zoo, capsys, main, *words))
    assert sorted(path.name for path in Path("mine").iterdir()) == ["thesis.txt"]
    Path("empty").mkdir()
    assert call(zoo, capsys, import_weights.main, "from=out", "run_dir=empty").code == 0
    assert not list(Path().glob(".*.[0-9]*"))


def change(key: str, value: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        node = config
        *groups, last = key.split(".")
        for part in groups:
            node = node[part]
        if value is None:
            del node[last]
        else:
            node[last] = value
        path.write_text(json.dumps(config))

    return apply


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flip, "is damaged: expected sha256"),
        (cut, "is damaged: expected sha256"),
        (lambda folder: (folder / "config.json").unlink(), "expected the model's config.json at"),
        (lambda folder: (folder / "config.json").write_text("{"), "expected json in"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "expected an object in"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "expected one file of weights in out, found none",
        ),
        (change("version", 2), "version 1, found format 'zoo', version 2"),
        (change("run", None), "is not a complete one of zoo export"),
        (change("run.names", 3), "is not a complete one of zoo export"),
        (change("weights.tied", {"head.weight": "tail"}), "tied to tail"),
        (change("model.memory_tokens", 3), "weight memory expected (3, 32), found (2, 32)"),
        (change("model.memory_tokens", "${oc.env:HOME}"), "expected plain values, found '${oc.env:HOME}'"),
        (change("model.memory_tokens", "many"), "model.memory_tokens: expected int, found 'many'"),
        (change("model._target_", "os.system"), "names a class of no installed plug-in: os.system"),
        (change("task._target_", "shutil.rmtree"), "names a class of no installed plug-in: shutil.rmtree"),
    ],
)
def test_spoilt_exports(
    zoo: Workspace,
    exported: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    spoil(exported)
    assert message in refused(call(zoo, capsys, import_weights.main, "from=out", "run_dir=back"))
    assert not Path("back").exists()


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (export.main, ("to=x",), "export: expected run=…"),
        (export.main, ("run=nowhere", "to=x"), "found none in 'nowhere'"),
        (export.main, ("run=whole", "to=x", "form=y"), "unknown key 'form'"),
        (export.main, ("run=whole", "to=x", "checkpoint=first"), "expected last | best, found first"),
        (import_weights.main, ("from=out",), "import: expected run_dir=…"),
        (import_weights.main, ("from=nowhere", "run_dir=x"), "found none at nowhere"),
        (
            import_weights.main,
            ("from=out", "run_dir=x", "data.corpus=text"),
            "data.corpus is settled by the run",
        ),
        (
            import_weights.main,
            ("from=out/config.json", "run_dir=x"),
            "the .safetensors of zoo export, found config.json",
        ),
    ],
)
def test_user_errors(
    zoo: Workspace,
    exported: Path,
    capsys: pytest.CaptureFixture[str],
    main: Callable[[], None],
    words: tuple[str, ...],
    message: str,
) -> None:
    assert message in refused(call(zoo, capsys, main, *words))
    assert not Path("x").exists()


def test_what_other_libraries_make_of_an_export(zoo: Any) -> None:
    """As docs/exporting.md says: safetensors reads all weights, transformers refuses the folder."""
    from safetensors.torch import load_file
    from transformers import AutoConfig

    from zoo.train.runs.export import export
    from zoo.train.runs.load import load_trained

    zoo.train_whole()
    export(zoo.folder / "whole", zoo.folder / "exported")
    _, model, _ = load_trained(zoo.folder / "whole")
    weights = load_file(zoo.folder / "exported/model.safetensors")
    config = json.loads((zoo.folder / "exported/config.json").read_text())
    tied = config["weights"]["tied"]
    weights |= {name: weights[first] for name, first in tied.items()}
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert "model_type" not in config
    with pytest.raises(ValueError, match="model_type"):
        AutoConfig.from_pretrained(zoo.folder / "exported")
