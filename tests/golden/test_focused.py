"""The Focused Transformer against the slow reference, in more configurations than the published cases."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden.cases import Case, read_case
from tests.golden.kinds import focused
from tests.golden.reference.focused import COMPUTED, Config, Tensors

FIXTURES = Path(__file__).parent / "fixtures" / "fot"


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_the_reference_agrees_with_the_published_cases(path: Path) -> None:
    case = read_case(path)
    inputs = {name: tensor for name, tensor in case.tensors.items() if name.startswith(("in/", "w/"))}
    results = COMPUTED[case.kind](case.config, inputs)
    if "idx/infer/retrieved" in case:  # sets
        case.tensors["idx/infer/retrieved"] = case.tensors["idx/infer/retrieved"].sort(-1).values
    case.compare("", results)
    case.open -= inputs.keys()
    case.close(config=False)


def random_tensors(kind: str, c: Config) -> Tensors:
    """Random inputs and weights: nothing at its initial value."""
    random = torch.Generator().manual_seed(sum(map(ord, kind + repr(c))))

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64) * scale

    def ids(vocab: int, *shape: int) -> Tensor:
        return torch.randint(vocab, shape, generator=random, dtype=torch.int32)

    if kind == "fot/crossbatch":
        shape = (c["B"], c["seq"], c["heads"], c["head_dim"])
        return {f"in/{name}": draw(*shape) for name in ("q", "k", "v", "cotangent")}
    if kind == "fot/paper_crossbatch_knn":
        shape = (c["B"], c["H"], c["seq"], c["head_dim"])
        inputs = {f"in/{name}": draw(*shape) for name in ("q", "k", "v", "k_prev", "v_prev", "cotangent")}
        memory = (c["B"], c["H"], c["memory"], c["head_dim"])
        inputs |= {"in/memory_k": draw(*memory), "in/memory_v": draw(*memory)}
        return inputs | {"w/temperature": draw(c["H"]).abs() + 0.5}
    if kind == "fot/train_lm":
        width, hidden, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
        shapes = {"transformer/wte/embedding": (vocab, width), "transformer/ln_f/kernel": (width,)}
        shapes["lm_head/kernel"] = (width, vocab)
        for layer in range(c["num_hidden_layers"]):
            n = f"transformer/h/{layer}/"
            shapes |= {f"{n}attention/w{part}/kernel": (width, width) for part in "qkvo"}
            shapes |= {f"{n}feed_forward/w{part}/kernel": (width, hidden) for part in (1, 3)}
            shapes[f"{n}feed_forward/w2/kernel"] = (hidden, width)
            shapes |= {f"{n}{part}_norm/kernel": (width,) for part in ("attention", "ffn")}
        inputs = {"in/input_ids": ids(vocab, c["B"], c["seq"]), "in/target_ids": ids(vocab, c["B"], c["seq"])}
        inputs["in/loss_mask"] = (draw(c["B"], c["seq"]) > -1).double()
        inputs["in/loss_mask"][:, 0] = 1
    else:
        width, hidden, vocab = c["hidden"], c["intermediate"], c["vocab"]
        shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
        shapes["lm_head.weight"] = (vocab, width)
        for layer in range(c["layers"]):
            n = f"model.layers.{layer}."
            shapes |= {f"{n}self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
            shapes |= {f"{n}mlp.{part}_proj.weight": (hidden, width) for part in ("gate", "up")}
            shapes[f"{n}mlp.down_proj.weight"] = (width, hidden)
            shapes |= {f"{n}{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
        length = c["prefill_len"] + c["gen_steps"]
        inputs = {"in/input_ids": ids(vocab, c["B"], length)}
        inputs["in/attention_mask"] = torch.ones(c["B"], length, dtype=torch.int32)
        for row, pads in enumerate(c["left_pad"] or []):
            inputs["in/attention_mask"][row, :pads] = 0
    return inputs | {f"w/{name}": draw(*shape, scale=0.5) for name, shape in shapes.items()}


ROWS: Config = {"B": 5, "seq": 4, "heads": 2, "head_dim": 4, "cross_batch_range": 2}
ROWS |= {"cross_batch_stepping": False, "dataset_packing": 1}
PAPER: Config = {"B": 4, "H": 2, "seq": 3, "head_dim": 4, "d": 2, "k": 3, "memory": 7}
TRAIN: Config = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 3}
TRAIN |= {"num_attention_heads": 2, "max_sequence_length": 16, "mem_layers": [1], "cross_batch_range": 2}
TRAIN |= {"cross_batch_stepping": True, "dataset_packing": 2, "B": 4, "seq": 4, "rms_norm_eps": 1e-6}
LONG: Config = {"hidden": 8, "heads": 2, "layers": 3, "intermediate": 10, "vocab": 11, "B": 1}
LONG |= {"max_position_embeddings": 5, "last_context_length": 3, "prefill_len": 12, "gen_steps": 7}
LONG |= {"mem_layers": [1], "mem_positionals": True, "rope_theta": 10000.0, "left_pad": None}
LONG |= {"rms_norm_eps": 1e-6}

TABLES: dict[str, tuple[Config, dict[str, Config]]] = {
    "fot/crossbatch": (
        ROWS,
        {
            "plain": {},
            "no other row": {"cross_batch_range": 0},
            "more than there are": {"cross_batch_range": 9},
            "stepping without packs": {"cross_batch_stepping": True},
            "packs without stepping": {"dataset_packing": 2},
            "packs of two": {"cross_batch_stepping": True, "dataset_packing": 2},
            "packs of three": {"cross_batch_stepping": True, "dataset_packing": 3, "cross_batch_range": 4},
            "one token": {"seq": 1, "heads": 1, "head_dim": 2},
        },
    ),
    "fot/paper_crossbatch_knn": (
        PAPER,
        {
            "plain": {},
            "only its own": {"d": 1},
            "all rows": {"d": 4, "k": 1},
            "k is all": {"k": 7, "H": 1, "seq": 5},
        },
    ),
    "fot/train_lm": (
        TRAIN,
        {
            "plain": {},
            "several layers": {"mem_layers": [0, 2], "cross_batch_stepping": False},
            "packs of three": {"dataset_packing": 3, "B": 5, "cross_batch_range": 3},
            "other constants": {"rope_theta": 100.0, "rms_norm_eps": 1e-2, "num_attention_heads": 1},
            "no other row": {"cross_batch_range": 0, "num_hidden_layers": 2},
        },
    ),
    "fot/longllama": (
        LONG,
        {
            "plain": {},
            "nothing before the last window": {"prefill_len": 3},
            "a short text": {"prefill_len": 2, "gen_steps": 4},
            "whole windows": {"prefill_len": 13, "gen_steps": 0},
            "several layers, rows": {"mem_layers": [0, 2], "B": 2},
            "no positions in memory layers": {"mem_positionals": False, "mem_layers": [1, 2]},
            "other constants": {"rope_theta": 50.0, "rms_norm_eps": 1e-2, "heads": 4},
            "a last window as long as any": {"last_context_length": 5, "gen_steps": 3},
            "a last window longer than any": {"last_context_length": 7, "gen_steps": 3},
            "padding": {"B": 3, "left_pad": [0, 2, 6]},
            "padding of all rows": {"B": 2, "left_pad": [3, 3], "mem_layers": [0, 2]},
            "padding of the entire memory": {"B": 2, "left_pad": [10, 9]},
            "padding, nothing before the last window": {"B": 2, "left_pad": [1, 0], "prefill_len": 3},
        },
    ),
}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(kind, base | variant, id=f"{kind}: {name}")
        for kind, (base, variants) in TABLES.items()
        for name, variant in variants.items()
    ],
)
def test_our_models_agree_with_the_reference(kind: str, config: Config) -> None:
    inputs = random_tensors(kind, config)
    case = Case(kind, config, inputs | COMPUTED[kind](config, inputs))
    focused.KINDS[kind](case)
    case.close()


def padded_case() -> Case:
    config = LONG | {"B": 2, "left_pad": [0, 7]}
    inputs = random_tensors("fot/longllama", config)
    return Case("fot/longllama", config, inputs | COMPUTED["fot/longllama"](config, inputs))


def test_positions_may_be_counted_from_the_padding() -> None:
    """As by the published model's generation."""
    case, end = padded_case(), LONG["prefill_len"] + LONG["gen_steps"]
    for name, tensor in case.tensors.items():
        if name.endswith("local_pos"):
            tensor[1] = (tensor[1] - 7).clamp(min=-1)
    assert case.tensors["state/final/layer1/local_pos"][:, 0, -1, 0].tolist() == [end - 1, end - 8]
    focused.check_longllama(case)
    case.close()


@pytest.mark.parametrize("name", ["local_pos", "mem_mask"])
@pytest.mark.parametrize("tag", ["prefill", "final"])
@pytest.mark.parametrize("row", [0, 1])
def test_a_wrong_position_or_mask_of_padding_fails(name: str, tag: str, row: int) -> None:
    case = padded_case()
    case.tensors[f"state/{tag}/layer1/{name}"][row, 0, 0, 0] = -1
    focused.check_longllama(case)
    with pytest.raises(AssertionError, match=rf"1 of \d+ tensors: state/{tag}/layer1/{name}: off by"):
        case.close()


@pytest.mark.parametrize("mask", [torch.int32, torch.float32, torch.bool], ids=repr)
def test_a_mask_of_the_memory_in_other_forms(mask: torch.dtype) -> None:
    """True or 1 where it is read."""
    case = padded_case()
    for name in [name for name in case.tensors if name.endswith("mem_mask")]:
        case.tensors[name] = (case.tensors[name] == 0).to(mask)
    focused.check_longllama(case)
    case.close()
    case.tensors["state/final/layer1/mem_mask"][0, 0, 0] = 0
    focused.check_longllama(case)
    with pytest.raises(AssertionError, match="mem_mask"):
        case.close()


def test_padding_that_the_config_does_not_have_fails() -> None:
    case = padded_case()
    case = Case(case.kind, LONG | {"B": 2}, case.tensors)
    focused.check_longllama(case)
    with pytest.raises(AssertionError, match=r"config field left_pad: expected \[0, 7\], found None"):
        case.close()
