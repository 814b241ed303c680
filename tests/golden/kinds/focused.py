"""How the kinds of the Focused Transformer are held to their files."""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tests.golden.cases import Case, Config
from zoo.memory.attention.rotary import rotary
from zoo.memory.retrieval.bank import KNNMemory, attend
from zoo.memory.retrieval.crossbatch import (
    Contexts,
    Segments,
    context_rows,
    crossbatch,
    crossbatch_loop,
    earlier_rows,
)
from zoo.memory.retrieval.focused_attention import FocusedState
from zoo.models.published import focused
from zoo.state import State


def weights(case: Case) -> dict[str, Tensor]:
    return {results[1]: case.read(results[0]) for results in case.matching(r"w/(.*)")}


def grown(case: Case, *names: str) -> list[Tensor]:
    return [case.read(f"in/{name}").clone().requires_grad_() for name in names]


def check_crossbatch(case: Case) -> None:
    """`fot/crossbatch`: the released code's choice of rows, both forms."""
    c = case.config
    rows, seq, heads, head_dim = case.tensors["in/q"].shape
    case.expect(B=rows, seq=seq, heads=heads, head_dim=head_dim)
    case.expect(
        rope=re.compile(r"interleaved pairs, base [\d.]+, positions 0\.\.seq-1; other contexts at .* \(0\)")
    )
    base = float(c.get("rope_theta", (re.findall(r"base ([\d.]+)", c.get("rope", "")) or [10000])[0]))
    assert c.get("mask_value", -1e6) < -1e4, (
        "config field mask_value: expected a number whose exponential is 0"
    )
    packing, stepping = c.get("dataset_packing", 1), c.get("cross_batch_stepping", False)
    seen = earlier_rows(rows, c["cross_batch_range"], packing, stepping)
    case.compare("mid/", {"visible_rows": seen.int()})
    for form in (crossbatch, crossbatch_loop):
        inputs = dict(zip("qkv", grown(case, "q", "k", "v"), strict=True))
        q, k = (rearrange(inputs[name], "b s h (k two) -> b h s (two k)", two=2) for name in "qk")
        v = rearrange(inputs["v"], "b s h k -> b h s k")
        slots, full = torch.arange(seq), torch.full((rows,), seq)
        segments = Segments(*(rotary(part, slots, base) for part in (q, k)), v)
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
    (rows, heads, seq, head_dim), memory = case.tensors["in/q"].shape, case.tensors["in/memory_k"].shape[2]
    case.expect(B=rows, H=heads, seq=seq, head_dim=head_dim, memory=memory)
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
    case.expect(B=len(ids), seq=ids.shape[1])
    for read in (model.segment, model.forward):
        model.zero_grad()
        logits, _ = read(ids, model.init_state(len(ids)))
        nats = F.cross_entropy(logits.mT, targets, reduction="none")
        loss = ((nats * asked).sum(1) / asked.sum(1)).mean()
        case.compare("out/", {"logits": logits, "loss": loss})
        loss.backward()
        case.compare("grad/", focused.published_gradients(model, flax=True))


class Schedule(NamedTuple):
    """What the published code reads in each call, and what it then still has in its local cache."""

    closed: list[tuple[int, int]]  # the windows that go into the memory
    opened: list[tuple[int, int]]  # the last window, then after each step: [start, end) of the local cache


def schedule(c: Config) -> Schedule:
    """The last tokens of a prompt are read together, those before them by the window.  A local cache that
    would outgrow the window goes into the memory, all of it."""
    window, length = c["max_position_embeddings"], c["prefill_len"]
    last = max(0, length - c.get("last_context_length", 1024))
    closed = [(start, min(start + window, last)) for start in range(0, last, window)]
    opened = [(last, length)]
    for end in range(length + 1, length + c["gen_steps"] + 1):
        start, before = opened[-1]
        opened.append((start if end - start <= window else before, end))
    return Schedule(closed, opened)


def reading(model: focused.LongLLaMA, ids: Tensor, pads: int, plan: Schedule) -> dict[str, Tensor]:
    """What the file has of rows that begin with so much padding, which isn't read and is nothing here.

    A closed window is a segment; the last one stays open, and each new token reads it again.
    """
    results, outputs, state, start = dict[str, Tensor](), list[Tensor](), model.init_state(len(ids)), 0
    after = state

    def read(start: int, end: int) -> tuple[Tensor, State]:
        return model.segment(ids[:, max(start, pads) : end], state)

    for span in plan.closed:
        if span[1] > pads:
            logits, state = read(*span)
            outputs.append(logits)
    for step, (begin, end) in enumerate(plan.opened):
        if step and begin > start:  # the cache has moved into the memory
            state = after
        start = begin
        logits, after = read(start, end)
        if step:
            results[f"out/step{step - 1}/logits"] = logits[:, -1:]
        else:
            results["out/prefill/logits"] = torch.cat([*outputs, logits], dim=1)
        tags = ["prefill"] * (step == 0) + ["final"] * (step == len(plan.opened) - 1)
        for tag in tags:
            for name, part in focused.published_state(state).items():
                results[f"state/{tag}/{name}"] = part
            for layer, part in enumerate(after):
                if isinstance(part, FocusedState):
                    for kind, local in (("k", part.previous_keys), ("v", part.previous_values)):
                        length = end - max(start, pads)
                        results[f"state/{tag}/layer{layer}/local_{kind}"] = local[:, :, :length]
    return results


def compare_padded(case: Case, name: str, parts: list[tuple[slice, int, Tensor]]) -> None:
    """Rows of different padding, which stands before what the rows have and isn't compared."""
    if name not in case:
        return
    results, axis = case.tensors[name].clone(), 1 if name.startswith("out/") else 2
    for rows, pads, part in parts:
        length = part.shape[axis]
        assert 0 <= results.shape[axis] - length <= pads
        results[rows].narrow(axis, results.shape[axis] - length, length).copy_(part)
    case.compare("", {name: results})


def compare_positions(case: Case, mask: Tensor, plan: Schedule) -> None:
    """Positions of the local keys: counted from the beginning of the rows, padding included, as by the
    published model; or as by its generation, from each row's first token, -1 in the padding."""
    tags = {"prefill": plan.opened[0], "final": plan.opened[-1]}
    counts = (torch.arange(mask.shape[1]).expand_as(mask), mask.cumsum(1) - 1)
    both = [
        {
            f"state/{tag}/layer{layer}/local_pos": count[:, None, start:end, None].int()
            for tag, (start, end) in tags.items()
            for layer in case.config["mem_layers"]
        }
        for count in counts
    ]
    by_row = all(name not in case or torch.equal(case.tensors[name], x) for name, x in both[1].items())
    case.compare("", both[by_row])


def compare_masks(case: Case, mask: Tensor, plan: Schedule) -> None:
    """What the memory has of padding is masked: by the lowest number, added to scores, or by 0 of 0 and 1."""
    for match in case.matching(r"state/(prefill|final)/layer\d+/(mem_)?m(asks?)?"):
        expected = case.tensors[match[0]]
        valid = mask[:, None, : plan.opened[0 if match[1] == "prefill" else -1][0], None]
        if expected.is_floating_point() and not (expected > 0).any():
            ours = (valid == 0).to(expected.dtype) * torch.finfo(expected.dtype).min
        else:
            ours = valid.to(expected.dtype)
        case.compare("", {match[0]: ours})


def check_longllama(case: Case) -> None:
    """`fot/longllama`: what padding says isn't compared."""
    c, ids, mask = case.config, case.read("in/input_ids").long(), case.read("in/attention_mask")
    params, plan = weights(case), schedule(case.config)
    dtype = str(next(iter(params.values())).dtype).removeprefix("torch.")  # a patch of the published code
    model = focused.load(params, {"mem_dtype": dtype} | c | {"capacity": ids.shape[1]}).eval()
    pads = (mask == 0).sum(1).tolist()
    assert torch.equal(mask, (torch.arange(mask.shape[1]) >= torch.tensor(pads)[:, None]).to(mask.dtype))
    (start, prompt), *steps = plan.opened
    case.expect(
        B=len(ids),
        windows=[b - a for a, b in [*plan.closed, (start, prompt)]],
        per_step=[{"step": i, "local_len": b - a, "mem_len": a} for i, (a, b) in enumerate(steps)],
        left_pad=max(pads) if isinstance(c.get("left_pad"), int) else pads if any(pads) else None,
    )
    groups = [(slice(row, row + 1), count) for row, count in enumerate(pads)]
    if len(set(pads)) == 1:
        groups = [(slice(None), pads[0])]
    with torch.no_grad():
        readings = [(rows, count, reading(model, ids[rows], count, plan)) for rows, count in groups]
        if not any(pads) and model.segment_len == c["max_position_embeddings"]:
            full = sum(b - a for a, b in plan.closed if b - a == model.segment_len)
            rest = readings[0][2]["out/prefill/logits"][:, full:]
            at_once = torch.cat([model(ids[:, :full])[0], rest], dim=1) if full else rest
            case.compare("out/", {"prefill/logits": at_once})
    for name in readings[0][2]:
        parts = [(rows, count, outputs[name]) for rows, count, outputs in readings]
        compare_padded(case, name, parts)
        if name == "out/prefill/logits":
            compare_padded(case, "out/prefill_no_cache/logits", parts)
    compare_positions(case, mask, plan)
    compare_masks(case, mask, plan)


KINDS: dict[str, Callable[[Case], None]] = {
    "fot/crossbatch": check_crossbatch,
    "fot/paper_crossbatch_knn": check_paper,
    "fot/train_lm": check_train_lm,
    "fot/longllama": check_longllama,
}
