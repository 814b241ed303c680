"""`zoo evaluate`: its file, figures and messages, other checkpoints, tasks and architectures."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.train.evaluation.entries import result_at
from zoo.errors import UserError
from zoo.train.commands import evaluate as command
from zoo.train.evaluation import results
from zoo.train.evaluation.evaluate import evaluate
from zoo.train.evaluation.inspection import InspectOptions, inspect_run
from zoo.train.evaluation.options import EvalOptions
from zoo.train.evaluation.streaming import SamplePredictions, StreamReader, predict_samples
from zoo.train.evaluation.tables import tables
from zoo.train.tasks.base import Dataset

# -- file and figures


def test_earlier_results_stay_in_the_file(text_run: Path) -> None:
    file = text_run / "evaluation.json"
    entire = evaluate(text_run)
    evaluate(text_run, EvalOptions(stride=4, context=16))
    evaluate(text_run, EvalOptions(split="val"))
    drawn = evaluate(text_run, EvalOptions(tokens=50))
    evaluate(text_run, EvalOptions(task="induction", lengths=["64"], prompts=3))
    evaluate(text_run, EvalOptions(task="induction", lengths=["32"], prompts=3))
    evaluate(text_run, EvalOptions(task="induction", lengths=["32"], prompts=5))
    stored = json.loads(file.read_text())
    assert stored["model"] == "rmt"
    assert stored["task"] == "lm"
    axes = {
        entry["label"]: [result["axes"] for result in entry["results"]] for entry in stored["evaluations"]
    }
    modes = [{"memory": "kept"}, {"memory": "reset"}]
    assert axes == {
        "lm": [
            modes[0],
            {**modes[0], "drawn": 50},
            modes[1],
            {**modes[1], "drawn": 50},
            {"memory": "sliding", "context": 16, "stride": 4},
        ],
        "lm val": modes,
        "induction": [{"length": 32}, {"length": 64}],
    }
    assert result_at(drawn, memory="kept", drawn=50)["bytes"] == 6 + 45
    assert result_at(stored["evaluations"][2], length=32)["samples"] == 5
    assert stored["evaluations"][0]["results"][0]["nats"] == result_at(entire, memory="kept")["nats"]
    for entry in stored["evaluations"]:
        assert tables(entry)


def test_figures_are_files_and_images_in_tensorboard(text_run: Path) -> None:
    evaluate(text_run)
    assert imread(text_run / "evaluation" / "lm-loss-by-position.png").std() > 0.01
    events = EventAccumulator(str(text_run), size_guidance={"images": 0}).Reload()
    assert "zoo evaluate/lm-loss-by-position" in events.Tags()["images"]
    tokens_seen = json.loads((text_run / "metrics.json").read_text())["tokens_seen"]
    assert events.Images("zoo evaluate/lm-loss-by-position")[-1].step == tokens_seen


def test_a_file_of_another_format_is_left_alone(samples_run: Path) -> None:
    file = samples_run / "evaluation.json"
    for content in ("[]", "not json", '{"format": 99, "evaluations": []}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"evaluation\.json"):
            evaluate(samples_run, EvalOptions(lengths=["32"]))
        assert file.read_text() == content


def test_an_interrupted_evaluation_keeps_the_finished_cells(
    samples_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def interrupted(reader: StreamReader, dataset: Dataset, **options: Any) -> SamplePredictions:
        calls.append(dataset)
        if len(calls) == 3:  # a cell is read twice, the second time without memory
            raise KeyboardInterrupt
        return predict_samples(reader, dataset, **options)

    monkeypatch.setattr("zoo.train.evaluation.samples.predict_samples", interrupted)
    monkeypatch.setattr(
        sys, "argv", ["zoo evaluate", f"run={samples_run}", "task.seed=5", "lengths=40,48,56"]
    )
    with pytest.raises(SystemExit) as exit_info:
        command.main()
    assert exit_info.value.code == 130
    assert "interrupted" in capsys.readouterr().err
    entries = json.loads((samples_run / "evaluation.json").read_text())["evaluations"]
    (entry,) = [entry for entry in entries if entry["settings"]["seed"] == 5]
    assert [result["axes"] for result in entry["results"]] == [{"length": 40}]


def test_a_class_outside_any_plug_in_is_not_imported(text_run: Path, tmp_path: Path) -> None:
    config = (text_run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("zoo.models.rmt.RMT", "nowhere.Model"))
    with pytest.raises(UserError, match=r"if you trust it, add model\._target_=nowhere\.Model"):
        evaluate(tmp_path)
    with pytest.raises(UserError, match=r"can't import nowhere\.Model"):
        evaluate(tmp_path, EvalOptions(overrides=("model._target_=nowhere.Model",)))


def test_the_best_checkpoint_can_be_evaluated(text_run: Path) -> None:
    assert evaluate(text_run, EvalOptions(checkpoint="best"))["label"] == "lm best"


# -- user errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=nowhere", "lengths=8"], "found none in 'nowhere'"),
        (["lengths=8"], "expected run="),
        (["run=x", "lengths=8,many"], "lengths: expected a whole number of at least 1, found many"),
        (["run=x", "lengths=-2x"], "lengths: expected a multiple such as 4x, found -2x"),
        (["run=x", "batch_size=0"], "batch_size: expected a whole number of at least 1, found 0"),
        (["run=x", "batch_siz=1"], "unknown key 'batch_siz'; expected .*did you mean batch_size"),
        (["run=x", "fast"], "expected key=value, found 'fast'"),
        (["run=x", "split=dev"], "split: expected train | val | test, found dev"),
        (["run=x", "checkpoint=first"], "checkpoint: expected last | best, found first"),
        (["run=x", "depths=50,200"], "depths: expected per cent from 0 to 100, found 200"),
        (["run=x", "positions=9,3"], "positions: expected growing numbers, found 9,3"),
        (["run=TEXT", "lengths=64"], "lengths= has no effect on task lm, which reads text"),
        (["run=TEXT", "stride=4"], "expected stride= and context= together"),
        (["run=TEXT", "stride=9", "context=4"], "stride: expected 1 to context=4, found 9"),
        (["run=TEXT", "task=nowhere"], "Could not find 'task/nowhere'"),
        (["run=TEXT", "task.leng=3"], "task.leng: task lm has no such setting; expected one of corpus"),
        (["run=TEXT", "task=induction", "data.corpus=x"], "data.corpus: task induction has no such setting"),
        (["run=TEXT", "data.batch_size=3"], "unknown key data.batch_size"),
        (["run=SAMPLES", "prompts=1000000000000000000000"], "prompts: expected at most 281,474,976,710,656"),
        (["run=SAMPLES", "lengths=1000000000000000000000"], "lengths: expected at most 281,474,976,710,656"),
        (["run=SAMPLES", "lengths=1e20x"], "expected a multiple such as 4x, found 1e20x"),
        (["run=TEXT", "contexts=2x,1x", "stride=100"], "stride: expected at most context 16, found 100"),
        (["run=TEXT", "data.corpus=nowhere"], "no corpus 'nowhere'"),
        (["run=SAMPLES", "stride=4", "context=8"], "stride= has no effect on task induction"),
        (["run=SAMPLES", "task=lm"], "at most the 16 symbols of the run's model, found lm with 257"),
        (["run=SAMPLES", "depths=5"], "task induction has no depth to vary"),
        (["run=SAMPLES", "task.length=long"], "task.length: expected int, found 'long'"),
        (["run=SAMPLES", "lengths=1"], "task.length: expected at least 4"),
        (
            ["run=SAMPLES", "split=train", "prompts=9000000"],
            "at most the 1,000,000 samples of induction's train split",
        ),
    ],
)
def test_user_errors_are_one_line(
    words: list[str],
    message: str,
    samples_run: Path,
    text_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = {"run=TEXT": f"run={text_run}", "run=SAMPLES": f"run={samples_run}"}
    monkeypatch.setattr(sys, "argv", ["zoo evaluate", *(runs.get(word, word) for word in words)])
    with pytest.raises(SystemExit) as exit_info:
        command.main()
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in message.split(".*"):
        assert part in line


def test_what_is_read_of_another_text(text_run: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("abc " * 500)
    lines: list[str] = []
    evaluate(text_run, EvalOptions(overrides=(f"data.corpus={tmp_path / 'book.txt'}",)), lines.append)
    assert lines[0] == (
        "book.txt: test split, the last 100 of 2,000 bytes; "
        "split=train is the first 1,800, split=val is the 100 before the last 100"
    )
    lines.clear()
    evaluate(text_run, EvalOptions(), lines.append)
    assert not [line for line in lines if "split=" in line]


def test_texts_that_have_changed_since_the_training(text_run: Path, tmp_path: Path) -> None:
    """Another entry, and a line that says so: what is read now may have been trained on."""
    run, corpus = tmp_path / "run", tmp_path / "corpus"
    shutil.copytree(text_run, run)
    config = (run / "config.yaml").read_text()
    place = OmegaConf.load(run / "config.yaml").data.corpus
    shutil.copytree(place, corpus)
    (run / "config.yaml").write_text(config.replace(str(place), str(corpus)))
    options, lines = EvalOptions(tokens=50), list[str]()
    before = evaluate(run, options, lines.append)
    assert not [line for line in lines if "changed" in line]
    for path in (corpus / "train").iterdir():
        path.write_text(path.read_text().swapcase())
    after = evaluate(run, options, lines.append)
    assert [line for line in lines if f"the texts of {corpus} have changed since the run was trained" in line]
    assert [before["changed_data"], after["changed_data"]] == [None, True]
    stored = json.loads((run / "evaluation.json").read_text())["evaluations"]
    assert [entry["results"][0]["nats"] for entry in stored[-2:]] == [
        entry["results"][0]["nats"] for entry in (before, after)
    ]


def test_a_corpus_without_the_split_that_is_read(text_run: Path, tmp_path: Path) -> None:
    for name in ("train/a.txt", "val/b.txt"):
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True)
        path.write_text("some text, some text, some text, some text, some text")
    small = f"data.corpus={tmp_path / 'small'}"
    expected = "corpus small has no split 'test': found train, val; use split=val$"
    with pytest.raises(UserError, match=expected):
        evaluate(text_run, EvalOptions(overrides=(small,)))
    with pytest.raises(UserError, match=expected):
        inspect_run(InspectOptions(text_run, overrides=(small,)))
    assert inspect_run(InspectOptions(text_run, overrides=(small,), split="val")).segments


def test_the_command_prints_its_table(
    samples_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run={samples_run}", "task.seed=7", "lengths=1x", "prompts=20"]
    monkeypatch.setattr(sys, "argv", ["zoo evaluate", *words])
    with pytest.raises(SystemExit) as exit_info:
        command.main()
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert "sliding_window on induction seed=7" in out
    assert "chance 6.7%" in out
    assert (samples_run / "evaluation" / "induction-seed=7-by-length.png").is_file()


def test_another_architecture_reads_with_the_weights(zoo: Any) -> None:
    """A transformer's weights, read with retrieval, and by a model that they don't fit."""
    run = Path("run")
    assert zoo.run("model=transformer").code == 0
    without_memory = evaluate(run, EvalOptions(seq_len=32, split="val"))["results"]
    retrieving = evaluate(run, unlimiformer(neighbours=3))
    with_memory, reset = (result_at(retrieving, memory=mode) for mode in ("kept", "reset"))
    assert reset["nats"] == pytest.approx(without_memory[0]["nats"], rel=1e-5)
    assert abs(with_memory["nats"] - reset["nats"]) > 1e-3
    content = results.read(run / results.FILE)
    assert (content["model"], content["state_bytes"]) == ("transformer", 0)
    assert [entry["read_by"] for entry in content["evaluations"]] == [None, "unlimiformer"]
    evaluate(run, unlimiformer(neighbours=8))
    entries = results.read(run / results.FILE)["evaluations"][1:]
    assert [entry["label"] for entry in entries] == [f"lm by unlimiformer neighbours={n} val" for n in (3, 8)]
    assert [entry["reading"]["neighbours"] for entry in entries] == [3, 8]
    assert entries[0]["results"] == retrieving["results"]
    for neighbours in (3, 8):
        name = f"lm-by-unlimiformer-neighbours={neighbours}-val-loss-by-position.png"
        assert (run / "evaluation" / name).is_file()
    with pytest.raises(UserError, match="is of another model"):
        evaluate(run, EvalOptions(model="rmt"))
    with pytest.raises(UserError, match="neighbours: unknown; Transformer takes"):
        evaluate(run, EvalOptions(overrides=("model.neighbours=3",)))


def unlimiformer(neighbours: int) -> EvalOptions:
    overrides = (f"model.neighbours={neighbours}",)
    return EvalOptions(model="unlimiformer", overrides=overrides, seq_len=32, split="val")
