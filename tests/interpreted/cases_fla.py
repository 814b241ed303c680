"""Chunk functions of flash-linear-attention, interpreted, against their recurrences: what a `backend: fla` of
memory/fast_weights may rely on, in the layouts that it would pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.interpreted.compare import assert_same, draw, run
from tests.interpreted.interpreter import fla_function

ROWS, HEADS, WIDTH = 1, 2, 16


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = S_{t-1} + beta_t k_t (v_t - k_t S_{t-1})^T, o_t = q_t S_t / sqrt(d), token by token."""
    k, outputs = F.normalize(k, dim=-1), []
    for q_t, k_t, v_t, beta_t in zip(*(x.unbind(1) for x in (q, k, v, beta.sigmoid())), strict=True):
        error = v_t - torch.einsum("bhk,bhkv->bhv", k_t, state)
        state = state + torch.einsum("bh,bhk,bhv->bhkv", beta_t, k_t, error)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q_t, state) * WIDTH**-0.5)
    return torch.stack(outputs, dim=1), state


def chunk_delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    chunk = fla_function("delta_rule.chunk", "chunk_delta_rule")
    inputs = (x.half() for x in (q, F.normalize(k, dim=-1), v, beta.sigmoid()))
    y, after = chunk(*inputs, initial_state=state, output_final_state=True)
    return y, after


def gated(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """GLA: S_t = exp(g_t) S_{t-1} + k_t v_t^T, a decay per key channel."""
    outputs = []
    for q_t, k_t, v_t, g_t in zip(*(x.unbind(1) for x in (q, k, v, F.logsigmoid(g))), strict=True):
        state = g_t.exp()[..., None] * state + torch.einsum("bhk,bhv->bhkv", k_t, v_t)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q_t, state) * WIDTH**-0.5)
    return torch.stack(outputs, dim=1), state


def chunk_gated(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    chunk = fla_function("gla.chunk", "chunk_gla")
    inputs = (x.half() for x in (q, k, v))
    y, after = chunk(*inputs, g=F.logsigmoid(g), initial_state=state, output_final_state=True)
    return y, after


@pytest.mark.parametrize("time", [5, 70])
def test_the_delta_rule(time: int) -> None:
    shape = (ROWS, time, HEADS, WIDTH)
    tensors = draw(
        torch.float32, q=shape, k=shape, v=shape, beta=shape[:3], state=(ROWS, HEADS, WIDTH, WIDTH)
    )
    assert_same(run(chunk_delta_rule, tensors), run(delta_rule, tensors), 1e-2)


@pytest.mark.parametrize("time", [5, 70])
def test_gated_linear_attention(time: int) -> None:
    shape = (ROWS, time, HEADS, WIDTH)
    tensors = draw(torch.float32, q=shape, k=shape, v=shape, g=shape, state=(ROWS, HEADS, WIDTH, WIDTH))
    assert_same(run(chunk_gated, tensors), run(gated, tensors), 1e-2)
