"""What the rules of DeltaMixer do with a key that is written twice."""

import pytest
import torch

from zoo.memory.fast_weights.delta_mixer import DeltaMixer, Rule
from zoo.memory.fast_weights.recurrence import fast_weights


@pytest.mark.parametrize(("rule", "expected"), [("delta", [0.0, 5.0]), ("additive", [3.0, 5.0])])
def test_a_key_written_twice(rule: Rule, expected: list[float]) -> None:
    """With strength 1 the delta rule keeps the second value, the additive one the sum of both."""
    mixer = DeltaMixer(4, 1, rule=rule, head_dim=2, value_dim=2, conv_size=0).double()
    qkv = torch.tensor([[[0.0, 0, 1, 0, 3, 0], [1, 0, 1, 0, 0, 5]]], dtype=torch.float64)
    strong = torch.full((1, 2, 1), 50.0, dtype=torch.float64)
    inputs = mixer.recurrence_inputs(qkv, strong, None, mixer.init_state(1).matrix)
    o, _ = fast_weights(inputs)
    assert o[0, 1, 0].mul(2**0.5).tolist() == pytest.approx(expected, abs=1e-5)
