"""How the kinds of Griffin, Jamba and Samba are held to their files."""

from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise, product
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden.cases import Case
from zoo.memory.state_space.conv import CausalConv
from zoo.memory.state_space.griffin_block import RecurrentBlock
from zoo.memory.state_space.rglru import RGLRU, rglru, rglru_loop
from zoo.models.published import griffin, jamba, samba
from zoo.models.published.weights import fill, gradients


def ends_of(case: Case, time: int) -> list[int]:
    """Where the file cuts its text, which is where it has states."""
    ends = case.config.get("bounds") or list(accumulate(case.config["segments"]))
    states = {int(state[1]) for state in case.matching(r"state@(\d+)\..*")}
    assert ends[-1] <= time, f"config: expected segments or bounds up to {time}, found {ends}"
    assert states <= set(ends), f"config: expected segments or bounds with {sorted(states)}, found {ends}"
    return list(ends)


def cuts(case: Case, time: int, odd: int = 5) -> list[list[int]]:
    """At once, at the boundaries that the file names, one token at a time, and in pieces that fit nothing."""
    named = [
        end - start for start, end in pairwise([0, *[end for end in ends_of(case, time) if end < time], time])
    ]
    return [[time], named, [1] * time, [odd] * (time // odd) + [time % odd] * (time % odd > 0)]


def read_text(case: Case, name: str) -> Tensor:
    """An input (rows, time, ...), to which the config's B and L are held."""
    text = case.read(name)
    case.expect(B=len(text), L=text.shape[1])
    return text


def slopes(leaves: dict[str, Tensor]) -> dict[str, Tensor | None]:
    return {f"in.{name}": leaf.grad for name, leaf in leaves.items()}


def check_rglru(case: Case) -> None:
    """`hybrids/rglru`: the unit alone, fresh with texts that begin inside, and from a given state."""
    width, heads = case.config["width"], case.config["num_heads"]
    unit, table = RGLRU(width, heads), griffin.unit(heads)
    fill(unit, case.weights, table)
    x, positions = read_text(case, "in.x"), case.read("in.segment_pos")
    starts = positions == 0
    inside = sorted({begin for row in starts for begin in row.nonzero()[:, 0].tolist()} - {0})
    case.expect(reset_at=inside[0] if len(inside) == 1 else inside or None)
    for form, lengths in product((rglru, rglru_loop), cuts(case, x.shape[1])):
        with mock.patch("zoo.memory.state_space.rglru.rglru", form):
            hidden, outputs, done = torch.zeros_like(x[:, 0]), [], 0
            for piece, begins in zip(x.split(lengths, dim=1), starts.split(lengths, dim=1), strict=True):
                y, hidden = unit(piece, hidden, begins)
                outputs.append(y)
                done += piece.shape[1]
                case.compare(f"state@{done}.", {"h": hidden})
            case.compare("out.", {"y": torch.cat(outputs, dim=1), "h": hidden})

            unit.zero_grad()
            inputs = {"x": x.clone().requires_grad_(), "h0": case.read("in.h0").clone().requires_grad_()}
            hidden, outputs = inputs["h0"], []
            for piece in inputs["x"].split(lengths, dim=1):
                y, hidden = unit(piece, hidden, torch.zeros(piece.shape[:2], dtype=torch.bool))
                outputs.append(y)
            y = torch.cat(outputs, dim=1)
            case.compare("out0.", {"y": y, "h": hidden})
            ((y * case.read("cot.y")).sum() + (hidden * case.read("cot.h")).sum()).backward()
            weights = {f"w.{name}": grad for name, grad in gradients(unit, table).items()}
            case.compare("grad.", slopes(inputs) | weights)


def check_recurrent_block(case: Case) -> None:
    """`hybrids/griffin_recurrent_block`."""
    config = case.config
    width, heads = config["width"], config["num_heads"]
    block = RecurrentBlock(
        width, config.get("lru_width") or width, heads, conv_size=config.get("conv1d_temporal_width", 4)
    )
    table = griffin.recurrent(heads)
    fill(block, case.weights, table)
    x = read_text(case, "in.x")
    for lengths in cuts(case, x.shape[1]):
        block.zero_grad()
        inputs = {"x": x.clone().requires_grad_()}
        state, outputs = block.init_state(len(x)), []
        for piece in inputs["x"].split(lengths, dim=1):
            y, state = block(piece, state)
            outputs.append(y)
            case.compare(f"state@{int(state.length[0])}.", {"conv": state.conv, "h": state.h})
        y = torch.cat(outputs, dim=1)
        case.compare("out.", {"y": y})
        (y * case.read("cot.y")).sum().backward()
        weights = {f"w.{name}": grad for name, grad in gradients(block, table).items()}
        case.compare("grad.", slopes(inputs) | weights)


class Oldest:
    """What the published codes keep and no convolution reads: of each one's inputs the K-th last."""

    def __init__(self, model: Any) -> None:
        self.inputs: dict[int, list[Tensor]] = {}
        self.hooks = [
            part.register_forward_pre_hook(partial(self.hear, layer))
            for layer, block in enumerate(model.stack)
            for part in block.modules()
            if isinstance(part, CausalConv)
        ]

    def hear(self, layer: int, conv: nn.Module, read: tuple[Tensor, Tensor]) -> None:
        self.inputs.setdefault(layer, []).append(read[0])

    def put(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published state with it."""
        for layer, heard in self.inputs.items():
            if (kept := state.get(f"{layer}.conv_state")) is not None:
                inputs = torch.cat(heard, dim=1)
                taps = kept.shape[2]
                if inputs.shape[1] >= taps:
                    kept = torch.cat([inputs[:, -taps, :, None], kept[:, :, 1:]], dim=2)
                state[f"{layer}.conv_state"] = kept
        return state


def check_model(case: Case, loader: Any) -> None:
    """Logits, loss, gradients and states, however the text is cut."""
    model = loader.load(case.weights, case.config).eval()
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    tokens, targets = read_text(case, "in.tokens"), case.read("in.targets")
    vocab_size = int(max(tokens.max(), targets.max())) + 1
    assert case.config["vocab_size"] >= vocab_size, f"config field vocab_size: expected at least {vocab_size}"
    length = case.config.get("block_size", tokens.shape[1])  # as far as Samba's published code can read
    assert length >= tokens.shape[1], f"config field block_size: expected at least {tokens.shape[1]}"
    for lengths in cuts(case, tokens.shape[1]):
        for read in (model.segment, model.forward):
            model.zero_grad()
            oldest = Oldest(model)
            state, outputs, done = model.init_state(len(tokens)), [], 0
            for piece in tokens.split(lengths, dim=1):
                logits, state = read(piece, state)
                outputs.append(logits)
                done += piece.shape[1]
                case.compare(f"state@{done}.", oldest.put(loader.published_state(state, model)))
            for hook in oldest.hooks:
                hook.remove()
            logits = torch.cat(outputs, dim=1)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            case.compare("out.", {"logits": logits, "loss": loss})
            loss.backward()
            case.compare("grad.w.", loader.published_gradients(model))


def check_jamba(case: Case) -> None:
    """`hybrids/jamba_model`, whose loader refuses experts."""
    check_model(case, jamba)
    case.ignore("expert_layer_offset", "expert_layer_period", "num_experts_per_tok")


KINDS: dict[str, Callable[[Case], None]] = {
    "hybrids/rglru": check_rglru,
    "hybrids/griffin_recurrent_block": check_recurrent_block,
    "hybrids/griffin_model": partial(check_model, loader=griffin),
    "hybrids/samba_model": partial(check_model, loader=samba),
    "hybrids/jamba_model": check_jamba,
}
