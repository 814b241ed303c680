"""Mamba and Mamba-2 against the slow reference, in more configurations than the published cases."""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.cases import Case
from tests.golden.kinds import mamba as kinds
from tests.golden.reference import hybrid_layers, hybrids
from tests.golden.reference.hybrid_layers import Config, Tensors
from tests.golden.reference.hybrids import slopes
from tests.golden.reference.mamba import scan, ssd
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.models.mamba import Mamba
from zoo.models.mamba2 import Mamba2
from zoo.models.published import mamba, mamba2
from zoo.models.published.weights import gradients

Draw = Callable[..., Tensor]


def drawer(*seed: object) -> Draw:
    random = torch.Generator().manual_seed(sum(map(ord, repr(seed))))
    return lambda *shape: torch.randn(shape, generator=random, dtype=torch.float64)


def grown(tensors: Tensors) -> Tensors:
    return {n: x.clone().requires_grad_() if n.startswith("in.") else x for n, x in tensors.items()}


def without(c: Config, *names: str) -> Config:
    """Only in the tensors."""
    return {name: value for name, value in c.items() if name not in names}


SCAN: Config = {"batch": 2, "dim": 4, "dstate": 3, "L": 7, "groups": None, "delta_softplus": True}
SCAN |= {"use_z": True, "use_D": True, "segments": [3, 4], "bias": True}
SCANS: dict[str, Config] = {
    "plain": {},
    "one token": {"L": 1, "segments": [1]},
    "over a chunk": {"L": 67, "segments": [33, 34], "batch": 1, "dim": 2},
    "two groups": {"groups": 2},
    "a group each": {"groups": 4, "dstate": 1},
    "one group": {"groups": 1},
    "no gate, no skip": {"use_z": False, "use_D": False},
    "dt as it is": {"delta_softplus": False},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("variant", SCANS)
def test_scan(variant: str) -> None:
    c = SCAN | SCANS[variant]
    draw = drawer("scan", variant)
    rows, channels, states, time = (c[n] for n in ("batch", "dim", "dstate", "L"))
    selected = (rows, *([c["groups"]] if c["groups"] else []), states, time)
    tensors = {"in.u": draw(rows, channels, time), "in.A": -draw(channels, states).exp()}
    tensors["in.delta"] = (
        draw(rows, channels, time) if c["delta_softplus"] else draw(rows, channels, time).abs()
    )
    tensors |= {"in.B": draw(*selected), "in.C": draw(*selected)}
    tensors |= {"in.z": draw(rows, channels, time)} if c["use_z"] else {}
    tensors |= {"in.D": draw(channels)} if c["use_D"] else {}
    tensors |= {"in.delta_bias": draw(channels).abs() / 2} if c["bias"] else {}
    tensors |= {"cot.y": draw(rows, channels, time), "cot.last_state": draw(rows, channels, states)}
    inputs = grown(tensors)
    y, after = scan(c, inputs, torch.zeros(rows, channels, states).double())
    leaves = {n: x for n, x in inputs.items() if n.startswith("in.")}
    outputs, last = (y * tensors["cot.y"]).sum(), (after[-1] * tensors["cot.last_state"]).sum()
    results = {"out.y": y, "out.last_state": after[-1]}
    results |= {f"state@{t}.last_state": after[t - 1] for t in accumulate(c["segments"])}
    results |= slopes(outputs + last, leaves) | slopes(outputs, leaves, "grad_y_only.")
    tensors |= {n: x.detach() for n, x in results.items()}
    case = Case("mamba1/scan", without(c, "bias"), tensors, of_max=True)
    kinds.KINDS[case.kind](case)
    case.close()


SSD: Config = {"batch": 2, "L": 7, "nheads": 4, "headdim": 3, "ngroups": 1, "dstate": 2, "chunk_size": 4}
SSD |= {"D_has_hdim": False, "use_z": False, "dt_limit": None, "dt_softplus": True, "segments": [3, 4]}
SSD |= {"bias": True, "skip": True}
SSDS: dict[str, Config] = {
    "plain": {},
    "one token": {"L": 1, "segments": [1], "chunk_size": 64},
    "over a chunk of 64": {"L": 67, "segments": [33, 34], "batch": 1, "nheads": 2},
    "two groups": {"ngroups": 2, "use_z": True},
    "a group each": {"ngroups": 4, "headdim": 1},
    "skip per channel": {"D_has_hdim": True, "ngroups": 2},
    "limits": {"dt_limit": [0.3, 0.9], "use_z": True},
    "no upper limit": {"dt_limit": [0.5, math.inf]},
    "dt as it is": {"dt_softplus": False, "bias": False},
    "no skip": {"skip": False},
}


@pytest.mark.parametrize("variant", SSDS)
def test_ssd(variant: str) -> None:
    c = SSD | SSDS[variant]
    draw = drawer("ssd", variant)
    rows, time, heads, width, groups, states = (
        c[n] for n in ("batch", "L", "nheads", "headdim", "ngroups", "dstate")
    )
    tensors = {"in.x": draw(rows, time, heads, width), "in.A": -draw(heads).exp()}
    tensors["in.dt"] = draw(rows, time, heads) if c["dt_softplus"] else draw(rows, time, heads).abs()
    tensors |= {f"in.{n}": draw(rows, time, groups, states) for n in "BC"}
    tensors |= {"in.D": draw(heads, *([width] if c["D_has_hdim"] else []))} if c["skip"] else {}
    tensors |= {"in.z": draw(rows, time, heads, width)} if c["use_z"] else {}
    tensors |= {"in.dt_bias": draw(heads)} if c["bias"] else {}
    shape = (rows, heads, width, states)
    tensors |= {"in.h0": draw(*shape), "cot.y": draw(rows, time, heads, width)}
    tensors |= {"cot0.y": draw(rows, time, heads, width), "cot0.final_state": draw(*shape)}
    inputs = grown(tensors)
    leaves = {n: x for n, x in inputs.items() if n.startswith("in.") and n != "in.h0"}
    y, after = ssd(c, inputs, torch.zeros(shape).double(), bare=False)
    results = {"out.y": y, "out.final_state": after[-1]}
    results |= {f"state@{t}.ssm_state": after[t - 1] for t in accumulate(c["segments"])}
    results |= slopes((y * tensors["cot.y"]).sum(), leaves)
    y, after = ssd(c, inputs, inputs["in.h0"], bare=True)
    results |= {"out0.y": y, "out0.final_state": after[-1]}
    total = (y * tensors["cot0.y"]).sum() + (after[-1] * tensors["cot0.final_state"]).sum()
    bare = {n: x for n, x in inputs.items() if n.startswith("in.") and n not in ("in.D", "in.z")}
    results |= slopes(total, bare, "grad0.")
    tensors |= {n: x.detach() for n, x in results.items()}
    case = Case("mamba2/ssd", without(c, "bias", "skip"), tensors, of_max=True)
    kinds.KINDS[case.kind](case)
    case.close()


MIXER: Config = {"d_model": 6, "d_state": 3, "L": 9, "B": 2, "bounds": [2, 7, 9]}
MIXERS: dict[str, Config] = {
    "mamba1: plain": {},
    "mamba1: narrow": {"expand": 1, "d_conv": 2, "dt_rank": 1},
    "mamba1: wide": {"expand": 3, "dt_rank": 5, "d_state": 1},
    "mamba1: biased": {"bias": True, "conv_bias": False, "dt_rank": "auto"},
    "mamba1: long taps": {"d_conv": 6},
    "mamba1: one tap": {"d_conv": 1},
    "mamba2: plain": {"headdim": 4},
    "mamba2: groups": {"headdim": 3, "ngroups": 2, "chunk_size": 4},
    "mamba2: one head": {"headdim": 12, "chunk_size": 2, "d_conv": 2},
    "mamba2: norm first": {"headdim": 3, "ngroups": 4, "norm_before_gate": True},
    "mamba2: no norm": {"headdim": 4, "rmsnorm": False, "norm_before_gate": True},
    "mamba2: channels past it": {"headdim": 2, "d_ssm": 8, "ngroups": 2},
    "mamba2: skip per channel, limits": {"headdim": 4, "D_has_hdim": True, "dt_limit": [0.2, 0.8]},
    "mamba2: biased": {"headdim": 2, "expand": 1, "bias": True, "conv_bias": False, "d_conv": 3},
}


def weights_of(shapes: Tensors, draw: Draw) -> Tensors:
    """Nothing at its initial value, nothing small enough to hide."""
    results = {}
    for name, like in shapes.items():
        scale = 0.2 if "norm" in name else 0.6
        results[f"w.{name}"] = draw(*like.shape) * scale + (
            1.0 if "norm" in name and "bias" not in name else 0.0
        )
    return results


@pytest.mark.parametrize("variant", MIXERS)
def test_mixer(variant: str) -> None:
    c, kind = MIXER | MIXERS[variant], variant.partition(":")[0]
    draw, one = drawer("mixer", variant), kind == "mamba1"
    loader: Any = mamba if one else mamba2
    mixer = (MambaMixer if one else Mamba2Mixer)(c["d_model"], **loader.mixer_shape(c["d_model"], c))
    tensors = weights_of(gradients(mixer, loader.MIXER), draw)
    tensors |= {"in.x": draw(c["B"], c["L"], c["d_model"]), "cot.y": draw(c["B"], c["L"], c["d_model"])}
    p = {n[2:]: w.clone().requires_grad_() for n, w in tensors.items() if n.startswith("w.")}
    x = tensors["in.x"].clone().requires_grad_()
    reference = hybrid_layers.mamba if one else hybrid_layers.mamba2
    rows = [reference(row, p, "", *([] if one else [c])) for row in x]
    y = torch.stack([outputs for outputs, _ in rows])
    results = {"out.y": y}
    for t in c["bounds"]:
        record = [carried(t) for _, carried in rows]
        results |= {f"state@{t}.{n}": torch.stack([row[n] for row in record]) for n in record[0]}
    results |= slopes((y * tensors["cot.y"]).sum(), {"in.x": x} | {f"w.{n}": w for n, w in p.items()})
    case = Case(f"{kind}/layer", c, tensors | {n: t.detach() for n, t in results.items()}, of_max=True)
    kinds.KINDS[case.kind](case)
    case.close()


MODEL: Config = {
    "d_model": 6,
    "n_layer": 2,
    "vocab_size": 11,
    "attn_layer_idx": [],
    "attn_cfg": {},
    "L": 7,
    "B": 2,
}
MODEL |= {"d_intermediate": 0, "rms_norm": True, "tie_embeddings": True, "pad_vocab_size_multiple": 8}
MODEL |= {"norm_epsilon": 1e-5, "residual_in_fp32": True, "bounds": [3, 7], "ssm_cfg": {"d_state": 3}}
CELL2: Config = {"layer": "Mamba2", "d_state": 3, "headdim": 4, "chunk_size": 4}
MODELS: dict[str, Config] = {
    "mamba1: plain": {},
    "mamba1: LayerNorm, untied": {"rms_norm": False, "tie_embeddings": False, "norm_epsilon": 0.01},
    "mamba1: with feed-forwards": {"d_intermediate": 10, "n_layer": 1, "pad_vocab_size_multiple": 1},
    "mamba1: named": {"ssm_cfg": {"layer": "Mamba1", "d_state": 2, "d_conv": 3, "bias": True}, "n_layer": 3},
    "mamba2: plain": {"ssm_cfg": CELL2},
    "mamba2: with feed-forwards": {"ssm_cfg": CELL2 | {"ngroups": 3}, "d_intermediate": 130},
    "mamba2: all else": {
        "ssm_cfg": CELL2 | {"d_ssm": 8, "D_has_hdim": True, "dt_limit": [0.1, 1.0], "norm_before_gate": True},
        "tie_embeddings": False,
        "rms_norm": False,
        "n_layer": 1,
        "norm_epsilon": 0.1,
    },
}


@pytest.mark.parametrize("variant", MODELS)
def test_model(variant: str) -> None:
    c, kind = MODEL | MODELS[variant], variant.partition(":")[0]
    draw, one = drawer("model", variant), kind == "mamba1"
    loader: Any = mamba if one else mamba2
    empty = (Mamba if one else Mamba2)(**loader.shape(c))
    tensors = weights_of(loader.published_gradients(empty), draw)
    if c["tie_embeddings"]:
        tensors["w.lm_head.weight"] = tensors["w.backbone.embedding.weight"].clone()
    tokens = torch.randint(c["vocab_size"], (2, c["B"], c["L"]), generator=torch.Generator().manual_seed(0))
    tensors |= {"in.tokens": tokens[0], "in.targets": tokens[1]}
    results = hybrids.computed("hybrids/mamba_ssm_hybrid", c, tensors)
    case = Case(f"{kind}/model", c, tensors | {n: x.detach() for n, x in results.items()}, of_max=True)
    kinds.KINDS[case.kind](case)
    case.close()
