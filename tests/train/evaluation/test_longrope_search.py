"""LongRoPE's search (benchmarks/longrope_search.py) on a run that was trained for a short while."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import ROOT, Workspace
from zoo.train.runs.load import load_trained

CONTEXT, TRAINED = 64, 16


def load_search() -> Any:
    spec = importlib.util.spec_from_file_location("longrope_search", ROOT / "benchmarks/longrope_search.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def loss_of_last(texts: list[bytes], *overrides: str) -> float:
    """Nats of the last 16 of the first 64 bytes of every text; after symbol 256."""
    model = load_trained(Path("run"), overrides=(f"model.segment_len={CONTEXT}", *overrides))[1].cpu()
    nats = []
    for text in texts:
        symbols = torch.tensor([256, *text])[: CONTEXT + 1]
        log_p = model(symbols[None, :-1])[0][0].log_softmax(-1)
        nats.append(-log_p.gather(1, symbols[1:, None])[-TRAINED:].mean().item())
    return sum(nats) / len(nats)


@pytest.mark.slow
def test_the_factors_read_further_than_plain_positions(
    zoo: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("model=transformer", "data.seq_len=16", "steps=150", "val_every=150", "checkpoint_every=150")
    assert zoo.run(*words, "optim.lr=0.01").code == 0
    search = load_search()
    search.main(Path("run"), CONTEXT)
    out = capsys.readouterr().out
    numbers = re.search(r"started at ([\d.]+) nats, found ([\d.]+) in (\d+) evaluations", out)
    factors = re.search(r"model\.position\.long=\[(.*)\]", out)
    assert numbers is not None
    assert factors is not None
    long = [float(factor) for factor in factors[1].split(",")]
    assert long == sorted(long)
    assert long[0] >= 1
    texts = [path.read_bytes() for path in sorted(Path("text/val").iterdir())]
    plain = loss_of_last(texts)
    scaling = ("model.position.scaling=longrope", "model.position.attention_factor=1.0")
    searched = loss_of_last(texts, *scaling, f"model.position.long={long}")
    print(plain, searched, numbers[0])
    assert searched == pytest.approx(float(numbers[2]), abs=2e-4)
    assert searched <= float(numbers[1]) + 1e-4
    assert searched <= plain + 1e-4
