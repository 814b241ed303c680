"""Landmark attention by slow loops: the tensors of a golden file, from its inputs and weights.

Written from the equations; no code is shared with the zoo.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.golden.reference.landmark_models import Config, Gpt, Llama, Row, Tensors, rotated, weights_of


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
    before = inputs[f"in/seg{len(c['chunks']) - 1}/with_landmarks"].shape[1]
    for layer in range(model.layers):
        keys, values = (
            torch.stack([torch.stack(kept[layer]).transpose(0, 1) for kept in kept_by_row])
            for kept_by_row in ([row.keys for row in rows], [row.values for row in rows])
        )
        n, full = f"state/final/layer{layer}/", 0
        if c["offload_cache_to_cpu"]:  # what was closed when the last chunk came lies apart
            full = (keys.shape[2] - before) // model.block * model.block
            blocks = range(0, full, model.block)
            for name, part in (("key", keys), ("value", values)) if full else ():
                apart = [part[:, :, start : start + model.block] for start in blocks]
                results[f"{n}past_{name}_mem"] = torch.stack(apart, dim=2)
            landmarks = [keys[:, :, start + model.block - 1] for start in blocks]
            results |= {f"{n}mem_key_nopos": torch.stack(landmarks, dim=2)} if full else {}
        results[f"{n}cache_k_or_incomplete_k"] = keys[:, :, full:]
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
