"""How the kinds of linear recurrences are held to their files: the recurrence alone, and layers by a shared
check, with the state that each layer carries under the file's names."""

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tests.golden.cases import Case
from zoo.memory.fast_weights.delta_mixer import DeltaMixer
from zoo.memory.fast_weights.gla_mixer import GLAMixer
from zoo.memory.fast_weights.inputs import Inputs
from zoo.memory.fast_weights.recurrence import fast_weights, fast_weights_loop
from zoo.memory.mixer import Mixer
from zoo.models.published import deltanet
from zoo.models.published.weights import Table, fill, gradients

Named = dict[str, Tensor]
Recurrence = Callable[[Inputs], tuple[Tensor, Tensor]]
States = Callable[[Any], Named]
FORMS: list[Recurrence] = [fast_weights_loop, *(partial(fast_weights, chunk_size=size) for size in (4, 32))]


def cuts(case: Case, time: int) -> Iterator[list[int]]:
    """At once, where the file cuts, one token at a time, and in pieces that fit nothing."""
    lengths = case.read("in/seg_lens").tolist()
    assert sum(lengths) == time, f"in/seg_lens: expected {time} tokens in all, found {lengths}"
    case.expect(seg_lens=lengths)
    yield from ([time], lengths, [1] * time, [5] * (time // 5) + [time % 5] * (time % 5 > 0))


def ends(case: Case) -> dict[int, int]:
    """The number of tokens after which a segment of the file ends: that segment."""
    return {int(end): s for s, end in enumerate(case.tensors["in/seg_lens"].cumsum(0))}


def leaves(case: Case, *left_out: str) -> Named:
    """Inputs to which the file has gradients."""
    names = [match[1] for match in case.matching(r"in/(.*)") if f"grad/{match[1]}" in case]
    return {name: case.read(f"in/{name}").clone().requires_grad_() for name in names if name not in left_out}


def recurrence_inputs(rule: str, scale: float, x: Named, state: Tensor) -> Inputs:
    """The recurrence's arguments from a file's, whose beta and decays belong to the heads of values."""
    heads = x["v"].shape[2]
    q, decay, a, b, strength = scale * x["q"], x.get("decay"), None, None, None
    k = 1 - decay.exp() if rule == "hgrn2" and decay is not None else x["k"]
    q, k = (part.repeat_interleave(heads // part.shape[2], dim=2) for part in (q, k))
    if decay is not None and decay.ndim == 3:
        decay = decay.expand(*q.shape[:2], -1)[..., None]
    if "beta" in x:
        strength = x["beta"][..., None]
    elif "kk" in x:
        a, b = -x["kk"], x["kk"] * x["a"]
    return Inputs(q, k, x["v"], decay, state, a, b, x.get("bonus"), strength)


def rules(case: Case) -> set[str]:
    """The rules that take the inputs that the file has."""
    if "in/bonus" in case or "in/kk" in case:
        return {"rwkv6"} if "in/bonus" in case else {"rwkv7"}
    per_channel = "in/decay" in case and case.tensors["in/decay"].ndim == 4
    if "in/beta" in case:
        return {"kda" if per_channel else "gated_delta" if "in/decay" in case else "delta"}
    return {"gla", "hgrn2"} if per_channel else {"retention", "lightning"}


def in_pieces(form: Recurrence, inputs: Inputs, lengths: list[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """The output over all pieces, and the state after so many tokens."""
    outputs, after, done, state = [], {}, 0, inputs.state
    for length in lengths:
        timed = [x if x is None or x.ndim != 4 else x[:, done : done + length] for x in inputs]
        o, state = form(Inputs(*timed)._replace(state=state))
        outputs.append(o)
        done += length
        after[done] = state
    return torch.cat(outputs, dim=1), after


def check_core(case: Case) -> None:
    """`gla/core`, `retnet/core`, `deltanet/core`, `rwkv/core`: loop and chunks, cut anywhere."""
    c, (rows, time, heads, value_dim) = case.config, case.tensors["in/v"].shape
    case.expect(batch=rows, value_heads=heads, value_dim=value_dim, heads=case.tensors["in/q"].shape[2])
    case.expect(key_dim=case.tensors["in/q"].shape[3])
    rule, scale = c["rule"], c["scale"]
    assert rule in rules(case), f"config field rule: expected {' or '.join(rules(case))}, found {rule!r}"
    for lengths in cuts(case, time):
        for form in FORMS:
            x = leaves(case)
            if "in/decay" in case and "decay" not in x:
                x["decay"] = case.read("in/decay")
            o, after = in_pieces(form, recurrence_inputs(rule, scale, x, x["state"]), lengths)
            for end, segment in ends(case).items():
                if end in after:
                    case.compare("state/", {f"after_seg{segment}": after[end]})
            loss = (o * case.read("in/cot_o")).sum() + (after[time] * case.read("in/cot_state")).sum()
            loss.backward()
            case.compare("out/", {"o": o, "loss": loss})
            case.compare("grad/", {name: leaf.grad for name, leaf in x.items()})
            empty = torch.zeros_like(x["state"])
            from_empty, _ = in_pieces(form, recurrence_inputs(rule, scale, x, empty), lengths)
            case.compare("out/", {"o_from_empty": from_empty})


def check_layer(case: Case, mixer: Mixer, table: Table, states: States) -> None:
    """A layer from an empty state, its text cut anywhere; `states`: what it carries, by the file's names."""
    fill(mixer, case.weights, table)
    for lengths in cuts(case, case.tensors["in/x"].shape[1]):
        mixer.zero_grad()
        x = leaves(case)
        state, outputs, done = mixer.init_state(len(x["x"])), [], 0
        for piece in x["x"].split(lengths, dim=1):
            y, state = mixer(piece, state)
            outputs.append(y)
            done += piece.shape[1]
            if done in ends(case):
                case.compare(f"state/after_seg{ends(case)[done]}/", states(state))
        y = torch.cat(outputs, dim=1)
        loss = (y * case.read("in/cotangent")).sum()
        loss.backward()
        case.compare("out/", {"y": y, "loss": loss})
        case.compare("grad/", {name: leaf.grad for name, leaf in x.items()} | gradients(mixer, table))
    case.expect(batch=len(case.tensors["in/x"]))


def check_fla_layer(case: Case, made: type[DeltaMixer | GLAMixer], published: ModuleType) -> None:
    """A layer whose convolutions, where it has them, are one of ours over queries, keys and values."""
    config = case.config
    case.expect(hidden_size=case.tensors["in/x"].shape[-1])
    mixer = made(config["hidden_size"], **published.mixer_shape(config))

    def states(state: Any) -> Named:
        convs = state.conv.mT.split(mixer.qkv, dim=1) if mixer.conv is not None else ()
        return {"S": state.matrix, **dict(zip(("conv_q", "conv_k", "conv_v"), convs, strict=False))}

    check_layer(case, mixer, published.mixer_table(mixer), states)


KINDS: dict[str, Callable[[Case], None]] = {
    **dict.fromkeys(("gla/core", "retnet/core", "deltanet/core", "rwkv/core"), check_core),
    "deltanet/layer": partial(check_fla_layer, made=DeltaMixer, published=deltanet),
}
