"""How the kinds of Transformer-XL, RMT and ARMT are held to their files."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden.cases import Case
from zoo.memory.attention.relative import RecurrenceState, RelativeAttention
from zoo.models.blocks import FeedForward, sinusoid
from zoo.models.published import armt, rmt, transformer_xl
from zoo.models.published.weights import fill, gradients, same
from zoo.models.transformer_xl import XLLayer
from zoo.module import SequenceModule
from zoo.state import State, leaves, tree_map

Cut = Callable[[int], bool]  # is the state that segment s leaves detached?


def time_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


class Reading:
    """One fold over a case's segments: what was said, what was carried, what the parts said on the way."""

    def __init__(self, model: SequenceModule, pieces: list[Tensor], state: State, cut: Cut) -> None:
        self.logits: list[Tensor] = []
        self.parts: list[dict[str, Tensor]] = []
        self.entering, self.after = [], []
        for index, piece in enumerate(pieces):
            for leaf in leaves(state):
                if leaf.requires_grad:
                    leaf.retain_grad()
            self.entering.append(state)
            self.parts.append({})
            hooks = self._listen(model)
            logits, state = model.segment(piece, state)
            for hook in hooks:
                hook.remove()
            self.logits.append(logits)
            self.after.append(state)
            if cut(index):
                state = tree_map(Tensor.detach, state)

    def _listen(self, model: SequenceModule) -> list[Any]:
        """Parts under the files' names, rows first."""
        xl = hasattr(model, "layers")
        stack: Any = model.layers if xl else model.stack
        record = {f"layer{i}_out": layer for i, layer in enumerate(stack)}
        record |= {f"layer{i}_out_all_positions": layer for i, layer in enumerate(stack)}
        if xl:
            record |= {f"layer{i}_attn_block_out": layer.attention for i, layer in enumerate(stack)}
        else:  # the last hidden states are those behind the last norm
            states = [model.dropout, *stack[:-1], model.norm]
            record |= {f"hidden{i}_all_positions": part for i, part in enumerate(states)}

        def hear(name: str, _module: nn.Module, _read: Any, output: Any) -> None:
            self.parts[-1][name] = output[0] if isinstance(output, tuple) else output

        return [part.register_forward_hook(partial(hear, name)) for name, part in record.items()]


def never(_segment: int) -> bool:
    return False


def scenario(name: str, segments: int) -> tuple[str, Cut]:
    """The loss of a gradient's scenario, and where the state is detached."""
    if name == "bptt0":
        return "loss", lambda _segment: True
    if k2 := re.fullmatch(r"k2_(\d+)_intended", name):
        return "loss", lambda segment: 1 <= segment <= segments - int(k2[1])
    losses = {"full": "loss", "mean_over_segs": "loss", "last_segment_full": "last_segment_loss"}
    return losses.get(name, name), never


def state_gradients(
    states: list[State], published: Callable[[State], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """d loss / d state entering each segment, under the file's names."""

    def slope(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        grad = leaf.grad if leaf.requires_grad else None
        return torch.zeros_like(leaf) if grad is None else grad

    return {
        f"{name}_enter_seg{index}": grad
        for index, state in enumerate(states)
        for name, grad in published(tree_map(slope, state)).items()
    }


def check_model(
    case: Case,
    model: SequenceModule,
    pieces: list[Tensor],
    losses_of: Callable[[list[Tensor]], dict[str, Tensor]],
    published_state: Callable[[State], dict[str, Tensor]],
    published_gradients: Callable[[SequenceModule], dict[str, Tensor]],
    turn: Callable[[Tensor], Tensor],
) -> None:
    """Fold, states, losses, each scenario's gradients; and `forward` on the whole text, if it cuts alike."""
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    rows, segments = len(pieces[0]), len(pieces)
    model.eval()

    def published(state: State) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in published_state(state).items() if tensor.numel()}

    reading = Reading(model, pieces, model.init_state(rows), never)
    losses = losses_of(reading.logits)
    case.compare("out/", losses | {"logits": torch.cat(reading.logits, dim=1)})
    for index in range(segments):
        case.compare(f"out/seg{index}/", {"logits": turn(reading.logits[index])})
        case.compare(f"out/seg{index}/", {name: turn(part) for name, part in reading.parts[index].items()})
        for when, state in (("enter", reading.entering), ("after", reading.after)):
            case.compare(f"state/{when}_seg{index}/", published(state[index]))
    case.compare("state/after_last/", published(reading.after[-1]))

    scenarios = {results[1] for results in case.matching(r"grad/([^/]+)/.*")}
    for name in sorted(scenarios):
        loss, cut = scenario(name, segments)
        model.zero_grad()
        reading = Reading(model, pieces, model.init_state(rows), cut)
        losses_of(reading.logits)[loss].backward()
        case.compare(f"grad/{name}/", published_gradients(model))
        case.compare(f"grad/{name}/", state_gradients(reading.entering, published))

    text, lengths = torch.cat(pieces, dim=1), [piece.shape[1] for piece in pieces]
    if lengths == [piece.shape[1] for piece in text.split(model.segment_len, dim=1)]:
        model.zero_grad()
        logits, state = model(text)
        split_logits = list(logits.split(lengths, dim=1))
        losses_of(split_logits)["loss"].backward()
        for index in range(segments):
            case.compare(f"out/seg{index}/", {"logits": turn(split_logits[index])})
        case.compare("out/", {"logits": logits})
        case.compare(f"state/after_seg{segments - 1}/", published(state))
        for name in scenarios & {"full", "mean_over_segs"}:
            case.compare(f"grad/{name}/", published_gradients(model))


def check_xl(case: Case, loader: Any) -> None:
    """`transformer_xl/model` and `rmt/xl_model`."""
    model = loader.load(case.weights, case.config)
    pieces, targets = (
        [
            time_first(case.read(f"in/seg{index}/{part}"))
            for index in range(len(case.matching(rf"in/seg\d+/{part}")))
        ]
        for part in ("input_ids", "target_ids")
    )

    def losses(logits: list[Tensor]) -> dict[str, Tensor]:
        nll = [
            F.cross_entropy(segment_logits.mT, asked, reduction="none")
            for segment_logits, asked in zip(logits, targets, strict=True)
        ]
        per_segment = {f"seg{index}": each_nll.mean() for index, each_nll in enumerate(nll)}
        loss = torch.stack(list(per_segment.values())).mean()
        return (
            per_segment
            | {f"seg{index}/nll": time_first(each_nll) for index, each_nll in enumerate(nll)}
            | {f"{name}/loss": value for name, value in per_segment.items()}
            | {"loss": loss, "mean_loss": loss, "last_segment_loss": nll[-1].mean()}
        )

    check_model(case, model, pieces, losses, loader.published_state, loader.published_gradients, time_first)

    # the published code's last memory, which nothing reads: the last layer's outputs
    reading = Reading(model, pieces, model.init_state(len(pieces[0])), never)
    last, depth = f"layer{len(model.layers) - 1}_out", len(model.layers)
    outputs = torch.cat([parts[last] for parts in reading.parts], dim=1)
    for index in range(len(pieces)):
        until = sum(before[last].shape[1] for before in reading.parts[: index + 1])
        kept = outputs[:, max(0, until - model.memory_len) : until]
        case.compare(f"state/after_seg{index}/", {f"mems{depth}": time_first(kept)})


def check_gpt2(case: Case, loader: Any) -> None:
    """`rmt/gpt2_model` and `rmt/armt_model`."""
    ids, lengths = case.read("in/input_ids"), case.read("in/seg_lens").tolist()
    asked = case.read("in/labels_mask").bool() if "in/labels_mask" in case else torch.ones_like(ids).bool()
    model = loader.load(case.weights, case.config)

    def losses(logits: list[Tensor]) -> dict[str, Tensor]:
        nll = F.cross_entropy(torch.cat(logits, dim=1)[:, :-1].mT, ids[:, 1:], reduction="none")
        last = nll[:, nll.shape[1] + 1 - lengths[-1] :]
        return {
            "loss": nll.mean(),
            "loss_masked": nll[asked[:, :-1]].mean(),
            "last_segment_loss": last.mean(),
        }

    check_model(
        case,
        model,
        list(ids.split(lengths, dim=1)),
        losses,
        loader.published_state,
        loader.published_gradients,
        lambda x: x,
    )
    logits, _ = model.fold(ids)  # cuts as the config's alignment says
    case.compare("out/", {"logits": logits})


def check_cell(case: Case) -> None:
    """`rmt/cell`: one segment from a given state."""
    model = rmt.load(case.weights, case.config).eval()
    memory = case.read("in/memory_state").requires_grad_()
    reading = Reading(
        model, [case.read("in/input_ids")], model.init_state(len(memory))._replace(memory=memory), never
    )
    logits, after = reading.logits[0], reading.after[0].memory
    loss = (logits * case.read("in/cotangent_logits")).sum()
    loss = loss + (after * case.read("in/cotangent_new_memory")).sum()
    case.compare("out/", {"logits": logits, "new_memory_state": after, "loss": loss} | reading.parts[0])
    loss.backward()
    case.compare("grad/", rmt.published_gradients(model, prefix="") | {"memory_state": memory.grad})


def check_layer(case: Case) -> None:
    """`transformer_xl/layer`: one layer from given inputs and memory; the whole model stops its gradient."""
    config = case.config
    heads, head_dim, memory_len = config["n_head"], config["d_head"], max(config["mem_len"], config["mlen"])
    biases = [nn.Parameter(torch.empty(heads, head_dim)) for _ in range(2)]
    width, prenorm, same_length = config["d_model"], config["pre_lnorm"], config["same_length"]
    attention = RelativeAttention(
        width, heads, head_dim, memory_len, *biases, prenorm=prenorm, same_length=same_length
    )
    layer = XLLayer(attention, FeedForward(width, config["d_inner"], "relu", True), width, prenorm)
    table = transformer_xl.LAYER | {
        "r_w_bias": ("attention.content_bias", same),
        "r_r_bias": ("attention.position_bias", same),
    }
    fill(layer, case.weights, table)

    w, mems = (case.read(f"in/{name}").requires_grad_() for name in ("w", "mems"))
    (queries, rows), kept = w.shape[:2], len(mems)
    hidden = F.pad(time_first(mems), (0, 0, memory_len - kept, 0))
    state = RecurrenceState(hidden, torch.full((rows,), kept))
    distances = torch.arange(memory_len + queries - 1, -1, -1)
    if config["clamp_len"] > 0:
        distances = distances.clamp(max=config["clamp_len"])
    positions = sinusoid(distances, width, w)
    visible = attention.attention_mask(state, 1, queries)[0, 0, :, memory_len - kept :]
    case.compare("in/", {"r": positions[memory_len - kept :, None], "attn_mask": (~visible).to(torch.uint8)})

    hooked: dict[str, Tensor] = {}
    attention.out_proj.register_forward_hook(
        lambda _, read, out: hooked.update(attn_vec=time_first(read[0]), attn_out_proj=time_first(out))
    )
    attention.attention_dropout.register_forward_hook(
        lambda _, __, out: hooked.update(attn_prob=out[..., memory_len - kept :].permute(2, 3, 0, 1))
    )
    attention.register_forward_hook(lambda _, __, out: hooked.update(attn_block_out=time_first(out[0])))
    out = time_first(layer(time_first(w), state, positions, queries)[0])
    loss = (out * case.read("in/cotangent")).sum()
    case.compare("out/", {"layer_out": out, "loss": loss} | hooked)
    loss.backward()
    case.compare(
        "grad/",
        gradients(layer, table) | {"w": w.grad, "mems": mems.grad},
    )


KINDS: dict[str, Callable[[Case], None]] = {
    "transformer_xl/layer": check_layer,
    "transformer_xl/model": partial(check_xl, loader=transformer_xl),
    "rmt/xl_model": partial(check_xl, loader=rmt),
    "rmt/cell": check_cell,
    "rmt/gpt2_model": partial(check_gpt2, loader=rmt),
    "rmt/armt_model": partial(check_gpt2, loader=armt),
}
