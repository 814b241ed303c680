"""How long Mamba's states remember (benchmarks/time_constants.py), by hand."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.memory.state_space.selective_scan import ScanInputs
from zoo.models.mamba import Mamba

SCRIPT = Path(__file__).parents[3] / "benchmarks/time_constants.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("time_constants", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_texts_differ_in_the_answer_alone(script: Any) -> None:
    a, b = script.texts(3, 20, 16)
    assert a.shape == (3, 8 + 2 + 20 + 1)
    assert (a != b).nonzero().tolist() == [[row, 9] for row in range(3)]
    assert (a == 15).nonzero().tolist() == [[row, column] for row in range(3) for column in (8, 30)]
    assert b.max() == 15


def test_a_time_constant_is_one_over_the_rate_of_decay(script: Any) -> None:
    """With steps of 0.01 and A = -1, -4 a state has faded to 1/e after 100 and 25 tokens."""
    step = torch.full((1, 40, 2), math.log(math.expm1(0.01)))
    A = -torch.tensor([[1.0, 4.0]]).expand(2, 2)
    other = torch.zeros(1, 40, 1, 2)
    inputs = ScanInputs(step, step, A, other, other, torch.zeros(1, 2, 2), dt_bias=torch.zeros(2))
    torch.testing.assert_close(script.time_constants(inputs), torch.tensor([[100.0, 25.0]]).expand(2, 2))


def test_a_quantile_counts_weights(script: Any) -> None:
    values, weights = torch.tensor([30.0, 10.0, 20.0]), torch.tensor([1.0, 6.0, 3.0])
    assert [script.quantile(values, weights, share) for share in (0.1, 0.65, 0.95)] == [10, 20, 30]
    assert math.isnan(script.quantile(values, torch.zeros(3), 0.5))


def test_scans_are_those_of_every_layer_with_their_last_state(script: Any) -> None:
    torch.manual_seed(0)
    model = Mamba(16, 8, depth=2, width=8, channels=12).eval()
    tokens = torch.randint(16, (2, 24))
    with torch.no_grad():
        seen = script.scans(model, tokens)
        _, state = model(tokens)
    assert len(seen) == 2
    for (_, last), layer in zip(seen, state, strict=True):
        torch.testing.assert_close(last, layer.ssm)
