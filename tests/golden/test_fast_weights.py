"""Layers of linear recurrences against the slow reference, in more forms than the published cases."""

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.cases import Case
from tests.golden.reference.fast_weights import Layer, delta_layer, gla_layer, hgrn2_layer
from tests.golden.reference.hybrid_layers import Config, Tensors
from tests.golden.test_golden import KINDS
from zoo.errors import UserError
from zoo.memory.fast_weights.delta_mixer import DeltaMixer
from zoo.memory.fast_weights.gla_mixer import GLAMixer
from zoo.memory.fast_weights.hgrn2_mixer import HGRN2Mixer
from zoo.models.published import deltanet, gla, hgrn2
from zoo.models.published.weights import gradients

DELTA: Config = {"rule": "delta", "hidden_size": 12, "num_heads": 2}
GATED: Config = {"rule": "gated_delta", "hidden_size": 10, "num_heads": 2, "head_dim": 4, "expand_v": 1.5}
KDA: Config = {"rule": "kda", "hidden_size": 10, "num_heads": 2, "head_dim": 4}
GLA: Config = {"rule": "gla", "hidden_size": 12, "num_heads": 2, "gate_low_rank_dim": 3}
HGRN2: Config = {"rule": "hgrn2", "hidden_size": 12, "num_heads": 3, "expand_ratio": 5}
VARIANTS: dict[str, Config] = {
    "delta: plain": DELTA,
    "delta: negative eigenvalues": DELTA | {"allow_neg_eigval": True},
    "delta: gate": DELTA | {"use_gate": True, "norm_eps": 0.1},
    "delta: narrow keys, wide values": DELTA | {"expand_k": 0.5, "expand_v": 2, "conv_size": 2},
    "delta: no convolution": DELTA | {"use_short_conv": False},
    "delta: biased convolution": DELTA | {"conv_bias": True, "conv_size": 3},
    "delta: three writes": DELTA | {"num_householder": 3, "allow_neg_eigval": True},
    "gated: plain": GATED,
    "gated: grouped values": GATED | {"num_v_heads": 6, "allow_neg_eigval": True},
    "gated: no gate": GATED | {"use_gate": False, "norm_eps": 0.1},
    "gated: no convolution": GATED | {"use_short_conv": False, "expand_v": 2.0},
    "gated: one tap, biased": GATED | {"conv_size": 1, "conv_bias": True},
    "gated: two writes": GATED | {"num_householder": 2, "num_v_heads": 4},
    "kda: plain": KDA,
    "kda: bounded": KDA | {"lower_bound": -5.0, "allow_neg_eigval": True},
    "kda: grouped values": KDA | {"num_v_heads": 4, "expand_v": 0.5, "norm_eps": 0.1},
    "kda: no convolution": KDA | {"use_short_conv": False},
    "gla: plain": GLA,
    "gla: convolutions": GLA | {"use_short_conv": True, "conv_size": 3},
    "gla: biased convolutions": GLA | {"use_short_conv": True, "conv_bias": True},
    "gla: shared keys": GLA | {"num_heads": 4, "num_kv_heads": 2, "expand_k": 1.0, "expand_v": 2},
    "gla: clamped": GLA | {"gate_logit_normalizer": 4, "clamp_min": -0.1},
    "gla: no gate": GLA | {"use_output_gate": False, "norm_eps": 0.1},
    "hgrn2: plain": HGRN2 | {"norm_eps": 0.1},
    "hgrn2: convolutions": HGRN2 | {"use_short_conv": True, "conv_size": 3},
    "hgrn2: biased convolutions": HGRN2 | {"use_short_conv": True, "conv_bias": True},
    "hgrn2: gates of the width": HGRN2 | {"expand_ratio": None},
    "hgrn2: heads of the width": HGRN2 | {"num_heads": None, "expand_ratio": 6},
}
PARTS: dict[str, tuple[str, Any, Any, Any]] = {
    "gla": ("gla/layer", GLAMixer, gla, gla_layer),
    "hgrn2": ("gla/layer", HGRN2Mixer, hgrn2, hgrn2_layer),
    **dict.fromkeys(("delta", "gated_delta", "kda"), ("deltanet/layer", DeltaMixer, deltanet, delta_layer)),
}
LENGTHS = [3, 4, 2]


def drawn(c: Config) -> Tensors:
    """Weights, none at its initial value and none small enough to hide, a text and a cotangent."""
    _, made, published, _ = PARTS[c["rule"]]
    mixer = made(c["hidden_size"], **published.mixer_shape(c))
    rng = torch.Generator().manual_seed(len(repr(c)))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    tensors = {}
    for name, like in gradients(mixer, published.mixer_table(mixer)).items():
        tensors[f"param/{name}"] = 0.6 * draw(*like.shape) + ("norm" in name)
    shape = (2, sum(LENGTHS), c["hidden_size"])
    lengths = torch.tensor(LENGTHS)
    return tensors | {"in/x": draw(*shape), "in/cotangent": draw(*shape), "in/seg_lens": lengths}


def case_of(c: Config) -> Case:
    """The reference's results, as a file would have them."""
    kind, _, _, reference = PARTS[c["rule"]]
    tensors = drawn(c)
    leaves = {n[6:]: w.clone().requires_grad_() for n, w in tensors.items() if n.startswith("param/")}
    leaves["x"] = tensors["in/x"].clone().requires_grad_()
    rows: list[Layer] = [reference(row, leaves, c) for row in leaves["x"]]
    y = torch.stack([row for row, _ in rows])
    loss = (y * tensors["in/cotangent"]).sum()
    loss.backward()
    tensors |= {
        f"grad/{name}": torch.zeros_like(w) if w.grad is None else w.grad for name, w in leaves.items()
    }
    tensors |= {"out/y": y.detach(), "out/loss": loss.detach()[None]}
    for segment, end in enumerate(accumulate(LENGTHS)):
        record = [carried(end) for _, carried in rows]
        tensors |= {
            f"state/after_seg{segment}/{name}": torch.stack([row[name] for row in record]).detach()
            for name in record[0]
        }
    return Case(kind, {**c, "batch": 2, "seg_lens": LENGTHS, "dtype": "float64"}, tensors)


@pytest.mark.parametrize("variant", VARIANTS)
def test_layer(variant: str) -> None:
    case = case_of(VARIANTS[variant])
    KINDS[case.kind](case)
    case.close()


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        ("delta: plain", {"allow_neg_eigval": True}),
        ("delta: plain", {"norm_eps": 1e-3}),
        ("gated: grouped values", {"allow_neg_eigval": False}),
        ("gated: plain", {"norm_eps": 1e-3}),
        ("kda: bounded", {"lower_bound": None}),
        ("kda: bounded", {"lower_bound": -4.9}),
        ("gla: clamped", {"clamp_min": None}),
        ("gla: clamped", {"gate_logit_normalizer": 5}),
    ],
)
def test_a_field_that_changes_no_shape_changes_the_numbers(variant: str, change: Config) -> None:
    case = case_of(VARIANTS[variant])
    case = Case(case.kind, {**VARIANTS[variant], **change, "batch": 2}, case.tensors)
    KINDS[case.kind](case)
    with pytest.raises(AssertionError, match="out/y: off by"):
        case.close()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DELTA | {"rule": "linear"}, "expected rule, one of delta, gated_delta, kda, found 'linear'"),
        (DELTA | {"qk_norm": "sum"}, "expected qk_norm 'l2', the only one supported, found 'sum'"),
        (DELTA | {"expand_v": 1.3}, "expected expand_v that makes 12 a whole number, found 1.3"),
        (KDA | {"lower_bound": "low"}, "expected lower_bound, a number, found 'low'"),
        (GLA | {"feature_map": "relu"}, "expected feature_map None, the only one supported, found 'relu'"),
        (HGRN2 | {"num_heads": 5}, "expected num_heads that divides 12, found 5"),
        (GLA | {"num_heads": 5}, "expected num_heads that divides 6 and 12, found 5"),
    ],
)
def test_a_config_that_is_another_layer(config: Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PARTS.get(config["rule"], PARTS["delta"])[2].mixer_shape(config)
