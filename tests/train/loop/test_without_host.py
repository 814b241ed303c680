"""A training step, in Lightning's loop with all our callbacks, reads no value back from the device."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.contract.test_contract import MODELS

ROOT = Path(__file__).parents[3]
aten = torch.ops.aten
SIZED_BY_VALUES = {  # the size of what they return is known to the device alone
    aten.nonzero,
    aten.masked_select,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.argwhere,
}
RETURN_TO_PYTHON = {aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.item}
READ_BY_NAME = {
    getattr(Tensor, name): name
    for name in ("tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")
}

ALLOWED = {
    "train/loop/gradients.py:__init__": "host memory to which the device will copy a flag",
}
"""{file:function: why it reads}"""
ALLOWED_ON_CPU = {
    "memory/retrieval/search.py:_largest": "whether scores tie; else every query pays for ties",
    "memory/retrieval/ring_buffer.py:gather_rings": "which blocks are read; else all are",
}
"""Reads of values that lie in the host's memory (zoo.host.is_readable)."""


def call_site() -> str:
    """The innermost function of the zoo, or else of Lightning, that is running."""
    frame, found = sys._getframe(1), ""
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT)) and "/tests/" not in path and "/.venv/" not in path:
            return f"{path.removeprefix(str(ROOT)).lstrip('/')}:{frame.f_code.co_name}"
        if "/lightning/" in path and not found:
            found = f"lightning/{path.rpartition('/lightning/')[2]}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return found


class Operations(TorchDispatchMode):
    """Counts operations that wait for the device, by what calls them."""

    def __init__(self, reads: Counter[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        by_mask = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        repeats = func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        on_host = isinstance(kwargs.get("generator"), torch.Generator)
        if packet in SIZED_BY_VALUES | RETURN_TO_PYTHON or by_mask or repeats or on_host:
            self.reads[f"{call_site()} {packet.__name__}"] += 1
        return func(*args, **kwargs)


class Methods(TorchFunctionMode):
    """Counts methods that read a tensor into Python, by what calls them."""

    def __init__(self, reads: Counter[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READ_BY_NAME:
            self.reads[f"{call_site()} {READ_BY_NAME[func]}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def reads_counted() -> Iterator[Counter[str]]:
    reads: Counter[str] = Counter()
    with Operations(reads), Methods(reads):
        yield reads


def reads_of_steps(zoo: Any, *words: str) -> Counter[str]:
    """What is read from the start of step 2 to that of step 7, all in between two logging points."""
    stack, counted = ExitStack(), []

    def start(*_: Any) -> None:
        counted.append(stack.enter_context(reads_counted()))

    def stop(*_: Any) -> None:
        stack.close()

    callbacks = [zoo.AtStep("on_train_batch_start", 2, start), zoo.AtStep("on_train_batch_start", 7, stop)]
    settings = ("steps=8", "val_every=8", "checkpoint_every=8", "trainer.log_every=8")
    if not any(word.startswith("data.seq_len=") for word in words):
        settings += ("data.seq_len=32",)
    ended = zoo.run(*settings, *words, callbacks=callbacks)
    assert ended.code == 0, ended.err
    return counted[0]


def not_allowed(reads: Counter[str], allowed: dict[str, str]) -> dict[str, int]:
    return {read: count for read, count in reads.items() if read.split(" ")[0] not in allowed}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_reads_nothing_back(zoo: Any, name: str) -> None:
    reads = reads_of_steps(zoo, f"model={name}")
    assert not not_allowed(reads, ALLOWED | ALLOWED_ON_CPU)


SETTINGS = {
    "memorizing": ("model=memorizing",),
    "unlimiformer": ("model=unlimiformer", "model.retrieval_training=true"),
    "megalodon": ("model=megalodon", "data.seq_len=16"),
    "accumulated": ("model=rmt", "trainer.accumulate=2", "model.dropout=0.1"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_on_a_device_reads_nothing_back(zoo: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As there, no value counts as one in the host's memory."""
    monkeypatch.setattr("zoo.host.READABLE_DEVICES", ())
    assert not not_allowed(reads_of_steps(zoo, *SETTINGS[name]), ALLOWED)


RECALL = ("model=rmt", "task=recall", "task.length=32", "task.samples=60", "task.eval_samples=8", "optim=wsd")


@pytest.mark.parametrize(("every", "reads"), [(50, {}), (4, {"train/loop/curriculum.py:_collect tolist": 1})])
def test_a_curriculum_reads_where_its_gate_measures(zoo: Any, every: int, reads: dict[str, int]) -> None:
    """Once in `every` steps of a stage; here after step 4, of 2 to 7."""
    words = (
        "data.curriculum.segments=[1,2]",
        "data.curriculum.patience=50",
        f"data.curriculum.every={every}",
    )
    counted = not_allowed(reads_of_steps(zoo, *RECALL, *words), ALLOWED | ALLOWED_ON_CPU)
    assert {read: count for read, count in counted.items() if " _" not in read} == reads
    assert {read.split(" ")[0] for read in counted} == {read.split(" ")[0] for read in reads}


def test_what_waits_is_counted() -> None:
    x, mask = torch.ones(3), torch.tensor([True, False, True])
    waits = {
        "item": lambda: x[0].item(),
        "tolist": x.tolist,
        "bool": lambda: bool(mask.all()),
        "int": lambda: int(x[0]),
        "float": lambda: float(x[0]),
        "range": lambda: range(torch.tensor(2)),
        "nonzero": mask.nonzero,
        "mask": lambda: x[mask],
        "masked assignment": lambda: x.__setitem__(mask, torch.zeros(2)),
        "unique": x.unique,
        "equal": lambda: torch.equal(x, x),
        "numpy": x.numpy,
        "generator": lambda: torch.rand(2, generator=torch.Generator()),
        "repeats": lambda: x.repeat_interleave(mask.long()),
    }
    for name, wait in waits.items():
        with reads_counted() as reads:
            wait()
        assert reads, name
    with reads_counted() as reads:
        torch.where(mask, x, 0).cumsum(0)[1:].add_(torch.rand(2)).sum()
        x[torch.tensor([0, 2])]
    assert not reads
