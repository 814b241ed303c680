"""Megalodon by slow loops over tokens, heads and pairs, one row at a time.

Written from the equations; no code is shared with the zoo.
"""

import cmath
import math
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Config = dict[str, Any]


def sub(weights: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def silu(x: Tensor) -> Tensor:
    return x * sigmoid(x)


class Average:
    """Section 1.2 for one row: `h` (D, N) complex."""

    def __init__(self, w: Tensors) -> None:
        states = w["alpha"].shape[1]
        self.p = sigmoid(w["alpha"][..., 0])
        size = 1 - self.p * sigmoid(w["delta"][..., 0])
        turn = sigmoid(w["theta"][..., 0]) * 2 * math.pi / states  # (D, 1)
        angle = torch.cat([n * turn for n in range(1, states + 1)], dim=1)
        self.q = torch.complex(size * angle.cos(), size * angle.sin())
        self.g = torch.complex(w["gamma"][..., 0], w["gamma"][..., 1]) / math.sqrt(states)
        self.omega = w["omega"][:, 0]

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.q * h + self.p * x[:, None]
        return (self.g * h).real.sum(1) + self.omega * x, h


class Norm:
    """Section 1.3 for one row: (n, m, v), m and v (G,)."""

    def __init__(self, w: Tensors, groups: int, eps: float, prior: int = 0) -> None:
        self.gain, self.bias, self.groups, self.eps = 1 + w["weight"], w["bias"], groups, eps
        zero = torch.zeros(groups, dtype=torch.float64)
        self.fresh = (prior, w.get("prior_mean", zero), w.get("prior_logv", zero).exp())

    def step(self, x: Tensor, state: Any, padded: bool = False) -> tuple[Tensor, Any]:
        n, m, v = state
        if padded:
            return torch.zeros_like(x), state
        parts = x.view(self.groups, -1)
        mu = parts.mean(1)
        s = ((parts - mu[:, None]) ** 2).mean(1)
        c1, c2, d = n / (n + 1), 1 / (n + 1), mu - m
        m, v, n = m + c2 * d, c1 * v + c2 * s + c1 * c2 * d**2, n + 1
        y = (parts - m[:, None]) / (v[:, None] + self.eps).sqrt()
        return y.flatten() * self.gain + self.bias, (n, m, v)


def rms(x: Tensor, eps: float) -> Tensor:
    return x / ((x**2).mean() + eps).sqrt()


def rope(x: Tensor, position: int, base: float) -> Tensor:
    """One head: pairs (2i, 2i+1) as complex numbers."""
    out = []
    for i in range(len(x) // 2):
        turn = cmath.exp(1j * position * base ** (-2 * i / len(x)))
        out.append(x[2 * i] * turn.real - x[2 * i + 1] * turn.imag)
        out.append(x[2 * i] * turn.imag + x[2 * i + 1] * turn.real)
    return torch.stack(out)


class Block:
    """Sections 1.4 and 1.6 for one row: state (norm, h, keys, values), the last two lists by token."""

    def __init__(self, w: Tensors, c: Config) -> None:
        self.w, self.c, self.eps = w, c, c.get("norm_eps", 1e-5)
        self.norm = Norm(sub(w, "mega.timenorm."), c["norm_num_groups"], self.eps)
        self.average = Average(sub(w, "mega.cema."))
        self.mids: list[Tensors] = []

    def fresh(self) -> Any:
        h = torch.zeros(self.c["model_dim"], self.c["cema_ndim"], dtype=torch.complex128)
        return self.norm.fresh, h, [], []

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = self.w[f"{name}.weight"] @ x
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        w, c, heads = self.w, self.c, self.c["num_heads"]
        base = 10000 if c.get("rope_base") is None else c["rope_base"]
        dz, dv = c["z_dim"] // heads, c["value_dim"] // heads
        norm, h, keys, values = state
        xn, norm = self.norm.step(x, norm)
        averaged, h = self.average.step(xn, h)
        mx = rms(averaged, self.eps)
        if c.get("norm_affine", True):
            mx = mx * (1 + w["mega.rmsnorm.weight"])
        z_raw = self.linear("mega.wz", mx)
        z = torch.cat([rms(z_raw[i * dz : (i + 1) * dz], self.eps) for i in range(heads)])
        q, k = (z * (w["mega.gamma"][i] + 1) / math.sqrt(dz) + w["mega.beta"][i] for i in range(2))
        v, r = silu(self.linear("mega.wv", xn)), silu(self.linear("mega.wr", mx))
        position = len(keys)
        q, k = (
            torch.stack([rope(x[i * dz : (i + 1) * dz], position, base) for i in range(heads)])
            for x in (q, k)
        )
        keys, values = [*keys, k], [*values, v.view(heads, dv)]
        outputs = []
        for head in range(heads):
            weights = torch.stack([q[head] @ key[head] for key in keys]).softmax(0)
            outputs.append(sum(a * value[head] for a, value in zip(weights, values, strict=True)))
        o = torch.cat(outputs)
        yhat = self.linear("mega.wh1", mx) + self.linear("mega.wh2", o * r) + x
        f = yhat - yhat.mean()
        f = f / ((f**2).mean() + self.eps).sqrt()
        if c.get("norm_affine", True):
            f = f * (1 + w["nffn.norm.weight"]) + w["nffn.norm.bias"]
        hidden = silu(self.linear("nffn.fc1", f))
        if c.get("swiglu", False):
            hidden = hidden * self.linear("nffn.fc3", f)
        ffn = self.linear("nffn.fc2", hidden)
        if c.get("rescale_nffn", False):
            ffn = ffn * w["nffn.alpha"]
        self.mids.append(
            {"timenorm": xn, "cema": averaged, "mx": mx, "z_raw": z_raw, "v": v, "r": r, "attn": o}
            | {"mega_out": yhat}
        )
        if len(keys) == c["chunk_size"]:
            keys, values = [], []
        return ffn + x, (norm, h, keys, values)

    def record(self, state: Any) -> Tensors:
        (n, m, v), h, keys, values = state
        heads = self.c["num_heads"]
        empty = [
            torch.empty(0, heads, self.c[dim] // heads, dtype=torch.float64) for dim in ("z_dim", "value_dim")
        ]
        return {
            "attn_k": torch.stack(keys) if keys else empty[0],
            "attn_v": torch.stack(values) if values else empty[1],
            "norm_count": torch.tensor(n),
            "norm_mean": m,
            "norm_var": v,
            "cema_h": torch.view_as_real(h),
        }


class Model:
    """Section 1.5 for one row."""

    def __init__(self, w: Tensors, c: Config) -> None:
        self.w, self.c = w, c
        self.blocks = [Block(sub(w, f"layers.{i}."), c) for i in range(c["num_layers"])]
        self.norm = Norm(sub(w, "output.final_norm."), c["norm_num_groups"], c.get("norm_eps", 1e-5))

    def fresh(self) -> Any:
        return [block.fresh() for block in self.blocks], self.norm.fresh

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        x = self.w["embed.weight"][token]
        if self.c.get("scale_emb", False):
            x = x * math.sqrt(self.c["model_dim"])
        after = []
        for block, kept in zip(self.blocks, state[0], strict=True):
            x, kept = block.step(x, kept)
            after.append(kept)
        x, norm = self.norm.step(x, state[1])
        head = "embed.weight" if self.c.get("share_emb", False) else "output.output.weight"
        return self.w[head] @ x, (after, norm)

    def record(self, state: Any) -> Tensors:
        layers = {
            f"layers.{i}.{name}": x
            for i, (block, kept) in enumerate(zip(self.blocks, state[0], strict=True))
            for name, x in block.record(kept).items()
        }
        n, m, v = state[1]
        return layers | {"final_norm_count": torch.tensor(n), "final_norm_mean": m, "final_norm_var": v}
