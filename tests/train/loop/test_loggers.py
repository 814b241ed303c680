"""Loggers that the configuration names: each has every value once, also of a killed and resumed run."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import wandb as lightnings_wandb
from omegaconf import OmegaConf

from zoo.errors import UserError
from zoo.train.loop.loggers import make_loggers
from zoo.train.runs.config import compose
from zoo.train.runs.history import read_rows
from zoo.train.runs.loggers_and_callbacks import check_loggers_and_callbacks
from zoo.train.runs.overrides import quoted_name

MODULE = """
import json
import os

from lightning.pytorch.loggers import Logger


class Lines(Logger):
    name, version = "lines", 0

    def __init__(self, save_dir: str, ending: str = "jsonl") -> None:
        super().__init__()
        os.makedirs(save_dir, exist_ok=True)
        self.path = f"{save_dir}/{len(os.listdir(save_dir))}.{ending}"

    def log_metrics(self, metrics, step=None):
        with open(self.path, "a") as file:
            file.write(json.dumps([step, metrics]) + "\\n")

    def log_hyperparams(self, params, *args, **kwargs):
        self.log_metrics(dict(params))
"""
TIMED = ("cost/tokens_per_s", "cost/peak_gib", "train_s", "wall_s")


@pytest.fixture
def lines(zoo: Any) -> str:
    """A logger in the folder one works in."""
    name = f"lines_{zoo.folder.name.replace('-', '_')}"
    (zoo.folder / f"{name}.py").write_text(MODULE)
    (zoo.folder / "configs/logger").mkdir(parents=True)
    (zoo.folder / "configs/logger/lines.yaml").write_text(f"lines:\n  _target_: {name}.Lines\n")
    zoo.monkeypatch.syspath_prepend(str(zoo.folder))
    return name


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{key: row[key] for key in row if key not in TIMED} for row in csv.DictReader(file)]


def values(path: Path) -> list[Any]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [[step, {tag: row[tag] for tag in row if tag not in TIMED}] for step, row in rows]


def test_every_logger_has_every_value_once_after_a_kill(zoo: Any, same_checkpoints: Any, lines: str) -> None:
    words = ("logger=tensorboard,csv,lines", "model.dropout=0.1")
    assert zoo.run(*words, "run_dir=whole").code == 0
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill_at("on_train_batch_end", 5)]).code == "killed"
    resumed = zoo.run("resume=cut", "trainer.profiler=simple", *words)
    assert (resumed.code, resumed.err) == (0, "")
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []
    assert zoo.scalars("cut") == zoo.scalars("whole")

    expected = table(zoo.folder / "whole/csv/metrics.csv")
    assert table(zoo.folder / "cut/csv/metrics.csv") == expected
    rows = read_rows(zoo.folder / "whole")
    assert len(expected) == len(rows) == 8 + 3
    for row, cells in zip(rows, expected, strict=True):
        assert int(cells["step"]) == row["tokens_seen"]
        assert cells["train/loss"] == str(row.get("train/loss", ""))

    whole, *more = sorted((zoo.folder / "whole/lines").iterdir())
    killed, cut = sorted((zoo.folder / "cut/lines").iterdir())
    assert more == []
    assert values(cut)[1:] == values(whole)[1:]
    assert values(whole)[0][1]["model.dropout"] == values(cut)[0][1]["model.dropout"] == 0.1
    assert [len(values(path)) for path in (whole, cut, killed)] == [12, 12, 1 + 5 + 1]  # and the settings

    stored = (zoo.folder / "whole/config.yaml").read_text()
    assert OmegaConf.create(stored).logger["lines"]._target_ == f"{lines}.Lines"
    assert "profiler" not in stored
    assert "backward" in (zoo.folder / "cut/fit-profile.txt").read_text()
    refused = zoo.run("resume=cut", "steps=9", "logger=csv")
    assert refused.code == 2
    assert refused.err.startswith(
        "error: resume: logger is fixed by the run in cut: tensorboard, csv, lines there"
    )


def test_without_tensorboard(zoo: Any) -> None:
    ended = zoo.run("logger=csv", "steps=1")
    assert ended.code == 0, ended.err
    assert not [*(zoo.folder / "run").glob("events.out.*")]
    assert "tensorboard" not in ended.out
    settings = OmegaConf.load(zoo.folder / "run/csv/hparams.yaml")
    assert settings["optim.lr"] == OmegaConf.load(zoo.folder / "run/config.yaml").optim.lr


def test_tensorboard_alone_leaves_no_trace_in_stored_settings(zoo: Any) -> None:
    from zoo.train.runs.config import stored_config

    cfg = compose(["model=rmt", "size=nano", "trainer.precision=32-true"])
    assert {"logger", "callbacks"} & OmegaConf.create(stored_config(cfg)).keys() == set()
    cfg = compose(["model=rmt", "size=nano", "trainer.precision=32-true", "logger=[]"])
    assert OmegaConf.create(stored_config(cfg)).logger == {}


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("logger=csv,wandb", "logger=[csv,wandb]"), ("logger=csv", "logger=[csv]"), ("logger=[]", "logger=[]")],
)
def test_commas_mean_several(word: str, quoted: str) -> None:
    assert quoted_name(word) == quoted


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("_target_: lines.Lines", "found _target_=lines.Lines"),
        ("bad:\n  _target_: lightning.pytorch.callbacks.Timer", "logger.bad: expected a Logger, found"),
        ("bad:\n  save_dir: here", "logger.bad: expected a config with `_target_:"),
    ],
)
def test_a_yaml_that_names_no_logger(zoo: Any, yaml: str, message: str) -> None:
    (zoo.folder / "configs/logger").mkdir(parents=True)
    (zoo.folder / "configs/logger/bad.yaml").write_text(yaml)
    with pytest.raises(UserError, match=message):
        check_loggers_and_callbacks(compose(["model=rmt", "logger=bad"]))


def test_keys_and_packages_that_are_not_there(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose(["model=rmt", "logger=csv", "+logger.csv.colour=red"])
    with pytest.raises(UserError, match=r"logger.csv.colour: unknown; CSVLogger takes save_dir, name"):
        make_loggers(cfg, zoo.folder, 0, {})
    monkeypatch.setattr(lightnings_wandb, "_WANDB_AVAILABLE", False)
    with pytest.raises(UserError, match=r"^logger.wandb: .*; pip install 'zoo\[wandb\]'$"):
        make_loggers(compose(["model=rmt", "logger=wandb"]), zoo.folder, 0, {})
