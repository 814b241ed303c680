"""Accuracy of samples against counts by hand: grids, groups, ceilings, memory."""

import copy
import gc
import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

import zoo.train.commands
from tests.train.evaluation.entries import result_at
from zoo.errors import UserError
from zoo.module import Batch, SequenceModule
from zoo.train.evaluation.evaluate import evaluate
from zoo.train.evaluation.figures import draw_figures
from zoo.train.evaluation.options import EvalOptions
from zoo.train.evaluation.results import EvalEntry
from zoo.train.evaluation.samples import wanted_samples
from zoo.train.evaluation.streaming import SamplePredictions, StreamReader, position_losses, predict_samples
from zoo.train.evaluation.tables import tables
from zoo.train.loop.trainer import train
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.runs.load import load_trained
from zoo.train.tasks.base import Dataset, Subset
from zoo.train.tasks.induction import Induction

WORTH_CAPTION = """reset: the memory empty at every segment; worth: what keeping it adds, in points
in view: a perfect reader of a target's segment
beyond 16: the nearest evidence lies 16 positions back or more"""
TRAIN_FILES = f"{Path(zoo.train.commands.__file__).parents[1]}/*"


def test_streamed_accuracy_equals_that_of_samples_read_at_once(samples_run: Path) -> None:
    entry = evaluate(samples_run, EvalOptions(lengths=["20", "3.125x"], prompts=50, batch_size=3, seq_len=32))
    cfg, model, _ = load_trained(samples_run)
    assert [result["axes"]["length"] for result in entry["results"]] == [20, 100]
    for result in entry["results"]:
        cfg.task.length = result["axes"]["length"]
        dataset = build.task(cfg).split("test")
        hits = 0
        with torch.no_grad():
            for document in range(50):
                tokens, targets = dataset.window(document, 0, cfg.task.length)
                logits, _ = model(torch.from_numpy(tokens)[None])
                hits += int(logits[0, -1].argmax() == targets[-1])
        assert result["samples"] == result["exact"]["of"] == result["targets"]["of"] == 50
        assert result["exact"]["hits"] == result["targets"]["hits"] == hits
        assert result["exact"]["low"] <= result["exact"]["share"] == hits / 50 <= result["exact"]["high"]
        assert result["reference"]["chance"] == 1 / 15
        assert 1 / 15 - 1e-9 < result["reference"]["in view"] < 1
        assert result["tokens"] == 50 * cfg.task.length


def test_a_ceiling_on_tokens_leaves_at_least_sixteen_samples(
    samples_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.train.evaluation.samples.POSITIONS_PER_CELL", 64 * 70)
    counts = []
    for tokens, prompts in ((1, None), (64 * 20 + 5, None), (10**9, None), (10**9, 7)):
        options = EvalOptions(lengths=["64"], tokens=tokens, prompts=prompts)
        counts.append(result_at(evaluate(samples_run, options), length=64)["samples"])
    assert counts == [16, 20, 70, 7]  # also more than the 60 that the run validates with
    at_depth = wanted_samples(EvalOptions(), {"length": 64, "depth": 0.5})
    assert [wanted_samples(EvalOptions(), {"length": 64}), at_depth] == [2048, 0]


@pytest.mark.parametrize("by", ["sample", pytest.param("position", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_length(
    by: str, samples_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, _ = load_trained(samples_run)
    compute_loss = SequenceModule.compute_loss
    sizes = []
    for windows in (10, 60):
        task, calls = Induction(length=64 * windows), itertools.count(1)

        def measured(
            self: SequenceModule, batch: Batch, state: Any, last: int = windows, calls: Any = calls
        ) -> Any:
            assert batch.tokens.shape == (2, 64)  # a multiple of the segment's 16
            if next(calls) == last:
                sizes.append((tensor_bytes(), traced_bytes()))
            return compute_loss(self, batch, state)

        monkeypatch.setattr(SequenceModule, "compute_loss", measured)
        dataset, reader = Subset(task.split("test"), 2), StreamReader(model, batch_size=2, seq_len=70)
        tracemalloc.start()
        if by == "sample":
            predict_samples(reader, dataset)
        else:
            position_losses(reader, dataset, [], task.byte_count)
        tracemalloc.stop()
    (tensors, objects), (tensors_of_longer, objects_of_longer) = sizes
    assert objects > 0
    assert tensors_of_longer <= tensors + 2**12  # a batch and its outputs are 4 KiB
    assert objects_of_longer <= objects + 2**12  # an array of 1 KiB per window would be 50 KiB


def tensor_bytes() -> int:
    """Bytes of all tensors on the CPU."""
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if type(tensor) is Tensor and tensor.layout == torch.strided and tensor.device.type == "cpu"
    }
    return sum(storages.values())


def traced_bytes() -> int:
    """Bytes allocated by lines below train/."""
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, TRAIN_FILES)])
    return sum(trace.size for trace in snapshot.traces)


def test_peak_memory_is_that_of_each_cell(samples_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_samples_with_a_large_tensor(
        reader: StreamReader, dataset: Dataset, reset_memory: bool = False
    ) -> SamplePredictions:
        large = torch.ones(2**20 * int(dataset.lengths[0]), dtype=torch.uint8)
        return predict_samples(reader, Subset(dataset, len(large[:9])))

    monkeypatch.setattr("zoo.train.evaluation.samples.predict_samples", predict_samples_with_a_large_tensor)
    entry = evaluate(samples_run, EvalOptions(lengths=["200", "20"], overrides=("task.seed=6",)))
    short, long = entry["results"]
    difference = long["peak_memory_bytes"] - short["peak_memory_bytes"]
    assert short.get("peak_so_far") or 150 * 2**20 < difference < 250 * 2**20


def test_exact_match_and_digits_on_a_grid(tmp_path: Path) -> None:
    words = [
        "task=passkey",
        "task.form=compact",
        "task.vocab_size=28",
        "task.length=16",
        "task.lengths=fixed",
    ]
    train(compose([*words, "model=sliding_window", "size=nano", "steps=2"]), tmp_path)
    options = EvalOptions(lengths=["1x", "40"], depths=[0.0, 100.0], prompts=12, batch_size=5)
    entry = evaluate(tmp_path, options)
    cells = [tuple(result["axes"].values()) for result in entry["results"]]
    assert cells == [(16, 0), (16, 100), (40, 0), (40, 100)]
    cfg, model, _ = load_trained(tmp_path)
    for result in entry["results"]:
        cfg.task.length, cfg.task.depth = result["axes"]["length"], result["axes"]["depth"] / 100
        dataset = build.task(cfg).split("test")
        exact = digits = 0
        for document in range(12):
            tokens, targets = dataset.window(document, 0, cfg.task.length)
            with torch.no_grad():
                predicted = model(torch.from_numpy(tokens)[None])[0][0].argmax(-1)[-5:]
            hits = (predicted == torch.from_numpy(targets[-5:])).tolist()
            exact, digits = exact + all(hits), digits + sum(hits)
        assert (result["exact"]["hits"], result["exact"]["of"]) == (exact, 12)
        assert (result["targets"]["hits"], result["targets"]["of"]) == (digits, 60)
        assert result["groups"] == {}  # they are the cell's axes
        assert result["reference"]["chance"] == pytest.approx((1 / 9 + 4 / 10) / 5)
        assert result["reference_exact"]["chance"] == 1 / 90_000
        assert result["reference"].keys() == result["reference_exact"].keys() == {"chance", "in view"}
    check_names_of_shares(entry)
    names = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert names == {"passkey-grid.png", "passkey-by-length.png", "passkey-by-depth.png"}
    for name in names:
        assert imread(tmp_path / "evaluation" / name).std() > 0.01


def pooled(results: list[Any], share: str) -> float:
    """The share of all hits of these results."""
    hits, of = (sum(result[share][key] for result in results) for key in ("hits", "of"))
    return float(hits / of)


def check_names_of_shares(entry: EvalEntry) -> None:
    """A table and a map of each share, under its name, and baselines beside their own share alone."""
    assert {table.title: table.caption for table in tables(entry)} == {
        "exact match, 95 % interval": "learning nothing: chance 1 in 90,000",
        "accuracy per digit, 95 % interval": "learning nothing: chance 10.2%",
        "worth of the memory, accuracy per digit": None,
        "worth of the memory, accuracy per digit beyond 16": WORTH_CAPTION,
    }
    by_length = copy.deepcopy(entry)
    for result in by_length["results"]:
        del result["axes"]["depth"]
    both, worth, worth_beyond = tables(by_length)
    assert [str(column.header) for column in worth.columns] == [
        *("length", "kept", "95 % interval", "reset", "worth", "in view"),
    ]
    assert [str(column.header) for column in worth_beyond.columns] == [
        *("length", "kept", "95 % interval", "reset", "worth"),
    ]
    for table, share in ((worth, "targets"), (worth_beyond, "beyond")):
        lengths, kept, reset, points = ([*table.columns[index].cells] for index in (0, 1, 3, 4))
        of_length = [
            [r for r in by_length["results"] if share in r and r["axes"]["length"] == int(length)]
            for length in lengths
        ]
        shares = [(pooled(found, share), pooled([r["reset"] for r in found], share)) for found in of_length]
        assert kept == [f"{share:.1%}" for share, _ in shares]
        assert reset == [f"{share:.1%}" for _, share in shares]
        assert points == [f"{100 * (with_memory - without):+.1f}" for with_memory, without in shares]
    mixed = copy.deepcopy(entry)
    mixed["results"] += by_length["results"]
    assert len(tables(mixed)) == len(tables(entry)) + len(tables(by_length))
    names = [str(column.header) for column in both.columns]
    assert names[1:5] == ["samples", "exact match", "95 % interval", "per digit"]
    assert both.caption == (
        "learning nothing, exact match: chance 1 in 90,000\n"
        "learning nothing, accuracy per digit: chance 10.2%"
    )
    figures = draw_figures(entry, 16)
    maps = [axes.get_title() for axes in figures["passkey-grid"].axes[:2]]
    assert maps == ["exact match", "accuracy per digit"]
    legend = figures["passkey-by-length"].axes[0].get_legend()
    assert {text.get_text() for text in legend.get_texts()} == {
        "exact match",
        "accuracy per digit",
        "training length",
        "chance, exact match 1 in 90,000",
        "chance, accuracy per digit 10.2%",
    }
    single = copy.deepcopy(entry)
    [result, *_] = single["results"] = single["results"][:1]
    result["groups"] = {"depth": [{"value": depth, **result} for depth in (0.0, 0.5)]}
    bars = draw_figures(single, 16)["passkey-by-depth"].axes[0]
    heights = [bar.get_height() for bar in bars.patches]
    assert heights == [result[share]["share"] for share in ("exact", "exact", "targets", "targets")]
    legend = bars.get_legend()
    assert [text.get_text() for text in legend.get_texts() if "chance" not in text.get_text()] == [
        "exact match",
        "accuracy per digit",
    ]
    older = copy.deepcopy(entry)
    del older["target"]
    for result in older["results"]:
        del result["reference_exact"], result["reset"]
    assert {table.title: table.caption for table in tables(older)} == {
        "exact match, 95 % interval": "",
        "accuracy per target, 95 % interval": "learning nothing: chance 10.2%",
    }
    legend = draw_figures(older, 16)["passkey-by-length"].axes[0].get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    assert [label for label in labels if "chance" in label] == ["chance, accuracy per target 10.2%"]


def test_groups_add_up_to_all_samples(tmp_path: Path) -> None:
    words = ["task=listops", "task.min_length=5", "task.max_length=20", "task.max_depth=3", "task.samples=40"]
    train(compose([*words, "task.eval_samples=30", "model=rmt", "size=nano", "steps=2"]), tmp_path)
    [result] = evaluate(tmp_path)["results"]
    assert result["axes"] == {}
    assert result["samples"] == 30
    assert set(result["groups"]) == {"root", "length"}
    for members in result["groups"].values():
        assert sum(member["exact"]["of"] for member in members) == 30
        assert sum(member["exact"]["hits"] for member in members) == result["exact"]["hits"]
    starts = [int(member["value"].partition("-")[0]) for member in result["groups"]["length"]]
    assert starts == sorted(starts)
    # lists are cut from one stream, of which the first 60 are held out
    [smaller] = evaluate(tmp_path, EvalOptions(overrides=("task.eval_samples=25",)))["results"]
    assert smaller["samples"] == 25
    for setting, count in (("eval_samples=90", "30 of the 90"), ("min_length=14", r"[1-9]\d* of the 30")):
        with pytest.raises(UserError, match=f"the run trained on {count} test samples"):
            evaluate(tmp_path, EvalOptions(overrides=(f"task.{setting}",)))
