"""Hybrids: where attention stands, what they cost and carry, what decays, and their laws in more shapes.

Their equations are held to slow loops in tests/golden/test_hybrids.py.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.laws import law_cases
from zoo.errors import UserError
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.memory.state_space.griffin_block import RecurrentBlock
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.models.griffin import Griffin
from zoo.models.hybrid import attention_in_the_middle, pattern_layers
from zoo.models.jamba import Jamba
from zoo.models.mamba2_hybrid import Mamba2Hybrid
from zoo.models.published import jamba, mamba2_hybrid
from zoo.models.published.mamba2_hybrid import PackedAttention
from zoo.models.samba import Samba
from zoo.module import SequenceModule
from zoo.state import nbytes
from zoo.train.runs import build
from zoo.train.runs.checkpoint import check_weights
from zoo.train.runs.config import compose
from zoo.train.runs.stored import load_stored

ROOT = Path(__file__).parents[2]
LETTERS: dict[type, str] = {
    RecurrentBlock: "r",
    MambaMixer: "m",
    Mamba2Mixer: "m",
    WindowAttention: "a",
}
PLACES = {  # at nano, micro, tiny, small, base
    "griffin": ["ra", "rrar", "rrar", "rrarrarr", "rrarrarrarrarrar"],
    "jamba": ["ma", "mmam", "mmam", "mmmmammm", "mmmmammmmmmmammm"],
    "samba": ["ma", "mama", "mama", "mamamama", "mamamamamamamama"],
    "mamba2_hybrid": ["ma", "mmam", "mmam", "mmmmammm", "mmmmammmmmmmammm"],
}
BUDGETS = {"micro": (200_000, 0.03), "tiny": (1_500_000, 0.01), "small": (25_000_000, 0.01)}
BUDGETS |= {"base": (125_000_000, 0.01)}


SIZES = ["nano", "micro", "tiny", "small", pytest.param("base", marks=pytest.mark.slow)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", PLACES)
def test_attention_stands_where_the_papers_put_it_and_the_budget_is_met(model: str, size: str) -> None:
    """Every kind of mixer stands in every size; on the meta device."""
    with torch.device("meta"):
        built: Any = build.model(compose([f"model={model}", f"size={size}"]))
    kinds = "".join(LETTERS[type(block.mixer)] for block in built.stack)
    assert kinds == PLACES[model][["nano", *BUDGETS].index(size)]
    if size in BUDGETS:
        budget, share = BUDGETS[size]
        assert abs(built.count_parameters() - budget) < share * budget


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", ["griffin", "samba"])
def test_local_attention_sees_at_most_half_of_what_a_row_trains_on(model: str, size: str) -> None:
    """What attention sees needs no recurrence: with a window as long as `data.seq_len` none is trained."""
    cfg = compose([f"model={model}", f"size={size}"])
    assert 1 < 2 * cfg.model.window <= cfg.data.seq_len


@pytest.mark.parametrize(
    ("pattern", "depth", "expected"),
    [
        ("ab", 1, None),
        ("ab", 2, "ab"),
        ("aab", 2, "ab"),
        ("aab", 7, "aabaaba"),
        ("aaabc", 3, "abc"),
        ("aaabc", 4, "aabc"),
        ("aab", 1, None),
        ("a", 3, "aaa"),
    ],
)
def test_a_pattern_is_repeated_cut_and_leaves_nothing_out(
    pattern: str, depth: int, expected: str | None
) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="1 blocks can't hold each of a, b"):
            pattern_layers(pattern, depth)
    else:
        assert "".join(pattern_layers(pattern, depth)) == expected


MIDDLE = {  # depth: layers that attend, from 0 on, one in 8
    **{2: [1], 3: [1], 4: [2], 5: [2], 6: [3], 7: [3], 8: [4], 9: [4], 11: [4], 12: [4]},
    **{13: [4, 12], 16: [4, 12], 20: [4, 12], 21: [4, 12, 20], 24: [4, 12, 20], 32: [4, 12, 20, 28]},
}


@pytest.mark.parametrize("depth", MIDDLE)
def test_attention_stands_in_the_middle_at_every_depth(depth: int) -> None:
    """As the published code of Jamba has it: of 32 layers 4, 12, 20 and 28; of 4 in its small model 2."""
    layers = attention_in_the_middle("mamba", depth, 8)
    assert len(layers) == depth
    assert set(layers) == {"mamba", "attention"}
    assert [layer for layer, kind in enumerate(layers) if kind == "attention"] == MIDDLE[depth]


@pytest.mark.parametrize(("depth", "period", "expected"), [(6, 3, "mammam"), (5, 2, "mamam"), (4, 9, "mmam")])
def test_attention_in_other_periods(depth: int, period: int, expected: str) -> None:
    assert "".join(kind[0] for kind in attention_in_the_middle("mamba", depth, period)) == expected
    built = Jamba(**NANO, depth=depth, context=4, attention_period=period)
    assert "".join(LETTERS[type(block.mixer)] for block in built.stack) == expected
    given = Jamba(**NANO, depth=depth, context=4, pattern=["attention", "mamba"], attention_period=period)
    assert "".join(LETTERS[type(block.mixer)] for block in given.stack) == ("am" * 3)[:depth]


@pytest.mark.parametrize(("depth", "period"), [(1, 8), (8, 1), (4, 0)])
def test_attention_alone_is_no_hybrid(depth: int, period: int) -> None:
    with pytest.raises(ValueError, match=f"found attention_period {period} and depth {depth}"):
        attention_in_the_middle("mamba", depth, period)


@pytest.mark.parametrize(
    ("case", "loader", "model"),
    [
        ("jamba_nomoe", jamba, partial(Jamba, heads=4)),
        ("mamba2_attn_mlp", mamba2_hybrid, partial(Mamba2Hybrid, heads=4, head_dim=8)),
    ],
)
def test_attention_stands_where_it_does_in_the_published_cases(
    case: str, loader: ModuleType, model: Callable[..., Any]
) -> None:
    path = Path(__file__).parents[1] / "golden" / "fixtures" / "hybrids" / case
    weights = {
        name.removeprefix("w."): weight
        for name, weight in load_file(path.with_suffix(".safetensors")).items()
        if name.startswith("w.")
    }
    published = loader.load(weights, json.loads(path.with_suffix(".json").read_text())["config"])
    shape = {"vocab_size": 13, "segment_len": 8, "width": 16, "mlp_width": 8, "context": 8}
    ours = model(**shape, depth=len(published.stack))
    attends = [
        [isinstance(block.mixer, (WindowAttention, PackedAttention)) for block in part.stack]
        for part in (ours, published)
    ]
    assert attends[0] == attends[1]
    assert attends[0].index(True) == len(published.stack) // 2


@pytest.mark.parametrize("name", ["jamba", "mamba2_hybrid"])
def test_runs_of_earlier_versions_keep_attention_in_their_last_layer(name: str) -> None:
    """Their config.yaml has the pattern of eight layers, of which they had four."""
    cfg = load_stored(ROOT / "results" / "runs" / "wikilong-tiny" / name / "config.yaml")
    with torch.device("meta"):
        built: Any = build.model(cfg)
        cfg.model.pattern = None
        today = build.model(cfg)
    assert "".join(LETTERS[type(block.mixer)] for block in built.stack) == "mmma"
    with pytest.raises(UserError, match=r"last.ckpt is of another model: weight stack\.2\.mixer"):
        check_weights(today, built.state_dict(), Path("last.ckpt"))


@pytest.mark.parametrize("model", PLACES)
def test_what_shapes_the_recurrence_does_not_decay(model: str) -> None:
    built = build.model(compose([f"model={model}", "size=nano"]))
    decaying, rest = built.parameter_groups()
    assert decaying.get("decays", True)
    assert not rest["decays"]
    names = {id(weight): name for name, weight in built.named_parameters()}
    in_groups = [names[id(weight)] for group in (decaying, rest) for weight in group["params"]]
    assert sorted(in_groups) == sorted(names.values())
    spared = {names[id(weight)].rpartition(".")[2] for weight in rest["params"]}
    decays = {names[id(weight)].rpartition(".")[2] for weight in decaying["params"]}
    special = {"griffin": {"rate", "bias"}, "mamba2_hybrid": {"A_log", "D", "dt_bias", "norm_weight", "bias"}}
    assert spared == {"weight"} | special.get(model, {"A_log", "D", "dt_bias", "bias"})
    assert decays == {"weight"} | ({"dt_weight"} if model in ("jamba", "samba") else set())


NANO: dict[str, Any] = {"vocab_size": 23, "segment_len": 8, "width": 16, "heads": 4, "mlp_width": 20}


def test_what_a_row_carries() -> None:
    """Counted in floats of 4 bytes and counts of 8."""
    keys = 2 * 4 * 4  # of one token: keys and values of four heads of four
    recurrent, attention = 4 * (3 * 16 + 16) + 8, 4 * (5 * keys // 4) + 8
    griffin = Griffin(**NANO, depth=3, window=6)
    assert nbytes(griffin.init_state(1)) == 2 * recurrent + attention
    mamba = 4 * (3 * 32 + 32 * 16)
    assert nbytes(Samba(**NANO, depth=2, window=6).init_state(1)) == mamba + 4 * 5 * keys + 8
    assert nbytes(Jamba(**NANO, depth=2, context=5, kv_heads=2).init_state(1)) == (
        mamba + 4 * 5 * keys // 2 + 8
    )
    mamba2 = 4 * (3 * (32 + 2 * 7) + 32 * 7)
    hybrid = Mamba2Hybrid(**NANO, depth=2, context=5, state_size=7, head_dim=8)
    assert nbytes(hybrid.init_state(1)) == mamba2 + 4 * 5 * keys + 8


@pytest.mark.parametrize("window", [1, 2])
def test_a_hybrid_of_attention_to_the_token_alone_has_no_memory(window: int) -> None:
    for model in (
        Samba(**NANO, depth=2, pattern=["attention"], window=window),
        Griffin(**NANO, depth=3, pattern=["attention"], window=window),
        Jamba(**NANO, depth=2, pattern=["attention"], context=window - 1),
    ):
        assert model.remembers == model.learns_through_memory == (window > 1)


def test_channels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="channels 20 is not a multiple of head_dim 8"):
        Mamba2Hybrid(**NANO, depth=2, context=4, channels=20, head_dim=8)
    with pytest.raises(ValueError, match="width 18 is not a multiple of blocks 4"):
        Griffin(**NANO, depth=3, window=4, lru_width=18)


class Packed(Mamba2Hybrid):
    """With the attention of mamba_ssm's checkpoints: short convolution, shared feed-forward, half rotary."""

    def __init__(self) -> None:
        super().__init__(**NANO, depth=2, context=6, state_size=4, head_dim=8)
        block: Any = self.stack[1]
        options: dict[str, Any] = {"window": 7, "rotated": 2, "bias": True, "out_bias": False}
        block.mixer = PackedAttention(16, 4, conv_size=3, gated=6, scale=0.4, kv_heads=2, **options)


VARIANTS: dict[str, Callable[[], SequenceModule]] = {
    "griffin_capped": partial(
        Griffin, **NANO, depth=3, window=5, lru_width=24, conv_size=2, soft_cap=3.0, scaled_embeddings=False
    ),
    "griffin_window_of_two": partial(Griffin, **NANO, depth=2, window=2, dropout=0.1),
    "jamba_short_context": partial(
        Jamba, **NANO, depth=3, context=3, kv_heads=1, state_size=3, bias=True, tied=False, dropout=0.1
    ),
    "samba_plain": partial(Samba, **NANO, depth=2, window=5, position="none", norm="layer", bias=True),
    "samba_half_rotary": partial(Samba, **NANO, depth=2, window=11, rotated=2, kv_heads=2, channels=12),
    "mamba2_hybrid_grouped": partial(
        Mamba2Hybrid, **NANO, depth=2, context=9, kv_heads=2, head_dim=8, state_size=4, groups=2, chunk_size=5
    ),
    "mamba2_hybrid_packed": Packed,
}


@pytest.mark.parametrize("check", law_cases(VARIANTS))
def test_law(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("model", PLACES)
def test_a_step_of_training_under_bfloat16_is_finite(model: str) -> None:
    torch.manual_seed(0)
    built = build.model(compose([f"model={model}", "size=nano"]))
    optimiser = torch.optim.AdamW(built.parameters(), lr=1e-2)
    tokens, losses = torch.randint(built.vocab_size, (2, 65)), []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = built(tokens[:, :-1])
        losses.append(nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert all(weight.isfinite().all() for weight in built.parameters())
    assert losses[-1] < 0.8 * losses[0]
