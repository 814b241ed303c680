"""Layers of linear recurrences by slow loops over one text, in plain matrices.

No code is shared with the zoo.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.golden.reference.hybrid_layers import Config, Tensors, before, conv, linear, rms, silu, softplus

Layer = tuple[Tensor, Callable[[int], Tensors]]  # y (time, width), what is carried after t tokens


def convolved(x: Tensor, p: Tensors, name: str, c: Config, default: bool) -> tuple[Tensor, Tensor | None]:
    """silu(conv(W x)), or W x if there is no convolution; and the convolution's inputs."""
    y = linear(x, p, f"{name}_proj")
    if not c.get("use_short_conv", default):
        return y, None
    taps = p[f"{name}_conv1d.weight"][:, 0].T
    return silu(conv(y, taps, p.get(f"{name}_conv1d.bias"))), y


def carried(states: list[Tensor], inputs: dict[str, Tensor | None], size: int) -> Callable[[int], Tensors]:
    def after(t: int) -> Tensors:
        convs = {f"conv_{n}": before(x, t, size - 1).T for n, x in inputs.items() if x is not None}
        return {"S": states[t - 1], **convs}

    return after


def normed(o: Tensor, p: Tensors, name: str, c: Config) -> Tensor:
    """(time, heads, V), normed per head and joined."""
    return rms(o, p[f"{name}.weight"], c.get("norm_eps", 1e-5)).flatten(1)


def delta_layer(x: Tensor, p: Tensors, c: Config) -> Layer:
    """Section 2.3: all three rules, n writes a token, heads of values that share a query and key."""
    gated, kda = c["rule"] != "delta", c["rule"] == "kda"
    (q, q_in), (k, k_in), (v, v_in) = (convolved(x, p, name, c, True) for name in "qkv")
    if q_in is None:
        q, k, v = silu(q), silu(k), silu(v)
    heads, n = c["num_heads"], c.get("num_householder", 1)
    value_heads = c.get("num_v_heads") or heads
    q, k, v = (
        q.unflatten(1, (heads, -1)),
        k.unflatten(1, (n, heads, -1)),
        v.unflatten(1, (n, value_heads, -1)),
    )
    beta = 1 / (1 + (-linear(x, p, "b_proj")).exp()).unflatten(1, (n, value_heads))
    beta = 2 * beta if c.get("allow_neg_eigval") else beta
    width = q.shape[-1]
    g = torch.zeros(len(x), value_heads, width, dtype=x.dtype)
    if gated:
        raw = linear(linear(x, p, "f_proj.0"), p, "f_proj.1") if kda else linear(x, p, "a_proj")
        raw = (raw + p["dt_bias"]).unflatten(1, (value_heads, -1))
        rate = p["A_log"].exp()[:, None]
        bound = c.get("lower_bound")
        g = g - rate * softplus(raw) if bound is None else g + bound / (1 + (-rate * raw).exp())
    states, outputs = [], []
    memory = torch.zeros(value_heads, width, v.shape[-1], dtype=x.dtype)
    for t in range(len(x)):
        new, o = [], []
        for h in range(value_heads):
            shared = h // (value_heads // heads)
            matrix = torch.diag(g[t, h].exp()) @ memory[h]
            for i in range(n):
                key = k[t, i, shared] / (k[t, i, shared].square().sum() + 1e-6).sqrt()
                matrix = matrix + beta[t, i, h] * torch.outer(key, v[t, i, h] - matrix.T @ key)
            query = q[t, shared] / (q[t, shared].square().sum() + 1e-6).sqrt() / width**0.5
            new.append(matrix)
            o.append(matrix.T @ query)
        memory = torch.stack(new)
        states.append(memory)
        outputs.append(torch.stack(o))
    y = normed(torch.stack(outputs), p, "o_norm", c)
    if kda:
        y = y / (1 + (-linear(linear(x, p, "g_proj.0"), p, "g_proj.1")).exp())
    elif c.get("use_gate", gated):
        y = y * silu(linear(x, p, "g_proj"))
    inputs = {"q": q_in, "k": k_in, "v": v_in}
    return linear(y, p, "o_proj"), carried(states, inputs, c.get("conv_size", 4))


def gla_layer(x: Tensor, p: Tensors, c: Config) -> Layer:
    """Section 2.2, GLA: heads of queries that share keys, values and decays; the clamp after the division."""
    (q, q_in), (k, k_in), (v, v_in) = (convolved(x, p, name, c, False) for name in "qkv")
    heads = c.get("num_heads", 4)
    groups = c.get("num_kv_heads") or heads
    q, k, v = q.unflatten(1, (heads, -1)), k.unflatten(1, (groups, -1)), v.unflatten(1, (groups, -1))
    g = -softplus(-linear(linear(x, p, "gk_proj.0"), p, "gk_proj.1")) / c.get("gate_logit_normalizer", 16)
    g = (g if c.get("clamp_min") is None else g.clamp(min=c["clamp_min"])).unflatten(1, (groups, -1))
    states, outputs = [], []
    memory = torch.zeros(heads, q.shape[-1], v.shape[-1], dtype=x.dtype)
    for t in range(len(x)):
        of = [h // (heads // groups) for h in range(heads)]
        memory = torch.stack(
            [torch.diag(g[t, j].exp()) @ memory[h] + torch.outer(k[t, j], v[t, j]) for h, j in enumerate(of)]
        )
        states.append(memory)
        outputs.append(torch.stack([memory[h].T @ q[t, h] / q.shape[-1] ** 0.5 for h in range(heads)]))
    o = torch.stack(outputs)
    if c.get("use_output_gate", True):
        y = normed(o, p, "g_norm_swish_gate", c) * silu(linear(x, p, "g_proj"))
    else:
        y = normed(o, p, "g_norm", c)
    inputs = {"q": q_in, "k": k_in, "v": v_in}
    return linear(y, p, "o_proj"), carried(states, inputs, c.get("conv_size", 4))


def hgrn2_layer(x: Tensor, p: Tensors, c: Config) -> Layer:
    """Section 2.2, HGRN2, without a lower bound; nothing follows its convolutions."""

    def projected(name: str) -> tuple[Tensor, Tensor | None]:
        y = linear(x, p, f"{name}_proj")
        if not c.get("use_short_conv", False):
            return y, None
        return conv(y, p[f"{name}_conv1d.weight"][:, 0].T, p.get(f"{name}_conv1d.bias")), y

    (q, q_in), (f, f_in), (v, v_in) = (projected(name) for name in "qfi")
    heads = c.get("num_heads") or x.shape[1] // c["expand_ratio"]
    q, f, v = (part.unflatten(1, (heads, -1)) for part in (silu(q), 1 / (1 + (-f).exp()), v))
    memory, states, outputs = torch.zeros(heads, q.shape[-1], v.shape[-1], dtype=x.dtype), [], []
    for t in range(len(x)):
        memory = torch.stack(
            [torch.diag(f[t, h]) @ memory[h] + torch.outer(1 - f[t, h], v[t, h]) for h in range(heads)]
        )
        states.append(memory)
        outputs.append(torch.cat([memory[h].T @ q[t, h] / q.shape[-1] ** 0.5 for h in range(heads)]))
    y = rms(torch.stack(outputs), p["g_norm.weight"], 1e-5)
    inputs = {"q": q_in, "f": f_in, "i": v_in}
    return linear(y, p, "o_proj"), carried(states, inputs, c.get("conv_size", 4))
