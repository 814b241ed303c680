"""How the kinds of the Focused Transformer are held to their files."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tests.golden.cases import Case
from zoo.memory.attention.positions import rotary
from zoo.memory.retrieval.bank import KNNMemory, attend
from zoo.memory.retrieval.crossbatch import (
    Contexts,
    Segments,
    context_rows,
    crossbatch,
    crossbatch_loop,
    earlier_rows,
)
from zoo.models.published import focused
from zoo.state import State


def weights(case: Case) -> dict[str, Tensor]:
    return {results[1]: case.read(results[0]) for results in case.matching(r"w/(.*)")}


def grown(case: Case, *names: str) -> list[Tensor]:
    return [case.read(f"in/{name}").clone().requires_grad_() for name in names]


def check_crossbatch(case: Case) -> None:
    """`fot/crossbatch`: the released code's choice of rows, both forms."""
    c = case.config
    packing, stepping = c.get("dataset_packing", 1), c.get("cross_batch_stepping", False)
    seen = earlier_rows(c["B"], c["cross_batch_range"], packing, stepping)
    case.compare("mid/", {"visible_rows": seen.int()})
    for form in (crossbatch, crossbatch_loop):
        inputs = dict(zip("qkv", grown(case, "q", "k", "v"), strict=True))
        q, k = (rearrange(inputs[name], "b s h (k two) -> b h s (two k)", two=2) for name in "qk")
        v = rearrange(inputs["v"], "b s h k -> b h s k")
        slots, base = torch.arange(c["seq"]), float(c.get("rope_theta", 10000))
        full = torch.full((c["B"],), c["seq"])
        segments = Segments(rotary(q, slots, base), rotary(k, slots, base), v)
        y = form(segments, Contexts(k, v, full), seen[:, 1:])
        y = rearrange(y, "b h s k -> b s h k")
        case.compare("out/", {"attn_output": y})
        (y * case.read("in/cotangent")).sum().backward()
        case.compare("grad/", {name: tensor.grad for name, tensor in inputs.items()})


def positive_share(q: Tensor, before: Tensor, seen: Tensor) -> Tensor:
    """r_d of the paper's section 3.3 (rows, heads, time): the share of the first context, of `seen` (rows,
    d), in the attention that goes to contexts; `before` are their keys, all there."""
    keys = rearrange(before[seen], "b d h s k -> b h (d s) k")
    return (q @ keys.mT / q.shape[3] ** 0.5).softmax(-1)[..., : before.shape[2]].sum(-1)


def check_paper(case: Case) -> None:
    """`fot/paper_crossbatch_knn`: training among d rows, evaluation with the k nearest keys and with all."""
    c = case.config
    seen, full = context_rows(c["B"], c["d"], torch.device("cpu")), torch.full((c["B"],), c["seq"])
    scale = (c["head_dim"] ** 0.5 / case.read("w/temperature"))[:, None, None]
    names = ("q", "k", "v", "k_prev", "v_prev")
    for form in (crossbatch, crossbatch_loop):
        inputs = dict(zip(names, grown(case, *names), strict=True))
        q, k, v, before_k, before_v = inputs.values()
        y = form(Segments(q * scale, k, v), Contexts(before_k, before_v, full), seen)
        share = positive_share(q * scale, before_k, seen)
        case.compare("out/train/", {"y": y, "positive_mass_row0": share[0]})
        (y * case.read("in/cotangent")).sum().backward()
        case.compare("grad/", {name: tensor.grad for name, tensor in inputs.items()})

    q, k, v = (case.read(f"in/{name}") for name in "qkv")
    keys, values = case.read("in/memory_k"), case.read("in/memory_v")
    causal = torch.ones(c["seq"], c["seq"], dtype=torch.bool).tril()
    expected = case.read("idx/infer/retrieved")
    for name, neighbours in (("infer", c["k"]), ("infer_dense", c["memory"])):
        knn = KNNMemory(c["memory"], c["H"], c["head_dim"], c["head_dim"], neighbours)
        bank = knn.add(knn.init_state(c["B"], q), keys, values)
        ids = knn.search(q * scale, bank)
        results = knn.gather(bank, ids)
        y = attend(q * scale, k, v, causal, *results, ids >= 0, c["head_dim"] ** -0.5)
        case.compare(f"out/{name}/", {"y": y})
        if name == "infer":  # as sets
            assert torch.equal(ids.sort(-1).values.int(), expected.sort(-1).values)


def check_train_lm(case: Case) -> None:
    """`fot/train_lm`: the released code's model in training."""
    model = focused.load(weights(case), case.config).train()
    ids, targets = case.read("in/input_ids").long(), case.read("in/target_ids").long()
    asked = case.read("in/loss_mask")
    for read in (model.segment, model.forward):
        model.zero_grad()
        logits, _ = read(ids, model.init_state(len(ids)))
        nats = F.cross_entropy(logits.mT, targets, reduction="none")
        loss = ((nats * asked).sum(1) / asked.sum(1)).mean()
        case.compare("out/", {"logits": logits, "loss": loss})
        loss.backward()
        case.compare("grad/", focused.published_gradients(model, flax=True))


def windows(length: int, window: int, last: int) -> list[int]:
    """How a prompt is cut: its last tokens together, those before them by the window."""
    before = max(0, length - last)
    return [min(window, before - start) for start in range(0, before, window)] + [length - before]


def reading(model: focused.LongLLaMA, ids: Tensor, pads: int, c: dict[str, Any]) -> dict[str, Tensor]:
    """What the file says of rows that begin with so much padding, which isn't read and is nothing here.

    A closed window is a segment; the last one stays open, and each new token reads it again.
    """
    window, results, outputs = c["max_position_embeddings"], {}, []
    *closed, opened = windows(c["prefill_len"], window, c.get("last_context_length", 1024))
    state, start = model.init_state(len(ids)), 0
    for end in accumulate(closed):
        if end > pads:
            logits, state = model.segment(ids[:, max(start, pads) : end], state)
            outputs.append(logits)
        start = end
    end = start + opened

    def local(tag: str, after: State) -> dict[str, Tensor]:
        kept = {f"state/{tag}/{name}": part for name, part in focused.published_state(state).items()}
        for layer in c["mem_layers"]:
            keys, count = after[layer].previous_keys, end - max(start, pads)
            kept[f"state/{tag}/layer{layer}/local_k"] = keys[:, :, :count]
            slots = torch.arange(max(start, pads), end, dtype=torch.int32) - pads
            kept[f"state/{tag}/layer{layer}/local_pos"] = slots.view(1, 1, -1, 1).expand(len(ids), -1, -1, -1)
        return kept

    logits, after = model.segment(ids[:, max(start, pads) : end], state)
    results["out/prefill/logits"] = torch.cat([*outputs, logits], dim=1)
    results |= local("prefill", after)
    for step in range(c["gen_steps"]):
        if end + 1 - start > window:
            state, start = after, end
        end += 1
        logits, after = model.segment(ids[:, max(start, pads) : end], state)
        results[f"out/step{step}/logits"] = logits[:, -1:]
        lengths = {"step": step, "local_len": end - start, "mem_len": start}
        assert c.get("per_step", {step: lengths})[step] == lengths
    return results | local("final", after)


def check_longllama(case: Case) -> None:
    """`fot/longllama`: what padding says isn't compared."""
    c, ids = case.config, case.read("in/input_ids").long()
    params = weights(case)
    kept = {"mem_dtype": str(next(iter(params.values())).dtype).removeprefix("torch.")}  # a patch of the code
    model = focused.load(params, kept | c | {"capacity": ids.shape[1]}).eval()
    *closed, _ = cut = windows(c["prefill_len"], c["max_position_embeddings"], c["last_context_length"])
    assert c.get("windows", cut) == cut
    pads = (case.read("in/attention_mask") == 0).sum(1).tolist()
    groups = (
        [(slice(None), pads[0])]
        if len(set(pads)) == 1
        else [(slice(row, row + 1), count) for row, count in enumerate(pads)]
    )
    with torch.no_grad():
        readings = [(rows, count, reading(model, ids[rows], count, c)) for rows, count in groups]
        if not any(pads) and model.segment_len == c["max_position_embeddings"]:
            whole = sum(length for length in closed if length == model.segment_len)
            rest = readings[0][2]["out/prefill/logits"][:, whole:]
            at_once = torch.cat([model(ids[:, :whole])[0], rest], dim=1) if whole else rest
            case.compare("out/", {"prefill/logits": at_once})
    for name in readings[0][2]:
        if name in case:
            results, axis = case.tensors[name].clone(), 1 if name.startswith("out/") else 2
            for rows, count, outputs in readings:
                length = outputs[name].shape[axis]
                assert 0 <= results.shape[axis] - length <= count
                results[rows].narrow(axis, results.shape[axis] - length, length).copy_(outputs[name])
            case.compare("", {name: results})
            if name == "out/prefill/logits":
                case.compare("out/", {"prefill_no_cache/logits": results})


KINDS: dict[str, Callable[[Case], None]] = {
    "fot/crossbatch": check_crossbatch,
    "fot/paper_crossbatch_knn": check_paper,
    "fot/train_lm": check_train_lm,
    "fot/longllama": check_longllama,
}
