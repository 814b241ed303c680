"""Infini-attention by slow loops.

Loops over rows, heads and positions, written from the equations; no code is shared with the zoo.
"""

import math
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Config = dict[str, Any]
Memory = list[tuple[Tensor, Tensor]] | None  # per head M and z; None while empty


def positive(x: Tensor) -> Tensor:
    return torch.stack([value + 1 if value > 0 else value.exp() for value in x])


def rotated(x: Tensor, position: int, c: Config) -> Tensor:
    if not c["rope"]:
        return x
    half = len(x) // 2
    angles = [position * c["rope_base"] ** (-2 * i / len(x)) for i in range(half)]
    real = [x[i] * math.cos(a) - x[i + half] * math.sin(a) for i, a in enumerate(angles)]
    imaginary = [x[i] * math.sin(a) + x[i + half] * math.cos(a) for i, a in enumerate(angles)]
    return torch.stack(real + imaginary)


def one_head(c: Config, q: Tensor, k: Tensor, v: Tensor, memory: tuple[Tensor, Tensor] | None) -> Any:
    """One row's segment: A_mem, A_dot and the memory after it."""
    far, near = [], []
    for t in range(len(q)):
        scores = [rotated(q[t], t, c) @ rotated(k[j], j, c) / math.sqrt(c["d_key"]) for j in range(t + 1)]
        raised = [(score - max(scores)).exp() for score in scores]
        near.append(sum((e * v[j] for j, e in enumerate(raised)), torch.zeros_like(v[0])) / sum(raised))
        f = positive(q[t])
        far.append(torch.zeros_like(v[0]) if memory is None else (f @ memory[0]) / (f @ memory[1]))
    shape = c["d_key"], c["d_value"]
    new_m, new_z = (
        (torch.zeros(shape).double(), torch.zeros(shape[:1]).double()) if memory is None else memory
    )
    for key, value in zip(k, v, strict=True):
        f = positive(key)
        if c["update"] == "delta" and memory is not None:
            value = value - (f @ memory[0]) / (f @ memory[1])
        new_m, new_z = new_m + torch.outer(f, value), new_z + f
    return torch.stack(far), torch.stack(near), (new_m, new_z)


def attention(c: Config, p: Tensors, name: str, x: Tensor, memory: Memory) -> tuple[Tensors, Any]:
    """One row's segment of one layer (time, width): its parts under the file's names, and its memory."""
    heads, parts, after, mixed = c["n_head"], [], [], []
    for h in range(heads):
        q, k, v = (
            torch.stack([p[f"{name}{part}_proj.weight"].chunk(heads)[h] @ row for row in x]) for part in "qkv"
        )
        far, near, kept = one_head(c, q, k, v, None if memory is None else memory[h])
        gate = 1 / (1 + (-p[f"{name}beta"][h]).exp())
        mixed.append(gate * far + (1 - gate) * near)
        parts.append({"q": q, "k": k, "v": v, "A_mem": far, "A_dot": near, "A": mixed[-1]})
        after.append(kept)
    outputs = {part: torch.stack([head[part] for head in parts]) for part in parts[0]}
    leave = p[f"{name}o_proj.weight"]
    outputs["out"] = torch.stack([leave @ row for row in torch.cat(mixed, dim=1)])
    outputs["bypass"] = torch.stack([leave @ row for row in torch.cat(list(outputs["A_dot"]), dim=1)])
    return outputs, after


def together(memories: list[Any], which: int) -> Tensor:
    """M or z of all rows and heads."""
    return torch.stack([torch.stack([head[which] for head in memory]) for memory in memories])


def slopes(scenario: str, loss: Tensor, leaves: Tensors) -> Tensors:
    results = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    grads = zip(leaves.items(), results, strict=True)
    return {f"grad/{scenario}/{n}": torch.zeros_like(x) if g is None else g for (n, x), g in grads}


def cut(memory: Any) -> Any:
    return [(m.detach(), z.detach()) for m, z in memory]


def layer(c: Config, inputs: Tensors, p: Tensors) -> Tensors:
    results: Tensors = {}
    x, lengths = inputs["in/x"].clone().requires_grad_(), c["seg_lens"]
    for scenario in ("full", "detached"):
        memories: list[Any] = [None] * len(x)
        outs = []
        for s, piece in enumerate(x.split(lengths, dim=1)):
            rows = [attention(c, p, "", row, memory) for row, memory in zip(piece, memories, strict=True)]
            outputs = {part: torch.stack([row[0][part] for row in rows]) for part in rows[0][0]}
            memories = [row[1] for row in rows]
            bypass = outputs.pop("bypass")
            results |= {} if s else {"alt_bypass_first_segment/seg0_out": bypass}
            results |= {f"out/seg{s}/{part}": tensor for part, tensor in outputs.items()}
            results |= {f"state/after_seg{s}/{n}": together(memories, i) for i, n in enumerate("Mz")}
            memories = [cut(memory) for memory in memories] if scenario == "detached" else memories
            outs.append(outputs["out"])
        loss = (torch.cat(outs, dim=1) * inputs["in/cotangent"]).sum()
        results |= {"out/loss": loss[None]} | slopes(scenario, loss, p | {"x": x})
    return results


def norm(x: Tensor, p: Tensors, name: str) -> Tensor:
    rows = [(row - row.mean()) / ((row - row.mean()).square().mean() + 1e-5).sqrt() for row in x]
    return torch.stack(rows) * p[f"{name}.weight"] + p[f"{name}.bias"]


def one_row(c: Config, p: Tensors, ids: Tensor, detached: bool) -> list[dict[str, Any]]:
    """A row's segments: tensors under the file's names, the memories that entered and those that left."""
    memories: list[Memory] = [None] * c["n_layer"]
    record = []
    for piece in ids.split(c["seg_lens"]):
        outputs: dict[str, Any] = {"enter": memories}
        x, after = p["tok_emb.weight"][piece], []
        for i in range(c["n_layer"]):
            parts, kept = attention(c, p, f"layers.{i}.attn.", norm(x, p, f"layers.{i}.norm1"), memories[i])
            x = x + parts["out"]
            y = norm(x, p, f"layers.{i}.norm2") @ p[f"layers.{i}.ff.w1.weight"].T
            y = y + p[f"layers.{i}.ff.w1.bias"]
            y = y * (1 + (y / math.sqrt(2)).erf()) / 2
            x = x + y @ p[f"layers.{i}.ff.w2.weight"].T + p[f"layers.{i}.ff.w2.bias"]
            outputs |= {f"layer{i}_attn_out": parts["out"], f"layer{i}_out": x}
            after.append(kept)
        head = p.get("lm_head.weight", p["tok_emb.weight"])
        record.append(outputs | {"logits": norm(x, p, "norm_f") @ head.T, "after": after})
        memories = [cut(kept) for kept in after] if detached else after
    return record


def model(c: Config, inputs: Tensors, p: Tensors) -> Tensors:
    results: Tensors = {}
    targets, lengths = inputs["in/target_ids"], c["seg_lens"]
    for scenario in ("detached", "full"):
        rows = [one_row(c, p, ids, scenario == "detached") for ids in inputs["in/input_ids"]]
        nll = []
        for s, asked in enumerate(targets.split(lengths, dim=1)):
            for name in [name for name in rows[0][s] if name not in ("enter", "after")]:
                results[f"out/seg{s}/{name}"] = torch.stack([row[s][name] for row in rows])
            logits = results[f"out/seg{s}/logits"]
            nll.append(logits.logsumexp(-1) - logits.gather(-1, asked[..., None])[..., 0])
            results[f"out/seg{s}/nll"] = nll[-1]
            for i in range(c["n_layer"]):
                for which, n in enumerate("Mz"):
                    kept = together([row[s]["after"][i] for row in rows], which)
                    results[f"state/after_seg{s}/layer{i}/{n}"] = kept
        loss = torch.cat(nll, dim=1).mean()
        results |= {"out/loss": loss[None]} | slopes(scenario, loss, p)
    heads = range(c["n_head"])
    for s in range(1, len(lengths)):
        for i in range(c["n_layer"]):
            for which, n in enumerate("Mz"):
                entered = {
                    f"{b} {h}": row[s]["enter"][i][h][which] for b, row in enumerate(rows) for h in heads
                }
                grads = slopes("", nll[-1].mean(), entered)
                results[f"grad/last_segment_loss/layer{i}_{n}_enter_seg{s}"] = torch.stack(
                    [torch.stack([grads[f"grad//{b} {h}"] for h in heads]) for b in range(len(rows))]
                )
    return results


REFERENCE = {"infini/layer": layer, "infini/model": model}


def computed(kind: str, config: Config, inputs: Tensors) -> Tensors:
    """All tensors of a file of this kind, from its inputs and weights."""
    p = {n[6:]: x.clone().requires_grad_() for n, x in inputs.items() if n.startswith("param/")}
    return {n: x.detach() for n, x in REFERENCE[kind](config, inputs, p).items()} | inputs
