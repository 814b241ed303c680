"""mLSTM and xLSTM 7B: the cell against its loop, the model of transformers, shapes that no config has."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws import law_cases
from tests.train.runs.test_import_published import published
from zoo.errors import UserError
from zoo.memory.fast_weights.mlstm_cell import MLSTMInputs, MLSTMState, mlstm, mlstm_loop
from zoo.models.mlstm import MLSTM
from zoo.models.published import xlstm
from zoo.models.xlstm_7b import XLSTM7B
from zoo.state import nbytes

NANO: dict[str, Any] = {"vocab_size": 23, "segment_len": 8, "depth": 2, "width": 12, "heads": 2}
MODELS: dict[str, Callable[..., Any]] = {
    "mlstm_one_head": partial(
        MLSTM, **NANO | {"heads": 1}, channels=7, block_size=7, conv_size=1, mlp_width=5
    ),
    "xlstm_uncapped": partial(
        XLSTM7B,
        **NANO,
        key_width=4,
        value_width=10,
        mlp_width=9,
        gate_cap=None,
        logit_cap=None,
        input_gate_bias=0.0,
        dropout=0.1,
    ),
}
STREAMS = ("streaming", "memory_is_alive", "bounded_state", "parallel_equals_fold", "gradient_is_true")


@pytest.mark.parametrize("check", law_cases(MODELS, only=STREAMS))
def test_law(check: Callable[[], None]) -> None:
    check()


def test_logits_are_capped_by_logit_cap_alone() -> None:
    options = {**NANO, "key_width": 4, "value_width": 10, "mlp_width": 9, "input_gate_bias": 0.0}
    logits = {}
    for cap in (None, 0.5):
        torch.manual_seed(0)
        model = XLSTM7B(**options, logit_cap=cap).eval()
        logits[cap], _ = model(torch.arange(8)[None])
    torch.testing.assert_close(logits[0.5], 0.5 * (logits[None] / 0.5).tanh())
    XLSTM7B(**options, soft_cap=None)
    with pytest.raises(ValueError, match="soft_cap: expected none, as logit_cap caps the logits, found 5"):
        XLSTM7B(**options, soft_cap=5.0)
    with pytest.raises(ValueError, match="logit_cap must be above 0, not 0"):
        XLSTM7B(**options, logit_cap=0.0)


def test_bytes_of_state() -> None:
    """Channels are rounded up to a multiple of heads and blocks: 12 of 9, two heads of 6, three taps."""
    assert nbytes(MLSTM(**NANO, channels=9).init_state(3)) == 3 * 2 * (2 * 6 * 6 + 2 * 6 + 2 + 3 * 12) * 4
    model = XLSTM7B(**NANO, key_width=4, value_width=10, mlp_width=9)
    assert nbytes(model.init_state(3)) == 3 * 2 * (2 * 2 * 5 + 2 * 2 + 2) * 4


def cell_inputs(time: int, gates: float, dtype: torch.dtype = torch.float64) -> MLSTMInputs:
    """`gates`: the standard deviation of both gates."""
    rng = torch.Generator().manual_seed(time)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    state = MLSTMState(draw(2, 3, 5, 4), draw(2, 3, 5), draw(2, 3))
    q, k, v = draw(2, time, 3, 5), draw(2, time, 3, 5), draw(2, time, 3, 4)
    return MLSTMInputs(q, k, v, gates * draw(2, time, 3), gates * draw(2, time, 3), state)


def read(form: Callable[..., Any], inputs: MLSTMInputs) -> list[Tensor]:
    """Outputs, state and all gradients."""
    leaves = [part.clone().requires_grad_() for part in (*inputs[:5], *inputs.state)]
    h, state = form(MLSTMInputs(*leaves[:5], MLSTMState(*leaves[5:])))
    results = [h, *state]
    loss = torch.stack(
        [(part * torch.arange(1, part.numel() + 1).view_as(part).sin()).sum() for part in results]
    )
    return [*results, *torch.autograd.grad(loss.sum(), leaves)]


@pytest.mark.parametrize("gates", [1.0, 30.0])
@pytest.mark.parametrize(("time", "chunk_size"), [(1, 32), (3, 1), (37, 8), (70, 32)])
def test_the_chunked_cell_equals_the_loop(time: int, chunk_size: int, gates: float) -> None:
    inputs = cell_inputs(time, gates)
    results = [read(form, inputs) for form in (partial(mlstm, chunk_size=chunk_size), mlstm_loop)]
    for ours, expected in zip(*results, strict=True):
        scale = max(1.0, float(expected.detach().abs().max()))
        torch.testing.assert_close(ours / scale, expected / scale, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("gates", [100.0, 1e4])
def test_no_gate_overflows(gates: float) -> None:
    """Input gates of exp(-300), which make exp(-m) too large for float32, forget gates that forget all."""
    inputs = cell_inputs(40, gates, torch.float32)
    inputs = inputs._replace(i=-inputs.i.abs(), f=-inputs.f.abs())
    for part in read(mlstm, inputs):
        assert part.isfinite().all()


def test_the_stabiliser_cancels_but_for_eps() -> None:
    """h of a state that is exp(-3) times as large, with m higher by 3."""
    inputs = cell_inputs(9, 1.0)
    state, share = inputs.state, math.exp(-3)
    shifted = MLSTMState(state.C * share, state.n * share, state.m + 3)
    ours, expected = (mlstm(inputs._replace(state=s), eps=0.0)[0] for s in (shifted, inputs.state))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_random_model_of_transformers() -> None:
    """Its logits, whole and continued from its state, in float32; the gates are drawn too."""
    import transformers

    torch.manual_seed(0)
    config = transformers.xLSTMConfig(
        vocab_size=37,
        hidden_size=128,
        num_hidden_layers=2,
        num_heads=4,
        ffn_round_up_to_multiple_of=16,
        autocast_kernel_dtype="float32",
        chunk_size=16,
    )
    theirs = transformers.xLSTMForCausalLM(config).eval()
    for name, weight in theirs.named_parameters():
        if "gate_preact" in name or "norm" in name:
            weight.add_(0.3 * torch.randn_like(weight))
    ours = xlstm.load(dict(theirs.state_dict()), config.to_dict()).eval()
    tokens = torch.randint(37, (2, 50))
    expected = theirs(tokens).logits
    logits, _ = ours(tokens)
    first, state = ours(tokens[:, :21])
    pieces = torch.cat([first, ours(tokens[:, 21:], state)[0]], dim=1)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pieces, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_bias": True}, "use_bias False, the only one supported"),
        ({"weight_mode": "fused"}, "weight_mode 'single', the only one supported"),
        ({"hidden_size": 9}, r"one embedding_dim, found \[8, 9\]"),
        ({"num_hidden_layers": 3}, r"one num_blocks, found \[2, 3\]"),
        ({"num_heads": 3}, "key_width 4 is not a multiple of heads 3"),
        ({"gate_soft_cap": 0}, "gate_soft_cap, a number above 0, found 0"),
        ({"qk_dim_factor": "half"}, "qk_dim_factor, a number above 0, found 'half'"),
        ({"add_out_norm": False}, r"none of backbone\.out_norm\.weight"),
    ],
)
def test_other_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    weights, config = published("xlstm/large_model")
    with pytest.raises(UserError, match=message):
        xlstm.load(weights, config | fields)
