"""How the kinds of RMT and ARMT on GPT-2 are held to their files."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden.cases import Case
from zoo.models.published import armt, gpt2, rmt
from zoo.module import SequenceModule
from zoo.state import State, leaves, tree_map

Cut = Callable[[int], bool]  # is the state that segment s leaves detached?


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


def check_gpt2(case: Case, loader: Any) -> None:
    """`rmt/gpt2_model` and `rmt/armt_model`."""
    ids, lengths = case.read("in/input_ids"), case.read("in/seg_lens").tolist()
    asked = case.read("in/labels_mask").bool() if "in/labels_mask" in case else torch.ones_like(ids).bool()
    case.expect(batch=len(ids), seq_len=ids.shape[1], n_segments=len(lengths), seg_lens=lengths)
    case.expect_flag("tie_lm_head", gpt2.tied(case.weights, case.config))
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
    memory, ids = case.read("in/memory_state").requires_grad_(), case.read("in/input_ids")
    case.expect(batch=len(ids), segment_len=ids.shape[1])
    case.expect_flag("tie_lm_head", gpt2.tied(case.weights, case.config))
    reading = Reading(model, [ids], model.init_state(len(memory))._replace(memory=memory), never)
    logits, after = reading.logits[0], reading.after[0].memory
    loss = (logits * case.read("in/cotangent_logits")).sum()
    loss = loss + (after * case.read("in/cotangent_new_memory")).sum()
    case.compare("out/", {"logits": logits, "new_memory_state": after, "loss": loss} | reading.parts[0])
    loss.backward()
    case.compare("grad/", rmt.published_gradients(model, prefix="") | {"memory_state": memory.grad})


KINDS: dict[str, Callable[[Case], None]] = {
    "rmt/cell": check_cell,
    "rmt/gpt2_model": partial(check_gpt2, loader=rmt),
    "rmt/armt_model": partial(check_gpt2, loader=armt),
}
