"""Mamba and Mamba-2: their heads, their budget's width, what decays, and the checkpoints of transformers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.models.mamba import Mamba
from zoo.models.mamba2 import Mamba2
from zoo.models.published import mamba, mamba2
from zoo.train.runs import build
from zoo.train.runs.config import compose

SHAPE: dict[str, Any] = {"vocab_size": 11, "segment_len": 8, "depth": 3, "width": 16}


@pytest.mark.parametrize(
    ("all_heads", "expected"),
    [(6, [2, 2, 2]), (7, [3, 2, 2]), (8, [3, 3, 2]), (3, [1, 1, 1]), (1, [1, 1, 1])],
)
def test_heads_are_spread_over_the_blocks(all_heads: int, expected: list[int]) -> None:
    model = Mamba2(**SHAPE, all_heads=all_heads, head_dim=4, state_size=2)
    assert [block.mixer.heads for block in model.stack] == expected


@pytest.mark.parametrize(
    ("all_heads", "expected"), [(12, [4, 4, 4]), (14, [6, 4, 4]), (13, [6, 4, 4]), (1, [2, 2, 2])]
)
def test_every_group_has_as_many_heads(all_heads: int, expected: list[int]) -> None:
    model = Mamba2(**SHAPE, all_heads=all_heads, groups=2, head_dim=4, state_size=2)
    assert [block.mixer.heads for block in model.stack] == expected


@pytest.mark.parametrize("groups", [2, 4])
def test_a_budget_is_met_with_groups(groups: int) -> None:
    cfg = compose(["model=mamba2", "size=tiny", f"model.groups={groups}"])
    with torch.device("meta"):
        assert build.model(cfg).count_parameters() == pytest.approx(cfg.size.budget, rel=0.03)


@pytest.mark.parametrize("model", ["mamba", "mamba2"])
@pytest.mark.parametrize(
    ("size", "within"), [("micro", 0.03), ("tiny", 0.01), ("small", 0.01), ("base", 0.01)]
)
def test_budget(model: str, size: str, within: float) -> None:
    cfg = compose([f"model={model}", f"size={size}"])
    with torch.device("meta"):
        assert build.model(cfg).count_parameters() == pytest.approx(cfg.size.budget, rel=within)


@pytest.mark.parametrize(
    "model", [Mamba(**SHAPE, channels=8), Mamba2(**SHAPE, all_heads=6, skip_per_channel=True)]
)
def test_what_says_how_fast_to_forget_never_decays(model: Any) -> None:
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = model.parameter_groups()
    decaying = {names[id(w)] for group in groups if group.get("decays", True) for w in group["params"]}
    assert sorted(names.values()) == sorted(names[id(w)] for group in groups for w in group["params"])
    assert not [name for name in decaying if name.endswith(("A_log", ".D", "dt_bias", "norm_weight"))]
    assert any(name.endswith("in_proj.weight") for name in decaying)


def test_a_missing_kernel_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(UserError, match=r"expected the package mamba-ssm: pip install"):
        build.model(compose(["model=mamba2", "size=nano", "model.backend=mamba_ssm"]))


@contextmanager
def in_float64() -> Iterator[None]:
    """transformers casts to float32 on the way; here it stays in float64."""
    to = Tensor.to

    def kept(self: Tensor, *given: Any, **named: Any) -> Tensor:
        given = tuple(torch.float64 if one is torch.float32 else one for one in given)
        named = {name: torch.float64 if one is torch.float32 else one for name, one in named.items()}
        return to(self, *given, **named)

    with mock.patch.object(Tensor, "float", Tensor.double), mock.patch.object(Tensor, "to", kept):
        yield


MAMBA: dict[str, Any] = {"state_size": 5, "time_step_rank": 4, "expand": 3}
MAMBA2: dict[str, Any] = {"state_size": 6, "num_heads": 6, "head_dim": 8, "chunk_size": 8, "n_groups": 2}
CHECKPOINTS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "mamba": ("Mamba", mamba, MAMBA),
    "mamba, biased, untied": (
        "Mamba",
        mamba,
        MAMBA
        | {
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": False,
            "layer_norm_epsilon": 0.1,
            "conv_kernel": 3,
        },
    ),
    "mamba2": ("Mamba2", mamba2, MAMBA2),
    "mamba2, limits, tied": (
        "Mamba2",
        mamba2,
        MAMBA2
        | {
            "time_step_limit": (0.2, 0.8),
            "tie_word_embeddings": True,
            "layer_norm_epsilon": 0.1,
            "use_bias": True,
            "n_groups": 1,
        },
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_checkpoints_of_transformers(name: str) -> None:
    import transformers

    kind, loader, fields = CHECKPOINTS[name]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=23, hidden_size=24, num_hidden_layers=2, **fields
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()
    for weight in theirs.parameters():
        weight += 0.2 * torch.randn_like(weight)
    tokens = torch.randint(23, (2, 37))
    with in_float64():
        expected = theirs(tokens, use_cache=False).logits
    ours = loader.load(dict(theirs.state_dict()), config.to_dict()).eval()
    torch.testing.assert_close(ours(tokens)[0], expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.fold(tokens)[0], expected, rtol=1e-10, atol=1e-10)


BASE: dict[str, Any] = {"d_model": 8, "n_layer": 1, "vocab_size": 5}


@pytest.mark.parametrize(
    ("loader", "config", "complaint"),
    [
        (mamba, BASE | {"attn_layer_idx": [0]}, r"expected attn_layer_idx \[\]"),
        (mamba, BASE | {"ssm_cfg": {"layer": "Mamba2"}}, "expected layer 'Mamba1'"),
        (mamba2, BASE, "expected ssm_cfg.layer 'Mamba2', found None"),
        (
            mamba2,
            BASE | {"ssm_cfg": {"layer": "Mamba2", "headdim": 7}},
            "expected d_ssm, a multiple of 7 up to 16",
        ),
        (
            mamba2,
            {"hidden_size": 8, "num_heads": 3, "head_dim": 4},
            r"expected num_heads \* head_dim 16, found 3",
        ),
        (mamba, {"hidden_size": 8, "vocab_size": 5}, "expected num_hidden_layers"),
    ],
)
def test_configs_are_checked_at_the_door(loader: Any, config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        loader.load({}, config)
