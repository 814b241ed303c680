"""Groups of runs that differ in their seed, their labels and commands."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf, open_dict

from tests.train.comparison.cases import read_csv
from tests.train.stored_runs import make_run
from zoo.train.comparison.groups import group_runs, read_run
from zoo.train.comparison.reproduce import sweep_command
from zoo.train.runs import budget
from zoo.train.runs.config import compose, stored_config


def test_runs_with_different_settings_are_separate_groups(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", 0)
    make_run(tmp_path / "runs/b", "rmt", 0, **{"optim.lr": 2e-3})
    make_run(tmp_path / "runs/c", "rmt", 1, **{"optim.lr": 2e-3, "trainer.compile": False})  # a newer setting
    make_run(tmp_path / "runs/d", "mamba", 0)
    assert run("runs", "baseline=rmt lr=0.001")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert {name: row["seeds"] for name, row in rows.items()} == {
        "mamba": "0",
        "rmt lr=0.001": "0",
        "rmt lr=0.002": "0, 1",
    }
    assert rows["rmt lr=0.002"]["difference_runs"] == "2"
    assert rows["rmt lr=0.002"]["difference_half_width"] == ""  # of a single run's spread nothing is known


def test_runs_of_different_code_are_separate_groups(run: Any, tmp_path: Path) -> None:
    for seed, code in enumerate(("abcd", "abcd", "fedc")):
        make_run(tmp_path / f"runs/{seed}", "mine", seed, metrics={"model_code": code})
    assert run("runs")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert {label: row["seeds"] for label, row in rows.items()} == {
        "mine model_code=abcd": "0, 1",
        "mine model_code=fedc": "2",
    }


def test_versions_of_a_task_are_separate_groups(run: Any, tmp_path: Path) -> None:
    for seed, version in enumerate((1, 1, 2)):
        make_run(tmp_path / f"runs/{seed}", "rmt", seed, metrics={"task_version": version})
    assert run("runs")[0] == 2
    assert run("runs", "mix=task")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert {label: row["seeds"] for label, row in rows.items()} == {
        "rmt task_version=1": "0, 1",
        "rmt task_version=2": "2",
    }


def test_the_version_is_no_label_where_tasks_differ(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    make_run(tmp_path / "runs/b", "rmt", **{"names.task": "needle", "metrics": {"task_version": 2}})
    assert run("runs", "mix=task")[0] == 0
    assert set(read_csv(tmp_path / "runs/comparison/comparison.csv")) == {"rmt task=lm", "rmt task=needle"}


def test_location_of_the_corpus_and_validation_interval_may_differ(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", 0)
    make_run(
        tmp_path / "runs/b", "rmt", 1, **{"data.root": "elsewhere", "val_every": 20, "checkpoint_every": 1}
    )
    assert run("runs")[0] == 0
    assert read_csv(tmp_path / "runs/comparison/comparison.csv")["rmt"]["seeds"] == "0, 1"


@pytest.mark.parametrize(
    ("settings", "same_group"),
    [
        ({"model.norm": "rms"}, True),  # the constructor's default
        ({"model.norm": "layer"}, False),
        ({"model.gone": 3}, True),  # no constructor has this argument
        ({"model.base": "runs/other"}, False),
        ({"model._target_": "os.system", "model.norm": "rms"}, False),  # not a trusted class
    ],
)
def test_a_setting_that_one_run_lacks_has_its_default(
    tmp_path: Path, settings: dict[str, Any], same_group: bool
) -> None:
    target = {"model._target_": settings.get("model._target_", "zoo.models.mamba.Mamba")}
    for seed, changes in enumerate((target, target | settings)):
        make_run(tmp_path / f"{seed}", "mamba", seed, **changes)
    runs = [read_run(tmp_path / f"{seed}") for seed in (0, 1)]
    assert len(group_runs(runs)) == (1 if same_group else 2)


def test_seeds_of_a_tuning_have_bases_of_their_own(tmp_path: Path) -> None:
    """But two tunings of one seed, from different bases, are two rows; labels have no absent settings."""
    yarn = {"kind": "rope", "scaling": "yarn", "trained": 16}
    for name, seed, base, position in (
        ("a0", 0, "base-0", yarn),
        ("a1", 1, "base-1", yarn),
        ("b0", 0, "other-0", yarn),
        ("c0", 0, "base-0", "rope"),
    ):
        keys = {"model.base": base, "base": {"run": base, "weights": f"of {base}"}}
        settings = {"model._target_": "zoo.models.transformer.Transformer", "model.position": position}
        make_run(tmp_path / name, "transformer", seed, **keys, **settings)
    groups = group_runs([read_run(path) for path in sorted(tmp_path.iterdir())])
    rows = {group.label: [run.folder.name for run in group.runs] for group in groups}
    bases = [f"weights=of {base} base={base}" for base in ("base-0", "other-0")]
    assert rows == {
        f"transformer {bases[0]}": ["c0"],
        f"transformer {bases[0]} scaling=yarn": ["a0", "a1"],
        f"transformer {bases[1]} scaling=yarn": ["b0"],
    }


def test_labels_contain_distinguishing_settings(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", **{"model.mlp_width": 32})
    make_run(tmp_path / "runs/b", "rmt", bits=1.0, **{"model.mlp_width": 96})
    assert run("runs", "baseline=rmt mlp_width=32")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert list(rows) == ["rmt mlp_width=32", "rmt mlp_width=96"]
    assert float(rows["rmt mlp_width=96"]["difference"]) == -1


def test_labels_of_mixed_sizes_contain_the_size(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt")
    make_run(tmp_path / "runs/b", "rmt", **{"optim.lr": 2e-3})
    make_run(tmp_path / "runs/c", "rmt", **{"names.size": "tiny", "optim.lr": 3e-3, "model.mlp_width": 64})
    assert run("runs", "mix=budget")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert list(rows) == ["rmt size=nano lr=0.001", "rmt size=nano lr=0.002", "rmt size=tiny"]


def test_mixed_sizes_are_separate_groups(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", 0)
    make_run(tmp_path / "runs/b", "rmt", 0, **{"names.size": "tiny", "size.width": 64, "model.width": 64})
    assert run("runs", "mix=budget")[0] == 0
    assert list(read_csv(tmp_path / "runs/comparison/comparison.csv")) == ["rmt size=nano", "rmt size=tiny"]


def test_a_duplicate_seed_is_refused(run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a", "rmt", 3)
    make_run(tmp_path / "runs/b", "rmt", 3)
    code, _, err = run("runs")
    assert (code, err) == (
        2,
        "error: compare: rmt seed 3 occurs twice, in runs/a and runs/b: pass only one of them\n",
    )


@pytest.mark.parametrize(
    "settings",
    [
        ["size=nano"],
        ["size=nano", "model.mlp_width=40"],
        ["size=micro"],
        ["size=micro", "model.mlp_width=40"],
    ],
)
def test_a_group_has_the_command_that_trains_it(tmp_path: Path, settings: list[str]) -> None:
    """The command, composed, gives the run's config."""
    words = [
        "model=rmt",
        *settings,
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
    [group] = group_runs([read_run(folder)])
    command = sweep_command(group).split()
    assert command[:2] == ["zoo", "sweep"]
    assert command[-1] == "seeds=5"
    assert set(command[2:-1]) == {*words, "task=lm"} - {"seed=5"}
    recomposed = compose([*command[2:-1], "seed=5", "run_dir=."])
    recomposed.model = budget.solve_width(recomposed)
    assert OmegaConf.create(stored_config(recomposed)) == OmegaConf.create(stored_config(cfg))


def test_a_command_has_no_setting_that_follows_from_others(tmp_path: Path) -> None:
    """Of a passkey in compact form vocabulary and tokens per step; but one that was set besides is said."""
    words = ["model=rmt", "task=passkey", "size=nano", "task.length=128", "task.form=compact"]
    for index, further in enumerate(([], ["data.seq_len=64"])):
        cfg = compose([*words, *further, "run_dir=."])
        folder = make_run(tmp_path / str(index))
        (folder / "config.yaml").write_text(stored_config(cfg))
        [group] = group_runs([read_run(folder)])
        typed = {*words, *further, f"steps={cfg.steps}", "seeds=0"}
        assert set(sweep_command(group).split()[2:]) == typed


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_s_command_says_its_precision_where_a_device_has_another_default(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with a GPU, from which either may be meant."""
    cfg = compose(["model=rmt", "task=lm", "size=nano", f"trainer.precision={precision}", "run_dir=."])
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").write_text(stored_config(cfg))
    [group] = group_runs([read_run(folder)])
    stated_on_cpu = f"trainer.precision={precision}" in sweep_command(group)
    assert stated_on_cpu == (precision != "32-true")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert f"trainer.precision={precision}" in sweep_command(group)


def test_a_run_of_an_earlier_version_is_made_again_with_what_it_had(tmp_path: Path) -> None:
    """Settings that its config lacks: the class's defaults, where today's yaml has other values."""
    cfg = compose(["model=armt", "task=lm", "size=nano", "run_dir=."])
    cfg.model = budget.solve_width(cfg)
    with open_dict(cfg):
        for key in ("write", "bounded", "position"):
            del cfg.model[key]
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").write_text(stored_config(cfg))
    [group] = group_runs([read_run(folder)])
    command = sweep_command(group).split()
    assert {"model.write=together", "model.bounded=false"} <= set(command)
    assert not any(word.startswith("model.position") for word in command)


@pytest.mark.parametrize(
    ("stop", "rows"),
    [
        ("", ["0, 1"]),
        ("stop_when_solved:\n  metric: null\n  at_least: 0.95\n", ["0, 1"]),
        ("stop_when_solved:\n  metric: accuracy\n", ["0", "1"]),
        ("callbacks:\n  stop:\n    _target_: lightning.pytorch.callbacks.EarlyStopping\n", ["0", "1"]),
    ],
)
def test_val_every_counts_where_validations_end_runs(
    run: Any, tmp_path: Path, stop: str, rows: list[str]
) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"runs/{seed}", "rmt", seed, val_every=10 * (seed + 1))
        config = tmp_path / f"runs/{seed}/config.yaml"
        config.write_text(config.read_text() + stop)
    assert run("runs")[0] == 0
    groups = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert sorted(row["seeds"] for row in groups.values()) == rows
    assert ("val_every=20" in "".join(groups)) == (len(rows) == 2)


def test_callbacks_make_another_group_and_loggers_do_not(run: Any, tmp_path: Path) -> None:
    texts = {
        "a": "",
        "b": "logger:\n  csv:\n    _target_: lightning.pytorch.loggers.CSVLogger\n",
        "c": "callbacks:\n  stop:\n    _target_: lightning.pytorch.callbacks.Timer\n    duration: 1\n",
    }
    for seed, (name, text) in enumerate(texts.items()):
        make_run(tmp_path / f"runs/{name}", "rmt", seed)
        config = tmp_path / f"runs/{name}/config.yaml"
        config.write_text(config.read_text() + text)
    assert run("runs")[0] == 0
    rows = read_csv(tmp_path / "runs/comparison/comparison.csv")
    assert sorted(row["seeds"] for row in rows.values()) == ["0, 1", "2"]
    assert any("duration=1" in name for name in rows)
