"""A run from its first step to metrics.json: counts, logs and files against sums done by hand."""

import json
import math
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from omegaconf import OmegaConf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

import zoo as package
from zoo.optim import Optim
from zoo.train.loop.tensorboard import HELD_OUT_LOSS, TRAINING_LOSS, board_tag
from zoo.train.runs import build, checkout
from zoo.train.runs.checkpoint import read_checkpoint
from zoo.train.tasks.lm import END

TAGS = {
    "train/loss",
    "train/bits_per_byte",
    "train/learning_rate",
    "train/grad_norm",
    "val/loss",
    "val/bits_per_byte",
    "val/accuracy",
    "val/loss_by_position/0-512",
    "cost/tokens_per_s",
    "cost/peak_gib",
    "cost/state_bytes",
    "cost/parameters",
}


def rebuild(zoo: Any, run: str = "whole") -> tuple[Any, Any]:
    """The model of a finished run, from its config.yaml and last.ckpt alone."""
    cfg = OmegaConf.load(zoo.folder / run / "config.yaml")
    model = build.model(cfg)
    model.load_state_dict(read_checkpoint(zoo.folder / run / "checkpoints/last.ckpt")["state_dict"])
    return cfg, model.eval()


def test_metrics_json(zoo: Any) -> None:
    zoo.train_whole()
    metrics = zoo.metrics("whole")
    _, model = rebuild(zoo)
    assert {key: metrics[key] for key in ("model", "task", "size", "seed", "steps", "corpus")} == {
        "model": "rmt",
        "task": "lm",
        "size": "nano",
        "seed": 0,
        "steps": 8,
        "corpus": "text",
    }
    assert metrics["unit"] == "bits per byte"
    total = sum(weight.numel() for weight in model.parameters())
    assert metrics["parameters_total"] == total
    assert metrics["parameters"] == total - 257 * 32  # the tied embedding
    assert metrics["state_bytes"] == 2 * 32 * 4  # memory tokens, width, float32
    assert metrics["wall_s"] >= metrics["train_s"] > 0
    assert metrics["tokens_per_s"] == pytest.approx(metrics["tokens_seen"] / metrics["train_s"])
    assert metrics["peak_memory_bytes"] > 10**7
    assert metrics["val_bytes"] == 180
    assert set(metrics["reference"]) == {"xz -9", "order-0"}
    assert {tag for tag in TAGS if tag.startswith("val/")} <= set(metrics)
    for key in ("date", "commit", "torch", "threads", "device", "task_version"):
        assert key in metrics


def test_the_commit_is_that_of_the_code_that_trains(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is checked out while it does."""
    head = ["before"]

    def run(command: tuple[str, ...], **options: Any) -> SimpleNamespace:
        answers = {"--show-toplevel": str(Path(package.__file__).parent.parent), "HEAD": head[-1]}
        return SimpleNamespace(stdout=answers.get(command[-1], ""))

    git = SimpleNamespace(run=run, CalledProcessError=subprocess.CalledProcessError)
    monkeypatch.setattr(checkout, "subprocess", git)
    checks_out = zoo.AtStep("on_train_batch_end", 2, lambda trainer, model: head.append("after"))
    assert zoo.run("run_dir=run", "steps=3", callbacks=[checks_out]).code == 0
    assert head == ["before", "after"]
    assert zoo.metrics("run")["commit"] == "before"


def test_bits_per_byte_by_hand(zoo: Any) -> None:
    """150 bytes are held out: a text of 100 and one of 80, as texts are whole, each with its END."""
    zoo.train_whole()
    _, model = rebuild(zoo)
    texts = [path.read_bytes() for path in sorted((zoo.folder / "text/val").iterdir())]
    metrics, nats, num_targets, hits = zoo.metrics("whole"), 0.0, 0, 0
    for line in ([END, *text, END] for text in texts):
        logits, _ = model(torch.tensor([line[:-1]]))
        targets = torch.tensor(line[1:])
        nats += F.cross_entropy(logits[0].double(), targets, reduction="sum").item()
        hits += int((logits[0].argmax(-1) == targets).sum())
        num_targets += len(targets)
    assert metrics["val/loss"] == pytest.approx(nats / num_targets, rel=1e-6)
    assert metrics["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / 180, rel=1e-6)
    assert metrics["val/accuracy"] == pytest.approx(hits / num_targets)


def test_tokens_seen_count_targets(zoo: Any) -> None:
    num_targets = []

    class Watch(zoo.AtStep):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: Any
        ) -> None:
            num_targets.append(int((batch.targets != -100).sum()))

    assert (
        zoo.run("trainer.log_every=3", "val_every=5", callbacks=[Watch("on_exception", -1, print)]).code == 0
    )
    assert zoo.metrics("run")["tokens_seen"] == sum(num_targets)
    assert len(num_targets) == 8
    assert len(set(num_targets)) > 1  # the last window of a document is short
    before = [sum(num_targets[:step]) for step in range(9)]
    series = zoo.scalars("run")
    assert [x for x, _ in series[TRAINING_LOSS]] == [before[3], before[6], before[8]]
    assert [x for x, _ in series[HELD_OUT_LOSS]] == [before[5], before[8]]


def test_the_config_that_is_stored(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(zoo.folder))
    zoo.train_whole()
    text = (zoo.folder / "whole/config.yaml").read_text()
    assert str(zoo.folder) not in text
    assert os.path.expanduser("~") not in text
    config = yaml.safe_load(text)
    assert config["data"]["root"] == "${oc.env:ZOO_DATA,data}"
    assert not {"run_dir", "resume"} & set(config)
    del config["data"]["root"], config["task"]["root"]
    assert "${" not in yaml.safe_dump(config)
    assert config["names"] == {"model": "rmt", "task": "lm", "size": "nano"}


def test_the_config_has_the_width_that_was_solved(zoo: Any) -> None:
    ended = zoo.run("size=micro", "steps=1", "data.seq_len=64", "data.batch_size=1")
    assert ended.code == 0, ended.err
    cfg, model = rebuild(zoo, "run")
    assert isinstance(cfg.model.mlp_width, int)
    assert model.count_parameters() == zoo.metrics("run")["parameters"]
    assert abs(model.count_parameters() - 200_000) <= 0.03 * 200_000


def test_tensorboard_has_every_value(zoo: Any) -> None:
    """All but the two that no step changes; in one file in the run's folder, whose name is the run's."""
    zoo.train_whole()
    assert len([*(zoo.folder / "whole").glob("events.out.*")]) == 1
    assert not (zoo.folder / "whole/tb").exists()
    events, metrics = zoo.events("whole"), zoo.metrics("whole")
    names, tags = metrics["score_names"], events.Tags()
    shown = {board_tag(tag, names): tag for tag in TAGS - {"cost/parameters", "cost/state_bytes"}}
    assert len(shown) == len(TAGS) - 2
    assert {tag for tag in tags["scalars"] if not tag.startswith("memory/")} == set(shown)
    for tag, key in shown.items():
        if key.startswith("val/"):
            assert events.Scalars(tag)[-1].value == pytest.approx(metrics[key], rel=1e-6)
            assert events.Scalars(tag)[-1].step == metrics["tokens_seen"]
    assert len(events.Scalars(TRAINING_LOSS)) == 8
    assert len(events.Scalars(HELD_OUT_LOSS)) == 3
    assert tags["images"] == []  # all positions are of one range: no curve
    (text,) = events.Tensors("config/text_summary")[0].tensor_proto.string_val
    assert (zoo.folder / "whole/config.yaml").read_text() in text.decode()
    (text,) = events.Tensors("about/text_summary")[0].tensor_proto.string_val
    for fact in ("rmt on lm (text), size nano, seed 0", f"{metrics['parameters']:,}", "targets seen"):
        assert fact in text.decode()


def test_charts_name_tags_that_are_logged(zoo: Any) -> None:
    zoo.train_whole()
    events = zoo.events("whole")
    (packed,) = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val
    (part,) = layout_pb2.Layout.FromString(packed).category
    assert part.title == "over targets seen"
    matches = {
        chart.title: [
            tag
            for pattern in chart.multiline.tag
            for tag in events.Tags()["scalars"]
            if re.search(pattern, tag)
        ]
        for chart in part.chart
    }
    assert matches == {
        "held-out and training loss": [HELD_OUT_LOSS, TRAINING_LOSS],
        "held-out bits per byte": ["main score/bits per byte"],
        "held-out loss by position in the document": ["position in the document/held-out loss 0-512"],
    }


def test_the_row_in_the_hparams_tab(zoo: Any) -> None:
    """What a run is known by and what was set for it: TensorBoard itself finds in what all runs differ."""
    assert zoo.run("model.memory_tokens=3", "size.width=16", "steps=1").code == 0
    metadata = zoo.events("run").summary_metadata
    data = [
        plugin_data_pb2.HParamsPluginData.FromString(entry.plugin_data.content)
        for entry in metadata.values()
        if entry.plugin_data.plugin_name == "hparams"
    ]
    (start,) = [entry.session_start_info for entry in data if entry.HasField("session_start_info")]
    assert not any(entry.HasField("experiment") for entry in data)  # it would be that of one run for all
    values = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    further = {word.partition("=")[0] for word in zoo.with_settings([])} - {"steps", "data.corpus"}
    assert {key: value for key, value in values.items() if key not in further} == {
        "model, size, text": "rmt nano text",
        "learning rate": pytest.approx(0.003),
        "seed": 0,
        "steps": 1,
        "model.memory_tokens": 3,
        "size.width": 16,
    }
    assert not any(str(zoo.folder) in str(value) for value in values.values())


def test_two_models_overlay(zoo: Any) -> None:
    zoo.train_whole()
    assert zoo.run("model=transformer_xl").code == 0
    tags, tags_of_other_model = (
        {tag for tag in zoo.scalars(run) if not tag.startswith("memory/")} for run in ("whole", "run")
    )
    assert tags == tags_of_other_model
    assert [x for x, _ in zoo.scalars("whole")[TRAINING_LOSS]] == [
        x for x, _ in zoo.scalars("run")[TRAINING_LOSS]
    ]


def test_the_learning_rate_ends_on_its_floor(zoo: Any) -> None:
    assert zoo.run("optim.lr=0.01", "optim.warmup=2", "optim.floor=0.2").code == 0
    rates = [value for _, value in zoo.scalars("run")["optimizer/learning rate"]]
    assert rates == pytest.approx([Optim(8, 0.01, 2, 0.2).factor(step) * 0.01 for step in range(8)])
    assert rates[:2] == pytest.approx([0.005, 0.01])
    assert rates[-1] == pytest.approx(0.002)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_a_seed_is_a_run(zoo: Any, same_checkpoints: Any) -> None:
    zoo.train_whole("model.dropout=0.1")
    assert zoo.run("model.dropout=0.1").code == 0
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("run")) == []
    assert zoo.run("model.dropout=0.1", "seed=1", "run_dir=other").code == 0
    assert (
        same_checkpoints(zoo.checkpoint("whole")["state_dict"], zoo.checkpoint("other")["state_dict"]) != []
    )


@pytest.mark.parametrize("model", ["rmt", "transformer_xl"])
def test_bf16(zoo: Any, model: str) -> None:
    assert zoo.run(f"model={model}", "trainer.precision=bf16-mixed").code == 0
    losses = [value for _, value in zoo.scalars("run")[TRAINING_LOSS]]
    assert losses[-1] < losses[0] < 10
    state = zoo.checkpoint("run")["zoo"]["ranks"][0]["carried"]
    assert {leaf.dtype for leaf in state if leaf.is_floating_point()} <= {torch.float32, torch.bfloat16}


def test_accumulated_gradients_are_those_of_one_batch(zoo: Any) -> None:
    """Four rows in two batches: every document is a multiple of the window long, so that all weigh alike."""
    for path in (zoo.folder / "text/train").iterdir():
        path.unlink()
    for i in range(4):
        (zoo.folder / f"text/train/{i}.txt").write_text(f"{i}" * 63)
    gradients = {}

    def save_gradients(name: str) -> Any:
        def save(trainer: Any, pl_module: Any) -> None:
            gradients[name] = [weight.grad.clone() for weight in pl_module.parameters()]

        return save

    for name, words in {
        "one": ("data.batch_size=4",),
        "two": ("data.batch_size=2", "trainer.accumulate=2"),
    }.items():
        at = zoo.AtStep("on_before_optimizer_step", 0, save_gradients(name))
        words = (*words, "steps=1", "data.seq_len=64", "optim.clip=1000", f"run_dir={name}")
        assert zoo.run(*words, callbacks=[at]).code == 0
        assert zoo.checkpoint(name)["global_step"] == 1
    torch.testing.assert_close(gradients["one"], gradients["two"])


def test_the_lines_that_a_run_prints(zoo: Any) -> None:
    ended = zoo.run()
    lines = ended.out.splitlines()
    assert lines[:2] == [
        "rmt on lm at size=nano, seed 0",
        "rmt on lm: 17,632 parameters (25,856 with embeddings), 256 bytes of state per row",
    ]
    assert any(line.startswith("step 8/8  loss ") for line in lines)
    assert sum("held-out text: loss" in line for line in lines) == 3
    assert "bits per byte on 180 bytes of held-out text (there: xz -9 " in lines[-2]
    assert lines[-1].startswith("run: run   curves: tensorboard --logdir ")
    assert ended.err == ""
    assert "step 8/8" in (zoo.folder / "run/train.log").read_text()


def test_progress_json(zoo: Any) -> None:
    def progress(run: str) -> dict[str, Any]:
        return json.loads((zoo.folder / run / "progress.json").read_text())

    zoo.train_whole()
    metrics = zoo.metrics("whole")
    last = progress("whole")
    assert list(last) == ["step", "steps", "time", "loss", "tokens_per_s", "val"]
    assert (last["step"], last["steps"]) == (8, 8)
    assert last["loss"] == metrics["train/loss"]
    assert last["val"] == {name: metrics[f"val/{name}"] for name in ("loss", "bits_per_byte", "accuracy")}
    assert zoo.run("run_dir=cut", callbacks=[zoo.kill_at("on_train_batch_end", 2)]).code == "killed"
    first = progress("cut")
    assert (first["step"], first["val"]) == (2, {})
    assert first["loss"] > 0
    assert first["tokens_per_s"] > 0
