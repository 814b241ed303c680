"""The Memorizing Transformer by slow loops.

Loops over rows, heads and positions, written from the equations; no code is shared with the zoo.
"""

import math
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Config = dict[str, Any]


def unit(x: Tensor) -> Tensor:
    return x / (x * x).sum().sqrt()


def mixture(scores: list[Tensor], values: list[Tensor]) -> Tensor:
    largest = max(score.item() for score in scores)
    raised = [(score - largest).exp() for score in scores]
    return torch.stack([w / sum(raised) * v for w, v in zip(raised, values, strict=True)]).sum(0)


def nearest(q: Tensor, past: list[tuple[int, Tensor, Tensor]], k: int) -> list[tuple[int, Tensor, Tensor]]:
    return sorted(past, key=lambda kept: -(q * kept[1]).sum().item())[:k]


def indices(results: list[tuple[int, Tensor, Tensor]], k: int) -> Tensor:
    return torch.tensor([token for token, _, _ in results] + [-1] * (k - len(results)), dtype=torch.int32)


def paper(c: Config, tensors: Tensors) -> Tensors:
    """The tensors of a file of `memorizing/paper_gate_topk`."""
    learned = {name: tensors[f"w/{name}"].clone().requires_grad_() for name in ("scale", "gate_bias")}
    rows, heads, size = c["B"], c["H"], c["segment"]
    past: list[list[list[tuple[int, Tensor, Tensor]]]] = [[[] for _ in range(heads)] for _ in range(rows)]
    results: Tensors = {}
    for s in range(c["segments"]):
        parts = {name: tensors[f"in/seg{s}/{name}"].clone().requires_grad_() for name in "qkv"}
        y = torch.zeros(rows, heads, size, c["head_dim"], dtype=torch.float64)
        ids = torch.empty(rows, heads, size, c["k"], dtype=torch.int32)
        for row in range(rows):
            if tensors[f"in/seg{s}/start_of_document"][row]:
                past[row] = [[] for _ in range(heads)]
            for h in range(heads):
                q = [unit(x) for x in parts["q"][row, h]]
                k = [unit(x) for x in parts["k"][row, h]]
                v, gate = parts["v"][row, h], 1 / (1 + (-learned["gate_bias"][h]).exp())
                for t in range(size):
                    bias = tensors.get("in/local_bias", torch.zeros(heads, size, size))[h, t]
                    local = [learned["scale"][h] * (q[t] * k[j]).sum() + bias[j] for j in range(t + 1)]
                    outputs = (1 - gate) * mixture(local, list(v[: t + 1]))
                    best = nearest(q[t], past[row][h], c["k"])
                    if best:
                        far = [learned["scale"][h] * (q[t] * key).sum() for _, key, _ in best]
                        outputs = outputs + gate * mixture(far, [value for _, _, value in best])
                    y[row, h, t] = outputs
                    ids[row, h, t] = indices(best, c["k"])
                past[row][h] += [(s * size + t, k[t].detach(), v[t].detach()) for t in range(size)]
                del past[row][h][: max(0, len(past[row][h]) - c["memory_cap"])]
        inputs = {**parts, **learned}
        grads = torch.autograd.grad((y * tensors[f"in/seg{s}/cotangent"]).sum(), list(inputs.values()))
        results |= {f"grad/seg{s}/{name}": grad for name, grad in zip(inputs, grads, strict=True)}
        results |= {f"idx/seg{s}/retrieved": ids, f"out/seg{s}/y": y.detach()}
        ends = [[row[0][0][0], row[0][-1][0]] for row in past]
        results[f"state/seg{s}/memory_ids_first_last"] = torch.tensor(ends, dtype=torch.int32)
    return results


def layer(c: Config, tensors: Tensors) -> Tensors:
    """The tensors of a file of `memorizing/luc_core`."""
    p = {name: x.clone().requires_grad_() for name, x in tensors.items() if name.startswith("w/")}
    x = tensors["in/x"].clone().requires_grad_()
    heads, width, size = c["heads"], c["dim_head"], c["n"]
    y, after = torch.zeros_like(tensors["in/x"]), []
    ids = torch.empty(c["B"], heads, size, c["num_retrieved_memories"], dtype=torch.int32)
    for row in range(c["B"]):
        k, v = [], []
        for token in x[row]:
            both = p["w/to_kv.weight"] @ token
            k.append(unit(both[:width]))
            v.append(both[width:])
        past = [(i, kept[0], kept[1]) for i, kept in enumerate(tensors["in/memories"][row])]
        for t in range(size):
            heads_said = []
            for h in range(heads):
                q = unit((p["w/to_q.weight"] @ x[row, t])[h * width : (h + 1) * width])
                scale = p["w/scale"][h, 0, 0].exp()
                best = nearest(q, past, c["num_retrieved_memories"])
                ids[row, h, t] = indices(best, c["num_retrieved_memories"])
                bias = tensors.get("in/rel_pos_bias", torch.zeros(1, heads, size, size))[0, h, t]
                scores = [scale * (q * key).sum() for _, key, _ in best]
                scores += [scale * (q * k[j]).sum() + bias[j] for j in range(t + 1)]
                heads_said.append(mixture(scores, [value for _, _, value in best] + v[: t + 1]))
            outputs = p["w/to_out.weight"] @ torch.cat(heads_said)
            y[row, t] = outputs * p["w/output_gate"].tanh() if "w/output_gate" in p else outputs
        new = torch.stack([torch.stack(k), torch.stack(v)], dim=1)
        after.append(torch.cat([tensors["in/memories"][row], new])[-c.get("max_knn_memories", 10**6) :])
    learned = {"x": x, **{name.removeprefix("w/"): weight for name, weight in p.items()}}
    grads = torch.autograd.grad((y * tensors["in/cotangent"]).sum(), list(learned.values()))
    return {
        "idx/retrieved": ids,
        "out/y": y.detach(),
        "state/db_after": torch.stack(after).detach(),
        "state/db_offsets_after": torch.full((c["B"],), c["memories"] + size, dtype=torch.int32),
        **{f"grad/{name}": grad for name, grad in zip(learned, grads, strict=True)},
    }


class Reference:
    """One row's text, token by token."""

    def __init__(self, c: Config, p: Tensors) -> None:
        self.c, self.p = c, p
        self.past: Any = [[[] for _ in range(c["heads"])] for _ in range(c["depth"])]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / ((x * x).mean() + 1e-6).sqrt() * self.p[f"{name}.weight"]

    def rotated(self, x: Tensor, position: int) -> Tensor:
        y, half = x.clone(), len(x) // 2
        for i in range(half):
            angle = position * 10000.0 ** (-i / half)
            y[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            y[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
        return y

    def segment(self, tokens: list[int]) -> Tensor:
        c, p, xs = self.c, self.p, [self.p["embed.weight"][token] for token in tokens]
        width = c["width"] // c["heads"]
        for i in range(c["depth"]):
            name, remembers = f"stack.{i}", i in c["memory_layers"]
            packed = [p[f"{name}.mixer.qkv.weight"] @ self.norm(x, f"{name}.mixer_norm") for x in xs]
            outputs: list[list[Tensor]] = [[] for _ in xs]
            for h in range(c["heads"]):
                q, k, v = ([x[part * c["width"] + h * width :][:width] for x in packed] for part in range(3))
                scale, gate = width**-0.5, torch.tensor(0.0)
                if remembers:
                    q, k = [unit(x) for x in q], [unit(x) for x in k]
                    scale = p[f"{name}.mixer.sharpness"][h].exp().item()
                    gate = 1 / (1 + (-p[f"{name}.mixer.gate"][h]).exp())
                for t in range(len(xs)):
                    local = [
                        scale * (self.rotated(q[t], t) * self.rotated(k[j], j)).sum() for j in range(t + 1)
                    ]
                    y = (1 - gate) * mixture(local, v[: t + 1])
                    best = nearest(q[t], self.past[i][h], c["neighbours"]) if remembers else []
                    if best:
                        far = [scale * (q[t] * key).sum() for _, key, _ in best]
                        y = y + gate * mixture(far, [value for _, _, value in best])
                    outputs[t].append(y)
                if remembers:
                    self.past[i][h] = [
                        *self.past[i][h],
                        *((0, key, value) for key, value in zip(k, v, strict=True)),
                    ][-c["capacity"] :]
            for t in range(len(xs)):
                x = xs[t] + p[f"{name}.mixer.out_proj.weight"] @ torch.cat(outputs[t])
                gated, up = (p[f"{name}.mlp.in_proj.weight"] @ self.norm(x, f"{name}.mlp_norm")).chunk(2)
                inner = gated / (1 + (-gated).exp()) * up
                xs[t] = x + p[f"{name}.mlp.out_proj.weight"] @ inner
        return torch.stack([p["head.weight"] @ self.norm(x, "norm") for x in xs])
