"""Megalodon by slow loops: each kind's function turns (config, inputs, weights) into the tensors that a
golden file of that kind holds.

No code is shared with the zoo.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.golden.reference.megalodon_model import Average, Block, Config, Model, Norm, Tensors, sub


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
