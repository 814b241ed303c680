"""`zoo compare`: numbers against sums by hand, formats, errors."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.train.comparison.cases import make_three_models, read_csv
from tests.train.stored_runs import make_run


def test_numbers_by_hand(run: Any, tmp_path: Path) -> None:
    make_three_models(tmp_path / "runs")
    code, out, err = run("runs", "loss=3.0")
    assert (code, err) == (0, "")
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert list(rows) == ["mamba", "rmt", "transformer"]
    rmt = rows["rmt"]
    assert rmt["seeds"] == "0, 1, 2"
    assert float(rmt["val/bits_per_byte"]) == pytest.approx(2.1)
    assert float(rmt["val/bits_per_byte_half_width"]) == pytest.approx(4.30265 * 0.1 / 3**0.5, rel=1e-5)
    assert float(rmt["difference"]) == pytest.approx((-0.5 - 0.6 - 0.4) / 3)
    # Welch: variances 0.01 and 0.03 of three seeds each have 3.2 degrees of freedom: t is 2.78 to 3.18
    half_width = float(rmt["difference_half_width"])
    assert 2.7764 < half_width / ((0.01 + 0.03) / 3) ** 0.5 < 3.1824
    assert half_width == pytest.approx(0.35482, rel=1e-4)
    assert (rows["mamba"]["difference_runs"], rows["mamba"]["difference_half_width"]) == ("1", "")
    assert rows["transformer"]["difference"] == ""
    # losses are 1.4 + 3, 2, 1, 0 at steps 10, 20, 30, 40: all of rmt's reach 3.0 at step 30
    assert float(rmt["steps_to_loss"]) == 30
    assert float(rows["transformer"]["steps_to_loss"]) == 30
    assert "2.100 ± 0.248" in (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "| -0.500 ± 0.355 * |" in (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "2.100" in out


def test_a_loss_that_no_run_reached(run: Any, tmp_path: Path) -> None:
    make_three_models(tmp_path / "runs")
    assert run("runs", "loss=1.42")[0] == 0
    rmt = read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]
    assert (rmt["steps_to_loss"], rmt["steps_to_loss_above"], rmt["steps_to_loss_runs"]) == ("", "40", "1")
    assert "| > 40 |" in (tmp_path / "runs/comparison/comparison.md").read_text()


def test_older_runs_without_a_curve_are_compared(run: Any, tmp_path: Path) -> None:
    for seed in (0, 1):
        older = dict.fromkeys(("curve", "eval_tokens_per_s", "data_fingerprint"))
        make_run(tmp_path / f"runs/{seed}", "rmt", seed, metrics=older)
    code, _, err = run("runs", "runs/0", pages=True)
    assert (code, err) == (0, "")
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]
    assert (rows["steps_to_loss"], rows["eval_tokens_per_s"]) == ("", "")


@pytest.mark.parametrize(
    ("ends", "cell", "fields"),
    [
        ((None, None, None), "30", ("30.0", "", "2")),  # at 30, 30, never
        ((None, None, 20), "> 20", ("", "20", "2")),  # the last might have been the first
        ((None, None, 30), "30", ("30.0", "", "2")),
        ((None, None, "unmeasured"), "30", ("30.0", "", "2")),
        (("unmeasured", None, 20), "> 20", ("", "20", "1")),
        (("unmeasured", "unmeasured", 20), "> 20", ("", "20", "0")),
    ],
)
def test_steps_to_a_loss_end_where_runs_do(
    run: Any, tmp_path: Path, ends: tuple[Any, ...], cell: str, fields: tuple[str, ...]
) -> None:
    for seed, (end, bits) in enumerate(zip(ends, (2.0, 2.0, 20.0), strict=True)):
        changed = {"curve": None} if end == "unmeasured" else {} if end is None else {"steps_done": end}
        make_run(tmp_path / f"runs/{seed}", "rmt", seed, bits, metrics=changed)
    assert run("runs", "loss=2.5")[0] == 0
    row = read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]
    assert tuple(row[f"steps_to_loss{key}"] for key in ("", "_above", "_runs")) == fields
    assert f"| {cell} |" in (tmp_path / "runs/comparison/comparison.md").read_text()


def test_accuracy_is_the_score_of_tasks_without_bytes(run: Any, tmp_path: Path) -> None:
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
    assert "in accuracy per byte;" in run("runs")[2]


def test_unfinished_runs_are_left_out_with_a_message(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    (make_run(tmp_path / "runs/b", "mamba") / "metrics.json").unlink()
    code, _, err = run("runs")
    assert (code, err) == (0, "left out, not finished: runs/b\n")


def test_a_table_in_a_pipe_has_all_columns(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "a_name_that_is_not_short_at_all")
    make_run(tmp_path / "runs/b", "transformer")
    assert "against transformer   parameters   state bytes per row   steps to held-out loss" in run("runs")[1]


def test_the_same_runs_give_the_same_files(run: Any, tmp_path: Path) -> None:
    make_three_models(tmp_path / "runs")
    contents = []
    for _ in range(2):
        assert run("runs", pages=True)[0] == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "runs/comparison").iterdir()})
    assert contents[0] == contents[1]


ERRORS = [
    (("nowhere",), "no folder nowhere"),
    (("runs", "los=3"), "unknown key 'los'; expected one of baseline, loss, mix, group, formats, out"),
    (("runs", "loss=x"), "loss: expected a number of nats above 0, found x"),
    (("runs", "loss=nan"), "loss: expected a number of nats above 0, found nan"),
    (("runs", "mix=size"), r"mix: expected task \| data \| budget \| tokens \| protocol \| code, found size"),
    (("runs", "baseline=rtm"), "baseline: expected one of rmt, found rtm"),
    (("runs/a/config.yaml",), "no folder runs/a/config.yaml"),
    (("empty",), "no finished run below empty"),
    (("runs", "out=runs/a/config.yaml"), "can't use .*config.yaml.*"),
]


@pytest.mark.parametrize(("words", "expected"), ERRORS, ids=[" ".join(words) for words, _ in ERRORS])
def test_user_errors_are_one_line(run: Any, tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
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
        (
            "metrics.json",
            '{"val/loss": 1.0}',
            "parameters, tokens_seen, val/bits_per_byte or val/exact or val/accuracy",
        ),
        ("config.yaml", "model: {}\nnames: {model: rmt, task: lm, size: nano}", "seed, steps, val_every"),
    ],
)
def test_missing_keys_of_a_run_are_named(
    run: Any, tmp_path: Path, name: str, text: str, expected: str
) -> None:
    (make_run(tmp_path / "runs/a", "rmt") / name).write_text(text)
    code, _, err = run("runs")
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(rf"runs/a/{name} is not the \w+ of a run: expected {expected} in it", err)


def test_seeds_that_move_all_rows_alike_are_taken_out(run: Any, tmp_path: Path) -> None:
    """Scores move by 0.3 from seed to seed in every row, and by 0.01 otherwise."""
    left = {"rmt": (0.0, 0.01, -0.01), "mamba": (0.01, -0.01, 0.0), "transformer": (-0.01, 0.0, 0.01)}
    for i, (name, residuals) in enumerate(left.items()):
        for seed, residual in enumerate(residuals):
            make_run(tmp_path / f"runs/{name}{seed}", name, seed, 2 + i / 10 + 0.3 * seed + residual)
    code, out, _ = run("runs")
    assert code == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    for name in ("rmt", "mamba"):  # s^2 = 6e-4 / 4, 4 degrees of freedom
        expected = 2.77645 * (6e-4 / 4) ** 0.5 * (2 / 3) ** 0.5
        assert float(rows[name]["difference_half_width"]) == pytest.approx(expected, rel=1e-5)
    text = " ".join(out.split())
    assert "intervals of the two-way layout model + seed" in text
    assert "Holm's correction for 2 rows" in text


def test_rows_of_equal_runs_have_no_interval_and_no_mark(run: Any, tmp_path: Path) -> None:
    for model, bits in (("rmt", 1.1), ("transformer", 2.0)):
        for seed in range(3):
            make_run(tmp_path / f"runs/{model}/{seed}", model, seed, bits)
    assert run("runs")[0] == 0
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "| rmt | 0, 1, 2 | 1.100 | -0.900 |" in text
    row = read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]
    assert (row["val/bits_per_byte_half_width"], row["difference_half_width"]) == ("", "")


def test_marks_count_all_rows(run: Any, tmp_path: Path) -> None:
    """A difference with p = 0.04 is marked alone and not among three."""
    make_run(tmp_path / "runs/t0", "transformer", 0, 2.0)
    make_run(tmp_path / "runs/t1", "transformer", 1, 2.1)
    make_run(tmp_path / "runs/r0", "rmt", 0, 1.7)
    make_run(tmp_path / "runs/r1", "rmt", 1, 1.6)
    assert run("runs")[0] == 0
    marked = "| -0.400 ± 0.304 * |"
    assert marked in (tmp_path / "runs/comparison/comparison.md").read_text()
    for name in ("mamba", "armt"):
        make_run(tmp_path / f"runs/{name}0", name, 0, 2.0)
        make_run(tmp_path / f"runs/{name}1", name, 1, 2.11)
    assert run("runs")[0] == 0
    table = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert marked not in table
    assert "| -0.400 ± 0.304 |" in table
