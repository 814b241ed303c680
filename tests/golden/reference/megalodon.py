"""Megalodon once more, slowly: its equations as loops over rows, tokens, heads, pairs.

It shares no code with the zoo.  Each kind's function turns (config, inputs, weights) into the tensors that a
golden file of that kind holds.
"""

import cmath
import math
from collections.abc import Callable
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


def read(part: Any, rows: Tensor, bounds: list[int]) -> tuple[Tensor, Tensors]:
    """All rows (rows, time, …) token by token: what was said, and the states at the bounds."""
    outputs, record = [], []
    for row in rows:
        state, said_here, told_here = part.fresh(), [], dict[str, Tensor]()
        for t, x in enumerate(row):
            y, state = part.step(x, state)
            said_here.append(y)
            if t + 1 in bounds:
                told_here |= {f"state@{t + 1}.{name}": x for name, x in part.record(state).items()}
        outputs.append(torch.stack(said_here))
        record.append(told_here)
    return torch.stack(outputs), {name: torch.stack([row[name] for row in record]) for name in record[0]}


def slopes(loss: Tensor, prefix: str, leaves: Tensors) -> Tensors:
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        prefix + n: torch.zeros_like(x) if g is None else g
        for (n, x), g in zip(leaves.items(), grads, strict=True)
    }


def ends(c: Config) -> list[int]:
    return [sum(c["segments"][: i + 1]) for i in range(len(c["segments"]))]


def cema(c: Config, tensors: Tensors, w: Tensors) -> Tensors:
    part, x = Average(w), tensors["in.x"].requires_grad_()
    h0 = tensors["in.h0"].requires_grad_()
    out: Tensors = {
        "coef.p": part.p,
        "coef.q": torch.view_as_real(part.q),
        "coef.gamma": torch.view_as_real(part.g),
    }
    kernel = [(part.g * part.p * part.q**lag).real.sum(1) for lag in range(x.shape[2])]
    out["out.kernel"] = torch.stack(kernel, dim=1)
    for name, begins in (("out", torch.zeros_like(h0)), ("out0", h0)):
        ys, hs = [], []
        for row, start in zip(x, begins, strict=True):
            h, outputs = torch.view_as_complex(start), []
            for t in range(x.shape[2]):
                y, h = part.step(row[:, t], h)
                outputs.append(y)
                if name == "out" and t + 1 in ends(c):
                    key = f"state@{t + 1}.h"
                    more = torch.view_as_real(h)[None]
                    out[key] = torch.cat([out[key], more]) if key in out else more
            ys.append(torch.stack(outputs, dim=1))
            hs.append(torch.view_as_real(h))
        out |= {f"{name}.y": torch.stack(ys), f"{name}.h": torch.stack(hs)}
    loss = (out["out0.y"] * tensors["cot.y"]).sum() + (out["out0.h"] * tensors["cot.h"]).sum()
    grads = slopes(loss, "grad.", {"in.x": x, "in.h0": h0} | {f"w.{n}": p for n, p in w.items()})
    return out | grads | {"out0.loss": loss}


def timestepnorm(c: Config, tensors: Tensors, w: Tensors) -> Tensors:
    prior = c.get("prior_count", 0)
    norm = Norm(w, c["num_groups"], c.get("eps", 1e-5), prior)
    names = ["in.x", "in.prev_mean", "in.prev_var"]
    leaves = {name: tensors[name].requires_grad_() for name in names}
    out: Tensors = {}
    for name in ("out", "outp", "outs"):
        ys, states = [], []
        for row, x in enumerate(tensors["in.x"]):
            state = norm.fresh
            if name == "outs":
                count = int(tensors["in.prev_count"][row])
                state = (count, leaves["in.prev_mean"][row], leaves["in.prev_var"][row])
            outputs = []
            for t, token in enumerate(x):
                y, state = norm.step(token, state, name == "outp" and bool(tensors["in.pad"][row, t]))
                outputs.append(y)
                if name == "out" and t + 1 in ends(c):
                    for key, part in zip(("count", "mean", "var"), state, strict=True):
                        key, more = f"state@{t + 1}.{key}", torch.as_tensor(part)[None]
                        out[key] = torch.cat([out[key], more]) if key in out else more
            ys.append(torch.stack(outputs))
            states.append([torch.as_tensor(part) for part in state])
        out[f"{name}.y"] = torch.stack(ys)
        for key, parts in zip(("count", "mean", "var"), zip(*states, strict=True), strict=True):
            out[f"{name}.{key}"] = torch.stack(parts)
    loss = torch.stack(
        [(out[f"outs.{key}"] * tensors[f"cot.{key}"]).sum() for key in ("y", "mean", "var")]
    ).sum()
    learned = {f"w.{n}": p for n, p in w.items() if p.is_floating_point() and (prior or "prior" not in n)}
    return out | {"outs.loss": loss} | slopes(loss, "grad.", leaves | learned)


def layer(c: Config, tensors: Tensors, w: Tensors) -> Tensors:
    block, x = Block(w, c), tensors["in.x"].requires_grad_()
    y, states = read(block, x, c["bounds"])
    mids = {f"mid.{n}": torch.stack([m[n] for m in block.mids]).view(*x.shape[:2], -1) for n in block.mids[0]}
    loss = (y * tensors["cot.y"]).sum()
    grads = slopes(loss, "grad.", {"in.x": x} | {f"w.{n}": p for n, p in w.items()})
    return {"out.y": y} | states | mids | grads


def model(c: Config, tensors: Tensors, w: Tensors) -> Tensors:
    logits, states = read(Model(w, c), tensors["in.tokens"], c["bounds"])
    nll = [
        outputs.logsumexp(0) - outputs[target]
        for row, asked in zip(logits, tensors["in.targets"], strict=True)
        for outputs, target in zip(row, asked, strict=True)
    ]
    loss = torch.stack(nll).mean()
    grads = slopes(loss, "grad.", {f"w.{n}": p for n, p in w.items()})
    return {"out.logits": logits, "out.loss": loss} | states | grads


KINDS: dict[str, Callable[[Config, Tensors, Tensors], Tensors]] = {
    "megalodon/cema": cema,
    "megalodon/timestepnorm": timestepnorm,
    "megalodon/layer": layer,
    "megalodon/model": model,
}


def computed(kind: str, config: Config, tensors: Tensors) -> Tensors:
    """The whole file from its inputs and weights."""
    weights = {
        n: x.clone().requires_grad_() if x.is_floating_point() else x for n, x in sub(tensors, "w.").items()
    }
    inputs = {n: x.clone() for n, x in tensors.items() if not n.startswith("w.")}
    results = KINDS[kind](config, inputs, weights)
    return tensors | {name: x.detach() for name, x in results.items()}
