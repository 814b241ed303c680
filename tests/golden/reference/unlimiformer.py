"""Unlimiformer by slow loops.

Loops over rows, heads and positions, written from the equations; no code is shared with the zoo.
"""

import math
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Config = dict[str, Any]


def mixture(scores: list[Tensor], values: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    largest = max(score.item() for score in scores)
    raised = [(score - largest).exp() for score in scores]
    weights = [one / sum(raised) for one in raised]
    return weights, torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0)


def nearest(z: Tensor, past: list[Tensor], k: int) -> list[int]:
    return sorted(range(len(past)), key=lambda j: -(z * past[j]).sum().item())[:k]


def core(c: Config, tensors: Tensors) -> Tensors:
    """The tensors of a file of `unlimiformer/core_retrieval_attention`."""
    p = {name: tensors.get(f"w/{name}.bias", torch.zeros(c["dim"]).double()) for name in ("q_proj", "k_proj")}
    p |= {
        name: tensors.get(f"w/{name}.bias", torch.zeros(c["dim"]).double()) for name in ("v_proj", "out_proj")
    }
    w, width = {name: tensors[f"w/{name}.weight"] for name in p}, c["dim"] // c["heads"]
    results: dict[str, list[Any]] = {}
    for beam, asked in enumerate(tensors["in/h_dec"].view(-1, c["dim"])):
        past = list(tensors["in/h_enc"][beam // c["beam"]])
        outputs = []
        for head in range(c["heads"]):
            own = slice(head * width, (head + 1) * width)
            q = w["q_proj"][own] @ asked + p["q_proj"][own]
            z = q @ w["k_proj"][own]
            ids = nearest(z, past, c["k"])
            keys = [w["k_proj"][own] @ past[j] + p["k_proj"][own] for j in range(len(past))]
            values = [w["v_proj"][own] @ past[j] + p["v_proj"][own] for j in ids]
            direct = [q @ key for key in keys]
            weights, mixed = mixture([direct[j] / math.sqrt(width) for j in ids], values)
            outputs.append(mixed)
            for name, part in {
                "idx/retrieved": torch.tensor(ids, dtype=torch.int32),
                "mid/datastore_query": z,
                "mid/direct_scores_q_dot_k": torch.stack(direct),
                "mid/query": q,
                "mid/retrieved_keys": torch.stack([keys[j] for j in ids]),
                "mid/retrieved_values": torch.stack(values),
                "mid/search_scores": torch.stack([z @ past[j] for j in ids]),
                "out/attn_weights": torch.stack(weights),
            }.items():
                results.setdefault(name, []).append(part)
        out = w["out_proj"] @ torch.cat(outputs) + p["out_proj"]
        results.setdefault("out/attn_output", []).append(out)
    split = (c["B"], c["beam"], c["heads"])
    together = {"mid/datastore_query", "mid/query"}  # beams and heads in one axis
    return {
        name: torch.stack(parts).view(
            (c["B"], c["beam"], -1)
            if name == "out/attn_output"
            else (c["B"], -1, *parts[0].shape)
            if name in together
            else (*split, *parts[0].shape)
        )
        for name, parts in results.items()
    }


class Reference:
    """One row's text, token by token; `trained` as with `retrieval_training`, else as in evaluation."""

    def __init__(self, c: Config, p: Tensors, trained: bool) -> None:
        self.c, self.p, self.trained = c, p, trained
        self.past: list[list[Tensor]] = [[] for _ in range(c["depth"])]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return self.p[f"{name}.weight"] @ x + self.p.get(f"{name}.bias", 0.0)

    def norm(self, x: Tensor, name: str) -> Tensor:
        layer = self.c.get("norm") == "layer"
        x = x - x.mean() if layer else x
        y = x / ((x * x).mean() + (1e-5 if layer else 1e-6)).sqrt() * self.p[f"{name}.weight"]
        return y + self.p.get(f"{name}.bias", 0.0)

    def rotated(self, x: Tensor, position: int) -> Tensor:
        if self.c.get("position", "rope") != "rope":
            return x
        half, base = len(x) // 2, self.c.get("rope_base", 10000.0)
        turns = [(math.cos(a), math.sin(a)) for i in range(half) for a in [position * base ** (-i / half)]]
        left = [x[i] * cos - x[i + half] * sin for i, (cos, sin) in enumerate(turns)]
        right = [x[i + half] * cos + x[i] * sin for i, (cos, sin) in enumerate(turns)]
        return torch.stack(left + right)

    def retrieved_position(self, i: int, rank: int, stored: int) -> int:
        """Where the input stands that is newer than `rank` of those stored, for a query at position i."""
        width = min(stored, self.c["segment_len"])
        spread = [age * width // stored - width for age in range(stored)]
        position = {"none": i, "start": 0, "before": -self.c["segment_len"], "spread": spread[rank]}
        return position[self.c.get("retrieved_positions", "none")]

    def attention(self, inputs: list[Tensor], layer: int) -> list[Tensor]:
        c, name = self.c, f"stack.{layer}.mixer."
        heads, shared = c["heads"], c.get("kv_heads", c["heads"])
        width = c["width"] // heads
        weight, outputs = self.p[f"{name}qkv.weight"], []
        bias = self.p.get(f"{name}qkv.bias", torch.zeros(len(weight)).double())

        def part(x: Tensor, index: int) -> Tensor:
            own = slice(index * width, (index + 1) * width)
            return weight[own] @ x + bias[own]

        for i, x in enumerate(inputs):
            mixed = []
            for head in range(heads):
                key = heads + head // (heads // shared)
                value, q = key + shared, part(x, head)
                ids = nearest(q @ weight[key * width : (key + 1) * width], self.past[layer], c["neighbours"])
                results = [self.past[layer][j] for j in ids]
                slope = 2.0 ** (-8 * (head + 1) / heads) if c.get("position") == "alibi" else 0.0
                scores = [
                    self.rotated(q, i) @ self.rotated(part(y, key), j) / math.sqrt(width) - slope * (i - j)
                    for j, y in enumerate(inputs[: i + 1])
                ]
                for rank, y in zip(ids, results, strict=True):
                    m = self.retrieved_position(i, rank, len(self.past[layer]))
                    score = self.rotated(q, i) @ self.rotated(part(y, key), m) / math.sqrt(width)
                    scores.append(score - slope * (i - m))
                mixed.append(mixture(scores, [part(y, value) for y in [*inputs[: i + 1], *results]])[1])
            outputs.append(self.linear(torch.cat(mixed), f"{name}out_proj"))
        if layer >= c.get("layer_begin", c["depth"] // 2):
            kept = [x if self.trained else x.detach() for x in inputs]
            self.past[layer] = (self.past[layer] + kept)[-c["capacity"] :]
        return outputs

    def mlp(self, x: Tensor, layer: int) -> Tensor:
        entered = self.linear(x, f"stack.{layer}.mlp.in_proj")
        if self.c.get("activation") == "relu":
            return self.linear(entered.clamp(min=0), f"stack.{layer}.mlp.out_proj")
        gate, up = entered.chunk(2)
        return self.linear(gate * gate.sigmoid() * up, f"stack.{layer}.mlp.out_proj")

    def read(self, tokens: list[int]) -> Tensor:
        logits = []
        for start in range(0, len(tokens), self.c["segment_len"]):
            xs = [self.p["embed.weight"][t] for t in tokens[start : start + self.c["segment_len"]]]
            if "positions" in self.p:
                xs = [x + self.p["positions"][i] for i, x in enumerate(xs)]
            for layer in range(self.c["depth"]):
                mixed = self.attention([self.norm(x, f"stack.{layer}.mixer_norm") for x in xs], layer)
                xs = [x + y for x, y in zip(xs, mixed, strict=True)]
                xs = [x + self.mlp(self.norm(x, f"stack.{layer}.mlp_norm"), layer) for x in xs]
            logits += [self.p["head.weight"] @ self.norm(x, "norm") for x in xs]
        return torch.stack(logits)
