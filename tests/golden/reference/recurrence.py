"""Transformer-XL, RMT and ARMT once more, slowly: their equations as loops over positions.

It shares no code with the zoo.  Each kind's function turns (config, inputs, weights) into the tensors that a
golden file of that kind holds.  A segment tells its tensors under the file's names, with # for the segment.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Config = dict[str, Any]
Cut = Callable[[int], bool]  # is the state that segment s leaves detached?
CUTS: dict[str, Callable[[int], Cut]] = {
    "full": lambda segments: lambda s: False,
    "bptt0": lambda segments: lambda s: True,
    "k2_1_intended": lambda segments: lambda s: 1 <= s <= segments - 1,
    "k2_2_intended": lambda segments: lambda s: 1 <= s <= segments - 2,
}


def norm(x: Tensor, p: Tensors, name: str, eps: float = 1e-5) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([row.logsumexp(0) - row[t] for row, t in zip(logits, targets, strict=True)])


def slopes(scenario: str, loss: Tensor, leaves: Tensors) -> Tensors:
    results = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    grads = zip(leaves.items(), results, strict=True)
    return {f"grad/{scenario}{n}": torch.zeros_like(x) if g is None else g for (n, x), g in grads}


def stacked(rows: list[list[Tensors]], dim: int) -> list[Tensors]:
    """Rows of segments of tensors -> segments of tensors."""
    segments = zip(*rows, strict=True)
    return [{n: torch.stack([row[n] for row in record], dim) for n in record[0]} for record in segments]


def numbered(record: list[Tensors]) -> Tensors:
    return {
        n.replace("#", f"seg{s}"): x
        for s, outputs in enumerate(record)
        for n, x in outputs.items()
        if x.numel()
    }


def position(t: int, c: Config) -> Tensor:
    t = min(t, c["clamp_len"]) if c["clamp_len"] > 0 else t
    angles = [t * 10000 ** (-2 * n / c["d_model"]) for n in range(c["d_model"] // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


def xl_sees(c: Config, i: int, j: int, queries: int, cache: int) -> bool:
    slots, distance, column = c.get("num_mem_tokens", 0), i + cache - j, j - cache
    if c["same_length"]:
        return 0 <= distance < c["mem_len"]
    reads, writes = i < slots, slots > 0 and c["mem_at_end"] and i >= queries - slots
    if (reads or writes) and column < 0:
        return c["read_mem_from_cache"]
    return distance >= 0 or (reads and column < slots) or (writes and column >= queries - slots)


def xl_layer(c: Config, p: Tensors, name: str, h: Tensor, memory: Tensor) -> Tensors:
    queries, cache, keys, shape = len(h), len(memory), len(memory) + len(h), (-1, c["n_head"], c["d_head"])
    both = torch.cat([memory, h])
    both = norm(both, p, f"{name}dec_attn.layer_norm") if c["pre_lnorm"] else both
    q, k, v = ((both @ w.T).view(shape) for w in p[f"{name}dec_attn.qkv_net.weight"].chunk(3))
    q = q[cache:]
    r = [(p[f"{name}dec_attn.r_net.weight"] @ position(t, c)).view(shape[1:]) for t in range(keys)]
    mixed = []
    for i in range(queries):
        seen, scores = [j for j in range(keys) if xl_sees(c, i, j, queries, cache)], []
        for j in seen:
            distance, by_place = i + cache - j, torch.zeros(c["n_head"], dtype=torch.float64)
            if distance >= 0:
                by_place = ((q[i] + p["r_r_bias"]) * r[distance]).sum(-1)
            elif distance < -1:  # the published shift wraps around to the next query
                by_place = ((q[i + 1] + p["r_r_bias"]) * r[keys + 1 + distance]).sum(-1)
            scores.append((((q[i] + p["r_w_bias"]) * k[j]).sum(-1) + by_place) / math.sqrt(c["d_head"]))
        weights = torch.stack(scores).softmax(0)
        mixed.append((weights[:, :, None] * v[seen]).sum(0).flatten())
    vec = torch.stack(mixed)
    projected = vec @ p[f"{name}dec_attn.o_net.weight"].T
    y = h + projected if c["pre_lnorm"] else norm(h + projected, p, f"{name}dec_attn.layer_norm")
    x, ff = norm(y, p, f"{name}pos_ff.layer_norm") if c["pre_lnorm"] else y, f"{name}pos_ff.CoreNet."
    x = (x @ p[f"{ff}0.weight"].T + p[f"{ff}0.bias"]).clamp(min=0) @ p[f"{ff}3.weight"].T + p[f"{ff}3.bias"]
    out = y + x if c["pre_lnorm"] else norm(y + x, p, f"{name}pos_ff.layer_norm")
    return {"attn_vec": vec, "attn_out_proj": projected, "attn_block_out": y, "out": out}


def xl_row(c: Config, p: Tensors, ids: list[Tensor], targets: list[Tensor], cut: Cut) -> list[Tensors]:
    slots, embed = c.get("num_mem_tokens", 0), p["word_emb.emb_layers.0.weight"]
    mems = [torch.zeros(0, c["d_model"], dtype=torch.float64)] * (c["n_layer"] + 1)
    tokens, record = p["mem_tokens"][:, 0] if slots else embed[:0], []
    for s, (piece, labels) in enumerate(zip(ids, targets, strict=True)):
        outputs = {"state/enter_#/mem_tokens": tokens}
        inputs = [torch.cat([tokens, math.sqrt(c["d_model"]) * embed[piece], tokens])]
        if slots and not c["mem_at_end"]:
            inputs[0] = inputs[0][:-slots]
        for layer, memory in enumerate(mems[:-1]):
            parts = xl_layer(c, p, f"layers.{layer}.", inputs[-1], memory)
            inputs.append(parts["out"])
            outputs[f"out/#/layer{layer}_out" + "_all_positions" * (slots > 0)] = parts["out"]
            outputs |= {} if slots else {f"out/#/layer{layer}_attn_block_out": parts["attn_block_out"]}
        for layer, new in enumerate(inputs):
            kept = torch.cat([mems[layer], new]).detach()
            mems[layer] = kept[max(0, len(kept) - c["mem_len"]) :]
            outputs[f"state/after_#/mems{layer}"] = mems[layer]
        if slots:
            tokens = inputs[-1][-slots:] if c["mem_at_end"] else inputs[-1][:slots]
        outputs["state/after_#/mem_tokens"] = tokens
        tokens = tokens.detach() if cut(s) else tokens
        head = embed if c["tie_weight"] else p["crit.out_layers.0.weight"]
        logits = inputs[-1][slots : slots + len(piece)] @ head.T + p["crit.out_layers.0.bias"]
        record.append(outputs | {"out/#/logits": logits, "out/#/nll": nll(logits, labels)})
    return record


def xl_model(c: Config, tensors: Tensors, p: Tensors) -> Tensors:
    segments = sum("input_ids" in name for name in tensors)
    ids, targets = (
        [tensors[f"in/seg{s}/{part}"] for s in range(segments)] for part in ("input_ids", "target_ids")
    )

    def fold(scenario: str) -> list[Tensors]:
        cut = CUTS[scenario](segments)
        columns = [([x[:, b] for x in ids], [x[:, b] for x in targets]) for b in range(ids[0].shape[1])]
        return stacked([xl_row(c, p, *column, cut) for column in columns], 1)

    record = fold("full")
    losses = torch.stack([outputs["out/#/nll"].mean() for outputs in record])
    results = numbered(record) | {f"out/seg{s}/loss": loss[None] for s, loss in enumerate(losses)}
    if "mem_tokens" not in p:
        results |= {"out/mean_loss": losses.mean()[None]} | slopes("mean_over_segs/", losses.mean(), p)
        return results | slopes(f"seg{segments - 1}/", losses[-1], p)
    cut_loss = torch.stack([outputs["out/#/nll"].mean() for outputs in fold("bptt0")]).mean()
    results |= slopes("full/", losses.mean(), p) | slopes("bptt0/", cut_loss, p)
    return results | slopes("last_segment_full/", losses[-1], p)


def one_xl_layer(c: Config, tensors: Tensors, p: Tensors) -> Tensors:
    w, mems = (tensors[f"in/{name}"].clone().requires_grad_() for name in ("w", "mems"))
    rows = [[xl_layer(c, p, "", w[:, b], mems[:, b])] for b in range(w.shape[1])]
    parts = {f"out/{name}": x for name, x in stacked(rows, 1)[0].items()}
    parts["out/layer_out"] = parts.pop("out/out")
    loss, queries, keys = (parts["out/layer_out"] * tensors["in/cotangent"]).sum(), len(w), len(mems) + len(w)
    hidden = [[not xl_sees(c, i, j, queries, len(mems)) for j in range(keys)] for i in range(queries)]
    parts["in/attn_mask"] = torch.tensor(hidden, dtype=torch.uint8)
    parts["in/r"] = torch.stack([position(t, c) for t in range(keys - 1, -1, -1)])[:, None]
    return parts | {"out/loss": loss[None]} | slopes("", loss, p | {"w": w, "mems": mems})


def gpt2_block(c: Config, p: Tensors, name: str, x: Tensor) -> Tensor:
    eps, width = c["layer_norm_epsilon"], c["n_embd"] // c["n_head"]
    qkv = norm(x, p, f"{name}ln_1", eps) @ p[f"{name}attn.c_attn.weight"] + p[f"{name}attn.c_attn.bias"]
    q, k, v = (part.view(len(x), c["n_head"], width) for part in qkv.chunk(3, dim=1))
    mixed = []
    for i in range(len(x)):
        seen = [(q[i, a], k[: i + 1, a], v[: i + 1, a]) for a in range(c["n_head"])]
        heads = [(keys @ query / math.sqrt(width)).softmax(0) @ values for query, keys, values in seen]
        mixed.append(torch.cat(heads))
    x = x + torch.stack(mixed) @ p[f"{name}attn.c_proj.weight"] + p[f"{name}attn.c_proj.bias"]
    y = norm(x, p, f"{name}ln_2", eps) @ p[f"{name}mlp.c_fc.weight"] + p[f"{name}mlp.c_fc.bias"]
    y = {
        "gelu_new": 0.5 * y * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)).tanh()),
        "gelu": 0.5 * y * (1 + (y / math.sqrt(2)).erf()),
        "relu": y.clamp(min=0),
    }[c["activation"].split()[0]]
    return x + y @ p[f"{name}mlp.c_proj.weight"] + p[f"{name}mlp.c_proj.bias"]


def rmt_segment(c: Config, p: Tensors, ids: Tensor, memory: Tensor | None) -> tuple[Tensors, Tensor, Tensor]:
    memory = p["memory"] * 1 if memory is None else memory
    x = torch.cat([memory, p["model.transformer.wte.weight"][ids], memory])
    hidden = [x + p["model.transformer.wpe.weight"][: len(x)]]
    for layer in range(c["n_layer"]):
        hidden.append(gpt2_block(c, p, f"model.transformer.h.{layer}.", hidden[-1]))
    x = hidden[-1] = norm(hidden[-1], p, "model.transformer.ln_f", c["layer_norm_epsilon"])
    outputs = {f"out/#/hidden{n}_all_positions": x for n, x in enumerate(hidden)}
    outputs["state/enter_#/memory_state"] = memory
    return outputs, x[len(memory) : len(memory) + len(ids)], x[-len(memory) :]


def phi(x: Tensor, nu: int) -> Tensor:
    y = [e.clamp(min=0) for e in x] + [(-e).clamp(min=0) for e in x]
    return torch.stack([y[i] * y[(i - j) % len(y)] for j in range(1, nu + 1) for i in range(len(y))])


def armt_segment(c: Config, p: Tensors, ids: Tensor, memory: Any) -> tuple[Tensors, Tensor, Tensors]:
    m, table = c["num_mem_tokens"], p["model.transformer.wpe.weight"]
    x = torch.cat([p["model.transformer.wte.weight"][ids], p["memory"]])
    x = x + (torch.cat([table[: len(ids)], table[-m:]]) if c["wrap_pos"] else table[: len(x)])
    outputs: Tensors = {}
    after: Tensors = {}
    for layer in range(c["n_layer"]):
        name, w, z = f"model.transformer.h.{layer}.", torch.zeros(()), torch.zeros(())
        if memory is not None:
            w, z = old_w, old_z = memory[f"layer{layer}/W_mem"], memory[f"layer{layer}/z"]
            queries = [phi(p[f"{name}W_mq.weight"] @ row, c["nu"]) for row in x]
            x = torch.stack([row + (q @ w) / (z @ q + 1e-5) for row, q in zip(x, queries, strict=True)])
        x = outputs[f"out/#/layer{layer}_out_all_positions"] = gpt2_block(c, p, f"{name}layer.", x)
        for row in x[-m:]:
            key, value = phi(p[f"{name}W_mk.weight"] @ row, c["nu"]), p[f"{name}W_mv.weight"] @ row
            gamma = 1.0
            if memory is not None:
                denominator = old_z @ key + 1e-5
                value = value - (key @ old_w) / denominator
                if c["correction"]:
                    gamma = (1 - denominator / (key @ key + 1e-5)).clamp(0, 1).item()
            strength = torch.sigmoid(p[f"{name}W_mb.weight"] @ row + p[f"{name}W_mb.bias"])
            w, z = w + strength * torch.outer(key, value), z + gamma * key
        after |= {f"layer{layer}/W_mem": w, f"layer{layer}/z": z}
    x = norm(x, p, "model.transformer.ln_f", c["layer_norm_epsilon"])
    return outputs | {f"state/after_#/{n}": x for n, x in after.items()}, x[: len(ids)], after


def gpt2_model(c: Config, tensors: Tensors, p: Tensors) -> Tensors:
    ids, lengths, associative = tensors["in/input_ids"], tensors["in/seg_lens"].tolist(), "d_mem" in c
    bare = {name.removeprefix("memory_cell."): x for name, x in p.items()}
    head = bare.get("model.lm_head.weight", bare["model.transformer.wte.weight"])

    def fold(scenario: str) -> tuple[list[Tensors], list[list[Tensors]], Tensors]:
        """Segments' tensors of all rows, the rows' own, and the losses."""
        rows, lost, cut = [], [], CUTS[scenario](len(lengths))
        for row in ids:
            memory: Any = None
            record: list[Tensors] = []
            hidden = []
            for s, piece in enumerate(row.split(lengths)):
                outputs, x, memory = (armt_segment if associative else rmt_segment)(c, bare, piece, memory)
                record.append(outputs | ({} if associative else {"state/after_#/memory_state": memory}))
                hidden.append(x)
                if cut(s):
                    memory = {n: x.detach() for n, x in memory.items()} if associative else memory.detach()
            record[-1]["logits"] = torch.cat(hidden) @ head.T
            rows.append(record)
            lost.append(nll(record[-1]["logits"][:-1], row[1:]))
        mask = tensors.get("in/labels_mask", torch.ones_like(ids)).bool()[:, :-1]
        loss, last = torch.stack(lost), torch.stack(lost)[:, sum(lengths[:-1]) :]
        losses = {"loss": loss.mean(), "loss_masked": loss[mask].mean(), "last_segment_loss": last.mean()}
        return stacked(rows, 0), rows, losses

    record, rows, losses = fold("full")
    results = {f"out/{name}": loss[None] for name, loss in losses.items()}
    results |= {"out/logits": record[-1].pop("logits")} | numbered(record)
    if not associative:
        results["state/after_last/memory_state"] = record[-1]["state/after_#/memory_state"]
        positions = [(s, b) for s in range(len(lengths)) for b in range(len(rows))]
        states = {f"{s} {b}": rows[b][s]["state/enter_#/memory_state"] for s, b in positions}
        for scenario, loss in (("full", "loss"), ("last_segment_loss", "last_segment_loss")):
            entering = slopes("", losses[loss], states)
            for s in range(len(lengths)):
                grad = torch.stack([entering[f"grad/{s} {b}"] for b in range(len(rows))])
                results[f"grad/{scenario}/memory_state_enter_seg{s}"] = grad
    for scenario in ("full", "bptt0") if associative else CUTS:
        results |= slopes(f"{scenario}/", fold(scenario)[2]["loss"], p)
    return results


def rmt_cell(c: Config, tensors: Tensors, p: Tensors) -> Tensors:
    memory = tensors["in/memory_state"].clone().requires_grad_()
    record = []
    for ids, state in zip(tensors["in/input_ids"], memory, strict=True):
        outputs, x, new = rmt_segment(c, p, ids, state)
        parts = {name.replace("#/", ""): part for name, part in outputs.items() if name.startswith("out")}
        parts |= {"out/logits": x @ p["model.transformer.wte.weight"].T, "out/new_memory_state": new}
        record.append([parts])
    results = stacked(record, 0)[0]
    loss = (results["out/logits"] * tensors["in/cotangent_logits"]).sum()
    loss = loss + (results["out/new_memory_state"] * tensors["in/cotangent_new_memory"]).sum()
    return results | {"out/loss": loss[None]} | slopes("", loss, p | {"memory_state": memory})


KINDS: dict[str, Callable[[Config, Tensors, Tensors], Tensors]] = {
    "transformer_xl/layer": one_xl_layer,
    "transformer_xl/model": xl_model,
    "rmt/xl_model": xl_model,
    "rmt/cell": rmt_cell,
    "rmt/gpt2_model": gpt2_model,
    "rmt/armt_model": gpt2_model,
}


def computed(kind: str, config: Config, tensors: Tensors) -> Tensors:
    """All tensors of a file of this kind, from its inputs and weights (`in/`, `param/`)."""
    weights = {n.removeprefix("param/"): x for n, x in tensors.items() if n.startswith("param/")}
    p = {n: x.clone().requires_grad_() for n, x in weights.items()}
    return {n: x.detach() for n, x in KINDS[kind](config, tensors, p).items()} | tensors
