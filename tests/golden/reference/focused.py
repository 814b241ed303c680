"""The Focused Transformer by slow loops.

Loops over rows, heads and positions, written from the equations; no code is shared with the zoo.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

Config = dict[str, Any]
Tensors = dict[str, Tensor]


def neighbouring(x: Tensor, position: int, base: float) -> Tensor:
    """Rotary positions on pairs (2i, 2i + 1)."""
    out, width = list(x), len(x)
    for i in range(width // 2):
        angle = position * base ** (-2 * i / width)
        cos, sin = math.cos(angle), math.sin(angle)
        out[2 * i] = x[2 * i] * cos - x[2 * i + 1] * sin
        out[2 * i + 1] = x[2 * i] * sin + x[2 * i + 1] * cos
    return torch.stack(out)


def halved(x: Tensor, position: int, base: float) -> Tensor:
    """Rotary positions on pairs (i, i + K/2)."""
    half = len(x) // 2
    order = [i + part * half for i in range(half) for part in (0, 1)]
    rotated = neighbouring(x[order], position, base)
    return torch.cat([rotated[0::2], rotated[1::2]])


def rms(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return gain * x / (x.square().mean() + eps).sqrt()


def read(q: Tensor, keys: list[Tensor], values: list[Tensor], scale: float) -> Tensor:
    weights = torch.stack([q @ key * scale for key in keys]).softmax(0)
    return sum((weight * value for weight, value in zip(weights, values, strict=True)), torch.zeros_like(q))


def seen_rows(c: Config, row: int) -> list[int]:
    """The row itself first, then those before it that it may see."""
    most, packing = c["cross_batch_range"] + 1, c.get("dataset_packing", 1)
    count = most
    if c.get("cross_batch_stepping") and packing > 1:
        count = min((row % packing) * math.ceil(most / (packing - 1)) + 1, most)
    return [row - back for back in range(count) if row - back >= 0]


def among_rows(q: Tensor, k: Tensor, v: Tensor, c: Config, base: float) -> Tensor:
    """(rows, time, heads, head_dim), before positions."""
    rows, time, heads, width = q.shape
    out = torch.zeros_like(q)
    for row in range(rows):
        own, *others = seen_rows(c, row)
        for t in range(time):
            for h in range(heads):
                keys = [neighbouring(k[own, s, h], s, base) for s in range(t + 1)]
                values = [v[own, s, h] for s in range(t + 1)]
                for other in others:
                    keys += list(k[other, :, h])
                    values += list(v[other, :, h])
                outputs = read(neighbouring(q[row, t, h], t, base), keys, values, width**-0.5)
                out = out.index_put(tuple(map(torch.tensor, (row, t, h))), outputs)
    return out


def crossbatch(c: Config, inputs: Tensors) -> Tensors:
    q, k, v = (inputs[f"in/{name}"].clone().requires_grad_() for name in "qkv")
    y = among_rows(q, k, v, c, 10000.0)
    grads = torch.autograd.grad((y * inputs["in/cotangent"]).sum(), [q, k, v])
    table = torch.full((c["B"], c["cross_batch_range"] + 1), -1, dtype=torch.int32)
    for row in range(c["B"]):
        for position, other in enumerate(seen_rows(c, row)):
            table[row, position] = other
    grads_named = {f"grad/{name}": grad for name, grad in zip("qkv", grads, strict=True)}
    return {"mid/visible_rows": table, "out/attn_output": y.detach()} | grads_named


def train_lm(c: Config, inputs: Tensors) -> Tensors:
    w = {name[2:]: inputs[name].clone().requires_grad_() for name in inputs if name.startswith("w/")}
    ids, targets, asked = (inputs[f"in/{name}"] for name in ("input_ids", "target_ids", "loss_mask"))
    heads, eps, base = c["num_attention_heads"], c.get("rms_norm_eps", 1e-6), c.get("rope_theta", 10000.0)
    x = w["transformer/wte/embedding"][ids.long()]
    rows, time, width = x.shape

    def normed(x: Tensor, name: str) -> Tensor:
        gain = w[f"transformer/{name}/kernel"]
        return torch.stack([torch.stack([rms(token, gain, eps) for token in row]) for row in x])

    for layer in range(c["num_hidden_layers"]):
        n = f"transformer/h/{layer}/"
        y = normed(x, f"h/{layer}/attention_norm")
        q, k, v = (
            (y @ w[f"{n}attention/w{part}/kernel"]).view(rows, time, heads, width // heads) for part in "qkv"
        )
        config = c if layer in c["mem_layers"] else {"cross_batch_range": 0}
        x = x + among_rows(q, k, v, config, base).reshape(x.shape) @ w[f"{n}attention/wo/kernel"]
        y = normed(x, f"h/{layer}/ffn_norm")
        gate, up = (y @ w[f"{n}feed_forward/w{part}/kernel"] for part in (1, 3))
        x = x + (gate * gate.sigmoid() * up) @ w[f"{n}feed_forward/w2/kernel"]
    logits = normed(x, "ln_f") @ w["lm_head/kernel"]
    nats = logits.logsumexp(-1) - logits.gather(2, targets.long()[..., None])[..., 0]
    loss = ((nats * asked).sum(1) / asked.sum(1)).mean()
    grads = torch.autograd.grad(loss, list(w.values()))
    return {"out/logits": logits.detach(), "out/loss": loss.detach()} | {
        f"grad/{name}": grad for name, grad in zip(w, grads, strict=True)
    }


def paper(c: Config, inputs: Tensors) -> Tensors:
    names = ("q", "k", "v", "k_prev", "v_prev")
    grown = {name: inputs[f"in/{name}"].clone().requires_grad_() for name in names}
    q, k, v, k_prev, v_prev = grown.values()
    memory_k, memory_v, tau = inputs["in/memory_k"], inputs["in/memory_v"], inputs["w/temperature"]
    outputs: dict[str, list[Tensor]] = {"train": [], "infer": [], "infer_dense": []}
    shares, picked = [], []
    for row in range(c["B"]):
        for h in range(c["H"]):
            for t in range(c["seq"]):
                keys, values = list(k[row, h, : t + 1]), list(v[row, h, : t + 1])
                others = [(row + step) % c["B"] for step in range(c["d"])]
                far_k, far_v = (
                    [each for other in others for each in part[other, h]] for part in (k_prev, v_prev)
                )
                outputs["train"].append(read(q[row, h, t], keys + far_k, values + far_v, 1 / float(tau[h])))
                if row == 0:
                    mass = [float((q[row, h, t] @ key / tau[h]).detach().exp()) for key in far_k]
                    shares.append(sum(mass[: c["seq"]]) / sum(mass))
                near = sorted(
                    range(c["memory"]),
                    key=lambda m: -float(q[row, h, t].detach() @ memory_k[row, h, m]),
                )
                picked.append(sorted(near[: c["k"]]))
                for name, chosen in (("infer", near[: c["k"]]), ("infer_dense", near)):
                    far_k = [memory_k[row, h, m] for m in chosen]
                    far_v = [memory_v[row, h, m] for m in chosen]
                    outputs[name].append(read(q[row, h, t], keys + far_k, values + far_v, 1 / float(tau[h])))
    y = {name: torch.stack(parts).view_as(q) for name, parts in outputs.items()}
    grads = torch.autograd.grad((y["train"] * inputs["in/cotangent"]).sum(), list(grown.values()))
    return (
        {f"out/{name}/y": part.detach() for name, part in y.items()}
        | {f"grad/{name}": grad for name, grad in zip(names, grads, strict=True)}
        | {"out/train/positive_mass_row0": torch.tensor(shares, dtype=q.dtype).view(c["H"], c["seq"])}
        | {"idx/infer/retrieved": torch.tensor(picked, dtype=torch.int32).view(*q.shape[:3], -1)}
    )


class Row:
    """LongLLaMA on one text, token after token: a local cache in every layer, and a memory in some."""

    def __init__(self, c: Config, w: Tensors) -> None:
        self.c, self.w, depth = c, w, c["layers"]
        self.local: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(depth)]
        self.memory: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(depth)]

    def overflow(self) -> None:
        for layer in self.c["mem_layers"]:
            self.memory[layer] += self.local[layer]
        self.local = [[] for _ in self.local]

    def token(self, token: int) -> Tensor:
        w, c, eps = self.w, self.c, self.c["rms_norm_eps"]
        heads, width, base = c["heads"], c["hidden"] // c["heads"], c.get("rope_theta", 10000.0)
        x = w["model.embed_tokens.weight"][token]
        for layer in range(c["layers"]):
            n = f"model.layers.{layer}."
            y = rms(x, w[f"{n}input_layernorm.weight"], eps)
            q, k, v = ((w[f"{n}self_attn.{part}_proj.weight"] @ y).view(heads, width) for part in "qkv")
            self.local[layer].append((k, v))
            turns = c.get("mem_positionals", True) or layer not in c["mem_layers"]
            position, out = len(self.local[layer]) - 1, []
            for h in range(heads):
                keys = [
                    halved(k[h], s, base) if turns else k[h] for s, (k, _) in enumerate(self.local[layer])
                ]
                keys += [k[h] for k, _ in self.memory[layer]]
                values = [v[h] for _, v in self.local[layer] + self.memory[layer]]
                rotated = halved(q[h], position, base) if turns else q[h]
                out.append(read(rotated, keys, values, width**-0.5))
            x = x + w[f"{n}self_attn.o_proj.weight"] @ torch.cat(out)
            y = rms(x, w[f"{n}post_attention_layernorm.weight"], eps)
            gate, up = (w[f"{n}mlp.{part}_proj.weight"] @ y for part in ("gate", "up"))
            x = x + w[f"{n}mlp.down_proj.weight"] @ (gate / (1 + (-gate).exp()) * up)
        return w["lm_head.weight"] @ rms(x, w["model.norm.weight"], eps)

    def kept(self, tag: str) -> Tensors:
        results = {}
        for layer in self.c["mem_layers"]:
            local, memory, n = self.local[layer], self.memory[layer], f"state/{tag}/layer{layer}/"
            results[f"{n}local_k"] = torch.stack([k for k, _ in local], dim=1)
            results[f"{n}local_v"] = torch.stack([v for _, v in local], dim=1)
            if memory:
                results[f"{n}mem_k"] = torch.stack([k for k, _ in memory], dim=1)
                results[f"{n}mem_v"] = torch.stack([v for _, v in memory], dim=1)
        return results


def longllama(c: Config, inputs: Tensors) -> Tensors:
    w = {name[2:]: tensor for name, tensor in inputs.items() if name.startswith("w/")}
    ids, mask = inputs["in/input_ids"], inputs["in/attention_mask"]
    window, length, last = c["max_position_embeddings"], c["prefill_len"], c["last_context_length"]
    starts = set(range(0, max(0, length - last), window)) | {max(0, length - last)}
    rows = []
    for tokens, real in zip(ids.tolist(), mask.tolist(), strict=True):
        row, outputs, results, pads, opened = Row(c, w), [], {}, real.count(0), 0
        for position in range(length + c["gen_steps"]):
            if (position in starts and position) or (position >= length and opened + 1 > window):
                row.overflow()
                opened = 0
            opened += 1
            noise = torch.full((c["vocab"],), torch.nan, dtype=torch.float64)
            outputs.append(row.token(tokens[position]) if real[position] else noise)
            if position == length - 1:
                results |= row.kept("prefill")
        results |= row.kept("final")
        for name in results:  # what lies under padding is nothing that may be read
            if "mem_" in name or "local_" in name:
                whole = place_count(name, c, starts)
                missing = whole - results[name].shape[1]
                noise = torch.full_like(results[name][:, :1], 7).expand(-1, missing, -1)
                results[name] = torch.cat([noise, results[name]], dim=1)
        results |= bookkeeping(c, starts, pads)
        results["out/prefill/logits"] = results["out/prefill_no_cache/logits"] = torch.stack(outputs[:length])
        results |= {f"out/step{step}/logits": outputs[length + step][None] for step in range(c["gen_steps"])}
        rows.append(results)
    return {name: torch.stack([results[name] for results in rows]) for name in rows[0]}


def bookkeeping(c: Config, starts: set[int], pads: int) -> Tensors:
    """Positions of the local keys, padding counted; the number added to the scores of the memory's keys."""
    results = {}
    for tag, layer in itertools.product(("prefill", "final"), c["mem_layers"]):
        n = f"state/{tag}/layer{layer}/"
        memory, local = (place_count(f"/{tag}/{part}", c, starts) for part in ("mem_", "local_"))
        results[f"{n}local_pos"] = torch.tensor([[[memory + i] for i in range(local)]], dtype=torch.int32)
        if memory:
            lowest = torch.finfo(torch.float64).min
            added = [[lowest if slot < pads else 0.0] for slot in range(memory)]
            results[f"{n}mem_mask"] = torch.tensor([added], dtype=torch.float64)
    return results


def place_count(name: str, c: Config, starts: set[int]) -> int:
    """How many places, padding included, a part of the state has."""
    remembered, end = max(starts), c["prefill_len"]
    if "/final/" in name:
        for _ in range(c["gen_steps"]):
            if end - remembered + 1 > c["max_position_embeddings"]:
                remembered = end
            end += 1
    return remembered if "mem_" in name else end - remembered


COMPUTED = {
    "fot/crossbatch": crossbatch,
    "fot/train_lm": train_lm,
    "fot/paper_crossbatch_knn": paper,
    "fot/longllama": longllama,
}
