"""What models pass to the attention kernel: a mask shuts out the kernels that skip later keys, and repeated
keys cost memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.train.runs.test_build import MODELS
from zoo.memory.attention.positions import Positions, Rope
from zoo.memory.attention.rotary import rotary_table
from zoo.train.runs import build
from zoo.train.runs.config import compose

WITH_MASK = {
    "griffin": "a window with fresh rows",
    "samba": "a window with fresh rows",
    "jamba": "a window with fresh rows",
    "mamba2_hybrid": "a window with fresh rows",
    "gated_deltanet_hybrid": "a window with fresh rows",
    "focused": "contexts that aren't filled",
    "based": "a window with fresh rows",
    "sliding_window": "a window with fresh rows, and sinks",
}
WITHOUT_KERNEL = {
    "mamba": "no attention",
    "mamba2": "no attention",
    "gla": "no attention",
    "deltanet": "no attention",
    "gated_deltanet": "no attention",
    "kda": "no attention",
    "retnet": "no attention",
    "hgrn2": "no attention",
    "lightning": "no attention",
    "linear_transformer": "no softmax",
    "performer": "no softmax",
    "rwkv6": "no attention",
    "rwkv7": "no attention",
    "mlstm": "no attention",
    "xlstm_7b": "no attention",
    "lstm": "no attention",
    "gru": "no attention",
    "transformer_xl": "scores that depend on distances",
    "rmt_xl": "scores that depend on distances",
    "landmark": "a softmax in groups",
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every call of the attention kernel: its keyword arguments, and the heads of queries and keys."""
    recorded: list[dict[str, Any]] = []
    attention = F.scaled_dot_product_attention

    def spy(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *args: Any, **options: Any
    ) -> Tensor:
        recorded.append({"mask": attn_mask, "heads": q.shape[1], "kv_heads": k.shape[1], **options})
        return attention(q, k, v, attn_mask, *args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return recorded


@pytest.mark.parametrize("name", MODELS)
def test_which_models_pass_a_mask(calls: list[dict[str, Any]], name: str) -> None:
    model = build.model(compose([f"model={name}", "size=nano"])).train()
    state = None
    for _ in range(2):
        _, state = model(torch.zeros(2, 2 * model.segment_len, dtype=torch.long), state)
    assert bool(calls) == (name not in WITHOUT_KERNEL)
    masked = [call for call in calls if call["mask"] is not None]
    assert bool(masked) == (name in WITH_MASK)
    assert all(call["is_causal"] for call in calls if call["mask"] is None)


def test_grouped_keys_are_not_repeated(calls: list[dict[str, Any]]) -> None:
    cfg = compose(["model=transformer", "size=nano", "+model.kv_heads=1"])
    model = build.model(cfg)
    model(torch.zeros(2, model.segment_len, dtype=torch.long))
    assert {(call["heads"], call["kv_heads"]) for call in calls} == {(cfg.model.heads, 1)}


def test_attention_without_a_mask_is_that_with_the_causal_one() -> None:
    q, k, v = (torch.randn(2, heads, 9, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    for kind in (Positions(), Rope()):
        positions = torch.arange(9)
        mask = positions[:, None] >= positions
        outputs = [kind.attend(q, k, v, positions, positions, passed) for passed in (None, mask)]
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-14)
        gradients = [torch.autograd.grad(y.square().sum(), (q, k, v)) for y in outputs]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)


def test_a_range_of_positions_rotates_as_its_tensor_does() -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    for positions in (range(5), range(1000, 1005)):
        expected = Rope().rotate(x, torch.tensor(positions))
        torch.testing.assert_close(Rope().rotate(x, positions), expected, rtol=0, atol=1e-12)


def test_angles_stay_exact_far_into_a_text() -> None:
    """In float32 the angle of position 10^6 would be wrong by 0.03."""
    far, device = range(1_000_000, 1_000_001), torch.device("cpu")
    cos, sin = rotary_table(far, 4, 10000.0, device, torch.float32)
    exact = 1e6 * 10000.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    assert (cos[0] - exact.cos()).abs().max() < 1e-7
    assert (sin[0] - exact.sin()).abs().max() < 1e-7


def test_a_table_made_in_inference_serves_training_afterwards() -> None:
    x = torch.randn(1, 1, 77, 8, requires_grad=True)
    with torch.inference_mode():
        Rope(base=777.0).rotate(x, range(77))
    Rope(base=777.0).rotate(x, range(77)).sum().backward()
    assert x.grad is not None
