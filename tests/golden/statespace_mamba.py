"""How the kinds of Mamba and Mamba-2 are held to their files."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tests.golden.cases import Case
from tests.golden.statespace_hybrids import check_model, cuts, slopes
from zoo.memory.mixer import Mixer
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.memory.state_space.selective_scan import selective_scan, selective_scan_loop
from zoo.memory.state_space.ssd import ssd, ssd_loop
from zoo.models.published import mamba, mamba2
from zoo.models.published.weights import Table, fill, gradients

Function = Callable[..., tuple[Tensor, Tensor]]


def pieces(given: dict[str, Tensor], timed: set[str], lengths: list[int]) -> list[dict[str, Tensor]]:
    """The arguments of a function for each piece of the text."""
    parts = {name: given[name].split(lengths, dim=1) for name in timed & set(given)}
    return [given | {name: part[place] for name, part in parts.items()} for place in range(len(lengths))]


def run(
    form: Function, given: dict[str, Tensor], timed: set[str], lengths: list[int], state: Tensor
) -> tuple[Tensor, dict[int, Tensor]]:
    """The output over all pieces, and the state after so many tokens."""
    said, after, done = [], {}, 0
    for piece, length in zip(pieces(given, timed, lengths), lengths, strict=True):
        y, state = form(**piece, state=state)
        said.append(y)
        done += length
        after[done] = state
    return torch.cat(said, dim=1), after


def grown(case: Case, names: list[str]) -> dict[str, Tensor]:
    return {name: case.read(f"in.{name}").clone().requires_grad_() for name in names if f"in.{name}" in case}


def check_scan(case: Case) -> None:
    """`mamba1/scan`: both forms, cut anywhere, with and without a gradient of the last state."""
    names = {"u": "u", "delta": "delta", "rates": "A", "write": "B", "read": "C"}
    names |= {"skip": "D", "gate": "z", "bias": "delta_bias"}
    timed = {"u", "delta", "write", "read", "gate"}
    for form in (selective_scan, selective_scan_loop):
        form = partial(form, softplus=case.config["delta_softplus"])
        for lengths in cuts(case, case.config["L"]):
            for prefix in ("grad.", "grad_y_only."):
                inputs = grown(case, list(names.values()))
                given = {ours: inputs[theirs] for ours, theirs in names.items() if theirs in inputs}
                for name in ("write", "read"):
                    grouped = given[name] if given[name].ndim == 4 else given[name][:, None]
                    given[name] = rearrange(grouped, "b g n t -> b t g n")
                for name in timed & set(given) - {"write", "read"}:
                    given[name] = rearrange(given[name], "b e t -> b t e")
                empty = torch.zeros(len(inputs["u"]), *inputs["A"].shape, dtype=torch.float64)
                y, after = run(form, given, timed, lengths, empty)
                y, last = y.mT, after[sum(lengths)]
                case.compare("out.", {"y": y, "last_state": last})
                for done, state in after.items():
                    case.compare(f"state@{done}.", {"last_state": state})
                loss = (y * case.read("cot.y")).sum()
                if prefix == "grad.":
                    loss = loss + (last * case.read("cot.last_state")).sum()
                loss.backward()
                case.compare(prefix, slopes(inputs))


def check_ssd(case: Case) -> None:
    """`mamba2/ssd`: both forms, chunks that fit and that don't, cut anywhere; fresh, and from a given
    state."""
    names = {"x": "x", "dt": "dt", "rates": "A", "write": "B", "read": "C"}
    names |= {"skip": "D", "gate": "z", "bias": "dt_bias"}
    timed, config = {"x", "dt", "write", "read", "gate"}, case.config
    own = {"softplus": config["dt_softplus"], "limits": mamba2.limits(config, "dt_limit")}
    forms: list[Function] = [
        ssd_loop,
        *(partial(ssd, chunk_size=q) for q in (config["chunk_size"], 1, 5, 64)),
    ]
    for form, lengths in product(forms, cuts(case, config["L"])):
        form = partial(form, **own)
        inputs = grown(case, list(names.values()))
        given = {ours: inputs[theirs] for ours, theirs in names.items() if theirs in inputs}
        empty = torch.zeros(*inputs["x"].shape[:1], *inputs["x"].shape[2:], inputs["B"].shape[3]).double()
        y, after = run(form, given, timed, lengths, empty)
        case.compare("out.", {"y": y, "final_state": after[sum(lengths)]})
        for done, state in after.items():
            case.compare(f"state@{done}.", {"ssm_state": state})
        (y * case.read("cot.y")).sum().backward()
        case.compare("grad.", slopes(inputs))

        if "in.h0" not in case:
            continue
        inputs = grown(case, [*names.values(), "h0"])
        given = {ours: inputs[theirs] for ours, theirs in names.items() if theirs in inputs}
        given = {name: tensor for name, tensor in given.items() if name not in ("skip", "gate")}
        y, after = run(form, given, timed, lengths, inputs["h0"])
        last = after[sum(lengths)]
        case.compare("out0.", {"y": y, "final_state": last})
        loss = (y * case.read("cot0.y")).sum() + (last * case.read("cot0.final_state")).sum()
        loss.backward()
        case.compare("grad0.", slopes(inputs))


def check_layer(
    case: Case, made: Callable[..., Mixer], shape: Callable[..., dict[str, Any]], table: Table
) -> None:
    """`mamba1/layer` and `mamba2/layer`."""
    width = case.config["d_model"]
    mixer: Any = made(width, **shape(width, case.config))
    fill(mixer, case.weights, table)
    said: dict[str, Tensor] = {}
    heard: list[Tensor] = []
    mixer.enter.register_forward_hook(lambda _, __, out: said.update(in_proj=out))
    mixer.out.register_forward_hook(lambda _, read, __: said.update(pre_out_proj=read[0]))
    mixer.conv.register_forward_hook(lambda _, read, __: heard.append(read[0]))
    if isinstance(mixer, Mamba2Mixer):
        gated = mixer._gated

        def tell(y: Tensor, gate: Tensor) -> Tensor:
            said.update(pre_norm_y=y, post_norm=gated(y, gate))
            return said["post_norm"]

        mixer._gated = tell  # type: ignore[method-assign]
    for lengths in cuts(case, case.config["L"]):
        mixer.zero_grad()
        heard.clear()
        inputs = grown(case, ["x"])
        state, parts = mixer.init_state(len(inputs["x"])), []
        for piece in inputs["x"].split(lengths, dim=1):
            y, state = mixer(piece, state)
            parts.append(y)
            seen = torch.cat(heard, dim=1)
            taps = mixer.conv.weight.shape[1]
            padded = torch.cat([seen.new_zeros(len(seen), taps, seen.shape[2]), seen], dim=1)
            assert torch.equal(padded[:, padded.shape[1] - taps + 1 :], state.tail)
            case.compare(
                f"state@{seen.shape[1]}.", {"conv_state": padded[:, -taps:].mT, "ssm_state": state.hidden}
            )
        y = torch.cat(parts, dim=1)
        case.compare("out.", {"y": y})
        if len(lengths) == 1:
            case.compare("mid.", said)
        (y * case.read("cot.y")).sum().backward()
        weights = {f"w.{name}": grad for name, grad in gradients(mixer, table).items()}
        case.compare("grad.", slopes(inputs) | weights)


KINDS: dict[str, Callable[[Case], None]] = {
    "mamba1/scan": check_scan,
    "mamba1/layer": partial(check_layer, made=MambaMixer, shape=mamba.mixer_shape, table=mamba.MIXER),
    "mamba1/model": partial(check_model, loader=mamba),
    "mamba2/ssd": check_ssd,
    "mamba2/layer": partial(check_layer, made=Mamba2Mixer, shape=mamba2.mixer_shape, table=mamba2.MIXER),
    "mamba2/model": partial(check_model, loader=mamba2),
}
