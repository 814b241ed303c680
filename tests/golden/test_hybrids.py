"""The published hybrids can't vary every field: our code against the slow reference, many more configs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.cases import Case, read_case
from tests.golden.reference import hybrids as reference
from tests.golden.reference.hybrid_shapes import (
    Config,
    griffin_shapes,
    jamba_shapes,
    mamba_ssm_shapes,
    recurrent,
    rglru,
    samba_shapes,
)
from tests.golden.test_golden import KINDS
from zoo.errors import UserError
from zoo.models.published import griffin, jamba, mamba2_hybrid, samba

FIXTURES = Path(__file__).parent / "fixtures" / "hybrids"

# all but rglru_core: it has a decay of exactly 1, whose gradient the reference doesn't clip
CASES = sorted(path for path in FIXTURES.glob("*.json") if path.stem != "rglru_core")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_reference_agrees_with_the_published_cases(path: Path) -> None:
    case = read_case(path)
    inputs = {name: tensor for name, tensor in case.tensors.items() if name.startswith(("in.", "w.", "cot."))}
    case.compare("", reference.computed(case.kind, case.config, inputs))
    case.open -= inputs.keys()
    case.close(config=False)


GRIFFIN: Config = {"vocab_size": 11, "width": 8, "mlp_expanded_width": 6, "num_heads": 2, "lru_width": None}
GRIFFIN |= {"block_types": ["recurrent", "attention"], "embeddings_scale_by_sqrt_dim": True}
GRIFFIN |= {"attention_window_size": 3, "logits_soft_cap": 30.0, "L": 9, "B": 2, "bounds": [2, 7, 9]}
SAMBA: Config = {"vocab_size": 11, "padded_vocab_size": 11, "block_size": 32, "mb_per_layer": 2, "n_layer": 2}
SAMBA |= {"n_head": 4, "n_embd": 16, "rotary_percentage": 1.0, "bias": False, "_norm_class": "FusedRMSNorm"}
SAMBA |= {"norm_eps": 1e-5, "_mlp_class": "LLaMAMLP", "intermediate_size": 6, "local_window": 4}
SAMBA |= {"mamba_init": True, "n_query_groups": 4, "d_state": 3, "L": 9, "B": 2, "bounds": [2, 7, 9]}
JAMBA: Config = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2}
JAMBA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 1, "attn_layer_period": 2}
JAMBA |= {"attn_layer_offset": 1, "mamba_d_state": 3, "mamba_d_conv": 4, "mamba_expand": 2}
JAMBA |= {"mamba_dt_rank": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
JAMBA |= {"L": 9, "B": 2, "bounds": [2, 7, 9]}
SSM: Config = {"layer": "Mamba2", "d_state": 3, "headdim": 4, "chunk_size": 4}
MHA: Config = {"num_heads": 4, "num_heads_kv": 2, "head_dim": 4, "causal": True}
HYBRID: Config = {"d_model": 8, "n_layer": 2, "vocab_size": 11, "ssm_cfg": SSM, "attn_layer_idx": [1]}
HYBRID |= {"attn_cfg": MHA, "d_intermediate": 5, "rms_norm": True, "tie_embeddings": True}
HYBRID |= {"pad_vocab_size_multiple": 8, "norm_epsilon": 1e-5, "L": 9, "B": 2, "bounds": [2, 7, 9]}
UNIT: Config = {"width": 6, "num_heads": 2, "L": 7, "B": 2, "segments": [3, 4], "reset_at": 3}
BLOCK: Config = {"width": 6, "lru_width": 8, "num_heads": 2, "L": 7, "B": 2, "bounds": [1, 3, 7]}


def ssm(**changes: Any) -> Config:
    return {"ssm_cfg": SSM | changes}


def attention(**changes: Any) -> Config:
    return {"attn_cfg": MHA | changes}


VARIANTS: dict[str, tuple[str, Config]] = {
    "rglru: plain": ("rglru", UNIT),
    "rglru: one block": ("rglru", UNIT | {"num_heads": 1, "reset_at": None}),
    "rglru: blocks of one": ("rglru", UNIT | {"num_heads": 6, "segments": [1, 5, 1], "B": 1}),
    "block: plain": ("griffin_recurrent_block", BLOCK),
    "block: as wide as the model": ("griffin_recurrent_block", BLOCK | {"lru_width": None}),
    "block: one tap": ("griffin_recurrent_block", BLOCK | {"conv1d_temporal_width": 1}),
    "block: six taps": ("griffin_recurrent_block", BLOCK | {"conv1d_temporal_width": 6, "num_heads": 4}),
    "griffin: plain": ("griffin_model", GRIFFIN),
    "griffin: one head": ("griffin_model", GRIFFIN | {"num_heads": 1}),
    "griffin: window of one": ("griffin_model", GRIFFIN | {"attention_window_size": 1}),
    "griffin: window over the text": ("griffin_model", GRIFFIN | {"attention_window_size": 40}),
    "griffin: attention first": ("griffin_model", GRIFFIN | {"block_types": ["attention", "recurrent"]}),
    "griffin: attention alone": ("griffin_model", GRIFFIN | {"block_types": ["attention"]}),
    "griffin: no attention": ("griffin_model", GRIFFIN | {"block_types": ["recurrent"] * 3}),
    "griffin: no cap": ("griffin_model", GRIFFIN | {"logits_soft_cap": None}),
    "griffin: cap of zero": ("griffin_model", GRIFFIN | {"logits_soft_cap": 0.0}),
    "griffin: tight cap": ("griffin_model", GRIFFIN | {"logits_soft_cap": 2}),
    "griffin: unscaled": ("griffin_model", GRIFFIN | {"embeddings_scale_by_sqrt_dim": False}),
    "griffin: wide recurrence": ("griffin_model", GRIFFIN | {"lru_width": 12}),
    "griffin: two taps": ("griffin_model", GRIFFIN | {"conv1d_temporal_width": 2}),
    "griffin: one row": ("griffin_model", GRIFFIN | {"B": 1, "L": 6, "bounds": [1, 5]}),
    "samba: plain": ("samba_model", SAMBA),
    "samba: grouped": ("samba_model", SAMBA | {"n_query_groups": 2}),
    "samba: one group": ("samba_model", SAMBA | {"n_query_groups": 1, "bias": True}),
    "samba: biases": ("samba_model", SAMBA | {"bias": True}),
    "samba: half rotary": ("samba_model", SAMBA | {"rotary_percentage": 0.5}),
    "samba: no rotary": ("samba_model", SAMBA | {"rotary_percentage": 0.0}),
    "samba: layer norm": ("samba_model", SAMBA | {"_norm_class": "LayerNorm", "norm_eps": 1e-2}),
    "samba: window of one": ("samba_model", SAMBA | {"local_window": 1}),
    "samba: window over the text": ("samba_model", SAMBA | {"local_window": 30}),
    "samba: every third": ("samba_model", SAMBA | {"mb_per_layer": 3, "n_layer": 4}),
    "samba: mamba alone": ("samba_model", SAMBA | {"mb_per_layer": 1, "d_conv": 2, "expand": 1}),
    "samba: attention alone": ("samba_model", SAMBA | {"mb_per_layer": 0}),
    "samba: untied, padded": ("samba_model", SAMBA | {"mamba_init": False, "padded_vocab_size": 16}),
    "jamba: plain": ("jamba_model", JAMBA),
    "jamba: one key head": ("jamba_model", JAMBA | {"num_key_value_heads": 1}),
    "jamba: ungrouped": ("jamba_model", JAMBA | {"num_key_value_heads": 4, "attn_layer_offset": 0}),
    "jamba: no attention": ("jamba_model", JAMBA | {"attn_layer_period": 8, "attn_layer_offset": 4}),
    "jamba: attention alone": ("jamba_model", JAMBA | {"attn_layer_period": 1, "attn_layer_offset": 0}),
    "jamba: biases": ("jamba_model", JAMBA | {"mamba_proj_bias": True}),
    "jamba: no convolution bias": ("jamba_model", JAMBA | {"mamba_conv_bias": False}),
    "jamba: rank by width": ("jamba_model", JAMBA | {"mamba_dt_rank": "auto", "mamba_d_conv": 2}),
    "jamba: expand, rank": ("jamba_model", JAMBA | {"mamba_expand": 3, "mamba_dt_rank": 5}),
    "jamba: epsilon, tied": ("jamba_model", JAMBA | {"rms_norm_eps": 1e-2, "tie_word_embeddings": True}),
    "jamba: a text with padding": ("jamba_model", JAMBA | {"pad_token_id": 3}),
    "jamba: padding, tied": ("jamba_model", JAMBA | {"pad_token_id": 10, "tie_word_embeddings": True}),
    "jamba: four layers": ("jamba_model", JAMBA | {"num_hidden_layers": 4, "attn_layer_period": 3}),
    "mamba_ssm: plain": ("mamba_ssm_hybrid", HYBRID),
    "mamba_ssm: Mamba-1": ("mamba_ssm_hybrid", HYBRID | {"ssm_cfg": {"d_state": 3, "dt_rank": 3}}),
    "mamba_ssm: Mamba-1 by default": ("mamba_ssm_hybrid", HYBRID | {"ssm_cfg": {}, "d_intermediate": 0}),
    "mamba_ssm: groups": ("mamba_ssm_hybrid", HYBRID | ssm(ngroups=2)),
    "mamba_ssm: groups, norm first": ("mamba_ssm_hybrid", HYBRID | ssm(ngroups=4, norm_before_gate=True)),
    "mamba_ssm: no norm": ("mamba_ssm_hybrid", HYBRID | ssm(rmsnorm=False)),
    "mamba_ssm: some pass by": ("mamba_ssm_hybrid", HYBRID | ssm(d_ssm=12, D_has_hdim=True)),
    "mamba_ssm: limits": ("mamba_ssm_hybrid", HYBRID | ssm(dt_limit=[0.5, 0.9], d_conv=3)),
    "mamba_ssm: biases": ("mamba_ssm_hybrid", HYBRID | ssm(bias=True, conv_bias=False, expand=1)),
    "mamba_ssm: no attention": ("mamba_ssm_hybrid", HYBRID | {"attn_layer_idx": []}),
    "mamba_ssm: attention alone": ("mamba_ssm_hybrid", HYBRID | {"attn_layer_idx": [0, 1]}),
    "mamba_ssm: ungrouped": (
        "mamba_ssm_hybrid",
        HYBRID | attention(num_heads_kv=None, head_dim=None, out_proj_bias=False),
    ),
    "mamba_ssm: wide heads": ("mamba_ssm_hybrid", HYBRID | attention(head_dim=6, qkv_proj_bias=False)),
    "mamba_ssm: short convolution": ("mamba_ssm_hybrid", HYBRID | attention(d_conv=3)),
    "mamba_ssm: shared feed-forward": ("mamba_ssm_hybrid", HYBRID | attention(mlp_dim=7, d_conv=2)),
    "mamba_ssm: half rotary": ("mamba_ssm_hybrid", HYBRID | attention(rotary_emb_dim=2)),
    "mamba_ssm: scale": ("mamba_ssm_hybrid", HYBRID | attention(softmax_scale=0.9)),
    "mamba_ssm: layer norm": ("mamba_ssm_hybrid", HYBRID | {"rms_norm": False, "norm_epsilon": 1e-2}),
    "mamba_ssm: untied": ("mamba_ssm_hybrid", HYBRID | {"tie_embeddings": False}),
    "mamba_ssm: no padding": ("mamba_ssm_hybrid", HYBRID | {"pad_vocab_size_multiple": 1}),
}
MODELS = {"samba_model": (samba_shapes, "transformer.wte.weight", lambda c: c["mamba_init"])}
MODELS |= {"jamba_model": (jamba_shapes, "model.embed_tokens.weight", lambda c: c["tie_word_embeddings"])}
MODELS |= {"mamba_ssm_hybrid": (mamba_ssm_shapes, "backbone.embedding.weight", lambda c: c["tie_embeddings"])}


def random_inputs(kind: str, c: Config, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs and weights."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows, time = c["B"], c["L"]
    if kind == "rglru":
        shapes, width = rglru("", c["width"], c["num_heads"]), c["width"]
        position = torch.arange(time).repeat(rows, 1)
        if c["reset_at"] is not None:
            position = torch.where(position < c["reset_at"], position, position - c["reset_at"])
        inputs = {"in.x": draw(rows, time, width), "in.segment_pos": position, "in.h0": draw(rows, width)}
        inputs |= {"cot.y": draw(rows, time, width), "cot.h": draw(rows, width)}
    elif kind == "griffin_recurrent_block":
        shapes, size = recurrent("", c), (rows, time, c["width"])
        inputs = {"in.x": draw(*size), "cot.y": draw(*size)}
    else:
        shapes = griffin_shapes(c) if kind == "griffin_model" else MODELS[kind][0](c)
        inputs = {
            f"in.{part}": torch.randint(c["vocab_size"], (rows, time), generator=generator)
            for part in ("tokens", "targets")
        }
    weights = {f"w.{name}": 0.5 * draw(*shape) for name, shape in shapes.items()}
    if kind in MODELS and MODELS[kind][2](c):
        weights["w.lm_head.weight"] = weights[f"w.{MODELS[kind][1]}"].clone()
    return inputs | weights


@pytest.mark.parametrize(("kind", "config"), VARIANTS.values(), ids=VARIANTS)
def test_our_code_agrees_with_the_reference(kind: str, config: Config) -> None:
    kind, tensors = f"hybrids/{kind}", random_inputs(kind, config)
    tensors |= {name: x.detach() for name, x in reference.computed(kind, config, tensors).items()}
    case = Case(kind, config, tensors, of_max=True)
    KINDS[kind](case)
    case.close()


@pytest.mark.parametrize(
    ("loader", "config", "complaint"),
    [
        (griffin, GRIFFIN | {"block_types": ["recurrent", "conv"]}, "block_types"),
        (griffin, GRIFFIN | {"logits_soft_cap": "no"}, "logits_soft_cap"),
        (griffin, GRIFFIN | {"width": 9}, "9 is not a multiple of"),
        (samba, SAMBA | {"_mlp_class": "GptNeoxMLP"}, "_mlp_class"),
        (samba, SAMBA | {"_norm_class": "Norm"}, "_norm_class"),
        (samba, SAMBA | {"rotary_percentage": 2}, "rotary_percentage"),
        (jamba, JAMBA | {"num_experts": 4}, "num_experts"),
        (jamba, JAMBA | {"attn_layer_offset": 5}, "attn_layer_offset"),
        (jamba, JAMBA | {"pad_token_id": 11}, "pad_token_id"),
        (mamba2_hybrid, HYBRID | {"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer"),
        (mamba2_hybrid, HYBRID | ssm(d_ssm=7), "d_ssm"),
        (mamba2_hybrid, HYBRID | attention(causal=False), "causal"),
        (mamba2_hybrid, HYBRID | {"attn_cfg": {"num_heads": 4}}, "causal"),
    ],
)
def test_what_is_not_supported_is_refused(loader: Any, config: Config, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        loader.load({}, config)
