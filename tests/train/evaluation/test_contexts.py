"""A run read at other contexts and by other position methods than it was trained with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.train.comparison.groups import group_runs, read_run
from zoo.train.comparison.method_figures import method_tables
from zoo.train.evaluation import contexts
from zoo.train.evaluation.contexts import evaluate_each, score
from zoo.train.evaluation.evaluate import evaluate
from zoo.train.evaluation.options import EvalOptions
from zoo.train.loop.trainer import train
from zoo.train.plotting.curves import curve_panels
from zoo.train.runs.build import model as build_model
from zoo.train.runs.config import compose
from zoo.train.runs.load import load_trained
from zoo.train.runs.model_settings import keep_trained_positions, with_overrides
from zoo.train.runs.stored import load_stored


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of 16 positions, on samples of 16."""
    folder = tmp_path_factory.mktemp("run")
    words = ["task=induction", "model=transformer", "size=nano", "steps=3", "task.length=16"]
    train(compose([*words, "task.eval_samples=40", "optim.lr=0.01"]), folder)
    return folder


def loaded(run: Path, *overrides: str, architecture: str | None = None) -> Any:
    return load_trained(run, overrides=overrides, architecture=architecture)


@pytest.mark.parametrize("architecture", [None, "transformer"])
@pytest.mark.parametrize(
    "setting", ["scaling=yarn", "far=grouped", "far=capped", "log_n=true", "scaling=dynamic", "base=500000"]
)
def test_a_dotted_override_of_the_positions_reads_otherwise(
    run: Path, setting: str, architecture: str | None
) -> None:
    """The run's own value doesn't take its place, and the factor is that of the contexts: 64 / 16."""
    tokens = torch.randint(16, (2, 64), generator=torch.Generator().manual_seed(0))
    plain, changed = (
        loaded(run, "model.segment_len=64", *words, architecture=architecture)[1](tokens)[0]
        for words in ((), (f"model.position.{setting}",))
    )
    assert (plain - changed).abs().max() > 1e-4


@pytest.mark.parametrize("architecture", [None, "transformer"])
def test_the_trained_length_stays_the_run_s(run: Path, architecture: str | None) -> None:
    words = ("model.segment_len=64", "model.position.scaling=yarn")
    cfg, model, _ = loaded(run, *words, architecture=architecture)
    assert cfg.model.position == {"kind": "rope", "scaling": "yarn", "trained": 16}
    lengths = {part.lengths["factor"] for part in model.modules() if getattr(part, "lengths", {})}
    assert lengths == {4.0}
    assert loaded(run, "model.segment_len=64", architecture=architecture)[0].model.position == "rope"


def test_a_run_with_a_scaling_keeps_its_factor(tmp_path: Path) -> None:
    """Weights that were tuned with a factor aren't read with another, unless one is asked for."""
    position = {"kind": "rope", "scaling": "yarn", "trained": 16}
    lengths = {"trained": 16, "factor": 4.0}
    model = {"segment_len": 128, "position": position}
    assert keep_trained_positions(model, lengths, [])["position"]["factor"] == 4.0
    changed = keep_trained_positions(model, lengths, ["model.position.scaling=yarn"])["position"]
    assert "factor" not in changed
    assert changed["trained"] == 16


def test_overrides_apply_inside_a_mapping() -> None:
    model = {"position": "rope", "depth": 2, "mix": {"a": 1}}
    overrides = ["model.position.scaling=yarn", "model.position.factor=8", "model.mix.b=2", "model.depth=3"]
    assert with_overrides(model, overrides) == {
        "position": {"kind": "rope", "scaling": "yarn", "factor": 8},
        "depth": 3,
        "mix": {"a": 1, "b": 2},
    }
    assert with_overrides(model, ["model.position=alibi"])["position"] == "alibi"
    with pytest.raises(UserError, match=r"model\.depth has no keys, it is 2"):
        with_overrides(model, ["model.depth.a=1"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.position.kind=kerple", "expected kind rope, which the weights were trained with"),
        ("model.position=alibi", "found alibi"),
        ("model.position.scaling=clex", "positions.down expected"),
        ("model.position.scaling=yarm", "position.scaling: expected none | linear"),
        ("model.positions=rope", "model.positions: unknown"),
        ("model.window=8", None),
    ],
)
def test_what_the_weights_do_not_fit_is_refused(run: Path, override: str, message: str | None) -> None:
    if message is None:
        loaded(run, override)
        return
    with pytest.raises(UserError) as refused:
        loaded(run, override)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_each_context_and_method_is_an_evaluation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = EvalOptions(contexts=["1x", "4x"], methods=["plain", "linear", "grouped"], prompts=40)
    entries = evaluate_each(run, options)
    assert [entry["results"][0]["axes"] for entry in entries] == [{"length": 16}, {"length": 64}] * 3
    assert len({entry["label"] for entry in entries}) == 6
    stored = json.loads((run / "evaluation.json").read_text())["evaluations"]
    assert len(stored) == 6
    assert [entry["read_by"] for entry in entries] == [None, *["transformer"] * 5]
    assert entries[3]["reading"]["position"]["trained"] == 16
    assert (run / "evaluation" / "induction-by-context.png").is_file()
    again = evaluate(run, EvalOptions(lengths=["16"], prompts=40))
    assert len(json.loads((run / "evaluation.json").read_text())["evaluations"]) == 6
    assert again["read_by"] is None


def test_a_comparison_has_the_numbers_of_each_context_and_method(run: Path) -> None:
    """Also where longer samples were read by the same settings before."""
    evaluate(run, EvalOptions(lengths=["16", "64"], prompts=40))
    entries = evaluate_each(
        run, EvalOptions(contexts=["1x", "4x"], methods=["plain", "linear", "grouped"], prompts=40)
    )
    shares = [
        next(result["exact"]["share"] for result in entry["results"] if result["axes"]["length"] == length)
        for entry, length in zip(entries, [16, 64] * 3, strict=True)
    ]
    assert [score(entry, length) for entry, length in zip(entries, [16, 64] * 3, strict=True)] == shares
    [table] = method_tables(group_runs([read_run(run)]))
    assert table.head == ["method", "16", "64"]
    assert table.rows == [
        [name, *(f"{share:.1%}" for share in shares[2 * index : 2 * index + 2])]
        for index, name in enumerate(("plain", "linear", "grouped"))
    ]


def test_text_counts_the_last_tokens_of_its_windows(text_run: Path) -> None:
    entries = evaluate_each(text_run, EvalOptions(contexts=["1x", "2x"], methods=["plain", "ntk"]))
    axes = [entry["results"][0]["axes"] for entry in entries]
    expected = [{"memory": "sliding", "context": length, "stride": 16} for length in (16, 32)]
    assert axes == expected * 2
    targets = {sum(part["tokens"] for part in entry["results"][0]["by_position"]) for entry in entries}
    assert len(targets) == 1


def test_the_figure_has_what_was_just_measured(text_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what was measured earlier with another stride or of other text."""
    drawn: list[list[float]] = []

    def panels(panels: Any, *words: Any, **options: Any) -> Any:
        [(_, lines)] = panels
        drawn.append([*lines["plain"].y])
        return curve_panels(panels, *words, **options)

    monkeypatch.setattr(contexts, "curve_panels", panels)
    expected = []
    for stride, tokens in ((16, None), (4, None), (16, 50), (4, 50), (16, None)):
        entries = evaluate_each(text_run, EvalOptions(contexts=["1x", "2x"], stride=stride, tokens=tokens))
        axes = {"stride": stride} | ({} if tokens is None else {"drawn": tokens})
        results = [[r for r in e["results"] if r["axes"].items() >= axes.items()] for e in entries]
        expected.append([min(of_entry, key=lambda r: len(r["axes"]))["loss"] for of_entry in results])
    assert drawn == expected
    assert len({tuple(losses) for losses in drawn}) == 4


@pytest.mark.parametrize(
    ("task", "is_text"), [("lm", True), ("token_lm", True), ("passkey", False), ("listops", None)]
)
def test_a_task_is_text_or_has_lengths_or_is_refused(run: Path, task: str, is_text: bool | None) -> None:
    cfg, options = load_stored(run / "config.yaml"), EvalOptions(task=task, contexts=["1x", "2x"])
    if is_text is None:
        with pytest.raises(
            UserError, match="contexts= reads text, or samples of any length, which task listops"
        ):
            evaluate_each(run, options)
        return
    assert isinstance(cfg, DictConfig)
    read_with = contexts.at_context(cfg, options, "plain", 32)
    assert (read_with.stride, read_with.lengths) == ((16, None) if is_text else (None, ["32"]))


def test_tuning_keeps_the_trained_length(run: Path) -> None:
    cfg = compose(
        [
            *("model=transformer", "task=induction", "size=nano", "task.length=16"),
            *(f"model.base={run}", "model.segment_len=32", "model.position.scaling=yarn"),
        ]
    )
    assert cfg.model.position == {"kind": "rope", "scaling": "yarn", "trained": 16}
    model = build_model(cfg)
    assert {part.lengths["factor"] for part in model.modules() if getattr(part, "lengths", {})} == {2.0}


def test_a_run_trained_with_drawn_positions_is_read_beyond_them() -> None:
    """Draws are no part of what reads; those that the overrides set are, and are checked."""
    drawn = {"kind": "rope", "draw": "random", "longest": 16}
    read = keep_trained_positions({"segment_len": 64, "position": drawn}, {"trained": 16}, [])
    assert read["position"] == {"kind": "rope", "trained": 16}
    kept = keep_trained_positions({"position": drawn}, {}, ["model.position.draw=random"])
    assert kept["position"] == {"kind": "rope", "draw": "random"}
