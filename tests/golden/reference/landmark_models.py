"""The models with Landmark attention, and what a row remembers, by slow loops.

Loops over rows, heads and positions, written from the equations; no code is shared with the zoo.
"""

import math
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Config = dict[str, Any]


def rotated(x: Tensor, position: int, pairs: bool) -> Tensor:
    """One head's vector at a place: pairs (2i, 2i + 1), or (i, i + K/2)."""
    half = len(x) // 2
    one, two = (x[0::2], x[1::2]) if pairs else (x[:half], x[half:])
    angles = torch.tensor([position * 10000.0 ** (-2 * i / len(x)) for i in range(half)], dtype=torch.float64)
    rotate = torch.complex(one, two) * torch.polar(torch.ones_like(angles), angles)
    parts = [rotate.real, rotate.imag]
    return torch.stack(parts, dim=1).flatten() if pairs else torch.cat(parts)


def softmax(scores: list[Tensor]) -> list[Tensor]:
    largest = max(score.item() for score in scores)
    raised = [(score - largest).exp() for score in scores]
    return [one / sum(raised) for one in raised]


def weights_of(scores: Tensor, flags: list[bool], query: int) -> tuple[Tensor, dict[int, Tensor], Tensor]:
    """Weights of one query's keys, what each block's landmark gets, and what the own block gets."""
    visible = range(query + 1)
    block = [sum(flags[:key]) for key in range(len(flags))]
    last = max(block[key] for key in visible)
    top = [key for key in visible if (block[key] < last if flags[key] else block[key] == last)]
    weights = [torch.zeros((), dtype=torch.float64) for _ in flags]
    gates, mass = {}, torch.zeros((), dtype=torch.float64)
    for key, share in zip(top, softmax([scores[key] for key in top]) if top else [], strict=True):
        if not flags[key]:
            weights[key], mass = share, mass + share
            continue
        gates[block[key]] = share
        inside = [j for j in visible if block[j] == block[key] and not flags[j]]
        for j, part in zip(inside, softmax([scores[j] for j in inside]) if inside else [], strict=True):
            weights[j] = part * share
    return torch.stack(weights), gates, mass


def norm(x: Tensor, p: Tensors, name: str, eps: float, centred: bool) -> Tensor:
    x = x - x.mean() if centred else x
    y = x / ((x * x).mean() + eps).sqrt() * p[f"{name}.weight"]
    return y + p.get(f"{name}.bias", 0.0)


def linear(x: Tensor, p: Tensors, name: str) -> Tensor:
    return p[f"{name}.weight"] @ x + p.get(f"{name}.bias", 0.0)


class Gpt:
    """lm_benchmark's names."""

    pairs = True

    def __init__(self, c: Config, p: Tensors) -> None:
        self.p, self.layers, self.heads = p, c["n_layer"], c["n_head"]
        self.block, self.topk = c.get("mem_cache_freq", c.get("mem_freq")) + 1, c.get("cache_topk")
        self.size, self.eps = c.get("mem_cache_size"), c.get("ln_eps", 1e-5)
        self.method = c.get("cache_selection_method")
        self.marker, self.absolute = c["landmark_id"], False

    def qkv(self, x: Tensor, layer: int) -> list[Tensor]:
        name = f"transformer.h.{layer}."
        x = norm(x, self.p, f"{name}ln_1", self.eps, True)
        return list(linear(x, self.p, f"{name}attn.c_attn").view(3, self.heads, -1))

    def leave(self, x: Tensor, read: Tensor, layer: int) -> Tensor:
        name = f"transformer.h.{layer}."
        x = x + linear(read, self.p, f"{name}attn.c_proj")
        y = linear(norm(x, self.p, f"{name}ln_2", self.eps, True), self.p, f"{name}mlp.c_fc")
        y = 0.5 * y * (1 + (y / math.sqrt(2)).erf())
        return x + linear(y, self.p, f"{name}mlp.c_proj")

    def logits(self, x: Tensor) -> Tensor:
        x = norm(x, self.p, "transformer.ln_f", self.eps, True)
        return self.p["transformer.wte.weight"] @ x


class Llama:
    pairs = False

    def __init__(self, c: Config, p: Tensors) -> None:
        self.p, self.layers, self.heads = p, c["layers"], c["heads"]
        self.block, self.topk, self.size = c["mem_freq"] + 1, c["cache_top_k"], 10**6
        self.method = "max_over_tokens" if c["offload_cache_to_cpu"] else "per_token_and_head"
        self.eps, self.marker, self.absolute = c["rms_norm_eps"], c["mem_id"], True

    def qkv(self, x: Tensor, layer: int) -> list[Tensor]:
        x = norm(x, self.p, f"model.layers.{layer}.input_layernorm", self.eps, False)
        name = f"model.layers.{layer}.self_attn"
        return [linear(x, self.p, f"{name}.{part}_proj").view(self.heads, -1) for part in "qkv"]

    def leave(self, x: Tensor, read: Tensor, layer: int) -> Tensor:
        name = f"model.layers.{layer}."
        x = x + linear(read, self.p, f"{name}self_attn.o_proj")
        y = norm(x, self.p, f"{name}post_attention_layernorm", self.eps, False)
        gate, up = (linear(y, self.p, f"{name}mlp.{part}_proj") for part in ("gate", "up"))
        return x + linear(gate / (1 + (-gate).exp()) * up, self.p, f"{name}mlp.down_proj")

    def logits(self, x: Tensor) -> Tensor:
        return linear(norm(x, self.p, "model.norm", self.eps, False), self.p, "lm_head")


class Row:
    """One row's memory: per layer all keys and values ever (heads, head_dim), landmarks included."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.keys: list[list[Tensor]] = [[] for _ in range(model.layers)]
        self.values: list[list[Tensor]] = [[] for _ in range(model.layers)]

    def read(self, x: list[Tensor], flags: list[bool]) -> tuple[list[Tensor], Tensors]:
        """One segment of embeddings: what the layers say, and what they retrieve."""
        record: Tensors = {}
        for layer in range(self.model.layers):
            q, k, v = zip(*(self.model.qkv(one, layer) for one in x), strict=True)
            read, named = self.attend(q, list(k), list(v), flags, layer)
            record |= {f"layer{layer}/{name}": part for name, part in named.items()}
            x = [self.model.leave(one, y, layer) for one, y in zip(x, read, strict=True)]
            self.keys[layer] += [one.detach() for one in k]
            self.values[layer] += [one.detach() for one in v]
        return x, record

    def attend(
        self, q: tuple[Tensor, ...], k: list[Tensor], v: list[Tensor], flags: list[bool], layer: int
    ) -> tuple[list[Tensor], Tensors]:
        m, bs, old = self.model, self.model.block, len(self.keys[layer])
        closed, inc = divmod(old, bs)
        stored = range(max(0, closed - (m.size or 0)), closed)  # the ring's blocks by number, oldest first
        topk = min(m.topk or 0, len(stored))
        start = (topk + 1) * bs + inc
        ranks = {index: max(0, position - (len(stored) - topk) + 1) for position, index in enumerate(stored)}
        open_keys, open_values = self.keys[layer][closed * bs :], self.values[layer][closed * bs :]
        near = [
            [
                rotated(key[head], start - inc + position, m.pairs)
                for position, key in enumerate(open_keys + k)
            ]
            for head in range(m.heads)
        ]
        asked = [
            [rotated(one[head], start + t, m.pairs) for t, one in enumerate(q)] for head in range(m.heads)
        ]
        chosen = self.choose(asked, layer, ranks, topk)
        near_values, read, places = open_values + v, [], []
        for t in range(len(q)):
            heads = []
            for head in range(m.heads):
                keys, values, marked, at = [], [], [], []
                for slot, index in enumerate(chosen[t][head]):
                    for j in range(bs):
                        position = slot * bs + j + (bs if ranks[index] > 0 else 0)
                        keys.append(rotated(self.keys[layer][index * bs + j][head], position, m.pairs))
                        values.append(self.values[layer][index * bs + j][head])
                        marked.append(j == bs - 1)
                        at.append(position)
                places.append(at)
                keys += near[head]
                values += [one[head] for one in near_values]
                marked += [False] * inc + flags
                scores = torch.stack([key @ asked[head][t] for key in keys]) / math.sqrt(len(keys[0]))
                weights, _, _ = weights_of(scores, marked, len(keys) - len(q) + t)
                heads.append(sum(w * value for w, value in zip(weights, values, strict=True)))
            read.append(torch.cat(heads))
        if not topk:
            return read, {}
        base = closed * bs - (topk + 1) * bs if m.absolute else 0
        indices = torch.tensor(chosen).transpose(0, 1)  # (heads, time, topk)
        positions = torch.tensor(places).view(len(q), m.heads, -1).transpose(0, 1) + base
        named = {"block_id": indices, "key_positions": positions}
        if m.absolute:
            spots = torch.tensor([rank * bs + bs - 1 + base for rank in ranks.values()])
            return read, named | {"landmark_positions": spots}
        by_rank = [[[ranks[index] for index in some] for some in heads] for heads in indices.tolist()]
        return read, named | {"slot": indices % m.size, "pos_rank": torch.tensor(by_rank)}

    def choose(
        self, asked: list[list[Tensor]], layer: int, ranks: dict[int, int], topk: int
    ) -> list[list[list[int]]]:
        """Block numbers by query and head, oldest first."""
        m, bs, time = self.model, self.model.block, len(asked[0])
        if not topk:
            return [[[] for _ in asked] for _ in range(time)]
        shares: list[list[list[float]]] = []
        for head, queries in enumerate(asked):
            landmarks = [
                rotated(self.keys[layer][index * bs + bs - 1][head], rank * bs + bs - 1, m.pairs)
                for index, rank in ranks.items()
            ]
            shares.append(
                [
                    [w.item() for w in softmax([key @ one / math.sqrt(len(key)) for key in landmarks])]
                    for one in queries
                ]
            )
        chosen = []
        for t in range(time):
            heads = []
            for head in range(m.heads):
                by_block = []
                for position, index in enumerate(ranks):
                    seen = {
                        "per_token_and_head": [shares[head][t][position]],
                        "max_over_heads": [some[t][position] for some in shares],
                        "max_over_tokens": [some[position] for some in shares[head]],
                    }[m.method]
                    by_block.append((max(seen), index))
                heads.append(sorted(index for _, index in sorted(by_block)[-topk:]))
            chosen.append(heads)
        return chosen
