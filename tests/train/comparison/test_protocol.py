"""Comparisons under protocol 1: what is counted, what is refused, what the table says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import PathCollection

from tests.train.comparison.cases import read_csv
from tests.train.comparison.protocol_runs import REACH, figures, make_protocol_run, test_entry
from tests.train.comparison.test_page import Page
from tests.train.stored_runs import make_run
from zoo.train.comparison import reach, statistics
from zoo.train.comparison.figures import page_figures
from zoo.train.comparison.report import report


@pytest.fixture(autouse=True)
def declared_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_run(run: Any) -> float | None:
        value = REACH.get(run.config["names.model"])
        return math.inf if value is None else float(value)

    monkeypatch.setattr(reach, "reach", of_run)


def make_four_models(folder: Path) -> None:
    """rmt solves it in 2 of 3 seeds, mamba2 in all, attention never."""
    beyond = {"transformer": (0.1, 0.1, 0.12), "sliding_window": (0.1, 0.12, 0.11)}
    beyond |= {"rmt": (1.0, 0.97, 0.2), "mamba2": (1.0, 1.0, 0.98)}
    steps = {"rmt": (30, 20, None), "mamba2": (10, 20, 10)}
    for model, scores in beyond.items():
        for seed, (score, step) in enumerate(zip(scores, steps.get(model, (None,) * 3), strict=True)):
            make_protocol_run(folder / f"{model}/{seed}", model, seed, score, step)


def test_runs_of_a_jump_are_counted(run: Any, tmp_path: Path) -> None:
    make_four_models(tmp_path / "runs")
    assert run("runs")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert list(rows) == ["mamba2", "rmt", "sliding_window", "transformer"]  # by score, attention below
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "(protocol 1, test split)" in text
    rmt, mamba2, transformer = (rows[model] for model in ("rmt", "mamba2", "transformer"))
    assert [rmt[key] for key in ("solved", "solved_of", "collapsed")] == ["2", "3", "0"]
    # Wilson 1927 with z = 1.96: (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)
    p, n, z = 2 / 3, 3, 1.96
    middle, half = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    assert float(rmt["solved_low"]) == pytest.approx((middle - half) / (1 + z * z / n))
    assert float(rmt["solved_high"]) == pytest.approx((middle + half) / (1 + z * z / n))
    assert "| 2 of 3 (21% to 94%) | 30 |" in text
    assert (rmt["steps_to_solve"], rmt["steps_to_solve_above"]) == ("30.0", "")
    assert (transformer["steps_to_solve"], transformer["steps_to_solve_above"]) == ("", "40")
    assert "| 0 of 3 (0% to 56%) | > 40 |" in text
    assert float(rmt["test/beyond"]) == 0.97
    assert rmt["test/beyond_by_seed"] == "1.0 0.97 0.2"
    assert "test/beyond_half_width" not in rmt  # no Student interval
    assert float(mamba2["test/worth"]) == pytest.approx(0.9)
    assert (rmt["reach"], transformer["reach"]) == ("∞", "16")
    assert "beyond 31" in text  # the largest reach that ends
    assert "A perfect reader of the last segment has 40.0% of all targets." in text


def test_three_solved_against_none_can_be_told_and_two_cannot(run: Any, tmp_path: Path) -> None:
    make_four_models(tmp_path / "runs")
    assert run("runs")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert {model: row["cant_tell"] for model, row in rows.items()} == {
        "mamba2": "",
        "rmt": "can't tell",
        "sliding_window": "can't tell",
        "transformer": "",
    }
    mamba2 = rows["mamba2"]
    assert float(mamba2["difference"]) == 1
    assert float(mamba2["difference_low"]) > 0.2
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "would count: rmt, sliding_window." in text
    assert "*" not in text.partition("+100")[2].split("|")[0]  # Fisher's p of 3 of 3 against 0 of 3 is 0.1


def test_a_collapsed_run_is_shown_as_such(run: Any, tmp_path: Path) -> None:
    for seed in range(3):
        make_protocol_run(tmp_path / f"runs/{seed}", "rmt", seed, 0.1, metrics={"collapsed": seed == 1})
    assert run("runs")[0] == 0
    assert "0 of 3 (0% to 56%), 1 collapsed" in (tmp_path / "runs/comparison/comparison.md").read_text()
    assert read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]["collapsed"] == "1"


def test_other_tasks_have_means_and_welch_differences(run: Any, tmp_path: Path) -> None:
    scores = {"rmt": (0.6, 0.62, 0.61), "transformer": (0.4, 0.45, 0.41), "mamba2": (0.5, 0.2, 0.6)}
    for model, values in scores.items():
        for seed, score in enumerate(values):
            name = {"names.task": "no_yaml", "task._target_": "gone.Task"}
            make_protocol_run(tmp_path / f"runs/{model}/{seed}", model, seed, score, **name)
            path = tmp_path / f"runs/{model}/{seed}/evaluation.json"
            path.write_text(path.read_text().replace('"task": "passkey"', '"task": "no_yaml"'))
    assert run("runs")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    welch = statistics.welch(scores["rmt"], scores["transformer"])
    assert welch is not None
    assert float(rows["rmt"]["difference"]) == pytest.approx(welch.mean)
    assert float(rows["rmt"]["difference_half_width"]) == pytest.approx(welch.half_width)
    assert {model: row["cant_tell"] for model, row in rows.items()} == {
        "rmt": "",
        "mamba2": "can't tell",
        "transformer": "",
    }
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    p = statistics.holm([welch.p, (statistics.welch(scores["mamba2"], scores["transformer"]) or welch).p])
    assert p[0] < 0.05
    assert f"{100 * welch.mean:+.1f} ± {100 * welch.half_width:.1f} *" in text
    assert "solved" not in text


def test_text_carries_the_error_of_its_documents(run: Any, tmp_path: Path) -> None:
    """Two models differ by 0.1 bits per byte on one document and 0.3 on another, in each of two seeds."""
    for model, extra in (("transformer", (0.0, 0.0)), ("rmt", (-0.1, -0.3))):
        for seed in (0, 1):
            folder = make_run(tmp_path / f"runs/{model}/{seed}", model, seed, 2.0)
            (folder / "protocol.json").write_text('{"protocol": 1, "purpose": "score"}')
            sizes, noise = (1000, 500), 0.002 * seed
            nats = [(2 + noise + e) * n * math.log(2) for e, n in zip(extra, sizes, strict=True)]
            write_text_evaluation(folder, nats, sizes)
    assert run("runs")[0] == 0
    row = read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]
    mean = -(0.1 * 1000 + 0.3 * 500) / 1500
    assert float(row["difference"]) == pytest.approx(mean)
    residuals = [(-0.1 - mean) * 1000, (-0.3 - mean) * 500]
    documents = math.sqrt(2 / 1 * sum(e * e for e in residuals)) / 1500
    assert documents == pytest.approx(0.0888889, rel=1e-5)
    seeds = math.sqrt(2 * 0.000002 / 2)
    total = math.hypot(documents, seeds)
    # 1 degree of freedom of two documents, 2 of the seeds: t of 1.00 degrees is 12.7
    assert float(row["difference_half_width"]) == pytest.approx(12.7 * total, rel=0.01)
    assert "the error of 2 documents" in (tmp_path / "runs/comparison/comparison.md").read_text()
    assert float(row["test/worth"]) == pytest.approx(0.5)


def write_text_evaluation(folder: Path, nats: list[float], sizes: tuple[int, ...]) -> None:
    bits = sum(nats) / math.log(2) / sum(sizes)
    documents = {"nats": nats, "targets": [n + 1 for n in sizes], "bytes": [*sizes]}
    results = [
        {"axes": {"memory": memory}, "bits_per_byte": value, "by_position": [], "documents": documents}
        | {"reference": {"order-0": 4.5}}
        for memory, value in (("kept", bits), ("reset", bits + 0.5))
    ]
    entry = {"task": "lm", "settings": {"corpus": "text"}, "split": "test", "checkpoint": "last"}
    entry |= {"unit": "bits per byte", "label": "lm", "title": "lm", "results": results, "step": 40}
    (folder / "evaluation.json").write_text(json.dumps({"format": 1, "evaluations": [entry]}))


def test_rates_are_listed_and_an_edge_is_named(run: Any, tmp_path: Path) -> None:
    for seed in range(2):
        make_protocol_run(tmp_path / f"runs/rmt/{seed}", "rmt", seed, 1.0, 20, lr=4e-3)
        make_protocol_run(tmp_path / f"runs/mamba2/{seed}", "mamba2", seed, 1.0, 20, lr=4e-3)
    for model, solved in (("rmt", (20, 10, 30)), ("mamba2", (None, 20, 10))):
        for lr, step in zip((1e-3, 4e-3, 1.6e-2), solved, strict=True):
            folder = tmp_path / f"runs/{model}/short-{lr}"
            make_protocol_run(
                folder, model, 100, 0.0, step, "short rate", lr, **{"task.length": 16, "steps": 30}
            )
    assert run("runs")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert (rows["rmt"]["lr"], rows["mamba2"]["lr"]) == ("0.004", "0.004, edge")
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "a better one may lie beyond: mamba2." in text
    assert "| rmt | passkey, short | 0.004 | 10 | 1.400 | x | 012345678 | runs/rmt/short-0.004 |" in text
    assert "| mamba2 | passkey, short | 0.001 | > 30 | 1.400 |  |" in text
    assert rows["rmt"]["seeds"] == "0, 1"  # the selecting seed is none of them


def test_a_rate_that_diverged_is_listed(run: Any, tmp_path: Path) -> None:
    make_protocol_run(tmp_path / "runs/0", "rmt", 0, 1.0, 20, lr=4e-3)
    for lr, step in ((4e-3, 20), (1e-3, 30), (1.6e-2, None)):
        changed = {"task.length": 16, "steps": 30}
        folder = make_protocol_run(
            tmp_path / f"runs/short-{lr}", "rmt", 100, 0, step, "short rate", lr, **changed
        )
    (folder / "metrics.json").unlink()
    stored = {"protocol": 1, "purpose": "short rate", "diverged": "not finite"}
    (folder / "protocol.json").write_text(json.dumps(stored))
    code, _, err = run("runs")
    assert (code, err) == (0, "")
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "| rmt | passkey, short | 0.016 | diverged |  |  |  | runs/short-0.016 |" in text
    assert read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]["lr"] == "0.004"  # no edge


def test_more_steps_are_shown_beside_the_row_that_they_are_of(run: Any, tmp_path: Path) -> None:
    for model, step in (("rmt", 150), ("mamba2", None)):
        make_protocol_run(tmp_path / f"runs/{model}/0", model, 0, 0.2)
        make_protocol_run(tmp_path / f"runs/{model}/long", model, 0, 0.2, step, "long", steps=160)
    make_protocol_run(tmp_path / "runs/transformer", "transformer", 0, 1.0, 20)
    assert run("runs")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert {model: row["long_run"] for model, row in rows.items()} == {
        "rmt": "150",
        "mamba2": "> 160",
        "transformer": "",
    }
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "seed 0 with more steps" in text
    assert "0 of 1 (0% to 79%) | > 40 | 150 |" in text  # it is none of the row's runs


def test_how_far_a_score_holds_and_its_mean_over_lengths(run: Any, tmp_path: Path) -> None:
    """Of 300 digits beyond 31: rmt has all at 64 and 256 and half of them at 1,024, mamba2 loses most at 256
    and finds them again, and attention is no better than chance at any length."""
    by_length = {"rmt": (1.0, 1.0, 0.5), "mamba2": (0.9, 0.3, 0.9), "transformer": (0.1, 0.1, 0.1)}
    for model, scores in by_length.items():
        folder = make_protocol_run(tmp_path / f"runs/{model}", model, 0, scores[0])
        entry = test_entry(0.0)
        [template] = entry["results"][:1]
        entry["results"] = [
            template | figures(score, 100) | {"axes": {"length": length}}
            for length, score in zip((64, 256, 1024), scores, strict=True)
        ]
        (folder / "evaluation.json").write_text(json.dumps({"format": 1, "evaluations": [entry]}))
    assert run("runs")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    # the lower end of the interval of 150 in 300 is 0.44, below half of 1
    assert {model: float(row["test/longest"]) for model, row in rows.items()} == {
        "rmt": 4,
        "mamba2": 1,
        "transformer": 0,
    }
    areas = {"rmt": (1 + 0.75) / 2, "mamba2": (0.6 + 0.6) / 2, "transformer": 0.1}
    for model, area in areas.items():
        assert float(rows[model]["test/area"]) == pytest.approx(area)
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "| 4x | 87.5% |" in text
    assert "| none | 10.0% |" in text


def test_targets_of_one_sample_are_not_independent(run: Any, tmp_path: Path) -> None:
    """59 % of 300 digits at four times the length, against 100 %: above half of it with the error of 300
    targets, not with that of 30."""
    make_protocol_run(tmp_path / "runs/transformer", "transformer", 0, 0.1)  # whose reach is the table's
    for model, effective in (("rmt", 500.0), ("mamba2", 50.0)):
        folder = make_protocol_run(tmp_path / f"runs/{model}", model, 0, 1.0)
        entry = test_entry(0.0)
        entry["results"] = [
            entry["results"][0] | figures(score, 100) | {"axes": {"length": length}}
            for length, score in ((64, 1.0), (256, 0.59))
        ]
        for result in entry["results"]:
            result["targets"] = result["targets"] | {"effective": effective}
        (folder / "evaluation.json").write_text(json.dumps({"format": 1, "evaluations": [entry]}))
    assert run("runs")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert (float(rows["rmt"]["test/longest"]), float(rows["mamba2"]["test/longest"])) == (4, 1)


def test_validation_scores_stand_in_until_all_runs_are_evaluated(run: Any, tmp_path: Path) -> None:
    for seed in range(2):
        make_protocol_run(tmp_path / f"runs/{seed}", "rmt", seed, 0.5, 20)
    (tmp_path / "runs/1/evaluation.json").unlink()
    assert run("runs")[0] == 0
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "(protocol 1, validation split)" in text
    assert "not all runs were evaluated on the test split" in text


def test_runs_with_and_without_a_protocol_are_not_mixed_unasked(run: Any, tmp_path: Path) -> None:
    for seed in range(2):
        make_protocol_run(tmp_path / f"runs/{seed}", "rmt", seed, 0.5, 20)
    (tmp_path / "runs/1/protocol.json").unlink()
    code, _, err = run("runs")
    assert code == 2
    assert "differ in protocol: protocol: 1 (runs/0), none (runs/1). mix=protocol compares" in err
    assert run("runs", "mix=protocol")[0] == 0
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert "(no protocol)" in text.splitlines()[0]


def test_a_plain_table_is_headed_no_protocol(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    assert "(no protocol)" in run("runs")[1]


def test_uncommitted_code_is_refused_in_results_and_mixed_commits_are_named(run: Any, tmp_path: Path) -> None:
    for seed, commit in enumerate(("abc+", "def")):
        make_run(tmp_path / f"results/{seed}", "rmt", seed, metrics={"commit": commit})
        make_run(tmp_path / f"runs/{seed}", "rmt", seed, metrics={"commit": commit})
    code, _, err = run("results")
    assert code == 2
    assert "1 of 2 runs are of uncommitted code (results/0). mix=code compares them anyway" in err
    code, out, _ = run("results", "mix=code")
    assert code == 0
    assert "The runs differ: 1 of 2 runs are of uncommitted code (results/0)." in out
    code, out, _ = run("runs")
    assert code == 0
    assert "Rows of several commits: rmt (abc+, def)." in out


def test_the_loss_to_reach_is_the_tasks(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", bits=5.0)  # its last loss is 3.5, the losses of lm at nano
    assert run("runs")[0] == 0
    assert "steps to held-out loss 3.5 " in (tmp_path / "runs/comparison/comparison.md").read_text()
    assert run("runs", "loss=4.6")[0] == 0
    assert read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]["steps_to_loss"] == "30.0"


def test_two_tasks_are_aggregated(run: Any, tmp_path: Path) -> None:
    """Of rmt x = (score - chance) / (1 - chance) of passkey, and 1 on text, of which it has the best run."""
    for model, score, bits in (("rmt", 0.551, 2.0), ("transformer", 0.102, 3.25)):
        for seed in range(3):
            make_protocol_run(tmp_path / f"runs/passkey/{model}/{seed}", model, seed, score, 20)
            folder = make_run(tmp_path / f"runs/lm/{model}/{seed}", model, seed, bits)
            (folder / "protocol.json").write_text('{"protocol": 1, "purpose": "score"}')
            write_text_evaluation(folder, [bits * 1000 * math.log(2)] * 2, (1000, 1000))
    assert run("runs")[0] == 0
    rows = {row.model: row for row in report([tmp_path / "runs"]).over_tasks}
    # 165 of 300 digits are 0.551 of them to the nearest digit, and 31 are 0.102
    shares = {"rmt": round(300 * 0.551) / 300, "transformer": round(300 * 0.102) / 300}
    x = {model: (share - 0.102) / 0.898 for model, share in shares.items()}
    # sorted, of six runs the middle four: one of the first task is cut off, and one of the second
    assert rows["rmt"].iqm == pytest.approx((2 * x["rmt"] + 2 * 1) / 4)
    assert rows["transformer"].iqm == pytest.approx((2 * x["transformer"] + 2 * 0.5) / 4)
    assert rows["rmt"].improvement == 1
    assert rows["transformer"].improvement is None
    text = (tmp_path / "runs/comparison/comparison.md").read_text()
    assert text.startswith("# 2 tasks: lm, passkey (protocol 1)")
    assert f"| rmt | 0, 1, 2 | {rows['rmt'].iqm:.3f} |" in text


def test_beyond_is_the_larger_of_the_longest_reach_and_what_all_runs_stop_by(tmp_path: Path) -> None:
    def table(name: str, **stops: int) -> int | None:
        for model, beyond in stops.items():
            make_protocol_run(
                tmp_path / name / model, model, 0, 1.0, 10, **{"stop_when_solved.beyond": beyond}
            )
        return report([tmp_path / name]).comparisons[0].reach

    assert table("memories", rmt=40, mamba2=40) == 40
    assert table("attention", rmt=40, sliding_window=40) == 40
    assert table("near", rmt=10, sliding_window=10) == REACH["sliding_window"]
    assert table("several", rmt=40, mamba2=10) is None


def test_a_baseline_that_one_of_the_tasks_lacks_is_said_below_its_table(run: Any, tmp_path: Path) -> None:
    for seed in range(2):
        make_protocol_run(tmp_path / f"runs/passkey/mamba2/{seed}", "mamba2", seed, 0.5, 20)
        for model, bits in (("mamba2", 2.0), ("rmt", 3.0)):
            folder = make_run(tmp_path / f"runs/lm/{model}/{seed}", model, seed, bits)
            (folder / "protocol.json").write_text('{"protocol": 1, "purpose": "score"}')
            write_text_evaluation(folder, [bits * 1000 * math.log(2)] * 2, (1000, 1000))
    code, out, _ = run("runs", "baseline=rmt")
    assert code == 0
    assert out.count("No row of rmt, the baseline of other tasks: no differences are shown.") == 1
    tables = {
        str(c.runs[0].config["names.task"]): c
        for c in report([tmp_path / "runs"], baseline="rmt").comparisons
    }
    assert (tables["lm"].baseline is None, tables["passkey"].baseline is None) == (False, True)
    code, _, err = run("runs", "baseline=lstm")
    assert (code, err) == (2, "error: compare: baseline: expected one of mamba2, rmt, found lstm\n")


@pytest.mark.slow
def test_every_run_is_a_dot_on_the_page(run: Any, tmp_path: Path) -> None:
    make_four_models(tmp_path / "runs/passkey")
    for seed in range(2):
        folder = make_run(tmp_path / f"runs/lm/{seed}", "rmt", seed)
        (folder / "protocol.json").write_text('{"protocol": 1, "purpose": "score"}')
        write_text_evaluation(folder, [2000 * math.log(2)] * 2, (1000, 1000))
    assert run("runs", pages=True)[0] == 0
    page = Page((tmp_path / "runs/comparison/index.html").read_text())
    assert page.tags.count("section") == 2
    assert len(page.ids) == len(set(page.ids))
    assert {"passkey-seeds", "passkey-length-beyond", "lm-seeds", "comparison1", "runs1"} <= {*page.ids}
    assert (tmp_path / "runs/comparison/passkey-seeds.png").exists()
    of_task = {str(c.runs[0].config["names.task"]): c for c in report([tmp_path / "runs"]).comparisons}
    figures = {figure.name: figure.draw() for figure in page_figures(of_task["passkey"])}
    clouds = figures["seeds"].axes[0].collections
    dots = sorted((round(float(x), 6), int(y)) for cloud in clouds[1::2] for x, y in cloud.get_offsets())
    scores = [0.98, 1.0, 1.0, 0.2, 0.97, 1.0, 0.1, 0.11, 0.12, 0.1, 0.1, 0.12]
    assert dots == sorted((score, index // 3) for index, score in enumerate(scores))
    clouds = [c for c in figures["length-beyond"].axes[0].collections if isinstance(c, PathCollection)]
    assert sum(len(cloud.get_offsets()) for cloud in clouds) == 24  # 4 models, 3 seeds, 2 lengths
