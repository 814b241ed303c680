"""Commands called in this process, and the comparison of two models."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.train.conftest import Completed, Workspace
from zoo.law_tools import random_text
from zoo.module import SequenceModule


def call(
    zoo: Workspace, capsys: pytest.CaptureFixture[str], main: Callable[[], None], *words: str
) -> Completed:
    code: Any = 0
    with zoo.monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["zoo", *words])
        try:
            main()
        except SystemExit as left:
            code = left.code
    captured = capsys.readouterr()
    return Completed(code, captured.out, captured.err)


def refused(ended: Completed) -> str:
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    return ended.err


@torch.no_grad()
def assert_same(first: SequenceModule, second: SequenceModule) -> None:
    text = random_text(first)
    assert torch.equal(first(text)[0], second(text)[0])
