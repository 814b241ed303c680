"""The mLSTM's cell: a matrix memory with exponential gates, and the stabiliser that keeps them finite.

Beck et al. 2024, arXiv:2405.04517, section 2.3; as in NX-AI/mlstm_kernels.  Per head, with i_t and f_t the
gates before their functions:

    m_t = max(logsigmoid(f_t) + m_{t-1}, i_t)
    C_t = exp(logsigmoid(f_t) + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k_t v_t^T     n_t: of k_t alone
    h_t = C_t^T q_t / (max(|n_t^T q_t|, exp(-m_t)) + eps)        with q scaled by K^-1/2

C and n are one linear recurrence of values [v, 1].  With G_t the sum of logsigmoid(f) up to t,

    M_t = max(m_0, max_{j <= t} (i_j - G_j))      m_t = M_t + G_t      log decay = M_{t-1} - M_t
    i_t - m_t = i_t - G_t - M_t

so that no decay is above 1 and none is a difference of large sums but M, which is taken in float64.

Carried: C, n and m, zeros at the start.
Differs from the paper: m starts at 0, and eps is added, as in the code.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from zoo.memory.fast_weights.inputs import Inputs
from zoo.memory.fast_weights.recurrence import fast_weights
from zoo.memory.mixer import float32_zeros, no_autocast

EPS = 1e-6


class MLSTMState(NamedTuple):
    C: Float[Tensor, "rows heads head_dim value_dim"]  # in float32 at least
    n: Float[Tensor, "rows heads head_dim"]
    m: Float[Tensor, "rows heads"]


class MLSTMInputs(NamedTuple):
    """The arguments of the cell.  Gradients go through all of them, the stabiliser included."""

    q: Float[Tensor, "rows time heads head_dim"]
    k: Float[Tensor, "rows time heads head_dim"]
    v: Float[Tensor, "rows time heads value_dim"]
    i: Float[Tensor, "rows time heads"]
    f: Float[Tensor, "rows time heads"]
    state: MLSTMState


Output = tuple[Float[Tensor, "rows time heads value_dim"], MLSTMState]


def empty_state(
    rows: int, heads: int, head_dim: int, value_dim: int, like: Float[Tensor, "*shape"]
) -> MLSTMState:
    """Zeros on the device of `like`, in float32 at least."""
    C = float32_zeros(like, rows, heads, head_dim, value_dim)
    n = float32_zeros(like, rows, heads, head_dim)
    return MLSTMState(C, n, float32_zeros(like, rows, heads))


def mlstm_loop(inputs: MLSTMInputs, *, eps: float = EPS) -> Output:
    """The definition, token by token: h, and the state after the last token."""
    q, k, v, i, f, (C, n, m) = inputs
    outputs = []
    for t in range(q.shape[1]):
        f_log = F.logsigmoid(f[:, t])
        m_new = torch.maximum(f_log + m, i[:, t])
        decay, write = (f_log + m - m_new).exp()[..., None], (i[:, t] - m_new).exp()[..., None]
        C = decay[..., None] * C + write[..., None] * k[:, t, :, :, None] * v[:, t, :, None]
        n, m = decay * n + write * k[:, t], m_new
        q_t = q[:, t] * q.shape[-1] ** -0.5
        numerator = torch.einsum("rhkv,rhk->rhv", C, q_t)
        dot = (n * q_t).sum(-1, keepdim=True)
        outputs.append(numerator / (torch.maximum(dot.abs(), (-m).exp()[..., None]) + eps))
    return torch.stack(outputs, dim=1), MLSTMState(C, n, m)


def mlstm(inputs: MLSTMInputs, *, chunk_size: int = 32, eps: float = EPS) -> Output:
    """`mlstm_loop` in chunks of `chunk_size` tokens, in the state's dtype, also under autocast."""
    C, n, m = inputs.state
    dtype = C.dtype
    with no_autocast(C):
        q, k, v = (part.to(dtype) for part in inputs[:3])
        G = F.logsigmoid(inputs.f.double()).cumsum(1)
        strength = inputs.i.double() - G
        M = torch.cat([m[:, None].double(), strength], dim=1).cummax(1).values
        m_all = (M[:, 1:] + G).to(dtype)
        g, write = (M[:, :-1] - M[:, 1:]).to(dtype), (strength - M[:, 1:]).to(dtype).exp()
        o, S = fast_weights(
            Inputs(
                q * q.shape[-1] ** -0.5,
                k * write[..., None],
                torch.cat([v, torch.ones_like(v[..., :1])], dim=-1),
                g[..., None],
                torch.cat([C, n[..., None]], dim=-1),
            ),
            chunk_size=chunk_size,
        )
        h = _normalised(o[..., :-1], o[..., -1:], m_all[..., None], eps)
        return h, MLSTMState(S[..., :-1], S[..., -1], m_all[:, -1])


def _normalised(numerator: Tensor, dot: Tensor, m: Tensor, eps: float) -> Tensor:
    """numerator / (max(|dot|, exp(-m)) + eps), both multiplied by exp(min(m, 0)): nothing overflows."""
    scale = m.clamp(max=0).exp()
    least = (-m.clamp(min=0)).exp()
    return scale * numerator / (torch.maximum(scale * dot.abs(), least) + eps * scale)
