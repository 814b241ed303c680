"""The linear recurrence of a matrix of fast weights: additive, delta and general rule.

Per row and head a state S (K, V), log decays g_t <= 0 per channel (K of them) or one per head:

    u_t = S_{t-1}^T a_t                                       the value stored at a_t, before it decays
    S_t = diag(exp g_t) S_{t-1} + k_t v_t^T                   additive rule
    S_t = diag(exp g_t) S_{t-1} + beta_t k_t (v_t - u_t)^T    delta rule (a strength beta), a = exp(g) k
    S_t = diag(exp g_t) S_{t-1} + k_t v_t^T + b_t u_t^T       general rule (a and b)
    o_t = S_t^T q_t        or, with a bonus u:        o_t = (S_{t-1} + (u * k_t) v_t^T)^T q_t

Linear attention: Katharopoulos et al. 2020, arXiv:2006.16236; decays: Yang et al. 2023, arXiv:2312.06635;
delta rule: Schlag et al. 2021, arXiv:2102.11174, in chunks Yang et al. 2024, arXiv:2406.06484, with decays
arXiv:2412.06464; bonus and general rule: Peng et al. 2024, arXiv:2404.05892, and 2025, arXiv:2503.14456.

| system | g | k | a | b | q | |
|---|---|---|---|---|---|---|
| linear attention | none | phi(k) | | | phi(q) | values [v, 1] |
| RetNet, Lightning, Mamba-2 | per head | k | | | q | |
| GLA, HGRN2 | per channel | k | | | q | |
| RWKV-6 | per channel | k | | | r | bonus |
| DeltaNet | none | k | | | q | strength beta |
| Gated DeltaNet, KDA | per head, per channel | k | | | q | strength beta |
| RWKV-7 | per channel | k | -kk | kk * a | r | |

The chunked form divides by no decay and subtracts no sum of log decays (see `decays.py`): nothing overflows,
and g = -inf, which forgets, is exact.

Carried: S.
Differs from the papers: how the chunks' products of decays are computed.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.memory.fast_weights import fla_kernels
from zoo.memory.fast_weights.decays import Decayed, decayed_products
from zoo.memory.fast_weights.inputs import Inputs, Output
from zoo.memory.mixer import no_autocast

Backend = Literal["torch", "fla"]


def fast_weights_loop(inputs: Inputs) -> Output:
    """The definition, token by token: o, and S after the last token."""
    inputs = inputs.without_strength()
    S, bonus = inputs.state, inputs.bonus
    # gradients of T slices would be T tensors of T tokens
    q, k, v = (x.unbind(1) for x in inputs[:3])
    g, a, b = (None if x is None else x.unbind(1) for x in (inputs.g, inputs.a, inputs.b))
    outputs = []
    for t in range(len(q)):
        before, write = S, v[t]
        S = S if g is None else g[t][..., None].exp() * S
        if a is not None:
            u = torch.einsum("rhkv,rhk->rhv", before, a[t])
            if b is None:
                write = write - u
            else:
                S = S + b[t][..., None] * u[:, :, None]
        S = S + k[t][..., None] * write[:, :, None]
        visible = S if bonus is None else before + (bonus * k[t])[..., None] * write[:, :, None]
        outputs.append(torch.einsum("rhkv,rhk->rhv", visible, q[t]))
    return torch.stack(outputs, dim=1), S


def fast_weights(inputs: Inputs, *, chunk_size: int = 32, backend: Backend = "torch") -> Output:
    """`fast_weights_loop` in chunks of `chunk_size` tokens, a power of two, which affects only speed and
    memory.  Everything is computed in the state's dtype, also under autocast.

    `backend` fla: by the kernels of flash-linear-attention, in chunks and dtypes of their own
    (`fla_kernels.py`).
    """
    inputs.check()
    if chunk_size < 1 or chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size must be a power of two, not {chunk_size}")
    if backend == "fla":
        return fla_kernels.fast_weights(inputs, fla_kernels.product_dtype(inputs.state))
    dtype = inputs.state.dtype
    with no_autocast(inputs.q):
        parts: list[Any] = [None if part is None else part.to(dtype) for part in inputs]
        inputs = Inputs(*parts)
        if inputs.q.shape[1] == 1:
            return fast_weights_loop(inputs)
        inputs = inputs.without_strength()
        return _chunked(inputs, min(chunk_size, 1 << (inputs.q.shape[1] - 1).bit_length()))


class Recurrence(nn.Module):
    """`fast_weights` with a mixer's `chunk_size` and `backend`.

    UserError if the backend's package is missing: when a model is built, not at its first batch.
    """

    def __init__(self, chunk_size: int, backend: Backend) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.backend: Backend = backend
        if backend == "fla":
            fla_kernels.load_fla()

    def forward(self, inputs: Inputs) -> Output:
        return fast_weights(inputs, chunk_size=self.chunk_size, backend=self.backend)

    def device_note(self, device: torch.device) -> str:
        """What a run on this device says of its backend."""
        return f"backend fla: {fla_kernels.STATUS}" if self.backend == "fla" else ""


def _chunked(inputs: Inputs, chunk_size: int) -> Output:
    """A token that pads the last chunk has k = b = 0 and g = 0, which changes nothing."""
    q, k, v, g, S, a, b, bonus, _ = inputs
    rows, time, heads, _ = k.shape
    padding = -time % chunk_size

    def cut(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, padding)) if padding else x
        return rearrange(x, "r (c t) h k -> (c r h) t k", t=chunk_size)

    reads = {"q": cut(q)} if a is None else {"q": cut(q), "a": cut(a)}
    writes = {"k": cut(k)} if b is None else {"k": cut(k), "b": cut(b)}
    decayed = decayed_products(None if g is None else cut(g), reads, writes, after=bonus is None)
    o, S = _between_chunks(decayed, cut(v), S.flatten(0, 1))
    o = rearrange(o, "(c r h) t v -> r (c t) h v", r=rows, h=heads)[:, :time]
    if bonus is not None:
        o = torch.addcmul(o, (q * bonus * k).sum(-1, keepdim=True), v)
    return o, S.unflatten(0, (rows, heads))


def _between_chunks(decayed: Decayed, v: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """o of all tokens and the last state, from the state before the first chunk.

    Inside a chunk u depends on the u of earlier tokens, by a triangular system whose solution is linear in
    the chunk's initial state S: u = W_v + W_a S.  In the delta rule the same holds for w = v - u.
    """
    A, reads, writes, decay = decayed
    if "a" not in reads:
        initial, S, _ = _States.apply(S, decay, writes["k"].mT @ v, None, None)
        return torch.baddbmm(reads["q"] @ initial, A["qk"], v), S
    if "b" not in writes:
        W = _solve(A["ak"], torch.cat([v, -reads["a"]], dim=-1))
        initial, S, w = _States.apply(S, decay, None, W, writes["k"])
        return torch.baddbmm(reads["q"] @ initial, A["qk"], w), S
    W = _solve(-A["ab"], torch.cat([A["ak"] @ v, reads["a"]], dim=-1))
    initial, S, u = _States.apply(S, decay, writes["k"].mT @ v, W, writes["b"])
    o = torch.baddbmm(reads["q"] @ initial, A["qk"], v)
    return torch.baddbmm(o, A["qb"], u), S


def _solve(A: Tensor, B: Tensor) -> Tensor:
    """(I + A)^-1 B for a strictly lower triangular A."""
    return torch.linalg.solve_triangular(A, B, upper=False, unitriangular=True)


class _States(torch.autograd.Function):
    """The state before every chunk n, the state after the last one, and u of every chunk:

        u_n = W_v + W_a S_n        S_{n+1} = diag(d_n) S_n + F_n + Y_n^T u_n        with W = [W_v | W_a]

    without decay if d is None, without F or without u where these are None.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        S: Float[Tensor, "lanes channels value_dim"],
        d: Float[Tensor, "chunks_lanes decays"] | None,
        F: Float[Tensor, "chunks_lanes channels value_dim"] | None,
        W: Float[Tensor, "chunks_lanes tokens value_dim_and_channels"] | None,
        Y: Float[Tensor, "chunks_lanes tokens channels"] | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        lanes, _, value_dim = S.shape
        d_n, F_n, W_n, Y_n = (_by_chunk(x, lanes) for x in (d, F, W, Y))
        chunks = len(W_n if F_n is None else F_n)
        states = S.new_empty(chunks, *S.shape)
        u = None if W_n is None else W_n.new_empty(*W_n.shape[:-1], value_dim)
        for n in range(chunks):
            states[n] = S
            S = S.clone() if d_n is None else d_n[n, ..., None] * S
            if F_n is not None:
                S += F_n[n]
            if u is not None:
                torch.baddbmm(W_n[n, ..., :value_dim], W_n[n, ..., value_dim:], states[n], out=u[n])
                S.baddbmm_(Y_n[n].mT, u[n])
        ctx.save_for_backward(d, W, Y, states, u)
        ctx.has_F = F is not None
        return states.flatten(0, 1), S, None if u is None else u.flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, dstates: Tensor, dS: Tensor, du: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        d, W, Y, states, u = ctx.saved_tensors
        (chunks, lanes), value_dim = states.shape[:2], states.shape[-1]
        d_n, W_n, Y_n = (_by_chunk(x, lanes) for x in (d, W, Y))
        dstates = dstates.unflatten(0, (chunks, lanes))
        dafter = torch.empty_like(states)  # of the state after each chunk
        du = None if du is None else du.unflatten(0, (chunks, lanes)).clone()
        for n in reversed(range(chunks)):
            dafter[n] = dS
            dS = dstates[n] + (dS if d_n is None else d_n[n, ..., None] * dS)
            if du is not None:
                du[n].baddbmm_(Y_n[n], dafter[n])
                dS.baddbmm_(W_n[n, ..., value_dim:].mT, du[n])
        dd = dW = dY = None
        if d is not None:
            dd = (dafter * states).sum(-1).flatten(0, 1)
            dd = dd.sum(-1, keepdim=True) if d.shape[-1] == 1 else dd
        if du is not None:
            dW = torch.cat([du, du @ states.mT], dim=-1).flatten(0, 1)
            dY = (u @ dafter.mT).flatten(0, 1)
        return dS, dd, dafter.flatten(0, 1) if ctx.has_F else None, dW, dY


def _by_chunk(x: Any, lanes: int) -> Any:
    """A tensor with a separate axis of chunks; None stays None."""
    return None if x is None else x.unflatten(0, (-1, lanes))
