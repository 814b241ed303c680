"""Landmark attention by slow loops.

Loops over rows, heads and positions, written from the equations; no code is shared with the zoo.
"""

import math
from collections.abc import Callable
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
    """One row's memory: per layer all keys and values ever (heads, head width), landmarks included."""

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


def nll(logits: Tensor, target: int) -> Tensor:
    return (logits - logits[target]).exp().sum().log()


def grouped(c: Config, inputs: Tensors, p: Tensors) -> Tensors:
    scores, flags = inputs["in/scores"].clone().requires_grad_(), inputs["in/is_landmark"].tolist()
    groups, record = c["max_groups_for_softmax"], []
    for row, marked in enumerate(flags):
        for head in range(scores.shape[1]):
            for t in range(scores.shape[2]):
                query = t + scores.shape[3] - scores.shape[2]
                weights, gates, mass = weights_of(scores[row, head, t], marked, query)
                table = [gates.get(group, torch.zeros_like(mass)) for group in range(groups - 1)]
                record.append((weights, torch.stack([*table, mass])))
    probs, tables = (torch.stack(part).view(*scores.shape[:3], -1) for part in zip(*record, strict=True))
    (grad,) = torch.autograd.grad((probs * inputs["in/cotangent"]).sum(), [scores])
    return {
        "out/probs": probs,
        "out/row_sum": probs.sum(-1),
        "out/group_prob": tables,
        "grad/scores": grad,
    }


def stream_of(raw: list[int], freq: int, marker: int) -> list[int]:
    stream: list[int] = []
    for token in raw:
        stream.append(token)
        if sum(one != marker for one in stream) % freq == 0:
            stream.append(marker)
    return stream


def train(c: Config, inputs: Tensors, p: Tensors) -> Tensors:
    model, length = Gpt(c, p), c["sequence_length"]
    stream = stream_of(inputs["in/raw_tokens"].tolist(), c["mem_freq"], model.marker)
    results: Tensors = {"in/stream_with_landmarks": torch.tensor(stream)}
    windows = [stream[start : start + length] for start in c["window_starts"]]
    asked, logits, shares, losses = [], [], [], []
    for start, window in zip(c["window_starts"], windows, strict=True):
        targets = []
        for t, token in enumerate(window):
            follow = next(one for one in stream[start + t + 1 :] if one != model.marker)
            targets.append(-1 if token in (model.marker, 50256) else follow)
        asked.append(targets)
        x = [p["transformer.wte.weight"][token] for token in window]
        flags = [token == model.marker for token in window]
        layers = []
        for layer in range(model.layers):
            parts = [model.qkv(one, layer) for one in x]
            rotate = [
                [[rotated(part[i][head], t, True) for head in range(model.heads)] for i in (0, 1)]
                for t, part in enumerate(parts)
            ]
            read, table = [], []
            for t in range(length):
                heads = []
                for head in range(model.heads):
                    keys = [one[1][head] for one in rotate]
                    scores = torch.stack([key @ rotate[t][0][head] for key in keys])
                    weights, _, _ = weights_of(scores / math.sqrt(len(keys[0])), flags, t)
                    table.append(weights)
                    heads.append(sum(w * one[2][head] for w, one in zip(weights, parts, strict=True)))
                read.append(torch.cat(heads))
            layers.append(torch.stack(table).view(length, model.heads, length).transpose(0, 1))
            x = [model.leave(one, y, layer) for one, y in zip(x, read, strict=True)]
        shares.append(torch.stack(layers))
        logits.append(torch.stack([model.logits(one) for one in x]))
        losses += [nll(logits[-1][t], target) for t, target in enumerate(targets) if target != -1]
    loss = sum(losses) / len(losses)
    grads = torch.autograd.grad(loss, list(p.values()))
    results |= {f"out/attn_probs.{layer}": one for layer, one in enumerate(torch.stack(shares, dim=1))}
    results |= {"in/tokens": torch.tensor(windows), "in/targets": torch.tensor(asked)}
    results |= {f"grad/{name}": grad for name, grad in zip(p, grads, strict=True)}
    return results | {"out/logits": torch.stack(logits), "out/loss": loss}


def cached(model: Any, row: Row, layer: int) -> Tensors:
    """lm_benchmark's state of one row: the ring as it lies there, and the open block."""
    bs, keys, values = model.block, row.keys[layer], row.values[layer]
    closed = len(keys) // bs
    named: Tensors = {}
    for name, kept in (("k", keys), ("v", values)):
        slots: dict[int, Tensor] = {}
        for index in range(closed):
            slots[index % model.size] = torch.stack(kept[index * bs : (index + 1) * bs])
        if slots:
            named[f"cache_mem_{name}"] = torch.stack([slots[slot] for slot in sorted(slots)])
        if len(keys) % bs:
            named[f"last_incomplete_{name}"] = torch.stack(kept[closed * bs :]).transpose(0, 1)
    return named


def stacked(rows: list[Tensors]) -> Tensors:
    alone = "landmark_positions"
    return {n: rows[0][n] if n.endswith(alone) else torch.stack([row[n] for row in rows]) for n in rows[0]}


def cache(c: Config, inputs: Tensors, p: Tensors) -> Tensors:
    model, tokens, done = Gpt(c, p), inputs["in/tokens"].tolist(), 0
    rows, results = [Row(model) for _ in tokens], {}
    for seg, length in enumerate(c["segments"]):
        outputs, states, record, ids = [], [], [], []
        for b, row in enumerate(rows):
            stream = stream_of(tokens[b][: done + length], model.block - 1, model.marker)
            ids.append(stream[len(row.keys[0]) :])
            flags = [token == model.marker for token in ids[-1]]
            x, named = row.read(list(inputs[f"in/seg{seg}/inputs_embeds"][b]), flags)
            outputs.append(
                torch.stack([model.logits(y) for y, flag in zip(x, flags, strict=True) if not flag])
            )
            record.append(named)
            layers = range(model.layers)
            states.append({f"layer{i}/{n}": s for i in layers for n, s in cached(model, row, i).items()})
        asked = [token for row_tokens in tokens for token in row_tokens[done + 1 : done + length + 1]]
        losses = [nll(one, t) for one, t in zip(torch.stack(outputs).flatten(0, 1), asked, strict=True)]
        results |= {
            f"out/seg{seg}/logits": torch.stack(outputs),
            f"out/seg{seg}/loss": sum(losses) / len(losses),
        }
        results |= {f"state/seg{seg}/{name}": x for name, x in stacked(states).items()}
        results |= {f"idx/seg{seg}/{name}": x for name, x in stacked(record).items()}
        results[f"in/seg{seg}/with_landmarks"] = torch.tensor(ids)
        done += length
    return results


def llama(c: Config, inputs: Tensors, p: Tensors) -> Tensors:
    model = Llama(c, p)
    rows, results = [Row(model) for _ in inputs["in/raw_tokens"]], {}
    for seg in range(len(c["chunks"])):
        outputs, record = [], []
        for b, row in enumerate(rows):
            flags = [token == model.marker for token in inputs[f"in/seg{seg}/with_landmarks"][b].tolist()]
            x, named = row.read(list(inputs[f"in/seg{seg}/inputs_embeds"][b]), flags)
            outputs.append(torch.stack([model.logits(y) for y in x]))
            record.append(named)
        results[f"out/seg{seg}/logits"] = torch.stack(outputs)
        results |= {f"idx/seg{seg}/{name}": x for name, x in stacked(record).items()}
    for layer in range(model.layers):
        keys = torch.stack([torch.stack(row.keys[layer]).transpose(0, 1) for row in rows])
        results[f"state/final/layer{layer}/cache_k_or_incomplete_k"] = keys
    return results


REFERENCES: dict[str, Callable[[Config, Tensors, Tensors], Tensors]] = {
    "landmark/grouped_softmax": grouped,
    "landmark/lm_train": train,
    "landmark/lm_cache": cache,
    "landmark/llama_cache": llama,
}


def computed(kind: str, config: Config, inputs: Tensors) -> Tensors:
    """All tensors of a file of this kind, from its inputs and weights (`in/`, `w/`)."""
    weights = {n[2:]: x.clone() for n, x in inputs.items() if n.startswith("w/") and not n.endswith("freqs")}
    for weight in weights.values():
        weight.requires_grad_(kind == "landmark/lm_train")
    results = REFERENCES[kind](config, inputs, weights)
    return {n: x.detach() if x.is_floating_point() else x.int() for n, x in results.items()}
