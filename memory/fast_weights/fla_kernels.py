"""Kernels of flash-linear-attention in place of the zoo's chunked form, where a configuration requests them:
`backend: fla`.

Yang & Zhang 2024, github.com/fla-org/flash-linear-attention, package fla-core.  All take an initial state
and return the final one, with gradients through both of them:

| rule | decay | function of fla.ops |
|---|---|---|
| additive | none, per head | chunk_simple_gla |
| additive | per channel | chunk_gla |
| bonus | any | chunk_rwkv6 |
| delta | none | chunk_delta_rule; in float32, which it refuses, chunk_gated_delta_rule with g = 0 |
| delta | per head | chunk_gated_delta_rule |
| delta | per channel | chunk_kda |
| general | any | chunk_dplr_delta_rule |

Differs from the zoo's form: decays inside a chunk are differences of cumulative sums, so that g must be
finite and strong decays cost digits; products are in TF32 or 16 bits; kernels choose their own chunks.
"""

from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.memory.fast_weights.inputs import Inputs, Output
from zoo.memory.kernel_packages import require, require_gpu
from zoo.memory.mixer import no_autocast

PACKAGE = "fla-core"
STATUS = "interpreted in tests, never run on a GPU yet: compare with model.backend=torch"
MOST_CHANNELS = 256  # of a key, where a kernel holds all of them at once


def load_fla() -> Any:
    """Its functions.  UserError if the package is missing."""
    return require(PACKAGE, "fla.ops")


def product_dtype(state: Tensor) -> torch.dtype:
    """What the kernels multiply in: bfloat16 under its autocast, otherwise the dtype of the state.  Not
    float16, whose range is too small for states."""
    device = state.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16:
        return torch.bfloat16
    return state.dtype


def fast_weights(inputs: Inputs, dtype: torch.dtype) -> Output:
    """`recurrence.fast_weights` by the kernel of its rule, of vectors in `dtype`; decays and states are in
    float32.  The results have the dtype of the initial state.

    UserError for a missing package, a device, dtype or head size that the kernel doesn't take.
    """
    ops = load_fla()
    require_gpu(PACKAGE, inputs.state, triton=True)
    check_head_sizes(inputs, dtype)
    with no_autocast(inputs.q):
        q, k, v = (part.to(dtype) for part in inputs[:3])
        g = None if inputs.g is None else inputs.g.float()
        options = {
            "scale": 1.0,
            "initial_state": inputs.state.float().contiguous(),
            "output_final_state": True,
        }
        if inputs.b is not None and inputs.a is not None:
            a, b = inputs.a.to(dtype), inputs.b.to(dtype)
            o, state = ops.chunk_dplr_delta_rule(q, k, v, a, b, per_channel(g, q), **options)
        elif inputs.bonus is not None:
            bonus = inputs.bonus.to(dtype)
            o, state = ops.chunk_rwkv6(q, k, v, per_channel(g, q), bonus, **options)
        elif inputs.strength is not None:
            o, state = _delta(ops, q, k, v, g, inputs.strength.to(dtype).squeeze(-1), options)
        elif g is None or g.shape[-1] == 1 < k.shape[-1]:
            g = None if g is None else g.squeeze(-1)
            o, state = ops.chunk_simple_gla(q, k, v, g=g, **options)
        else:
            o, state = ops.chunk_gla(q, k, v, g, **options)
        return o.to(inputs.state.dtype), state.to(inputs.state.dtype)


def _delta(
    ops: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    if g is None and q.dtype != torch.float32:
        result = ops.chunk_delta_rule(q, k, v, beta, **options)
    elif g is None or g.shape[-1] == 1:
        g = torch.zeros_like(beta, dtype=torch.float32) if g is None else g.squeeze(-1)
        result = ops.chunk_gated_delta_rule(q, k, v, g, beta, **options)
    else:
        result = ops.chunk_kda(q, k, v, g, beta, **options)
    o, state = result
    return o, state


def per_channel(g: Tensor | None, q: Tensor) -> Tensor:
    """A log decay for each of q's channels."""
    return torch.zeros_like(q, dtype=torch.float32) if g is None else g.expand_as(q)


def check_head_sizes(inputs: Inputs, dtype: torch.dtype) -> None:
    """UserError for keys or values of a size that the rule's kernel doesn't take."""
    head_dim, value_dim = inputs.k.shape[-1], inputs.v.shape[-1]
    overwrites = inputs.b is not None or inputs.strength is not None
    if overwrites and head_dim > MOST_CHANNELS:
        raise UserError(
            f"backend: expected a head_dim of at most {MOST_CHANNELS} for the delta rules of {PACKAGE}, "
            f"found {head_dim}"
        )
    if dtype != torch.float32 and (head_dim % 2 or value_dim % 2):
        name = str(dtype).removeprefix("torch.")
        raise UserError(
            f"backend: expected an even head_dim and value_dim for the kernels of {PACKAGE} in {name}, "
            f"found {head_dim} and {value_dim}"
        )
