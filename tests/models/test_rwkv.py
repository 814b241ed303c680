"""RWKV-6 and RWKV-7 as wholes: laws for shapes that no config has, what one layer is, how they start."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws import law_cases
from tests.train.runs.test_import_published import published
from zoo.errors import UserError
from zoo.law_tools import perturbed
from zoo.models.published import rwkv
from zoo.models.rwkv6 import RWKV6
from zoo.models.rwkv7 import RWKV7
from zoo.state import nbytes

NANO: dict[str, Any] = {"vocab_size": 23, "segment_len": 8, "depth": 2, "width": 12, "head_dim": 4}
NANO |= {"mlp_width": 10}
RANKS: dict[str, Any] = {"decay_rank": 3, "strength_rank": 2, "value_rank": 5, "gate_rank": 4}
MODELS: dict[str, Callable[..., Any]] = {
    "rwkv6_one_head": partial(RWKV6, **NANO | {"head_dim": 12}, mix_rank=1, decay_rank=2, dropout=0.1),
    "rwkv7_one_layer": partial(RWKV7, **NANO | {"depth": 1}, **RANKS, tied=False, chunk_size=1),
    "rwkv7_heads_of_two": partial(RWKV7, **NANO | {"head_dim": 2}, **RANKS, dropout=0.1),
}
STREAMS = ("streaming", "memory_is_alive", "bounded_state", "parallel_equals_fold", "gradient_is_true")


@pytest.mark.parametrize("check", law_cases(MODELS, only=STREAMS))
def test_law(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("model", [RWKV6, partial(RWKV7, **RANKS)])
def test_bytes_of_state(model: Callable[..., Any]) -> None:
    """Per layer 3 heads of 4 x 4, and two inputs of 12."""
    assert nbytes(model(**NANO).init_state(3)) == 3 * 2 * (3 * 4 * 4 + 2 * 12) * 4


@torch.no_grad()
def test_one_layer_reads_the_first_layer_s_values() -> None:
    """The first layer's values reach the second layer's output alone, and only in RWKV-7."""
    model = perturbed(partial(RWKV7, **NANO, **RANKS)).eval()
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    block, state = model.stack[1], model.init_state(2)[1]
    values = [torch.zeros_like(x), torch.ones_like(x)]
    results = [block(x, state, v_first)[0] for v_first in values]
    assert (results[0] - results[1]).abs().max() > 1e-3
    first = model.stack[0]
    assert len(first(x, model.init_state(2)[0])) == 3
    assert model.stack[0].time_mix.value is None


@torch.no_grad()
def test_at_first_channels_of_long_and_short_memory() -> None:
    """The decay's bias rises over the heads, low ranks give nothing yet, and v_first counts two thirds."""
    torch.manual_seed(0)
    model = RWKV7(**NANO | {"width": 64, "head_dim": 16, "depth": 3}, **RANKS)
    for layer, block in enumerate(model.stack):
        mix: Any = block.time_mix
        assert not any(part.down.any() for part in (mix.decay, mix.strength, mix.gate))
        bias = mix.decay.bias.view(4, 16)
        assert (bias.mean(1).diff() > 0).all()
        assert bias[0, 0] == pytest.approx(-5.5 - 2.5)
        assert bias[-1, -1] == pytest.approx(-5.5 + 6 + 2.5)
        assert mix.mix[:, 0].equal(torch.ones(6))
        assert (mix.mix[2].diff() < 0).all()
        assert (mix.value is None) == (layer == 0)
    assert torch.sigmoid(model.stack[1].time_mix.value.bias).mean() == pytest.approx(0.675, abs=0.01)


def test_ranks_are_the_weights_unless_config_has_them() -> None:
    weights, config = published("rwkv/model_v7")
    without = {name: value for name, value in config.items() if name != "lora"}
    model: Any = rwkv.load(dict(weights), without)
    assert model.stack[1].time_mix.value.down.shape == (8, 5)
    for lora in ([3, 2, 5], [3, 2, 5, 0], 3):
        with pytest.raises(UserError, match="lora"):
            rwkv.load(dict(weights), config | {"lora": lora})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 4}, "expected version 6 or 7, found 4"),
        ({"version": 6}, "time_maa_w1"),
        ({"dim_att": 16}, "dim_att 8, the only one supported, found 16"),
        ({"head_size": 3}, "width 8 is not a multiple of head_dim 3"),
        ({"n_layer": 3}, r"expected blocks\.2\.\S+ \[.*\], found none"),
    ],
)
def test_other_shapes_are_refused(fields: dict[str, Any], message: str) -> None:
    weights, config = published("rwkv/model_v7")
    with pytest.raises((UserError, KeyError), match=message):
        rwkv.load(dict(weights), config | fields)


@torch.no_grad()
def test_without_memory_only_the_token_shifts_look_back() -> None:
    """With values of zero S stays empty: one layer reads two tokens back, one by each mix."""
    model = perturbed(partial(RWKV6, **NANO | {"depth": 1})).eval()
    model.stack[0].time_mix.v.weight.zero_()
    text = torch.randint(23, (1, 6), generator=torch.Generator().manual_seed(1))

    def last(tokens: Tensor) -> Tensor:
        logits: Tensor = model(tokens)[0][:, -1]
        return logits

    other = (text + 1) % 23
    near, far = (torch.cat([other[:, :n], text[:, n:]], dim=1) for n in (4, 3))
    assert (last(near) - last(text)).abs().max() > 1e-3
    torch.testing.assert_close(last(far), last(text))
