"""The parts architectures are put together from, against their formulas."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.interface import join_segments, split_segments
from zoo.memory.attention.core import Attention
from zoo.memory.attention.relative import RelativeAttention
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.memory.fast_weights.infini_attention import CompressiveAttention
from zoo.memory.mixer import Mixer
from zoo.models.blocks import Block, FeedForward, Stack, layers_with_memory, make_norm, sinusoid
from zoo.models.decoder import Decoder
from zoo.models.infini import Infini
from zoo.models.megalodon import Megalodon
from zoo.models.rmt import RMT
from zoo.models.rmt_xl import RMTXL
from zoo.models.transformer import Transformer
from zoo.models.transformer_xl import TransformerXL
from zoo.module import Batch, SequenceModule
from zoo.state import State


class Adds(Mixer):
    """A mixer that adds its state and carries the sum of its inputs."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share

    def init_state(self, rows: int) -> State:
        return (torch.zeros(rows, 1, 4, dtype=torch.float64),)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.share * x + state[0], (state[0] + x.sum(1, keepdim=True),)


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACT = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: max(x, 0.0),
    "swiglu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("activation", ACT)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_feed_forward(activation: Any, bias: bool) -> None:
    layer = FeedForward(3, 5, activation, bias).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    assert (layer.in_proj.bias is not None) == (layer.out_proj.bias is not None) == bias
    y = layer(x)
    for row in range(2):
        for time in range(4):
            entered = layer.in_proj(x[row, time]).tolist()
            if activation == "swiglu":  # the gate's rows first
                inner = [ACT["swiglu"](gate) * up for gate, up in zip(entered[:5], entered[5:], strict=True)]
            else:
                inner = [ACT[activation](value) for value in entered]
            expected = layer.out_proj(torch.tensor(inner, dtype=torch.float64))
            torch.testing.assert_close(y[row, time], expected)


def test_norms() -> None:
    x = torch.randn(2, 5, dtype=torch.float64)
    for kind, centred, eps in (("rms", 0.0, 1e-6), ("layer", 1.0, 1e-5)):
        norm = make_norm(kind, 5).double()  # type: ignore[arg-type]
        assert isinstance(norm.weight, nn.Parameter)
        nn.init.normal_(norm.weight)
        for row in range(2):
            moved = x[row] - centred * x[row].sum() / 5
            expected = moved / math.sqrt(float(moved.square().sum() / 5) + eps) * norm.weight
            torch.testing.assert_close(norm(x)[row], expected)


def test_sinusoid() -> None:
    rows = sinusoid(torch.tensor([0, 3, 100]), 6, torch.zeros(1, dtype=torch.float64))
    for at, distance in enumerate((0, 3, 100)):
        rates = [10000 ** (-2 * n / 6) for n in range(3)]
        waves = [math.sin(distance * rate) for rate in rates] + [math.cos(distance * rate) for rate in rates]
        assert rows[at].tolist() == pytest.approx(waves, abs=1e-12)


def test_a_sinusoid_in_bf16_is_rounded_once() -> None:
    distances = torch.arange(2000)
    rows = sinusoid(distances, 6, torch.zeros(1, dtype=torch.bfloat16))
    exact = sinusoid(distances, 6, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(rows.double(), exact, rtol=2**-8, atol=1e-3)


@torch.no_grad()
def test_a_block_adds_the_outputs_of_its_parts_for_the_normed_input() -> None:
    mixer, mlp = Adds(), nn.Linear(4, 4)
    block = Block(mixer, mlp, 4, norm="layer").double()
    x, state = torch.randn(2, 3, 4, dtype=torch.float64), (torch.randn(2, 1, 4, dtype=torch.float64),)
    normed = torch.nn.functional.layer_norm(x, (4,))
    between = x + normed + state[0]
    expected = between + mlp(torch.nn.functional.layer_norm(between, (4,)))
    y, after = block(x, state)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(after[0], state[0] + normed.sum(1, keepdim=True))
    alone = Block(mixer, None, 4, norm="layer").double()
    torch.testing.assert_close(alone(x, state)[0], between)


def test_a_stack_passes_each_block_its_state() -> None:
    stack = Stack([Adds(1.0), Adds(2.0), Adds(-1.0)])
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    states = tuple((torch.full((2, 1, 4), float(at), dtype=torch.float64),) for at in range(3))
    y, after = stack(x, states)
    first = x
    second = 2 * first + 1
    torch.testing.assert_close(y, -second + 2)
    for state_after, old, read in zip(after, (0, 1, 2), (x, first, second), strict=True):
        torch.testing.assert_close(state_after[0], old + read.sum(1, keepdim=True))
    with pytest.raises(ValueError, match="zip"):
        stack(x, states[:2])


def test_a_pattern_of_mixers_is_a_hybrid() -> None:
    """Blocks that carry something and blocks that carry nothing, one state."""
    mixers = [WindowAttention(8, 2, window=3), Attention(8, 2)] * 2
    model = Decoder(11, 4, 8, mixers, mlp_width=8)
    state = model.init_state(2)
    assert [len(part) for part in state] == [5, 0, 5, 0]
    logits, after = model.segment(torch.randint(11, (2, 4)), state)
    assert logits.shape == (2, 4, 11)
    assert [len(part) for part in after] == [5, 0, 5, 0]


DEVIATIONS = {  # the deviations of width 256, mlp_width 512, depth 2
    "embed.weight": 1 / 16,
    "head.weight": 1 / 16,
    "positions": 1 / 16,
    "qkv.weight": 1 / 16,
    "relative.weight": 1 / 16,
    "in_proj.weight": 1 / 16,
    "attention.out_proj.weight": 1 / 32,  # ends a branch: over 2 * depth
    "mixer.out_proj.weight": 1 / 32,
    "mlp.out_proj.weight": 1 / 32 / math.sqrt(2),
    "content_bias": 0.02,
    "position_bias": 0.02,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("build", "memory"),
    [
        (partial(RMT, memory_tokens=8, position="learned", norm="layer", bias=True), 1 / 16),
        (partial(RMTXL, memory_tokens=8, memory_len=4), 1.0),  # embeddings are multiplied by sqrt(D)
    ],
)
def test_every_kind_of_weight_starts_with_the_deviation_in_the_table(
    build: Callable[..., SequenceModule], memory: float, tied: bool
) -> None:
    torch.manual_seed(0)
    for name, weight in build(200, 16, 2, 256, 4, 512, tied=tied).named_parameters():
        if weight.ndim == 1:
            norm = "norm" in name and name.endswith("weight")
            assert (weight == (1.0 if norm else 0.0)).all(), name
            continue
        deviations = [DEVIATIONS[kind] for kind in DEVIATIONS if name.endswith(kind)]
        (deviation,) = [memory] if name == "memory" else deviations
        error = deviation * 5 / math.sqrt(weight.numel())  # five standard errors of the mean
        assert weight.std().item() == pytest.approx(deviation, abs=error), name
        assert weight.mean().item() == pytest.approx(0, abs=error), name


def test_tied_is_one_matrix() -> None:
    tied, untied = (Decoder(500, 4, 64, [Attention(64, 2)], mlp_width=8, tied=tied) for tied in (True, False))
    assert tied.head.weight is tied.embed.weight
    assert untied.head.weight is not untied.embed.weight


@torch.no_grad()
def test_a_learned_table_counts_from_the_start_of_the_body() -> None:
    model = Decoder(7, 4, 8, [], mlp_width=0, norm="layer", positions=4).double()
    assert model.positions is not None
    tokens = torch.tensor([[3, 3, 3], [0, 1, 2]])
    expected = torch.nn.functional.layer_norm(model.embed.weight[tokens] + model.positions[:3], (8,))
    torch.testing.assert_close(model(tokens)[0], expected @ model.embed.weight.T)


def test_the_layers_with_a_memory() -> None:
    assert layers_with_memory(12, None) == [8]
    assert layers_with_memory(3, (2, 0)) == [2, 0]


@pytest.mark.parametrize(
    "chosen", [[], [3], [-1], [0.5], [1.0], [True], ["1"], "1", 1, {1: 2}, {1}], ids=repr
)
def test_layers_that_are_none(chosen: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"memory_layers must be some of 0 \.\. 2, not {re.escape(str(chosen))}"
    ):
        layers_with_memory(3, chosen)


@pytest.mark.parametrize("time", [4, 8, 12])
@pytest.mark.parametrize("rows", [0, 3])
def test_segments_become_rows_of_a_batch_and_join_again(time: int, rows: int) -> None:
    tokens = torch.randint(1, 9, (rows, time))
    pieces = split_segments(tokens, 4)
    expected = [tokens[row, start : start + 4].tolist() for row in range(rows) for start in range(0, time, 4)]
    assert pieces.tolist() == expected
    outputs = torch.randn(rows, time, 2)
    in_segments = torch.stack([outputs[:, at : at + 4] for at in range(0, time, 4)], dim=1).flatten(0, 1)
    if rows:
        assert torch.equal(join_segments(in_segments, rows), outputs)


class Traced(SequenceModule):
    """Records the shapes that `segment` gets, and predicts each token's number in its call."""

    vocab_size, segment_len, learns_through_memory = 1, 4, False

    def __init__(self, parallel: Any) -> None:
        super().__init__()
        self.parallel, self.shapes = parallel, list[tuple[int, ...]]()

    def init_state(self, rows: int) -> State:
        return ()

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        self.shapes.append(tuple(tokens.shape))
        return tokens[..., None].double(), state


@pytest.mark.parametrize(
    ("parallel", "time", "shapes"),
    [
        ("none", 11, [(2, 4), (2, 4), (2, 3)]),
        ("segments", 11, [(2, 8), (2, 3)]),
        ("segments", 8, [(2, 8)]),
        ("segments", 3, [(2, 3)]),
        ("segments_as_batch", 11, [(4, 4), (2, 3)]),
        ("segments_as_batch", 8, [(4, 4)]),
        ("segments_as_batch", 1, [(2, 1)]),
        ("any_length", 11, [(2, 11)]),
    ],
)
def test_forward_calls_segment_as_parallel_declares(parallel: str, time: int, shapes: list[Any]) -> None:
    model, tokens = Traced(parallel), torch.arange(2 * time).view(2, time)
    assert torch.equal(model(tokens)[0][..., 0].long(), tokens)
    assert model.shapes == shapes


OUTPUT_KEYS: dict[str, Any] = {"segment_len": 8, "depth": 1, "width": 16, "heads": 2, "mlp_width": 8}
WITH_OUTPUT_OPTIONS: dict[str, Callable[..., SequenceModule]] = {
    "transformer": partial(Transformer, 11, **OUTPUT_KEYS),
    "transformer_xl": partial(TransformerXL, 11, **OUTPUT_KEYS, memory_len=4),
    "rmt_xl": partial(RMTXL, 11, **OUTPUT_KEYS, memory_len=4, memory_tokens=1),
    "megalodon": partial(
        Megalodon, 11, **OUTPUT_KEYS, key_width=4, value_width=8, chunk_size=4, norm_groups=2
    ),
}


@pytest.mark.parametrize("name", WITH_OUTPUT_OPTIONS)
def test_logits_may_be_capped_and_training_have_a_z_loss(name: str) -> None:
    models: list[Any] = []
    choices: tuple[dict[str, Any], ...] = ({}, {"soft_cap": 0.5}, {"z_loss": 0.1})
    for options in choices:
        torch.manual_seed(0)
        models.append(WITH_OUTPUT_OPTIONS[name](**options).eval())
    tokens = torch.randint(11, (2, 8))
    plain, capped, _ = (model(tokens)[0] for model in models)
    torch.testing.assert_close(capped, 0.5 * (plain / 0.5).tanh())
    outputs, gradients = [], []
    for model in (models[0], models[2]):
        batch = Batch(tokens, tokens, torch.ones(2, dtype=torch.bool))
        loss = model.train().compute_loss(batch, None)[0]["loss"]
        outputs.append(loss)
        gradients.append(torch.autograd.grad(loss, model.embed.weight)[0])
    assert torch.equal(*outputs)
    assert (gradients[0] - gradients[1]).abs().max() > 1e-4
    wrong_options: tuple[dict[str, Any], ...] = ({"soft_cap": 0.0}, {"z_loss": -1.0})
    for wrong in wrong_options:
        with pytest.raises(ValueError, match="must be"):
            WITH_OUTPUT_OPTIONS[name](**wrong)


@pytest.mark.parametrize("name", ["transformer_xl", "infini"])
def test_queries_and_keys_of_a_memory_may_be_normed(name: str) -> None:
    """The scale of their weights then decides nothing, that of their gains does, and keys of the memory are
    normed as those of the segment."""
    memory = {"memory_len": 8} if name == "transformer_xl" else {}
    model: Any = (TransformerXL if name == "transformer_xl" else Infini)(
        11, **OUTPUT_KEYS, **memory, qk_norm=True
    )
    model = model.double().eval()
    tokens = torch.randint(11, (2, 24))
    before = model(tokens)[0]
    (layer,) = (
        part for part in model.modules() if isinstance(part, (RelativeAttention, CompressiveAttention))
    )
    with torch.no_grad():
        layer.qkv.weight[:32] *= 1e3
        rescaled = model(tokens)[0]
        layer.k_norm.weight *= 2
        gained = model(tokens)[0]
    torch.testing.assert_close(rescaled, before, atol=1e-5, rtol=1e-5)
    assert (gained - before).abs().max() > 1e-4
