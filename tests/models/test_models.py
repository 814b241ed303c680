"""Each architecture against equations that share no code with it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from zoo.law_tools import perturbed
from zoo.models.armt import ARMT, AssociativeBlock
from zoo.models.rmt import RMT
from zoo.models.rmt_xl import RMTXL
from zoo.models.transformer import Transformer
from zoo.models.transformer_xl import TransformerXL
from zoo.module import SequenceModule
from zoo.state import leaves, nbytes

VOCAB, SEGMENT, DEPTH, WIDTH, HEADS = 11, 4, 2, 12, 3
SHAPE: dict[str, Any] = {"vocab_size": VOCAB, "depth": DEPTH, "width": WIDTH, "heads": HEADS, "mlp_width": 10}
FLOAT, COUNT = 4, 8  # bytes of a float32, of an int64


def text(time: int, rows: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (rows, time), generator=torch.Generator().manual_seed(seed))


def read(build: Callable[[], SequenceModule], tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return perturbed(build).eval()(tokens)[0]


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


STATES: dict[str, tuple[Callable[..., SequenceModule], int]] = {
    # nothing
    "transformer": (partial(Transformer), 0),
    # per layer: window - 1 and the sinks' keys and values of every key head (of width 4), and a count
    "window": (partial(Transformer, window=6, sinks=2), DEPTH * (2 * (5 + 2) * 3 * 4 * FLOAT + COUNT)),
    "grouped": (partial(Transformer, window=6, kv_heads=1), DEPTH * (2 * 5 * 1 * 4 * FLOAT + COUNT)),
    # the memory tokens, at any depth
    "rmt": (partial(RMT, memory_tokens=5), 5 * WIDTH * FLOAT),
    # per layer: A (2 nu key_width, width), z, and a count
    "armt": (
        partial(ARMT, memory_tokens=5, key_width=2, nu=3),
        DEPTH * (12 * WIDTH * FLOAT + 12 * FLOAT + COUNT),
    ),
    # per layer: memory_len inputs, and a count
    "transformer_xl": (partial(TransformerXL, memory_len=7), DEPTH * (7 * WIDTH * FLOAT + COUNT)),
    "rmt_xl": (
        partial(RMTXL, memory_len=7, memory_tokens=2),
        2 * WIDTH * FLOAT + DEPTH * (7 * WIDTH * FLOAT + COUNT),
    ),
}


@pytest.mark.parametrize("model", STATES)
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_bytes_of_state(model: str, rows: int) -> None:
    build, per_row = STATES[model]
    built = build(segment_len=SEGMENT, **SHAPE)
    assert nbytes(built.init_state(rows)) == rows * per_row
    assert nbytes(built(text(3 * SEGMENT, rows))[1]) == rows * per_row


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
@pytest.mark.parametrize("sinks", [0, 3])
def test_a_window_that_covers_the_text_is_the_full_context_transformer(position: Any, sinks: int) -> None:
    tokens = text(3 * SEGMENT)
    windowed = partial(
        Transformer, **SHAPE, segment_len=SEGMENT, window=len(tokens[0]), sinks=sinks, position=position
    )
    full = partial(Transformer, **SHAPE, segment_len=len(tokens[0]), position=position)
    same(read(windowed, tokens), read(full, tokens))


def test_without_a_window_each_segment_is_a_separate_text() -> None:
    build, tokens = partial(Transformer, **SHAPE, segment_len=SEGMENT), text(2 * SEGMENT + 3)
    pieces = [read(build, piece) for piece in tokens.split(SEGMENT, dim=1)]
    same(read(build, tokens), torch.cat(pieces, dim=1))


def affected(build: Callable[[], SequenceModule], time: int) -> list[int]:
    """The positions whose logits change with the first token."""
    tokens = text(time, rows=1)
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % VOCAB
    moved = (read(build, tokens) - read(build, changed)).abs().amax(-1)[0]
    return (moved > 1e-10).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_window_reaches_depth_times_window_tokens_back(window: int) -> None:
    build = partial(Transformer, **SHAPE, segment_len=SEGMENT, window=window)
    assert affected(build, 16) == list(range(DEPTH * (window - 1) + 1))


def test_a_sink_has_an_effect_at_any_distance() -> None:
    build = partial(Transformer, **SHAPE, segment_len=SEGMENT, window=2, sinks=1)
    assert affected(build, 16) == list(range(16))


@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("clamp_len", [-1, 5])
def test_transformer_xl_with_room_for_the_whole_text_reads_it_as_one_segment(
    prenorm: bool, clamp_len: int
) -> None:
    tokens = text(3 * SEGMENT + 2)
    shape = {**SHAPE, "prenorm": prenorm, "clamp_len": clamp_len}
    pieces = partial(TransformerXL, **shape, segment_len=SEGMENT, memory_len=3 * SEGMENT)
    whole = partial(TransformerXL, **shape, segment_len=len(tokens[0]), memory_len=1)
    same(read(pieces, tokens), read(whole, tokens))


@torch.no_grad()
def test_transformer_xl_takes_no_distance_for_longer_than_clamp_len() -> None:
    model = TransformerXL(**SHAPE, segment_len=SEGMENT, memory_len=6, clamp_len=5).double()
    tables = list[Tensor]()
    model.layers[0].register_forward_pre_hook(lambda _, arguments: tables.append(arguments[2]))
    model(text(SEGMENT))
    for row, distance in zip(tables[0], (5, 5, 5, 5, 5, 4, 3, 2, 1, 0), strict=True):
        rates = [10000.0 ** (-2 * n / WIDTH) for n in range(WIDTH // 2)]
        waves = [math.sin(distance * rate) for rate in rates] + [math.cos(distance * rate) for rate in rates]
        assert row.tolist() == pytest.approx(waves, abs=1e-9)


def test_transformer_xl_of_one_length_reaches_depth_times_memory_tokens_back() -> None:
    build = partial(TransformerXL, **SHAPE, segment_len=SEGMENT, memory_len=5, same_length=True)
    assert affected(build, 16) == list(range(DEPTH * 4 + 1))


def test_transformer_xl_reaches_a_memory_further_in_each_layer() -> None:
    """Queries reach 5 tokens before their own segment: from segment 3 to token 7, which has read token 0;
    from segment 4 to token 11, which has read token 3 and none before."""
    build = partial(TransformerXL, **SHAPE, segment_len=SEGMENT, memory_len=5)
    assert affected(build, 20) == list(range(16))


@torch.no_grad()
def test_rmt_reads_a_segment_between_two_copies_of_its_memory() -> None:
    """Through a plain transformer's layers over [M ; x ; M], with M the output of the last segment's copy."""
    model = perturbed(partial(RMT, **SHAPE, segment_len=SEGMENT, memory_tokens=3)).eval()
    tokens, memory = text(2 * SEGMENT + 1), model.memory.expand(2, -1, -1)
    outputs = []
    for piece in tokens.split(SEGMENT, dim=1):
        x = torch.cat([memory, model.embed.weight[piece], memory], dim=1)
        for block in model.stack:
            x, _ = block(x, ())
        x = (
            x
            * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
            * dict(model.named_parameters())["norm.weight"]
        )
        outputs.append(x[:, 3:-3] @ model.embed.weight.T)
        memory = x[:, -3:]
    logits, state = model(tokens)
    same(logits, torch.cat(outputs, dim=1))
    same(state.memory, memory)


def test_rmt_learns_its_first_memory_from_the_first_segment() -> None:
    model = perturbed(partial(RMT, **SHAPE, segment_len=SEGMENT, memory_tokens=3))
    model(text(SEGMENT))[0].square().sum().backward()
    assert model.memory.grad is not None
    assert model.memory.grad.abs().amin(1).gt(0).all()


@pytest.mark.parametrize("position", ["rope", "learned"])
@torch.no_grad()
def test_a_new_armt_is_its_body_and_forgets(position: Any) -> None:
    """W_v starts at zero: until training changes it, the memory has nothing but its normaliser."""
    torch.manual_seed(0)
    model = (
        ARMT(**SHAPE, segment_len=SEGMENT, memory_tokens=3, key_width=2, position=position).double().eval()
    )
    tokens = text(2 * SEGMENT)
    logits, state = model(tokens)
    same(logits[:, SEGMENT:], model(tokens[:, SEGMENT:])[0])
    for layer in state:
        assert not layer.matrix.any()
        assert layer.normaliser.any()
        assert layer.writes.tolist() == [2, 2]

    x = torch.cat([model.embed(tokens[:, :SEGMENT]), model.memory.expand(2, -1, -1)], dim=1)
    if model.positions is not None:
        x = x + model.positions
    for block in model.stack:
        assert isinstance(block, AssociativeBlock)
        x, _ = block.block(x, ())
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    same(logits[:, :SEGMENT], x[:, :SEGMENT] @ model.embed.weight.T)


@pytest.mark.parametrize(("wrap", "positions"), [(True, [0, 1, 4, 5, 6]), (False, [0, 1, 2, 3, 4])])
@torch.no_grad()
def test_armts_memory_tokens_have_the_tables_last_positions_or_those_behind_the_segment(
    wrap: bool, positions: list[int]
) -> None:
    model = ARMT(
        **SHAPE, segment_len=SEGMENT, memory_tokens=3, key_width=2, position="learned", wrap_positions=wrap
    ).double()
    x, inputs = torch.zeros(1, 2 + 3, WIDTH, dtype=torch.float64), list[Tensor]()
    model.stack.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    model.body(x, model.init_state(1))
    assert model.positions is not None
    assert torch.equal(inputs[0][0], model.positions[positions])


@torch.no_grad()
def test_rmt_xl_without_either_memorys_past_is_transformer_xl_around_its_tokens() -> None:
    """One segment, empty cache, one slot: [M ; x ; M] read by Transformer-XL's own body, causally."""
    model = perturbed(
        partial(RMTXL, **SHAPE, segment_len=SEGMENT, memory_len=6, memory_tokens=1, same_length=False)
    ).eval()
    tokens = text(SEGMENT)
    embedded = model.embed.weight[tokens] * WIDTH**0.5
    memory = model.memory.expand(2, -1, -1)
    x = torch.cat([memory, embedded, memory], dim=1)
    h, layers = TransformerXL.body(model, x, TransformerXL.init_state(model, 2), SEGMENT + 2)
    logits, state = model(tokens)
    same(logits, model.head(h[:, 1:-1]))
    same(state.memory, h[:, -1:])
    for actual, expected in zip(leaves(state.layers), leaves(layers), strict=True):
        same(actual.double(), expected.double())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(Transformer, sinks=2), "sinks=2 need a window"),
        (partial(Transformer, window=3, position="learned"), "any but learned .*found kind learned"),
        (partial(RMT, memory_tokens=0), "memory_tokens must be at least 1, not 0"),
        (partial(ARMT, memory_tokens=0, key_width=2), "memory_tokens must be at least 1, not 0"),
        (partial(RMTXL, memory_tokens=0, memory_len=2), "memory_tokens must be at least 1, not 0"),
        (
            partial(RMTXL, memory_tokens=2, memory_len=1, same_length=True),
            "at least 2 with same_length, found 1",
        ),
        (partial(TransformerXL, memory_len=0, same_length=True), "0 leaves none"),
    ],
)
def test_settings_that_conflict_are_refused(build: Callable[..., SequenceModule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(segment_len=SEGMENT, **SHAPE)


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="width 12 is not a multiple of heads 5"):
        TransformerXL(VOCAB, SEGMENT, 1, 12, 5, 10, memory_len=2)
    with pytest.raises(ValueError, match="even width, not 9"):
        TransformerXL(VOCAB, SEGMENT, 1, 9, 3, 10, memory_len=2)


def test_a_text_shorter_than_a_segment_costs_what_it_is_long() -> None:
    """A segment as long as a sample, as full attention has it, is no padding."""
    models = [Transformer(11, segment_len, depth=2, width=8, heads=2, mlp_width=8) for segment_len in (8, 64)]
    models[1].load_state_dict(models[0].state_dict())
    tokens = torch.arange(8)[None]
    costs, outputs = [], []
    for model in models:
        with FlopCounterMode(display=False) as counter:
            outputs.append(model(tokens, model.init_state(1))[0])
        costs.append(counter.get_total_flops())
    assert costs[0] == costs[1]
    assert torch.equal(*outputs)
