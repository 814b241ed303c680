"""The layers of the hybrids by slow loops over one text.

No code is shared with the zoo.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Config = dict[str, Any]
Layer = tuple[Tensor, Callable[[int], Tensors]]  # what it says (time, width), what it carries after t tokens


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def softplus(x: Tensor) -> Tensor:
    return x.clamp(min=0) + (1 + (-x.abs()).exp()).log()


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def norm(x: Tensor, p: Tensors, name: str, eps: float) -> Tensor:
    if f"{name}.bias" not in p:
        return rms(x, p[f"{name}.weight"], eps)
    x = x - x.mean(-1, keepdim=True)
    return rms(x, p[f"{name}.weight"], eps) + p[f"{name}.bias"]


def linear(x: Tensor, p: Tensors, name: str) -> Tensor:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def before(x: Tensor, t: int, count: int) -> Tensor:
    """The last `count` of the first t rows, zeros where there were none."""
    rows = [x[s] if s >= 0 else torch.zeros_like(x[0]) for s in range(t - count, t)]
    return torch.stack(rows) if rows else x[:0]


def conv(x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    """`taps` (K, channels), the current token's last."""
    count = len(taps)
    y = torch.stack([(taps * before(x, t + 1, count)).sum(0) for t in range(len(x))])
    return y if bias is None else y + bias


def rotate(x: Tensor, position: int, base: float = 10000.0) -> Tensor:
    """Half-split rotary positions of one head's vector."""
    half, out = len(x) // 2, list(x)
    for i in range(half):
        angle = position * base ** (-i / half)
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return torch.stack(out)


def attend(
    q: Tensor, k: Tensor, v: Tensor, keys: int, rotated: int, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """q (time, heads, width), k and v (time, groups, width): each token sees `keys` of them, itself the last.
    Also the keys with their positions."""
    if rotated:
        q, k = (
            torch.stack(
                [
                    torch.stack([torch.cat([rotate(h[:rotated], t), h[rotated:]]) for h in x[t]])
                    for t in range(len(x))
                ]
            )
            for x in (q, k)
        )
    scale = q.shape[2] ** -0.5 if scale is None else scale
    outputs = []
    for t in range(len(q)):
        first, heads = max(0, t - keys + 1), []
        for h in range(q.shape[1]):
            group = h // (q.shape[1] // k.shape[1])
            weights = (k[first : t + 1, group] @ q[t, h] * scale).softmax(0)
            heads.append(weights @ v[first : t + 1, group])
        outputs.append(torch.cat(heads))
    return torch.stack(outputs), k


def last_keys(k: Tensor, v: Tensor, count: int) -> Callable[[int], Tensors]:
    return lambda t: {"attn_k": k[max(0, t - count) : t], "attn_v": v[max(0, t - count) : t]}


def mamba(x: Tensor, p: Tensors, name: str, eps: float | None = None) -> Layer:
    """Mamba-1; `eps` of Jamba's norms."""
    p = {n.removeprefix(name): w for n, w in p.items() if n.startswith(name)}
    channels, count = p["A_log"].shape
    rank = p["dt_proj.weight"].shape[1]
    both = linear(x, p, "in_proj")
    u, z = both[:, :channels], both[:, channels:]
    c = silu(conv(u, p["conv1d.weight"][:, 0].T, p.get("conv1d.bias")))
    selected = c @ p["x_proj.weight"].T
    low, write, read = selected[:, :rank], selected[:, rank : rank + count], selected[:, rank + count :]
    if eps is not None:
        low, write, read = (
            rms(part, p[f"{n}_layernorm.weight"], eps) for n, part in (("dt", low), ("b", write), ("c", read))
        )
    dt = softplus(low @ p["dt_proj.weight"].T + p["dt_proj.bias"])
    h, states, outputs = torch.zeros(channels, count, dtype=x.dtype), [], []
    for t in range(len(x)):
        decay = (dt[t][:, None] * -p["A_log"].exp()).exp()
        h = decay * h + (dt[t] * c[t])[:, None] * write[t]
        states.append(h)
        outputs.append((h @ read[t] + p["D"] * c[t]) * silu(z[t]))
    taps = p["conv1d.weight"].shape[2]
    y = linear(torch.stack(outputs), p, "out_proj")
    return y, lambda t: {"conv_state": before(u, t, taps).T, "ssm_state": states[t - 1]}


def mamba2(x: Tensor, p: Tensors, name: str, c: Config) -> Layer:
    p = {n.removeprefix(name): w for n, w in p.items() if n.startswith(name)}
    heads, groups, width, count = len(p["A_log"]), c.get("ngroups", 1), c["headdim"], c["d_state"]
    inner, rest = heads * width, p["out_proj.weight"].shape[1] - heads * width
    z0, x0, z, mixed, dt = linear(x, p, "in_proj").split(
        [rest, rest, inner, inner + 2 * groups * count, heads], 1
    )
    conved = silu(conv(mixed, p["conv1d.weight"][:, 0].T, p.get("conv1d.bias")))
    least, most = c.get("dt_limit") or (0.0, math.inf)
    dt = softplus(dt + p["dt_bias"]).clamp(least, most)
    skip = p["D"].view(heads, -1)
    S, states, outputs = torch.zeros(heads, width, count, dtype=x.dtype), [], []  # noqa: N806
    for t in range(len(x)):
        token = conved[t, :inner].view(heads, width)
        write, read = conved[t, inner:].view(2, groups, count)
        new, ys = [], []
        for h in range(heads):
            group = h // (heads // groups)
            decay = (dt[t, h] * -p["A_log"][h].exp()).exp()
            new.append(decay * S[h] + dt[t, h] * token[h][:, None] * write[group])
            ys.append(new[h] @ read[group] + skip[h] * token[h])
        S = torch.stack(new)  # noqa: N806
        states.append(S)
        y, gate = torch.cat(ys), silu(z[t])
        if not c.get("rmsnorm", True):
            y = y * gate
        elif c.get("norm_before_gate", False):
            y = rms(y.view(groups, -1), p["norm.weight"].view(groups, -1), 1e-5).flatten() * gate
        else:
            y = rms((y * gate).view(groups, -1), p["norm.weight"].view(groups, -1), 1e-5).flatten()
        outputs.append(torch.cat([silu(z0[t]) * x0[t], y]))
    taps = p["conv1d.weight"].shape[2]
    y = linear(torch.stack(outputs), p, "out_proj")
    return y, lambda t: {"conv_state": before(mixed, t, taps).T, "ssm_state": states[t - 1]}


def mha(x: Tensor, p: Tensors, name: str, c: Config) -> Layer:
    """mamba_ssm's attention."""
    heads = c["num_heads"]
    groups, width = c.get("num_heads_kv") or heads, c.get("head_dim") or x.shape[1] // heads
    packed = linear(x, p, f"{name}in_proj")
    size = (heads + 2 * groups) * width
    u, feed = packed[:, :size], packed[:, size:]
    mixed = u
    if c.get("d_conv", 0):
        mixed = conv(u, p[f"{name}conv1d.weight"][:, 0].T, p[f"{name}conv1d.bias"])
    parts = mixed.view(len(x), -1, width)
    q, k, v = parts.split([heads, groups, groups], 1)
    y, k = attend(q, k, v, len(x), c.get("rotary_emb_dim", 0), c.get("softmax_scale"))
    up, gate = feed.chunk(2, 1)
    keys = last_keys(k, v, len(x))
    tail = (lambda t: {"conv_state": before(u, t, c["d_conv"]).T}) if c.get("d_conv", 0) else lambda t: {}
    return linear(torch.cat([y, up * silu(gate)], 1), p, f"{name}out_proj"), lambda t: keys(t) | tail(t)


def rglru(x: Tensor, p: Tensors, name: str, starts: list[bool], h: Tensor) -> tuple[Tensor, Tensor]:
    """All h and the last."""
    outputs = []
    for t in range(len(x)):
        gates = []
        for gate in ("input_gate", "a_gate"):
            w, b = p[f"{name}{gate}.w"], p[f"{name}{gate}.b"]
            size = w.shape[1]
            parts = [x[t, i * size : (i + 1) * size] @ w[i] + b[i] for i in range(len(w))]
            gates.append(1 / (1 + (-torch.cat(parts)).exp()))
        log_a = -8 * gates[1] * softplus(p[f"{name}a_param"])
        token = gates[0] * x[t]
        if starts[t]:
            h = token
        else:  # the clipped gradient never matters here: 1 - a^2 is above 1e-6
            room = 1 - (2 * log_a).exp()
            assert bool((room > 1e-6).all())
            h = log_a.exp() * h + room.sqrt() * token
        outputs.append(h)
    return torch.stack(outputs), h


def recurrent_block(x: Tensor, p: Tensors, name: str) -> Layer:
    gate = gelu_tanh(linear(x, p, f"{name}linear_y"))
    u, taps = linear(x, p, f"{name}linear_x"), p[f"{name}conv_1d.w"]
    mixed = conv(u, taps, p[f"{name}conv_1d.b"])
    starts = [t == 0 for t in range(len(x))]
    h, _ = rglru(mixed, p, f"{name}rg_lru.", starts, torch.zeros_like(u[0]))
    y = linear(h * gate, p, f"{name}linear_out")
    return y, lambda t: {"conv": before(u, t, len(taps) - 1), "h": h[t - 1]}
