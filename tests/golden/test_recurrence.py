"""The published cases can't vary every field: our models against the slow reference, many more configs."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.cases import Case, read_case
from tests.golden.reference import recurrence as reference
from tests.golden.test_golden import KINDS

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_the_reference_agrees_with_the_published_cases(path: Path) -> None:
    case = read_case(path)
    inputs = {name: tensor for name, tensor in case.tensors.items() if name.startswith(("in/", "param/"))}
    case.compare("", reference.computed(case.kind, case.config, inputs))
    case.open.discard("out/attn_prob")
    case.close(config=False)


XL: dict[str, Any] = {
    "n_token": 11,
    "n_layer": 2,
    "n_head": 2,
    "d_model": 6,
    "d_head": 3,
    "d_inner": 5,
    "tgt_len": 4,
    "mem_len": 4,
}
XL |= {"pre_lnorm": False, "same_length": False, "clamp_len": -1, "tie_weight": True, "batch": 2}
XL |= {"seg_lens": [4, 4, 4]}
XL_VARIANTS: dict[str, dict[str, Any]] = {
    "wider heads": {"n_head": 3, "d_head": 5},
    "one head, narrow": {"n_head": 1, "d_head": 2},
    "no memory": {"mem_len": 0},
    "short memory": {"mem_len": 2},
    "memory of one": {"mem_len": 1},
    "memory over segments": {"mem_len": 7},
    "memory never full": {"mem_len": 30},
    "short last": {"seg_lens": [4, 4, 1]},
    "short first": {"seg_lens": [2, 4, 4], "mem_len": 5},
    "all lengths": {"seg_lens": [3, 1, 4, 2], "mem_len": 5},
    "one row": {"batch": 1, "seg_lens": [4, 4]},
    "one layer": {"n_layer": 1},
    "three layers": {"n_layer": 3, "seg_lens": [2, 2, 2], "tgt_len": 2},
    "pre-norm": {"pre_lnorm": True},
    "pre-norm, no memory": {"pre_lnorm": True, "mem_len": 0},
    "same length": {"same_length": True, "mem_len": 3},
    "same length, long": {"same_length": True, "mem_len": 6, "pre_lnorm": True, "seg_lens": [4, 4, 3]},
    "same length of one": {"same_length": True, "mem_len": 1},
    "clamped": {"clamp_len": 3, "mem_len": 7},
    "clamped to one": {"clamp_len": 1},
    "clamped far away": {"clamp_len": 50},
    "clamp off": {"clamp_len": 0},
    "untied": {"tie_weight": False, "d_embed": 6, "ext_len": 0, "div_val": 1, "cutoffs": [], "attn_type": 0},
    "untied, pre-norm, clamped": {"tie_weight": False, "pre_lnorm": True, "clamp_len": 2, "mem_len": 6},
}
XL_RMT: dict[str, Any] = XL | {
    "num_mem_tokens": 2,
    "mem_at_end": True,
    "read_mem_from_cache": False,
    "seg_lens": [3, 3, 3],
    "tgt_len": 3,
}
XL_RMT_VARIANTS: dict[str, dict[str, Any]] = {
    "one token": {"num_mem_tokens": 1},
    "three tokens, cache filling": {"num_mem_tokens": 3, "mem_len": 12},
    "four tokens, short cache": {"num_mem_tokens": 4, "mem_len": 3, "seg_lens": [2, 2], "tgt_len": 2},
    "no cache": {"mem_len": 0, "num_mem_tokens": 3},
    "reads cache": {"read_mem_from_cache": True, "num_mem_tokens": 3, "mem_len": 5},
    "no writing block": {"mem_at_end": False, "num_mem_tokens": 3},
    "no writing block, reads cache": {"mem_at_end": False, "read_mem_from_cache": True, "mem_len": 9},
    "same length": {"same_length": True, "mem_len": 5},
    "same length, no writing block": {"same_length": True, "mem_len": 5, "mem_at_end": False},
    "clamped": {"clamp_len": 3, "num_mem_tokens": 3, "mem_len": 9},
    "pre-norm, untied": {"pre_lnorm": True, "tie_weight": False, "num_mem_tokens": 3},
    "short last": {"seg_lens": [3, 3, 1], "num_mem_tokens": 3, "mem_len": 10},
    "short first": {"seg_lens": [1, 3, 3], "mem_len": 4},
    "one row, wider heads": {"batch": 1, "n_head": 3, "d_head": 4},
}
GPT2: dict[str, Any] = {
    "vocab_size": 9,
    "n_embd": 6,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 7,
    "activation": "gelu_new (tanh)",
}
GPT2 |= {"layer_norm_epsilon": 1e-5, "num_mem_tokens": 2, "segment_size": 3, "n_positions": 7, "batch": 2}
GPT2 |= {"seg_lens": [3, 3, 3, 3], "segment_alignment": "left"}
GPT2_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one token": {"num_mem_tokens": 1, "n_positions": 5},
    "long table": {"n_positions": 12},
    "short last": {"seg_lens": [3, 3, 2]},
    "short last of one": {"seg_lens": [3, 3, 1]},
    "short first": {"seg_lens": [1, 3, 3], "segment_alignment": "right"},
    "right, all whole": {"seg_lens": [3, 3], "segment_alignment": "right"},
    "one short segment": {"seg_lens": [2], "segment_alignment": "right"},
    "no alignment": {"segment_alignment": None, "seg_lens": [3, 3, 3, 1]},
    "one row": {"batch": 1, "seg_lens": [3, 3]},
    "epsilon": {"layer_norm_epsilon": 1e-2},
    "exact gelu": {"activation": "gelu"},
    "relu": {"activation": "relu"},
    "one head, one layer": {"n_head": 1, "n_layer": 1, "n_inner": None},
    "untied": {"tie_lm_head": "untied"},
}
ARMT: dict[str, Any] = GPT2 | {
    "d_mem": 2,
    "nu": 3,
    "d_key": 12,
    "correction": True,
    "wrap_pos": True,
    "n_positions": 3,
    "seg_lens": [3, 3, 3],
}
ARMT_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no correction": {"correction": False},
    "positions in order": {"wrap_pos": False, "n_positions": 5},
    "positions in order, long table": {"wrap_pos": False, "n_positions": 9, "seg_lens": [3, 3, 1]},
    "nu 1": {"nu": 1, "d_key": 4},
    "nu 5": {"nu": 5, "d_key": 20},
    "one token": {"num_mem_tokens": 1},
    "wide memory": {"d_mem": 5, "d_key": 30},
    "long table": {"n_positions": 8},
    "short last": {"seg_lens": [3, 3, 1]},
    "short first": {"seg_lens": [1, 3, 3], "segment_alignment": "right"},
    "one segment": {"seg_lens": [3]},
    "one row": {"batch": 1},
    "epsilon, relu": {"layer_norm_epsilon": 1e-2, "activation": "relu"},
    "untied": {"tie_lm_head": "untied"},
}
MODEL_ONLY = ("n_token", "n_layer", "tgt_len", "tie_weight", "seg_lens")
LAYER: dict[str, Any] = {name: value for name, value in XL.items() if name not in MODEL_ONLY}
LAYER |= {"qlen": 4, "mlen": 4, "dropout": 0.1, "dropatt": 0.2}
LAYER_VARIANTS: dict[str, dict[str, Any]] = {
    "pre-norm": {"pre_lnorm": True},
    "no memory": {"mlen": 0, "mem_len": 0},
    "filling": {"mlen": 3, "mem_len": 5, "n_head": 3, "d_head": 4},
    "same length, clamped": {"same_length": True, "clamp_len": 2, "mlen": 5, "mem_len": 5, "batch": 1},
    "one query": {"qlen": 1, "mlen": 6, "mem_len": 6},
}


def xl_shapes(c: dict[str, Any], layers: list[str]) -> dict[str, tuple[int, ...]]:
    width, heads, hidden = c["d_model"], c["n_head"] * c["d_head"], c["d_inner"]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("r_w_bias", "r_r_bias"), (c["n_head"], c["d_head"]))
    for layer in layers:
        shapes[f"{layer}dec_attn.qkv_net.weight"] = (3 * heads, width)
        shapes[f"{layer}dec_attn.r_net.weight"] = (heads, width)
        shapes[f"{layer}dec_attn.o_net.weight"] = (width, heads)
        shapes |= {
            f"{layer}pos_ff.CoreNet.0.weight": (hidden, width),
            f"{layer}pos_ff.CoreNet.0.bias": (hidden,),
        }
        shapes |= {
            f"{layer}pos_ff.CoreNet.3.weight": (width, hidden),
            f"{layer}pos_ff.CoreNet.3.bias": (width,),
        }
        for norm, part in itertools.product(("dec_attn", "pos_ff"), ("weight", "bias")):
            shapes[f"{layer}{norm}.layer_norm.{part}"] = (width,)
    return shapes


def xl_model_shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes = xl_shapes(c, [f"layers.{i}." for i in range(c["n_layer"])])
    shapes |= {
        "word_emb.emb_layers.0.weight": (c["n_token"], c["d_model"]),
        "crit.out_layers.0.bias": (c["n_token"],),
    }
    if not c["tie_weight"]:
        shapes["crit.out_layers.0.weight"] = (c["n_token"], c["d_model"])
    return shapes | ({"mem_tokens": (c["num_mem_tokens"], 1, c["d_model"])} if "num_mem_tokens" in c else {})


def gpt2_shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, slots = c["n_embd"], c["num_mem_tokens"]
    hidden = c["n_inner"] or 4 * width
    rows = c["n_positions"] + (slots if c.get("wrap_pos") else 0)
    body = "model.transformer."
    shapes: dict[str, tuple[int, ...]] = {"memory": (slots, width)}
    shapes |= {f"{body}wte.weight": (c["vocab_size"], width), f"{body}wpe.weight": (rows, width)}
    shapes |= {f"{body}ln_f.weight": (width,), f"{body}ln_f.bias": (width,)}
    shapes |= {"model.lm_head.weight": (c["vocab_size"], width)} if "tie_lm_head" in c else {}
    for i in range(c["n_layer"]):
        if "d_mem" in c:
            own: dict[str, tuple[int, ...]] = {
                "W_mq.weight": (c["d_mem"], width),
                "W_mk.weight": (c["d_mem"], width),
            }
            own |= {"W_mv.weight": (width, width), "W_mb.weight": (1, width), "W_mb.bias": (1,)}
            shapes |= {f"{body}h.{i}.{name}": shape for name, shape in own.items()}
        block = f"{body}h.{i}." + ("layer." if "d_mem" in c else "")
        for norm, part in itertools.product(("ln_1", "ln_2"), ("weight", "bias")):
            shapes[f"{block}{norm}.{part}"] = (width,)
        sizes = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
        sizes |= {"mlp.c_fc": (width, hidden), "mlp.c_proj": (hidden, width)}
        for name, size in sizes.items():
            shapes |= {f"{block}{name}.weight": size, f"{block}{name}.bias": size[1:]}
    return shapes


def random_inputs(kind: str, c: dict[str, Any]) -> dict[str, Tensor]:
    """Random inputs and weights for a case: nothing at its initial value, nothing small enough to hide."""
    random = torch.Generator().manual_seed(sum(map(ord, kind + repr(c))))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    def ids(*shape: int) -> Tensor:
        return torch.randint(c.get("n_token") or c.get("vocab_size", 0), shape, generator=random)

    rows = c["batch"]
    if kind == "transformer_xl/layer":
        shapes, width = xl_shapes(c, [""]), c["d_model"]
        inputs = {"w": draw(c["qlen"], rows, width), "mems": draw(c["mlen"], rows, width)}
        inputs["cotangent"] = draw(c["qlen"], rows, width)
    elif "n_token" in c:
        shapes = xl_model_shapes(c)
        parts = itertools.product(enumerate(c["seg_lens"]), ("input_ids", "target_ids"))
        inputs = {f"seg{s}/{part}": ids(length, rows) for (s, length), part in parts}
    elif kind == "rmt/cell":
        shapes, memory = gpt2_shapes(c), (rows, c["num_mem_tokens"], c["n_embd"])
        inputs = {"input_ids": ids(rows, c["segment_len"]), "memory_state": draw(*memory)}
        inputs |= {
            "cotangent_logits": draw(rows, c["segment_len"], c["vocab_size"]),
            "cotangent_new_memory": draw(*memory),
        }
    else:
        shapes = {f"memory_cell.{name}": shape for name, shape in gpt2_shapes(c).items()}
        inputs = {"input_ids": ids(rows, sum(c["seg_lens"])), "seg_lens": torch.tensor(c["seg_lens"])}
        if kind == "rmt/gpt2_model":
            inputs["labels_mask"] = (draw(rows, sum(c["seg_lens"])) > 0).to(torch.uint8)
            inputs["labels_mask"][0, 0] = 1
    weights = {}
    for name, shape in shapes.items():
        scale = 0.2 if "norm" in name or "ln_" in name else 0.7
        weights[f"param/{name}"] = draw(*shape) * scale + (scale == 0.2 and name.endswith("weight"))
    return {f"in/{name}": tensor for name, tensor in inputs.items()} | weights


TABLES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "transformer_xl/layer": (LAYER, LAYER_VARIANTS),
    "transformer_xl/model": (XL, XL_VARIANTS),
    "rmt/xl_model": (XL_RMT, XL_RMT_VARIANTS),
    "rmt/cell": (
        {name: value for name, value in GPT2.items() if not name.startswith("seg")},
        {"plain": {"segment_len": 3}, "short, long table": {"segment_len": 2, "n_positions": 10}},
    ),
    "rmt/gpt2_model": (GPT2, GPT2_VARIANTS),
    "rmt/armt_model": (ARMT, ARMT_VARIANTS),
}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(kind, base | variant, id=f"{kind}: {name}")
        for kind, (base, variants) in TABLES.items()
        for name, variant in variants.items()
    ],
)
def test_our_models_agree_with_the_reference(kind: str, config: dict[str, Any]) -> None:
    case = Case(kind, config, reference.computed(kind, config, random_inputs(kind, config)))
    KINDS[kind](case)
    case.close()
