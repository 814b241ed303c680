"""`zoo compare`: numbers against sums done by hand, runs that don't belong together, what is written."""

import csv
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.train.made_runs import evaluate, make_run
from zoo.train.commands import compare
from zoo.train.comparison import evaluations, figures, groups, reproduce
from zoo.train.comparison import page as comparison_page
from zoo.train.evaluation.intervals import share as share_of
from zoo.train.plotting import render


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`zoo compare …` in a folder of its own: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "sweep_command", lambda row: f"zoo sweep model={row.label}")

    def call(*words: str, drawn: bool = False) -> tuple[Any, str, str]:
        if not drawn:
            monkeypatch.setattr(comparison_page, "write", lambda comparison, out: None)
        monkeypatch.setattr(sys, "argv", ["zoo compare", *words])
        code: Any = 0
        try:
            compare.main()
        except SystemExit as left:
            code = left.code
        return (code, *capsys.readouterr())

    return call


def three_models(folder: Path) -> None:
    for seed, (ours, theirs) in enumerate([(2.0, 2.5), (2.2, 2.8), (2.1, 2.5)]):
        make_run(folder / "rmt" / str(seed), "rmt", seed, ours)
        make_run(folder / "transformer" / str(seed), "transformer", seed, theirs, metrics={"state_bytes": 0})
    make_run(folder / "mamba" / "0", "mamba", 0, 1.9, metrics={"state_bytes": 4096})


def read_csv(path: Path) -> dict[str, dict[str, str]]:
    return {row["model"]: row for row in csv.DictReader(io.StringIO(path.read_text()))}


def test_numbers_by_hand(run: Any, tmp_path: Path) -> None:
    three_models(tmp_path / "runs")
    code, out, err = run("runs", "loss=3.0")
    assert (code, err) == (0, "")
    said = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert list(said) == ["mamba", "rmt", "transformer"]
    rmt = said["rmt"]
    assert rmt["seeds"] == "0, 1, 2"
    assert float(rmt["val/bits_per_byte"]) == pytest.approx(2.1)
    assert float(rmt["val/bits_per_byte_half_width"]) == pytest.approx(4.30265 * 0.1 / 3**0.5, rel=1e-5)
    assert float(rmt["difference"]) == pytest.approx((-0.5 - 0.6 - 0.4) / 3)
    assert float(rmt["difference_half_width"]) == pytest.approx(4.30265 * 0.1 / 3**0.5, rel=1e-5)
    assert (said["mamba"]["difference_runs"], said["mamba"]["difference_half_width"]) == ("1", "")
    assert said["transformer"]["difference"] == ""
    # losses 1.4 + 3, 2, 1, 0 at steps 10, 20, 30, 40; and so on: 3.0 is reached at 30 by all of rmt's
    assert float(rmt["steps_to_loss"]) == 30
    assert float(said["transformer"]["steps_to_loss"]) == 30
    assert "2.100 ± 0.248" in (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "2.100" in out


def test_a_loss_that_no_run_reached(run: Any, tmp_path: Path) -> None:
    three_models(tmp_path / "runs")
    assert run("runs", "loss=1.42")[0] == 0
    rmt = read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]
    assert (rmt["steps_to_loss"], rmt["steps_to_loss_runs"]) == ("40.0", "1")
    assert "40 (1 of 3)" in (tmp_path / "runs/comparison/comparison.md").read_text()


DIFFERENT = {
    "task": [{"task.length": 3}, {"metrics": {"task_version": 2}}, {"metrics": {"task_code": "fedc"}}],
    "data": [
        {"metrics": {"val_bytes": 4096}},
        {"metrics": {"data_fingerprint": "fedc"}},
        {"metrics": {"data_fingerprint": None}, "data.corpus": "other", "task.corpus": "other"},
    ],
    "budget": [{"size.budget": 2000}, {"names.size": "tiny"}, {"metrics": {"parameters": 17_600}}],
    "tokens": [{"steps": 41}, {"data.batch_size": 8}, {"metrics": {"tokens_seen": 10_600}}],
}


@pytest.mark.parametrize(
    ("kind", "changed"), [(kind, one) for kind, some in DIFFERENT.items() for one in some]
)
def test_runs_that_differ_are_refused(run: Any, tmp_path: Path, kind: str, changed: dict[str, Any]) -> None:
    make_run(tmp_path / "runs/a", "rmt", **{"size.budget": 1000})
    make_run(tmp_path / "runs/b", "mamba", **{"size.budget": 1000} | changed)
    code, _, err = run("runs")
    assert code == 2
    assert re.fullmatch(rf"error: compare: the runs differ in {kind}: .*runs.b.* mix={kind} .*\n", err)
    assert not (tmp_path / "runs/comparison").exists()
    code, _, err = run("runs", f"mix={kind}")
    assert (code, err) == (0, "")
    assert "The runs differ: " in (tmp_path / "runs/comparison/comparison.md").read_text()


def test_runs_of_other_code_are_no_seeds_of_one_model(run: Any, tmp_path: Path) -> None:
    for seed, code in enumerate(("abcd", "abcd", "fedc")):
        make_run(tmp_path / f"runs/{seed}", "mine", seed, metrics={"model_code": code})
    assert run("runs")[0] == 0
    found = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert {label: row["seeds"] for label, row in found.items()} == {
        "mine model_code=abcd": "0, 1",
        "mine model_code=fedc": "2",
    }


def test_one_older_run_hides_no_fingerprint(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    make_run(tmp_path / "runs/b", "mamba", metrics={"data_fingerprint": "fedc"})
    make_run(tmp_path / "runs/c", "transformer", metrics={"data_fingerprint": None})
    assert re.search(r"differ in data: fingerprint: \w+ \(runs/a\), fedc \(runs/b\)\. mix", run("runs")[2])


def test_sizes_without_a_budget_say_how_large_the_models_are(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    make_run(tmp_path / "runs/b", "mamba", metrics={"parameters": 1_700_000})
    code, out, err = run("runs")
    assert (code, err) == (0, "")
    said = "the models aren't equally large: parameters: 17,000 (runs/a), 1,700,000 (runs/b)."
    assert said in out
    assert said in (tmp_path / "runs/comparison/comparison.md").read_text()


def test_tokens_may_differ_by_padding(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    make_run(tmp_path / "runs/b", "mamba", metrics={"tokens_seen": 10_400})
    assert run("runs")[0] == 0


def test_where_a_corpus_lies_and_when_it_is_validated_changes_nothing(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", 0)
    make_run(
        tmp_path / "runs/b", "rmt", 1, **{"data.root": "elsewhere", "val_every": 20, "checkpoint_every": 1}
    )
    assert run("runs")[0] == 0
    assert read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]["seeds"] == "0, 1"


def test_settings_make_rows(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", 0)
    make_run(tmp_path / "runs/b", "rmt", 0, **{"optim.lr": 2e-3})
    make_run(tmp_path / "runs/c", "rmt", 1, **{"optim.lr": 2e-3, "trainer.compile": False})  # a newer setting
    make_run(tmp_path / "runs/d", "mamba", 0)
    assert run("runs", "baseline=rmt lr=0.001")[0] == 0
    said = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert {name: row["seeds"] for name, row in said.items()} == {
        "mamba": "0",
        "rmt lr=0.001": "0",
        "rmt lr=0.002": "0, 1",
    }
    assert said["rmt lr=0.002"]["difference_runs"] == "1"


@pytest.mark.parametrize(
    ("said", "together"),
    [
        ({"model.norm": "rms"}, True),  # the constructor's default
        ({"model.norm": "layer"}, False),
        ({"model.gone": 3}, True),  # no constructor takes it any more
        ({"model.base": "runs/other"}, False),
        ({"model._target_": "os.system", "model.norm": "rms"}, False),  # not ours to import
    ],
)
def test_a_setting_that_one_run_lacks_has_its_default(
    tmp_path: Path, said: dict[str, Any], together: bool
) -> None:
    target = {"model._target_": said.get("model._target_", "zoo.models.mamba.Mamba")}
    for seed, settings in enumerate((target, target | said)):
        make_run(tmp_path / f"{seed}", "mamba", seed, **settings)
    assert len(groups.group_runs([groups.read_run(tmp_path / f"{seed}") for seed in (0, 1)])) == 2 - together


def test_labels_are_told_apart(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", **{"model.mlp_width": 32})
    make_run(tmp_path / "runs/b", "rmt", bits=1.0, **{"model.mlp_width": 96})
    assert run("runs", "baseline=rmt mlp_width=32")[0] == 0
    said = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert list(said) == ["rmt mlp_width=32", "rmt mlp_width=96"]
    assert float(said["rmt mlp_width=96"]["difference"]) == -1


def test_labels_of_mixed_sizes_are_told_apart(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    make_run(tmp_path / "runs/b", "rmt", **{"optim.lr": 2e-3})
    make_run(tmp_path / "runs/c", "rmt", **{"names.size": "tiny", "optim.lr": 3e-3, "model.mlp_width": 64})
    assert run("runs", "mix=budget")[0] == 0
    said = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert list(said) == ["rmt size=nano lr=0.001", "rmt size=nano lr=0.002", "rmt size=tiny"]


def test_sizes_told_to_mix_are_rows_of_their_own(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", 0)
    make_run(tmp_path / "runs/b", "rmt", 0, **{"names.size": "tiny", "size.width": 64, "model.width": 64})
    assert run("runs", "mix=budget")[0] == 0
    assert list(read_csv(tmp_path / "runs/comparison/comparison.csv")) == ["rmt size=nano", "rmt size=tiny"]


def test_a_seed_that_is_there_twice(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", 3)
    make_run(tmp_path / "runs/b", "rmt", 3)
    code, _, err = run("runs")
    assert (code, err) == (2, "error: compare: rmt seed 3 is there twice, runs/a and runs/b: name one\n")


def test_runs_of_before_the_curve(run: Any, tmp_path: Path) -> None:
    for seed in (0, 1):
        older = dict.fromkeys(("curve", "eval_tokens_per_s", "data_fingerprint"))
        make_run(tmp_path / f"runs/{seed}", "rmt", seed, metrics=older)
    code, _, err = run("runs", "runs/0", drawn=True)
    assert (code, err) == (0, "")
    said = read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]
    assert (said["steps_to_loss"], said["eval_tokens_per_s"]) == ("", "")


def test_accuracy_is_the_score_where_there_are_no_bytes(run: Any, tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.5, 0.7)):
        make_run(
            tmp_path / f"runs/{seed}",
            "rmt",
            seed,
            metrics={"val/bits_per_byte": None, "val/accuracy": accuracy},
        )
    assert run("runs")[0] == 0
    assert "60.0% ± 127.1%" in (tmp_path / "runs/comparison/comparison.md").read_text()
    make_run(tmp_path / "runs/text", "mamba")
    assert "in accuracy" in run("runs")[2]


def test_unfinished_runs_are_left_out_aloud(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    (make_run(tmp_path / "runs/b", "mamba") / "metrics.json").unlink()
    code, _, err = run("runs")
    assert (code, err) == (0, "left out, not finished: runs/b\n")


SLIPS = [
    (("nowhere",), "no folder nowhere"),
    (("runs", "los=3"), "unknown key 'los'; expected one of baseline, loss, mix, out"),
    (("runs", "loss=x"), "loss: expected a number of nats above 0, found x"),
    (("runs", "loss=nan"), "loss: expected a number of nats above 0, found nan"),
    (("runs", "mix=size"), r"mix: expected task \| data \| budget \| tokens, found size"),
    (("runs", "baseline=rtm"), "baseline: expected one of rmt, found rtm"),
    (("runs/a/config.yaml",), "no folder runs/a/config.yaml"),
    (("empty",), "no finished run below empty"),
    (("runs", "out=runs/a/config.yaml"), "can't use .*config.yaml.*"),
]


@pytest.mark.parametrize(("words", "expected"), SLIPS, ids=[" ".join(words) for words, _ in SLIPS])
def test_slips_are_one_line(run: Any, tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    (tmp_path / "empty").mkdir()
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: (compare: )?{expected}.*\n", err)


@pytest.mark.parametrize(
    ("name", "text"),
    [("metrics.json", "{"), ("metrics.json", "[]"), ("config.yaml", "a: ["), ("evaluation.json", "[]")],
)
def test_damaged_files_are_one_line(run: Any, tmp_path: Path, name: str, text: str) -> None:
    (make_run(tmp_path / "runs/a", "rmt") / name).write_text(text)
    code, _, err = run("runs")
    assert code == 2
    assert re.fullmatch(rf"error: .*{name}.*\n", err)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("metrics.json", '{"val/loss": 1.0}', "parameters, tokens_seen, val/bits_per_byte or val/accuracy"),
        ("config.yaml", "model: {}\nnames: {model: rmt, task: lm, size: nano}", "seed, steps, val_every"),
    ],
)
def test_what_a_run_lacks_is_named(run: Any, tmp_path: Path, name: str, text: str, expected: str) -> None:
    (make_run(tmp_path / "runs/a", "rmt") / name).write_text(text)
    code, _, err = run("runs")
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(rf"runs/a/{name} is no run's \w+: expected {expected} in it", err)


class Page(HTMLParser):
    """What a page loads, and its elements' ids."""

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


def test_the_page_needs_nothing_else(run: Any, tmp_path: Path) -> None:
    three_models(tmp_path / "runs")
    for model in ("rmt", "mamba"):
        evaluate(tmp_path / f"runs/{model}/0", 0.8)
    evaluate(tmp_path / "runs/rmt/1", 0.4)
    assert run("runs", drawn=True)[0] == 0
    text = (tmp_path / "runs/comparison/index.html").read_text()
    page = Page(text)
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert page.loads  # the heat maps' cells
    assert "link" not in page.tags
    for figure in ("loss-by-tokens", "loss-by-position", "score-by-state", "length", "grid", "memory1"):
        assert figure in page.ids
        assert (tmp_path / f"runs/comparison/{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert page.tags.count("svg") == 7  # a heat map for each of two models
    assert len(page.ids) == len(set(page.ids))
    for word in ("mamba", "2.100 ± 0.248", "012345678", "runs/rmt/0", "zoo compare runs"):
        assert word in text


def evaluations_of(folder: Path, label: str, number: int = 0) -> list[list[dict[str, Any]]]:
    """Results of the runs of a row, as they are drawn."""
    every = groups.group_runs([groups.read_run(path) for path in sorted(folder.iterdir())])
    return [entry["results"] for entry in evaluations.matching_entries(every)[number][label]]


def test_seeds_have_their_own_spread_in_evaluations(tmp_path: Path) -> None:
    for seed, share in enumerate((0.8, 0.7, 0.6)):
        evaluate(make_run(tmp_path / f"{seed}", "rmt", seed), share)
    results = evaluations_of(tmp_path, "rmt")
    found, _ = evaluations.accuracy_by_length({"rmt": results})
    half = 4.30265 * 0.1 / 3**0.5
    for said in (found["rmt"][512], evaluations.grid_over_seeds(results)[0]["exact"]):
        assert said["share"] == pytest.approx(0.7)
        assert (said["low"], said["high"]) == pytest.approx((0.7 - half, 0.7 + half), rel=1e-4)
    alone, _ = evaluations.accuracy_by_length({"rmt": results[:1]})
    assert alone["rmt"][512] == share_of(120, 150)  # Wilson's


def test_of_a_run_the_latest_step_counts(tmp_path: Path) -> None:
    path = make_run(tmp_path / "0", "rmt") / "evaluation.json"
    evaluate(path.parent, 0.8)
    whole = json.loads(path.read_text())
    evaluate(path.parent, 0.2)
    earlier = [{**entry, "step": 20} for entry in json.loads(path.read_text())["evaluations"]]
    for both in (earlier + whole["evaluations"], whole["evaluations"] + earlier):
        path.write_text(json.dumps({**whole, "evaluations": both}))
        [results] = evaluations_of(tmp_path, "rmt")
        assert evaluations.accuracy_by_length({"rmt": [results]})[0]["rmt"][512]["hits"] == 120


def test_lengths_are_compared_over_the_same_depths(tmp_path: Path) -> None:
    evaluate(make_run(tmp_path / "0", "rmt"), 0.8)
    [ours] = evaluations_of(tmp_path, "rmt")
    assert ours[0]["axes"] == {"length": 512, "depth": 0.0}
    ours[0]["exact"] = share_of(0, 50)
    found, left_out = evaluations.accuracy_by_length(
        {"rmt": [ours], "mamba": [ours[1:]], "short": [ours[1:3]]}
    )
    assert left_out == 1
    assert found["rmt"] == found["mamba"]
    assert (found["rmt"][512], found["rmt"][1024]) == (share_of(80, 100), share_of(60, 150))
    assert list(found["short"]) == [512]


def test_a_model_has_one_colour_and_memory_a_dash(tmp_path: Path) -> None:
    for model in ("rmt", "mamba"):
        evaluate(make_run(tmp_path / model, model), 0.8)
    every = groups.group_runs([groups.read_run(tmp_path / model) for model in ("rmt", "mamba")])
    text = evaluations.matching_entries(every)[1]
    picture = figures.memory_figure(
        {"rmt": text["rmt"], "mamba": text["mamba"]}, "", "", {"mamba": 0, "rmt": 1}
    )
    [axes], [legend] = (figure := picture.draw()).axes, figure.legends
    looks = [(line.get_color(), line.get_linestyle()) for line in axes.get_lines()]
    first, second = render.COLOURS[:2]
    assert looks == [(second, "-"), (second, "--"), (first, "-"), (first, "--")]
    said = {line.get_label(): line.get_linestyle() for line in legend.get_lines()}
    assert said == {"rmt": "-", "mamba": "-", "memory kept": "-", "memory reset": "--"}


def test_more_models_than_colours_look_different() -> None:
    looks = [render.line_style(place) for place in range(25)]
    assert all(one not in looks[:n] for n, one in enumerate(looks))


def test_a_table_in_a_pipe_has_all_its_columns(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "a_name_that_is_not_short_at_all")
    make_run(tmp_path / "runs/b", "transformer")
    assert "against transformer   parameters   state bytes per row   steps to held-out loss" in run("runs")[1]


def test_names_are_escaped(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "<b>|&")
    assert run("runs", drawn=True)[0] == 0
    assert "<b>" not in (tmp_path / "runs/comparison/index.html").read_text()
    assert "<b>\\|&" in (tmp_path / "runs/comparison/comparison.md").read_text()


def test_the_same_runs_give_the_same_files(run: Any, tmp_path: Path) -> None:
    three_models(tmp_path / "runs")
    read = []
    for _ in range(2):
        assert run("runs", drawn=True)[0] == 0
        read.append({path.name: path.read_bytes() for path in (tmp_path / "runs/comparison").iterdir()})
    assert read[0] == read[1]


@pytest.mark.parametrize(
    "more",
    [
        ["size=nano"],
        ["size=nano", "model.mlp_width=40"],
        ["size=micro"],
        ["size=micro", "model.mlp_width=40"],
    ],
)
def test_a_row_says_what_trains_it(tmp_path: Path, more: list[str]) -> None:
    """What it says, composed, is the config that the run has."""
    from omegaconf import OmegaConf

    from zoo.train.runs import budget
    from zoo.train.runs.config import compose, stored_config

    words = [
        "model=rmt",
        *more,
        "steps=7",
        "optim.lr=0.007",
        "model.memory_tokens=3",
        "data.batch_size=2",
        "seed=5",
    ]
    cfg = compose([*words, "run_dir=."])
    cfg.model = budget.solve_width(cfg)
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").write_text(stored_config(cfg))
    [row] = groups.group_runs([groups.read_run(folder)])
    said = reproduce.sweep_command(row).split()
    assert said[:2] == ["zoo", "sweep"]
    assert said[-1] == "seeds=5"
    assert set(said[2:-1]) == {*words, "task=lm"} - {"seed=5"}
    again = compose([*said[2:-1], "seed=5", "run_dir=."])
    again.model = budget.solve_width(again)
    assert OmegaConf.create(stored_config(again)) == OmegaConf.create(stored_config(cfg))


def test_fingerprints_tell_data_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.train.runs.provenance import fingerprint
    from zoo.train.tasks.induction import Induction
    from zoo.train.tasks.lm import LanguageModelling

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    prints = [fingerprint(Induction(length=16, samples=50, eval_samples=5, seed=seed)) for seed in (0, 1, 0)]
    assert prints[0] == prints[2] != prints[1]
    for number, text in enumerate(("abc" * 400, "abc" * 200 + "abd" + "abc" * 199)):
        (tmp_path / f"{number}.txt").write_text(text)
    ours, theirs = (fingerprint(LanguageModelling(str(tmp_path / f"{n}.txt"), tmp_path)) for n in (0, 1))
    assert ours != theirs
