"""How the kinds of mamba_ssm, Mamba and Mamba-2 with and without attention, are held to their files."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tests.golden.cases import Case
from tests.golden.kinds.hybrids import check_model, cuts, read_text, slopes
from zoo.memory.mixer import Mixer
from zoo.memory.state_space.inputs import ScanInputs, SSDInputs
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.memory.state_space.selective_scan import selective_scan, selective_scan_loop
from zoo.memory.state_space.ssd import ssd, ssd_loop
from zoo.models.published import mamba, mamba2, mamba2_hybrid
from zoo.models.published.weights import Table, fill, gradients

Function = Callable[..., tuple[Tensor, Tensor]]
INITIAL = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range")  # how weights begin


def pieces(arguments: dict[str, Tensor], timed: set[str], lengths: list[int]) -> list[dict[str, Tensor]]:
    """The arguments of a function for each piece of the text."""
    parts = {name: arguments[name].split(lengths, dim=1) for name in timed & set(arguments)}
    return [arguments | {name: part[i] for name, part in parts.items()} for i in range(len(lengths))]


def run(
    form: Function, arguments: dict[str, Tensor], timed: set[str], lengths: list[int], state: Tensor
) -> tuple[Tensor, dict[int, Tensor]]:
    """The output over all pieces, and the state after so many tokens."""
    outputs, after, done = [], {}, 0
    for piece, length in zip(pieces(arguments, timed, lengths), lengths, strict=True):
        y, state = form(**piece, state=state)
        outputs.append(y)
        done += length
        after[done] = state
    return torch.cat(outputs, dim=1), after


def grown(case: Case, names: list[str]) -> dict[str, Tensor]:
    return {name: case.read(f"in.{name}").clone().requires_grad_() for name in names if f"in.{name}" in case}


def by_name(form: Function, inputs: type[ScanInputs | SSDInputs], **options: Any) -> Function:
    """The recurrence as a function of named tensors."""
    return lambda **tensors: form(inputs(**tensors, **options))


def check_scan(case: Case) -> None:
    """`mamba1/scan`: both forms, cut anywhere, with and without a gradient of the last state."""
    (rows, channels, time), b = case.tensors["in.u"].shape, case.tensors["in.B"]
    case.expect(batch=rows, dim=channels, L=time, dstate=case.tensors["in.A"].shape[1])
    case.expect(groups=b.shape[1] if b.ndim == 4 else None, use_z="in.z" in case, use_D="in.D" in case)
    names = {name: name for name in ("u", "A", "B", "C", "D", "z")} | {"dt": "delta", "dt_bias": "delta_bias"}
    timed = {"u", "dt", "B", "C", "z"}
    for form in (selective_scan, selective_scan_loop):
        scan = by_name(form, ScanInputs, dt_softplus=case.config["delta_softplus"])
        for lengths in cuts(case, time):
            for prefix in ("grad.", "grad_y_only."):
                inputs = grown(case, list(names.values()))
                tensors = {ours: inputs[expected] for ours, expected in names.items() if expected in inputs}
                for name in ("B", "C"):
                    grouped = tensors[name] if tensors[name].ndim == 4 else tensors[name][:, None]
                    tensors[name] = rearrange(grouped, "b g n t -> b t g n")
                for name in timed & set(tensors) - {"B", "C"}:
                    tensors[name] = rearrange(tensors[name], "b e t -> b t e")
                empty = torch.zeros(len(inputs["u"]), *inputs["A"].shape, dtype=torch.float64)
                y, after = run(scan, tensors, timed, lengths, empty)
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
    """`mamba2/ssd`: both forms, chunks that fit and that don't, cut anywhere; from an empty state, and from a
    random one."""
    rows, time, heads, head_dim = case.tensors["in.x"].shape
    groups, state_size = case.tensors["in.B"].shape[2:]
    case.expect(batch=rows, L=time, nheads=heads, headdim=head_dim, ngroups=groups, dstate=state_size)
    case.expect_flag("use_z", "in.z" in case)
    case.expect_flag("D_has_hdim", "in.D" in case and case.tensors["in.D"].ndim == 2)
    names, timed, config = (
        ("x", "dt", "A", "B", "C", "D", "z", "dt_bias"),
        {"x", "dt", "B", "C", "z"},
        case.config,
    )
    options = {"dt_softplus": config["dt_softplus"], "dt_limit": mamba2.limits(config, "dt_limit")}
    forms: list[Function] = [
        ssd_loop,
        *(partial(ssd, chunk_size=q) for q in (config["chunk_size"], 1, 5, 64)),
    ]
    for form, lengths in product(forms, cuts(case, time)):
        recurrence = by_name(form, SSDInputs, **options)
        inputs = grown(case, [*names])
        empty = torch.zeros(*inputs["x"].shape[:1], *inputs["x"].shape[2:], inputs["B"].shape[3]).double()
        y, after = run(recurrence, inputs, timed, lengths, empty)
        case.compare("out.", {"y": y, "final_state": after[sum(lengths)]})
        for done, state in after.items():
            case.compare(f"state@{done}.", {"ssm_state": state})
        (y * case.read("cot.y")).sum().backward()
        case.compare("grad.", slopes(inputs))

        if "in.h0" not in case:
            continue
        inputs = grown(case, [*names, "h0"])
        tensors = {name: tensor for name, tensor in inputs.items() if name not in ("D", "z", "h0")}
        y, after = run(recurrence, tensors, timed, lengths, inputs["h0"])
        last = after[sum(lengths)]
        case.compare("out0.", {"y": y, "final_state": last})
        loss = (y * case.read("cot0.y")).sum() + (last * case.read("cot0.final_state")).sum()
        loss.backward()
        case.compare("grad0.", slopes(inputs))


def check_layer(
    case: Case, made: Callable[..., Mixer], shape: Callable[..., dict[str, Any]], table: Table
) -> None:
    """`mamba1/layer` and `mamba2/layer`."""
    width, time = case.config["d_model"], read_text(case, "in.x").shape[1]
    case.expect(cls=made.__name__.removesuffix("Mixer"))
    case.ignore(*INITIAL)
    mixer: Any = made(width, **shape(width, case.config))
    fill(mixer, case.weights, table)
    outputs: dict[str, Tensor] = {}
    heard: list[Tensor] = []
    mixer.in_proj.register_forward_hook(lambda _, __, out: outputs.update(in_proj=out))
    mixer.out_proj.register_forward_hook(lambda _, read, __: outputs.update(pre_out_proj=read[0]))
    mixer.conv.register_forward_hook(lambda _, read, __: heard.append(read[0]))
    if isinstance(mixer, Mamba2Mixer):
        gated_norm = mixer.gated_norm

        def tell(y: Tensor, z: Tensor) -> Tensor:
            outputs.update(pre_norm_y=y, post_norm=gated_norm(y, z))
            return outputs["post_norm"]

        mixer.gated_norm = tell  # type: ignore[method-assign]
    for lengths in cuts(case, time):
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
            assert torch.equal(padded[:, padded.shape[1] - taps + 1 :], state.conv)
            case.compare(
                f"state@{seen.shape[1]}.", {"conv_state": padded[:, -taps:].mT, "ssm_state": state.ssm}
            )
        y = torch.cat(parts, dim=1)
        case.compare("out.", {"y": y})
        if len(lengths) == 1:
            case.compare("mid.", outputs)
        (y * case.read("cot.y")).sum().backward()
        weights = {f"w.{name}": grad for name, grad in gradients(mixer, table).items()}
        case.compare("grad.", slopes(inputs) | weights)


def check_language_model(case: Case) -> None:
    """mamba_ssm's language models: of Mamba, of Mamba-2, and with attention in some layers."""
    cell, attention_layers = case.config.get("ssm_cfg") or {}, case.config.get("attn_layer_idx") or []
    alone: Any = mamba2 if cell.get("layer") == "Mamba2" else mamba
    check_model(case, mamba2_hybrid if attention_layers or case.kind.startswith("hybrids/") else alone)
    assert type(case.config.get("residual_in_fp32", True)) is bool  # the files' residuals are float64
    case.ignore("fused_add_norm", *(f"ssm_cfg.{name}" for name in INITIAL))
    if not attention_layers:
        case.ignore("attn_cfg")
    if len(set(attention_layers)) == case.config["n_layer"]:
        case.ignore("ssm_cfg")


KINDS: dict[str, Callable[[Case], None]] = {
    "mamba1/scan": check_scan,
    "mamba1/layer": partial(check_layer, made=MambaMixer, shape=mamba.mixer_shape, table=mamba.MIXER),
    "mamba1/model": check_language_model,
    "mamba2/ssd": check_ssd,
    "mamba2/layer": partial(check_layer, made=Mamba2Mixer, shape=mamba2.mixer_shape, table=mamba2.MIXER),
    "mamba2/model": check_language_model,
    "hybrids/mamba_ssm_hybrid": check_language_model,
}
