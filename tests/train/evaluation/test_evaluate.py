"""Evaluation against sums done by hand, what it keeps, and what it says to a slip."""

import gc
import itertools
import json
import math
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from zoo.errors import UserError
from zoo.module import Batch, SequenceModule
from zoo.train.commands import evaluate as command
from zoo.train.evaluation import evaluate, results, tables
from zoo.train.evaluation.intervals import wilson
from zoo.train.evaluation.options import EvalOptions
from zoo.train.evaluation.streaming import (
    PositionLosses,
    SampleHits,
    StreamReader,
    position_losses,
    sample_hits,
)
from zoo.train.loop.trainer import train
from zoo.train.runs import build, load
from zoo.train.runs.config import compose
from zoo.train.tasks.base import Dataset, Subset
from zoo.train.tasks.induction import Induction
from zoo.train.tasks.lm import END

OURS = f"{Path(command.__file__).parents[1]}/*"


@pytest.fixture(scope="module")
def samples_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of induction, with a model whose memory reaches back only so far."""
    folder = tmp_path_factory.mktemp("samples")
    words = ["task=induction", "model=sliding_window", "size=nano", "steps=3", "task.length=32"]
    train(compose([*words, "task.eval_samples=60"]), folder)
    return folder


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of bytes; the test split has three documents of different lengths."""
    folder = tmp_path_factory.mktemp("text")
    for split, sizes in {"train": (400, 300), "val": (90,), "test": (70, 45, 6)}.items():
        (folder / "corpus" / split).mkdir(parents=True)
        for number, size in enumerate(sizes):
            line = f"{number} {split}: what was\tsaid before\nis said again, " * 20
            (folder / "corpus" / split / f"{number}.txt").write_text(line[:size])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        words = ["model=rmt", "size=nano", "steps=4", f"data.corpus={folder / 'corpus'}", "optim.warmup=1"]
        train(compose([*words, "optim.lr=0.01"]), folder / "run")
    return folder / "run"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def documents(run_dir: Path) -> list[list[int]]:
    """END, bytes, END of every test document, in the order in which they are read."""
    corpus = build.task(load.load_run(run_dir)[0]).split("test")
    return [[END, *(corpus.text(n) or b""), END] for n in range(len(corpus.lengths))]


def nats_of(model: SequenceModule, line: list[int], start: int, stop: int, asked: int) -> list[float]:
    """What symbols asked+1 … stop of a line cost a model that has read it from `start` on."""
    with torch.no_grad():
        logits, _ = model(torch.tensor([line[start:stop]]))
    costs = F.cross_entropy(logits[0], torch.tensor(line[start + 1 : stop + 1]), reduction="none")
    return costs[asked - start :].tolist()


def row_of(entry: dict[str, Any], **axes: Any) -> dict[str, Any]:
    (row,) = [row for row in entry["results"] if row["axes"].items() >= axes.items()]
    return row


# -- samples -------------------------------------------------------------------------------------------------


def test_streamed_accuracy_is_that_of_samples_read_at_once(samples_run: Path) -> None:
    entry = evaluate.evaluate(samples_run, EvalOptions(lengths=["20", "3.125x"], batch_size=3, seq_len=32))
    cfg, model, _ = load.load_run(samples_run)
    assert [row["axes"]["length"] for row in entry["results"]] == [20, 100]
    for row in entry["results"]:
        cfg.task.length = row["axes"]["length"]
        texts = build.task(cfg).split("test")
        hits = 0
        with torch.no_grad():
            for document in range(50):
                tokens, targets = texts.window(document, 0, cfg.task.length)
                logits, _ = model(torch.from_numpy(tokens)[None])
                hits += int(logits[0, -1].argmax() == targets[-1])
        assert row["samples"] == row["exact"]["of"] == row["targets"]["of"] == 50
        assert row["exact"]["hits"] == row["targets"]["hits"] == hits
        assert row["exact"]["low"] <= row["exact"]["share"] == hits / 50 <= row["exact"]["high"]
        assert row["reference"] == {"chance": 1 / 15}
        assert row["tokens"] == 50 * cfg.task.length


def test_a_ceiling_on_tokens_keeps_sixteen_samples(samples_run: Path) -> None:
    counts = []
    for tokens, prompts in ((1, None), (64 * 20 + 5, None), (10**9, None), (10**9, 7)):
        asked = EvalOptions(lengths=["64"], tokens=tokens, prompts=prompts)
        counts.append(row_of(evaluate.evaluate(samples_run, asked), length=64)["samples"])
    assert counts == [16, 20, 50, 7]


@pytest.mark.parametrize("by", ["sample", "position"])
def test_memory_does_not_grow_with_the_length(
    by: str, samples_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, _ = load.load_run(samples_run)
    compute_loss = SequenceModule.compute_loss
    held = []
    for windows in (10, 60):
        task, calls = Induction(length=64 * windows), itertools.count(1)

        def noted(
            self: SequenceModule, batch: Batch, carried: Any, last: int = windows, calls: Any = calls
        ) -> Any:
            assert batch.tokens.shape == (2, 64)  # a multiple of the segment's 16
            if next(calls) == last:
                gc.collect()
                storages = {
                    one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
                    for one in gc.get_objects()
                    if type(one) is Tensor and one.layout == torch.strided and one.device.type == "cpu"
                }
                traces = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, OURS)]).traces
                held.append((sum(storages.values()), sum(trace.size for trace in traces)))
            return compute_loss(self, batch, carried)

        monkeypatch.setattr(SequenceModule, "compute_loss", noted)
        texts, reader = Subset(task.split("test"), 2), StreamReader(model, batch_size=2, seq_len=70)
        tracemalloc.start()
        if by == "sample":
            sample_hits(reader, texts)
        else:
            position_losses(reader, texts, [], task.byte_count)
        tracemalloc.stop()
    (tensors, others), (more_tensors, more_others) = held
    assert others > 0
    assert more_tensors <= tensors + 2**12  # a batch and what is said of it are 4 KiB
    assert more_others <= others + 2**12  # allocated by lines of ours; one array of 1 KiB a window is 50


def test_peak_memory_is_that_of_each_cell(samples_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(reader: StreamReader, texts: Dataset) -> SampleHits:
        held = torch.ones(2**20 * int(texts.lengths[0]), dtype=torch.uint8)
        return sample_hits(reader, Subset(texts, len(held[:9])))

    monkeypatch.setattr("zoo.train.evaluation.samples.sample_hits", hungry)
    entry = evaluate.evaluate(samples_run, EvalOptions(lengths=["200", "20"], overrides=("task.seed=6",)))
    small, large = entry["results"]
    apart = large["peak_memory_bytes"] - small["peak_memory_bytes"]
    assert small.get("peak_so_far") or 150 * 2**20 < apart < 250 * 2**20


def test_exact_match_and_digits_on_a_grid(tmp_path: Path) -> None:
    words = [
        "task=passkey",
        "task.form=compact",
        "task.vocab_size=28",
        "task.length=16",
        "task.lengths=fixed",
    ]
    train(compose([*words, "model=sliding_window", "size=nano", "steps=2"]), tmp_path)
    entry = evaluate.evaluate(
        tmp_path, EvalOptions(lengths=["1x", "40"], depths=[0.0, 100.0], prompts=12, batch_size=5)
    )
    assert [tuple(row["axes"].values()) for row in entry["results"]] == [
        (16, 0),
        (16, 100),
        (40, 0),
        (40, 100),
    ]
    cfg, model, _ = load.load_run(tmp_path)
    for row in entry["results"]:
        cfg.task.length, cfg.task.depth = row["axes"]["length"], row["axes"]["depth"] / 100
        texts = build.task(cfg).split("test")
        exact = digits = 0
        for document in range(12):
            tokens, targets = texts.window(document, 0, cfg.task.length)
            with torch.no_grad():
                said = model(torch.from_numpy(tokens)[None])[0][0].argmax(-1)[-5:].tolist()
            right = [one == other for one, other in zip(said, targets[-5:].tolist(), strict=True)]
            exact, digits = exact + all(right), digits + sum(right)
        assert (row["exact"]["hits"], row["exact"]["of"]) == (exact, 12)
        assert (row["targets"]["hits"], row["targets"]["of"]) == (digits, 60)
        assert row["groups"] == {}  # of the very axes of the cell
    names = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert names == {"passkey-grid.png", "passkey-by-length.png", "passkey-by-depth.png"}
    for name in names:
        assert imread(tmp_path / "evaluation" / name).std() > 0.01


def test_groups_add_up_to_the_whole(tmp_path: Path) -> None:
    words = ["task=listops", "task.min_length=5", "task.max_length=20", "task.max_depth=3", "task.samples=40"]
    train(compose([*words, "task.eval_samples=30", "model=rmt", "size=nano", "steps=2"]), tmp_path)
    (row,) = evaluate.evaluate(tmp_path)["results"]
    assert row["axes"] == {}
    assert row["samples"] == 30  # the whole split
    assert set(row["groups"]) == {"root", "length"}
    for members in row["groups"].values():
        assert sum(one["exact"]["of"] for one in members) == 30
        assert sum(one["exact"]["hits"] for one in members) == row["exact"]["hits"]
    starts = [int(one["value"].partition("-")[0]) for one in row["groups"]["length"]]
    assert starts == sorted(starts)
    # lists are cut from one stream, of which the first 60 are held out
    assert (
        evaluate.evaluate(tmp_path, EvalOptions(overrides=("task.eval_samples=25",)))["results"][0]["samples"]
        == 25
    )
    for changed, found in (("eval_samples=90", "30 of the 90"), ("min_length=14", r"[1-9]\d* of the 30")):
        with pytest.raises(UserError, match=f"the run trained on {found} test samples"):
            evaluate.evaluate(tmp_path, EvalOptions(overrides=(f"task.{changed}",)))


def test_wilson_by_its_definition() -> None:
    # the bounds are the shares p for which the observed one lies z standard errors away
    for hits, asked in ((0, 16), (3, 50), (16, 16), (250, 512), (8192, 8192)):
        low, high = wilson(hits, asked)
        assert low <= hits / asked <= high
        for bound in (low, high):
            distance = 1.96 * math.sqrt(bound * (1 - bound) / asked)
            assert abs(hits / asked - bound) == pytest.approx(distance, abs=1e-12)


# -- text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2])
def test_memory_kept_and_reset_by_position(text_run: Path, rows: int) -> None:
    edges = [8, 32, 64]
    entry = evaluate.evaluate(text_run, EvalOptions(batch_size=rows, seq_len=32, positions=edges))
    _, model, _ = load.load_run(text_run)
    lines = documents(text_run)
    for memory in ("kept", "reset"):
        costs = []
        for line in lines:
            size = len(line) - 1
            cuts = (
                [(0, size)] if memory == "kept" else [(at, min(at + 16, size)) for at in range(0, size, 16)]
            )
            costs.append([cost for start, stop in cuts for cost in nats_of(model, line, start, stop, start)])
        row = row_of(entry, memory=memory)
        total = sum(map(sum, costs))
        assert row["tokens"] == sum(map(len, costs))
        assert row["bytes"] == row["tokens"] - len(lines)
        assert row["nats"] == pytest.approx(total, rel=1e-5)
        assert row["bits_per_byte"] == pytest.approx(total / math.log(2) / row["bytes"], rel=1e-5)
        words = sum(len(bytes(line[1:-1]).split()) for line in lines)
        assert row["words"] == words
        assert row["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-3)
        for part, low, high in zip(row["by_position"], [0, *edges], [*edges, 10**9], strict=True):
            here = [cost for line in costs for cost in line[low:high]]
            assert (part["from"], part["to"]) == (low, high if high < 10**9 else None)
            assert part["tokens"] == len(here)
            assert part["loss"] == pytest.approx(np.mean(here), rel=1e-5)
    gap = results.memory_gain(entry["results"])
    assert abs(gap[0, 8]) < 1e-6  # inside the first segment nothing is remembered yet
    assert any(abs(value) > 1e-4 for value in gap.values())


@pytest.mark.parametrize(("stride", "context"), [(1, 3), (5, 20), (7, 7), (16, 200)])
def test_sliding_window(text_run: Path, stride: int, context: int) -> None:
    asked = EvalOptions(stride=stride, context=context, batch_size=4, seq_len=16, positions=[30])
    row = row_of(evaluate.evaluate(text_run, asked), memory="sliding", stride=stride, context=context)
    _, model, _ = load.load_run(text_run)
    near, far = [], []
    for line in documents(text_run):
        size, known, start = len(line) - 1, 0, 0
        while known < size:
            stop = min(start + context, size)
            costs = nats_of(model, line, start, stop, known)
            for place, cost in enumerate(costs, known):
                (near if place < 30 else far).append(cost)
            known, start = stop, start + stride
    assert row["tokens"] == len(near) + len(far)
    assert row["nats"] == pytest.approx(sum(near) + sum(far), rel=1e-5)
    assert [part["loss"] for part in row["by_position"]] == pytest.approx(
        [np.mean(near), np.mean(far)], rel=1e-5
    )


def test_speed_counts_what_is_asked_not_what_is_read_again(
    text_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_two_seconds(*given: Any, **named: Any) -> PositionLosses:
        return position_losses(*given, **named)._replace(seconds=2.0)

    (text_run / "evaluation.json").unlink(missing_ok=True)
    monkeypatch.setattr("zoo.train.evaluation.text.position_losses", in_two_seconds)
    for asked in (EvalOptions(), EvalOptions(stride=1, context=16)):
        for row in evaluate.evaluate(text_run, asked)["results"]:
            assert row["tokens_per_s"] == row["tokens"] / 2


def test_a_window_over_everything_is_the_memory_kept(text_run: Path) -> None:
    evaluate.evaluate(text_run)
    entry = evaluate.evaluate(text_run, EvalOptions(stride=100, context=100))
    kept, sliding = row_of(entry, memory="kept"), row_of(entry, memory="sliding", context=100)
    assert sliding["nats"] == pytest.approx(kept["nats"], rel=1e-6)


# -- the file, the figures -----------------------------------------------------------------------------------


def test_what_was_measured_before_stays(text_run: Path) -> None:
    file = text_run / "evaluation.json"
    file.unlink(missing_ok=True)
    whole = evaluate.evaluate(text_run)
    evaluate.evaluate(text_run, EvalOptions(stride=4, context=16))
    evaluate.evaluate(text_run, EvalOptions(split="val"))
    cut = evaluate.evaluate(text_run, EvalOptions(tokens=50))
    evaluate.evaluate(text_run, EvalOptions(task="induction", lengths=["64"], prompts=3))
    evaluate.evaluate(text_run, EvalOptions(task="induction", lengths=["32"], prompts=3))
    evaluate.evaluate(text_run, EvalOptions(task="induction", lengths=["32"], prompts=5))
    kept = json.loads(file.read_text())
    assert kept["model"] == "rmt"
    assert kept["task"] == "lm"
    axes = {one["label"]: [row["axes"] for row in one["results"]] for one in kept["evaluations"]}
    kinds = [{"memory": "kept"}, {"memory": "reset"}]
    assert axes == {
        "lm": [
            kinds[0],
            {**kinds[0], "first": 50},
            kinds[1],
            {**kinds[1], "first": 50},
            {"memory": "sliding", "context": 16, "stride": 4},
        ],
        "lm val": kinds,
        "induction": [{"length": 32}, {"length": 64}],
    }
    assert row_of(cut, memory="kept", first=50)["bytes"] == 50
    assert row_of(kept["evaluations"][2], length=32)["samples"] == 5
    assert kept["evaluations"][0]["results"][0]["nats"] == row_of(whole, memory="kept")["nats"]
    for entry in kept["evaluations"]:
        assert tables.tables(entry)


def test_figures_lie_beside_the_run_and_in_tensorboard(text_run: Path) -> None:
    evaluate.evaluate(text_run)
    assert imread(text_run / "evaluation" / "lm-loss-by-position.png").std() > 0.01
    events = EventAccumulator(str(text_run / "tb"), size_guidance={"images": 0}).Reload()
    assert {"evaluation/lm-loss-by-position", "val/loss_by_position"} <= set(events.Tags()["images"])
    tokens_seen = json.loads((text_run / "metrics.json").read_text())["tokens_seen"]
    assert events.Images("evaluation/lm-loss-by-position")[-1].step == tokens_seen


def test_a_foreign_file_is_left_alone(samples_run: Path) -> None:
    file = samples_run / "evaluation.json"
    before = file.read_text() if file.exists() else None
    for foreign in ("[]", "not json", '{"format": 99, "evaluations": []}'):
        file.write_text(foreign)
        with pytest.raises(UserError, match=r"evaluation\.json"):
            evaluate.evaluate(samples_run, EvalOptions(lengths=["32"]))
        assert file.read_text() == foreign
    file.unlink()
    if before is not None:
        file.write_text(before)


def test_an_interrupted_evaluation_keeps_the_cells_that_were_done(
    samples_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def interrupted(reader: StreamReader, texts: Dataset) -> SampleHits:
        calls.append(texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample_hits(reader, texts)

    monkeypatch.setattr("zoo.train.evaluation.samples.sample_hits", interrupted)
    monkeypatch.setattr(
        sys, "argv", ["zoo evaluate", f"run={samples_run}", "task.seed=5", "lengths=40,48,56"]
    )
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 130
    assert "interrupted" in capsys.readouterr().err
    entries = json.loads((samples_run / "evaluation.json").read_text())["evaluations"]
    (entry,) = [entry for entry in entries if entry["settings"]["seed"] == 5]
    assert [row["axes"] for row in entry["results"]] == [{"length": 40}]


def test_a_class_of_no_plug_in_is_not_imported(text_run: Path, tmp_path: Path) -> None:
    config = (text_run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("zoo.models.rmt.RMT", "nowhere.Model"))
    with pytest.raises(UserError, match=r"if you trust it, add model\._target_=nowhere\.Model"):
        evaluate.evaluate(tmp_path)
    with pytest.raises(UserError, match=r"can't import nowhere\.Model"):
        evaluate.evaluate(tmp_path, EvalOptions(overrides=("model._target_=nowhere.Model",)))


def test_the_best_checkpoint_can_be_taken(text_run: Path) -> None:
    assert evaluate.evaluate(text_run, EvalOptions(checkpoint="best"))["label"] == "lm best"


# -- slips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=nowhere", "lengths=8"], "found none in 'nowhere'"),
        (["lengths=8"], "expected run="),
        (["run=x", "lengths=8,many"], "lengths: expected a whole number of at least 1, found many"),
        (["run=x", "lengths=-2x"], "lengths: expected a multiple such as 4x, found -2x"),
        (["run=x", "batch_size=0"], "batch_size: expected a whole number of at least 1, found 0"),
        (["run=x", "batch_siz=1"], "unknown key 'batch_siz'; expected .*did you mean batch_size"),
        (["run=x", "fast"], "unknown key 'fast'"),
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
        (["run=TEXT", "data.corpus=nowhere"], "no corpus 'nowhere'"),
        (["run=SAMPLES", "stride=4", "context=8"], "stride= has no effect on task induction"),
        (["run=SAMPLES", "task=lm"], "at most the 16 symbols of the run's model, found lm with 257"),
        (["run=SAMPLES", "depths=5"], "task induction has no depth to vary"),
        (["run=SAMPLES", "task.length=long"], "task.length: expected int, found 'long'"),
        (["run=SAMPLES", "lengths=1"], "task.length: expected at least 4"),
        (["run=SAMPLES", "prompts=61"], "at most the 60 samples of induction's test split"),
    ],
)
def test_slips_are_one_line(
    words: list[str],
    said: str,
    samples_run: Path,
    text_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = {"run=TEXT": f"run={text_run}", "run=SAMPLES": f"run={samples_run}"}
    monkeypatch.setattr(sys, "argv", ["zoo evaluate", *(place.get(word, word) for word in words)])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in said.split(".*"):
        assert part in line


def test_the_command_shows_its_table(
    samples_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run={samples_run}", "task.seed=7", "lengths=1x", "prompts=20"]
    monkeypatch.setattr(sys, "argv", ["zoo evaluate", *words])
    command.main()
    out = capsys.readouterr().out
    assert "sliding_window on induction seed=7" in out
    assert "chance 6.7%" in out
    assert (samples_run / "evaluation" / "induction-seed=7-by-length.png").is_file()


def test_read_by_another_architecture(zoo: Any) -> None:
    """A transformer's weights, read with retrieval, and by a model that they don't fit."""
    assert zoo.run("model=transformer").code == 0
    own = evaluate.evaluate(Path("run"), EvalOptions(seq_len=32, split="val"))["results"]
    found = evaluate.evaluate(
        Path("run"),
        EvalOptions(model="unlimiformer", overrides=("model.neighbours=3",), seq_len=32, split="val"),
    )["results"]
    kept, reset = (next(row for row in found if row["axes"]["memory"] == way) for way in ("kept", "reset"))
    assert reset["nats"] == pytest.approx(own[0]["nats"], rel=1e-5)
    assert abs(kept["nats"] - reset["nats"]) > 1e-3
    whole = results.read(Path("run") / results.FILE)
    assert [entry["read_by"] for entry in whole["evaluations"]] == [None, "unlimiformer"]
    other = EvalOptions(model="unlimiformer", overrides=("model.neighbours=8",), seq_len=32, split="val")
    evaluate.evaluate(Path("run"), other)
    kinds = results.read(Path("run") / results.FILE)["evaluations"][1:]
    assert [entry["label"] for entry in kinds] == [f"lm by unlimiformer neighbours={n} val" for n in (3, 8)]
    assert [entry["reading"]["neighbours"] for entry in kinds] == [3, 8]
    assert kinds[0]["results"] == found
    for number in (3, 8):
        name = f"lm-by-unlimiformer-neighbours={number}-val-loss-by-position.png"
        assert (Path("run") / "evaluation" / name).is_file()
    assert (whole["model"], whole["state_bytes"]) == ("transformer", 0)
    with pytest.raises(UserError, match="is of another model"):
        evaluate.evaluate(Path("run"), EvalOptions(model="rmt"))
    with pytest.raises(UserError, match="isn't given"):
        evaluate.evaluate(Path("run"), EvalOptions(overrides=("model.neighbours=3",)))
