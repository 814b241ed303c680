"""Landmark attention once more, as loops over rows, heads and queries that share no code with the zoo: held
to the published cases, and our models to it in many more configs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.kinds import landmark
from tests.golden.cases import Case, read_case

FIXTURES = Path(__file__).parent / "fixtures" / "landmark"
Tensors = dict[str, Tensor]
Config = dict[str, Any]


def rotated(x: Tensor, place: int, pairs: bool) -> Tensor:
    """One head's vector at a place: pairs (2i, 2i + 1), or (i, i + K/2)."""
    half = len(x) // 2
    one, two = (x[0::2], x[1::2]) if pairs else (x[:half], x[half:])
    angles = torch.tensor([place * 10000.0 ** (-2 * i / len(x)) for i in range(half)], dtype=torch.float64)
    turned = torch.complex(one, two) * torch.polar(torch.ones_like(angles), angles)
    parts = [turned.real, turned.imag]
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
        told: Tensors = {}
        for layer in range(self.model.layers):
            q, k, v = zip(*(self.model.qkv(one, layer) for one in x), strict=True)
            read, named = self.attend(q, list(k), list(v), flags, layer)
            told |= {f"layer{layer}/{name}": part for name, part in named.items()}
            x = [self.model.leave(one, y, layer) for one, y in zip(x, read, strict=True)]
            self.keys[layer] += [one.detach() for one in k]
            self.values[layer] += [one.detach() for one in v]
        return x, told

    def attend(
        self, q: tuple[Tensor, ...], k: list[Tensor], v: list[Tensor], flags: list[bool], layer: int
    ) -> tuple[list[Tensor], Tensors]:
        m, bs, old = self.model, self.model.block, len(self.keys[layer])
        closed, inc = divmod(old, bs)
        stored = range(max(0, closed - (m.size or 0)), closed)  # the ring's blocks by number, oldest first
        topk = min(m.topk or 0, len(stored))
        start = (topk + 1) * bs + inc
        ranks = {number: max(0, place - (len(stored) - topk) + 1) for place, number in enumerate(stored)}
        open_keys, open_values = self.keys[layer][closed * bs :], self.values[layer][closed * bs :]
        near = [
            [rotated(key[head], start - inc + place, m.pairs) for place, key in enumerate(open_keys + k)]
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
                for slot, number in enumerate(chosen[t][head]):
                    for j in range(bs):
                        place = slot * bs + j + (bs if ranks[number] > 0 else 0)
                        keys.append(rotated(self.keys[layer][number * bs + j][head], place, m.pairs))
                        values.append(self.values[layer][number * bs + j][head])
                        marked.append(j == bs - 1)
                        at.append(place)
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
        numbers = torch.tensor(chosen).transpose(0, 1)  # (heads, time, topk)
        positions = torch.tensor(places).view(len(q), m.heads, -1).transpose(0, 1) + base
        named = {"block_id": numbers, "key_positions": positions}
        if m.absolute:
            spots = torch.tensor([rank * bs + bs - 1 + base for rank in ranks.values()])
            return read, named | {"landmark_positions": spots}
        by_rank = [[[ranks[number] for number in some] for some in heads] for heads in numbers.tolist()]
        return read, named | {"slot": numbers % m.size, "pos_rank": torch.tensor(by_rank)}

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
                rotated(self.keys[layer][number * bs + bs - 1][head], rank * bs + bs - 1, m.pairs)
                for number, rank in ranks.items()
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
                for place, number in enumerate(ranks):
                    seen = {
                        "per_token_and_head": [shares[head][t][place]],
                        "max_over_heads": [some[t][place] for some in shares],
                        "max_over_tokens": [some[place] for some in shares[head]],
                    }[m.method]
                    by_block.append((max(seen), number))
                heads.append(sorted(number for _, number in sorted(by_block)[-topk:]))
            chosen.append(heads)
        return chosen


def nll(logits: Tensor, target: int) -> Tensor:
    return (logits - logits[target]).exp().sum().log()


def grouped(c: Config, given: Tensors, p: Tensors) -> Tensors:
    scores, flags = given["in/scores"].clone().requires_grad_(), given["in/is_landmark"].tolist()
    groups, told = c["max_groups_for_softmax"], []
    for row, marked in enumerate(flags):
        for head in range(scores.shape[1]):
            for t in range(scores.shape[2]):
                query = t + scores.shape[3] - scores.shape[2]
                weights, gates, mass = weights_of(scores[row, head, t], marked, query)
                table = [gates.get(group, torch.zeros_like(mass)) for group in range(groups - 1)]
                told.append((weights, torch.stack([*table, mass])))
    probs, tables = (torch.stack(part).view(*scores.shape[:3], -1) for part in zip(*told, strict=True))
    (grad,) = torch.autograd.grad((probs * given["in/cotangent"]).sum(), [scores])
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


def train(c: Config, given: Tensors, p: Tensors) -> Tensors:
    model, length = Gpt(c, p), c["sequence_length"]
    stream = stream_of(given["in/raw_tokens"].tolist(), c["mem_freq"], model.marker)
    found: Tensors = {"in/stream_with_landmarks": torch.tensor(stream)}
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
            turned = [
                [[rotated(part[i][head], t, True) for head in range(model.heads)] for i in (0, 1)]
                for t, part in enumerate(parts)
            ]
            read, table = [], []
            for t in range(length):
                heads = []
                for head in range(model.heads):
                    keys = [one[1][head] for one in turned]
                    scores = torch.stack([key @ turned[t][0][head] for key in keys])
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
    found |= {f"out/attn_probs.{layer}": one for layer, one in enumerate(torch.stack(shares, dim=1))}
    found |= {"in/tokens": torch.tensor(windows), "in/targets": torch.tensor(asked)}
    found |= {f"grad/{name}": grad for name, grad in zip(p, grads, strict=True)}
    return found | {"out/logits": torch.stack(logits), "out/loss": loss}


def cached(model: Any, row: Row, layer: int) -> Tensors:
    """lm_benchmark's state of one row: the ring as it lies there, and the open block."""
    bs, keys, values = model.block, row.keys[layer], row.values[layer]
    closed = len(keys) // bs
    named: Tensors = {}
    for name, kept in (("k", keys), ("v", values)):
        slots: dict[int, Tensor] = {}
        for number in range(closed):
            slots[number % model.size] = torch.stack(kept[number * bs : (number + 1) * bs])
        if slots:
            named[f"cache_mem_{name}"] = torch.stack([slots[slot] for slot in sorted(slots)])
        if len(keys) % bs:
            named[f"last_incomplete_{name}"] = torch.stack(kept[closed * bs :]).transpose(0, 1)
    return named


def stacked(rows: list[Tensors]) -> Tensors:
    alone = "landmark_positions"
    return {n: rows[0][n] if n.endswith(alone) else torch.stack([row[n] for row in rows]) for n in rows[0]}


def cache(c: Config, given: Tensors, p: Tensors) -> Tensors:
    model, tokens, done = Gpt(c, p), given["in/tokens"].tolist(), 0
    rows, found = [Row(model) for _ in tokens], {}
    for seg, length in enumerate(c["segments"]):
        said, states, told, ids = [], [], [], []
        for b, row in enumerate(rows):
            stream = stream_of(tokens[b][: done + length], model.block - 1, model.marker)
            ids.append(stream[len(row.keys[0]) :])
            flags = [token == model.marker for token in ids[-1]]
            x, named = row.read(list(given[f"in/seg{seg}/inputs_embeds"][b]), flags)
            said.append(torch.stack([model.logits(y) for y, flag in zip(x, flags, strict=True) if not flag]))
            told.append(named)
            layers = range(model.layers)
            states.append({f"layer{i}/{n}": s for i in layers for n, s in cached(model, row, i).items()})
        asked = [token for row_tokens in tokens for token in row_tokens[done + 1 : done + length + 1]]
        losses = [nll(one, t) for one, t in zip(torch.stack(said).flatten(0, 1), asked, strict=True)]
        found |= {f"out/seg{seg}/logits": torch.stack(said), f"out/seg{seg}/loss": sum(losses) / len(losses)}
        found |= {f"state/seg{seg}/{name}": x for name, x in stacked(states).items()}
        found |= {f"idx/seg{seg}/{name}": x for name, x in stacked(told).items()}
        found[f"in/seg{seg}/with_landmarks"] = torch.tensor(ids)
        done += length
    return found


def llama(c: Config, given: Tensors, p: Tensors) -> Tensors:
    model = Llama(c, p)
    rows, found = [Row(model) for _ in given["in/raw_tokens"]], {}
    for seg in range(len(c["chunks"])):
        said, told = [], []
        for b, row in enumerate(rows):
            flags = [token == model.marker for token in given[f"in/seg{seg}/with_landmarks"][b].tolist()]
            x, named = row.read(list(given[f"in/seg{seg}/inputs_embeds"][b]), flags)
            said.append(torch.stack([model.logits(y) for y in x]))
            told.append(named)
        found[f"out/seg{seg}/logits"] = torch.stack(said)
        found |= {f"idx/seg{seg}/{name}": x for name, x in stacked(told).items()}
    for layer in range(model.layers):
        keys = torch.stack([torch.stack(row.keys[layer]).transpose(0, 1) for row in rows])
        found[f"state/final/layer{layer}/cache_k_or_incomplete_k"] = keys
    return found


REFERENCES: dict[str, Callable[[Config, Tensors, Tensors], Tensors]] = {
    "landmark/grouped_softmax": grouped,
    "landmark/lm_train": train,
    "landmark/lm_cache": cache,
    "landmark/llama_cache": llama,
}


def computed(kind: str, config: Config, given: Tensors) -> Tensors:
    """All tensors of a file of this kind, from its inputs and weights (`in/`, `w/`)."""
    weights = {n[2:]: x.clone() for n, x in given.items() if n.startswith("w/") and not n.endswith("freqs")}
    for weight in weights.values():
        weight.requires_grad_(kind == "landmark/lm_train")
    found = REFERENCES[kind](config, given, weights)
    return {n: x.detach() if x.is_floating_point() else x.int() for n, x in found.items()}


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_the_reference_agrees_with_the_published_cases(path: Path) -> None:
    case = read_case(path)
    given = {name: x for name, x in case.tensors.items() if name.startswith(("in/", "w/"))}
    case.compare("", computed(case.kind, case.config, given))
    case.open -= given.keys() | {name for name in case.tensors if name.startswith("mid/")}
    case.close()


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Matrices of variance 1/width_in, scales around 1, biases around 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        scale = len(shape) == 1 and name.endswith("weight")
        weights[f"w/{name}"] = 1 + 0.2 * x if scale else x * (shape[-1] ** -0.5 if len(shape) > 1 else 0.2)
    return weights


def gpt_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    width = c["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (c["vocab_size"], width)}

    def add(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        if c["bias"]:
            shapes[f"{name}.bias"] = shape[:1]

    for layer in range(c["n_layer"]):
        name = f"transformer.h.{layer}."
        add(f"{name}ln_1", width)
        add(f"{name}attn.c_attn", 3 * width, width)
        add(f"{name}attn.c_proj", width, width)
        add(f"{name}ln_2", width)
        add(f"{name}mlp.c_fc", 4 * width, width)
        add(f"{name}mlp.c_proj", width, 4 * width)
    add("transformer.ln_f", width)
    return shapes


def llama_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    width, inner = c["hidden"], c["intermediate"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab"], width)}
    for layer in range(c["layers"]):
        name = f"model.layers.{layer}."
        for norm_name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{name}{norm_name}.weight"] = (width,)
        for part in "qkvo":
            shapes[f"{name}self_attn.{part}_proj.weight"] = (width, width)
        for part, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            shapes[f"{name}mlp.{part}_proj.weight"] = shape
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (c["vocab"], width)}


def random_tokens(vocab: int, marker: int, *shape: int) -> Tensor:
    tokens = torch.randint(vocab - 1, shape, generator=torch.Generator().manual_seed(5))
    return (tokens + (tokens >= marker)).int()


def embedded(ids: Tensor, table: Tensor, seed: int) -> Tensor:
    """Noise as in the published cases, so that no two landmarks are alike."""
    generator = torch.Generator().manual_seed(seed)
    return table[ids.long()] + 0.5 * torch.randn(*ids.shape, table.shape[1], generator=generator).double()


GPT: Config = {"n_embd": 8, "n_head": 2, "n_layer": 2, "bias": False, "vocab_size": 11, "landmark_id": 10}
TRAIN = GPT | {"mem_freq": 3, "sequence_length": 13, "window_starts": [0, 5], "dropout": 0.0, "ln_eps": 1e-5}
CACHE = GPT | {"mem_cache_freq": 2, "mem_cache_size": 9, "cache_topk": 2, "batch_size": 2}
CACHE |= {"cache_selection_method": "per_token_and_head", "segments": [6, 6, 5, 2, 6]}
LLAMA: Config = {
    "hidden": 8,
    "heads": 2,
    "layers": 2,
    "intermediate": 5,
    "vocab": 11,
    "mem_id": 10,
    "mem_freq": 2,
}
LLAMA |= {"cache_top_k": 2, "chunks": [6, 6, 5, 1, 6], "offload_cache_to_cpu": False, "rms_norm_eps": 1e-6}
BY_HEAD, BY_TOKEN = ({"cache_selection_method": f"max_over_{part}"} for part in ("tokens", "heads"))
VARIANTS: dict[str, tuple[str, Config]] = {
    "softmax": ("landmark/grouped_softmax", {"flags": [[2, 5], [0, 3, 4]]}),
    "softmax, prefix": ("landmark/grouped_softmax", {"flags": [[1, 2, 3, 8], []], "T": 4}),
    "softmax, one query": ("landmark/grouped_softmax", {"flags": [[7], [8], [0]], "T": 1, "H": 3}),
    "softmax, all landmarks": ("landmark/grouped_softmax", {"flags": [[*range(9)], [*range(8)]]}),
    "train": ("landmark/lm_train", TRAIN),
    "train, biased": ("landmark/lm_train", TRAIN | {"bias": True, "ln_eps": 1e-2}),
    "train, landmark first": ("landmark/lm_train", TRAIN | {"window_starts": [3, 11, 4]}),
    "train, landmarks of one token": ("landmark/lm_train", TRAIN | {"mem_freq": 1}),
    "train, no landmark": ("landmark/lm_train", TRAIN | {"mem_freq": 6, "sequence_length": 5}),
    "train, landmark amid": ("landmark/lm_train", TRAIN | {"landmark_id": 4, "n_head": 4, "n_layer": 1}),
    "train, one head": ("landmark/lm_train", TRAIN | {"n_head": 1, "n_layer": 1, "mem_freq": 5}),
    "cache": ("landmark/lm_cache", CACHE),
    "cache, one block retrieved": ("landmark/lm_cache", CACHE | {"cache_topk": 1}),
    "cache, fewer than topk at first": ("landmark/lm_cache", CACHE | {"cache_topk": 5}),
    "cache, just topk at first": ("landmark/lm_cache", CACHE | {"cache_topk": 3}),
    "cache, none at first": ("landmark/lm_cache", CACHE | {"segments": [1, 4, 3, 6], "cache_topk": 3}),
    "cache, never full": ("landmark/lm_cache", CACHE | {"mem_cache_size": 40, "cache_topk": 4}),
    "cache, wraps": ("landmark/lm_cache", CACHE | {"mem_cache_size": 5}),
    "cache, smaller than a segment": ("landmark/lm_cache", CACHE | {"mem_cache_size": 2}),
    "cache, of one block": ("landmark/lm_cache", CACHE | {"mem_cache_size": 1, "cache_topk": 1}),
    "cache, topk all": ("landmark/lm_cache", CACHE | {"mem_cache_size": 3, "cache_topk": 3}),
    "cache, by head": ("landmark/lm_cache", CACHE | BY_HEAD),
    "cache, by head, fewer than topk": ("landmark/lm_cache", CACHE | BY_HEAD | {"cache_topk": 4}),
    "cache, by token": ("landmark/lm_cache", CACHE | BY_TOKEN),
    "cache, by token, wraps": ("landmark/lm_cache", CACHE | BY_TOKEN | {"mem_cache_size": 4}),
    "cache, longer blocks": (
        "landmark/lm_cache",
        CACHE | {"mem_cache_freq": 5, "segments": [10, 7, 6, 9, 1]},
    ),
    "cache, blocks of one token": ("landmark/lm_cache", CACHE | {"mem_cache_freq": 1, "segments": [3, 4, 2]}),
    "cache, segments of one token": ("landmark/lm_cache", CACHE | {"segments": [5, 1, 1, 1, 1, 1]}),
    "cache, one row, biased": ("landmark/lm_cache", CACHE | {"batch_size": 1, "bias": True, "n_layer": 3}),
    "cache, landmark amid": ("landmark/lm_cache", CACHE | {"landmark_id": 0, "n_head": 4, "batch_size": 3}),
    "llama": ("landmark/llama_cache", LLAMA),
    "llama, offloaded": ("landmark/llama_cache", LLAMA | {"offload_cache_to_cpu": True}),
    "llama, fewer than topk": ("landmark/llama_cache", LLAMA | {"cache_top_k": 5}),
    "llama, more than there ever are": ("landmark/llama_cache", LLAMA | {"cache_top_k": 50}),
    "llama, one layer": (
        "landmark/llama_cache",
        LLAMA | {"layers": 1, "rms_norm_eps": 1e-2, "cache_top_k": 1},
    ),
    "llama, rows": ("landmark/llama_cache", LLAMA | {"B": 3, "mem_freq": 4, "chunks": [12, 3, 1, 4, 1, 1]}),
    "llama, landmark amid": ("landmark/llama_cache", LLAMA | {"mem_id": 3, "heads": 4, "chunks": [4, 4, 4]}),
}


def inputs(kind: str, c: Config) -> Tensors:
    if kind == "landmark/grouped_softmax":
        c |= {
            "B": len(c["flags"]),
            "H": c.get("H", 2),
            "S": 9,
            "T": c.get("T", 9),
            "max_groups_for_softmax": 12,
        }
        generator = torch.Generator().manual_seed(3)
        shape = (c["B"], c["H"], c["T"], c["S"])
        scores, cotangent = (torch.randn(shape, generator=generator).double() for _ in range(2))
        flags = torch.tensor([[key in some for key in range(c["S"])] for some in c["flags"]])
        return {"in/scores": 3 * scores, "in/cotangent": cotangent, "in/is_landmark": flags}
    if kind == "landmark/lm_train":
        return drawn(gpt_shapes(c)) | {"in/raw_tokens": random_tokens(c["vocab_size"], c["landmark_id"], 60)}
    gpt = kind == "landmark/lm_cache"
    rows, pieces = c.get("batch_size", c.get("B", 1)), c["segments" if gpt else "chunks"]
    vocab, marker = (c["vocab_size"], c["landmark_id"]) if gpt else (c["vocab"], c["mem_id"])
    freq = c["mem_cache_freq" if gpt else "mem_freq"]
    given = drawn(gpt_shapes(c) if gpt else llama_shapes(c))
    table = given["w/transformer.wte.weight" if gpt else "w/model.embed_tokens.weight"]
    tokens = random_tokens(vocab, marker, rows, sum(pieces) + gpt)
    given["in/tokens" if gpt else "in/raw_tokens"] = tokens
    streams = [stream_of(row[: sum(pieces)], freq, marker) for row in tokens.tolist()]
    done, begin = 0, 0
    for seg, length in enumerate(pieces):
        done += length
        end = done + done // freq
        ids = torch.tensor([stream[begin:end] for stream in streams]).int()
        given[f"in/seg{seg}/inputs_embeds"] = embedded(ids, table, seg)
        given[f"in/seg{seg}/with_landmarks"] = ids
        begin = end
    return given


@pytest.mark.parametrize(("kind", "config"), VARIANTS.values(), ids=VARIANTS)
def test_other_configs(kind: str, config: Config) -> None:
    config = dict(config)
    given = inputs(kind, config)
    tensors = given | computed(kind, config, given)
    case = Case(kind, config, tensors)
    landmark.KINDS[kind](case)
    case.close()
