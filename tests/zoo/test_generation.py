"""Reading piece by piece, and generating in memory that doesn't grow."""

import itertools
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.contract.mutants import SEGMENT, VOCAB, Honest, Recurrent
from zoo.generation import Reader, generate, greedy, sampler, stream_ragged, stream_tokens
from zoo.law_tools import perturbed
from zoo.memory.attention.core import Attention
from zoo.models.armt import ARMT
from zoo.models.blocks import Block, FeedForward
from zoo.models.landmark import Landmark
from zoo.models.rmt import RMT
from zoo.models.rmt_xl import RMTXL
from zoo.models.transformer import Transformer
from zoo.models.transformer_xl import TransformerXL
from zoo.module import SequenceModule
from zoo.plugins import choices
from zoo.state import State, leaves, nbytes, replace_rows
from zoo.train.runs import build
from zoo.train.runs.config import compose

BUILDS = pytest.mark.parametrize("build", [Honest, Recurrent])


def ready(build: Callable[[], SequenceModule]) -> SequenceModule:
    return perturbed(build).eval()


def text(time: int, rows: int = 2) -> Tensor:
    return torch.randint(VOCAB, (rows, time), generator=torch.Generator().manual_seed(time))


@BUILDS
@settings(max_examples=25, deadline=None)
@given(pieces=st.lists(st.integers(1, 2 * SEGMENT + 1), min_size=1, max_size=6))
@torch.no_grad()
def test_a_reader_predicts_the_same_for_any_pieces(
    build: Callable[[], SequenceModule], pieces: list[int]
) -> None:
    model, tokens = ready(build), text(sum(pieces))
    logits, reader, end = model(tokens)[0], Reader(model, 2), 0
    for piece in tokens.split(pieces, dim=1):
        end += piece.shape[1]
        torch.testing.assert_close(reader.read(piece), logits[:, end - 1], rtol=1e-10, atol=1e-10)
        assert reader.open_tokens.shape == (2, 0 if model.cuts_anywhere else end % SEGMENT)


@BUILDS
@torch.no_grad()
def test_a_reader_needs_no_more_memory_for_a_longer_text(build: Callable[[], SequenceModule]) -> None:
    model = ready(build)
    reader = Reader(model, 2)
    sizes = []
    for token in text(50 * SEGMENT).split(1, dim=1):
        reader.read(token)
        sizes.append(nbytes(reader.state) + reader.open_tokens.nbytes)
        assert reader.open_tokens.shape[1] < SEGMENT
    assert sizes[SEGMENT:] == sizes[:-SEGMENT]


def test_a_model_that_closes_segments_reads_no_complete_segment_twice() -> None:
    """Closed segments once; the open one again at each of its tokens, never more than a segment at a time."""

    class Counts(Honest):
        def segment(self, tokens: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            calls.append(tokens.shape[1])
            return super().segment(tokens, state)

    calls: list[int] = []
    reader = Reader(ready(Counts), 2)
    with torch.no_grad():
        for token in text(2 * SEGMENT + 2).split(1, dim=1):
            reader.read(token)
        assert calls == [*range(1, SEGMENT + 1)] * 2 + [1, 2]
        calls.clear()
        reader.read(text(2 * SEGMENT))  # closes the open segment, reads another and opens a third
        assert calls == [SEGMENT, SEGMENT, 2]


@BUILDS
def test_generate_is_greedy_by_default(build: Callable[[], SequenceModule]) -> None:
    model, tokens = ready(build), text(SEGMENT + 2)
    tokens_after = list(islice(stream_tokens(model, tokens), 2 * SEGMENT))
    for token in tokens_after:
        with torch.no_grad():
            assert torch.equal(token, model(tokens)[0][:, -1].argmax(-1))
        tokens = torch.cat([tokens, token[:, None]], dim=1)


@BUILDS
def test_a_users_pick_gets_the_logits_and_decides(build: Callable[[], SequenceModule]) -> None:
    """Sampling from a seeded generator, against drawing by hand from the whole text's logits."""

    def sample(logits: Tensor) -> Tensor:
        assert logits.shape == (2, VOCAB)
        assert not logits.requires_grad
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]

    model, tokens = ready(build), text(3)
    generator = torch.Generator().manual_seed(5)
    generated = torch.stack(list(islice(stream_tokens(model, tokens, sample), 2 * SEGMENT)), dim=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for at in range(2 * SEGMENT):
            logits = model(torch.cat([tokens, generated[:, :at]], dim=1))[0][:, -1]
            assert torch.equal(generated[:, at], sample(logits))
    assert len(generated.unique()) > 2


def test_generating_leaves_gradients_on_and_the_mode_as_it_was() -> None:
    model = perturbed(Honest).train()
    next(stream_tokens(model, text(4)))
    assert model.training
    assert torch.is_grad_enabled()
    assert greedy(torch.tensor([[0.0, 2.0, 1.0]])).tolist() == [1]


# -- an open segment's cache

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "segment_len": 7,
    "depth": 2,
    "width": 16,
    "heads": 4,
    "mlp_width": 24,
}
XL: dict[str, Any] = {**SHAPE, "memory_len": 5}
LANDMARKS: dict[str, Any] = {**SHAPE, "segment_len": 6, "mem_freq": 3, "capacity": 15, "topk": 2}


class Reversed(Attention):
    """Another `forward`, for which the inherited cache is wrong."""

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = super().forward(2 * x.cumsum(1), state)
        return y, state


def with_another_attention() -> Transformer:
    model = Transformer(**SHAPE)
    block = model.stack[1]
    assert isinstance(block, Block)
    block.mixer = Reversed(16, 4)
    return model


def with_another_block() -> Transformer:
    class Scaled(Block):
        def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
            y, state = super().forward(x, state)
            return y * 0.5 + x.cumsum(1), state

    model = Transformer(**SHAPE)
    model.stack[0] = Scaled(Attention(16, 4), FeedForward(16, 24), 16)
    return model


CACHED: dict[str, Callable[[], SequenceModule]] = {
    "transformer": lambda: Transformer(**SHAPE),
    "alibi": lambda: Transformer(**SHAPE, position="alibi", kv_heads=2),
    "gpt2": lambda: Transformer(**SHAPE, position="learned", norm="layer", activation="gelu", bias=True),
    "rmt": lambda: RMT(**SHAPE, memory_tokens=3),
    "rmt_learned": lambda: RMT(**SHAPE, memory_tokens=3, position="learned"),
    "armt": lambda: ARMT(**SHAPE, memory_tokens=2, key_width=4),
    "armt_wrapped": lambda: ARMT(**SHAPE, memory_tokens=2, key_width=4, position="learned"),
    "armt_learned": lambda: ARMT(
        **SHAPE, memory_tokens=2, key_width=4, position="learned", wrap_positions=False
    ),
    "xl": lambda: TransformerXL(**XL),
    "xl_prenorm": lambda: TransformerXL(**XL, prenorm=True, same_length=True),
    "xl_clamped": lambda: TransformerXL(**XL, clamp_len=3),
    "xl_forgets": lambda: TransformerXL(**{**XL, "memory_len": 0}),
    "landmark": lambda: Landmark(**LANDMARKS),
    "landmark_per_token": lambda: Landmark(**LANDMARKS, selection="token", retrieve_from_layer=0),
    "another_attention": with_another_attention,
    "another_block": with_another_block,
}


class Rereading(Reader):
    """The definition."""

    def _read_open(self, new: int) -> Tensor:
        logits: Tensor = self.model(self.open_tokens, self.state)[0]
        return logits


@pytest.mark.parametrize("name", CACHED)
@torch.no_grad()
def test_a_decode_cache_gives_the_logits_of_reading_again(name: str) -> None:
    model = ready(CACHED[name])
    assert model.decodes
    assert model.init_decode_cache(model.init_state(2)) is not None
    for pieces in ((1,) * 20, (3, 1, 2, 1, 9, 1, 1), (7, 2, 2, 15, 3), (6, 1, 6, 2)):
        fast, slow = Reader(model, 2), Rereading(model, 2)
        for piece in text(sum(pieces)).split(pieces, dim=1):
            torch.testing.assert_close(fast.read(piece), slow.read(piece), rtol=1e-10, atol=1e-10)
        for actual, expected in zip(leaves(fast.state), leaves(slow.state), strict=True):
            assert torch.equal(actual, expected)


@torch.no_grad()
def test_decode_changes_no_cache() -> None:
    for name, build_model in CACHED.items():
        model, tokens = ready(build_model), text(5)
        cache = model.init_decode_cache(model(text(14))[1])
        _, cache = model.decode(tokens[:, :3], cache)
        outputs = [model.decode(tokens[:, 3:], cache)[0] for _ in range(2)]
        assert torch.equal(outputs[0], outputs[1]), name


def tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for part in tree:
            yield from tensors(part)
    else:
        assert tree is None or isinstance(tree, int)


@pytest.mark.parametrize("name", [choice.name for choice in choices("model") if choice.owner == "zoo"])
@torch.no_grad()
def test_the_memory_of_a_reader_does_not_grow_with_the_text(name: str) -> None:
    """As many bytes of storage in the middle of segment 25 as of segment 9, the storage of views included."""
    model = build.model(compose([f"model={name}", "size=nano"])).eval()
    assert model.segment_len == 16
    reader, sizes = Reader(model, 1), {}
    for step, piece in enumerate(torch.randint(257, (1, 400)).split(8, dim=1)):
        reader.read(piece)
        storages = [
            storage.untyped_storage() for storage in tensors((reader.state, reader.open_tokens, reader.cache))
        ]
        sizes[step] = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    assert step == 49
    assert sizes[48] == sizes[16]
    assert sizes[48] - nbytes(reader.state) < 2**17


def test_a_class_with_another_segment_has_no_decode_cache() -> None:
    class Backwards(Transformer):
        def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
            logits, state = super().segment(tokens, state)
            return logits, state

    models: list[SequenceModule] = [
        Backwards(**SHAPE),
        RMT(**SHAPE, memory_tokens=2, memory_attention="block"),
        RMTXL(**XL, memory_tokens=2),
        Landmark(**LANDMARKS, selection="head"),
        Honest(),
    ]
    for model in models:
        assert not model.decodes
    assert Honest().init_decode_cache(()) is None
    landmark = Landmark(**LANDMARKS).eval()
    first, second = (landmark(text(time))[1] for time in (4, 5))
    assert landmark.init_decode_cache(replace_rows(first, second, torch.tensor([True, False]))) is None


@torch.no_grad()
def test_a_cached_segment_is_read_again_when_it_is_complete() -> None:
    class Counts(Transformer):
        def init_decode_cache(self, state: State) -> object:
            return 0, self.stack.init_decode_cache(state)

        def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
            calls.append(tokens.shape[1])
            logits, state = super().segment(tokens, state)
            return logits, state

    calls: list[int] = []
    reader = Reader(ready(lambda: Counts(**SHAPE)), 1)
    for token in text(16, rows=1).split(1, dim=1):
        reader.read(token)
    assert calls == [7, 7]


# -- drawing


def test_drawing_follows_the_shares() -> None:
    dice = torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(20_000, -1)

    def shares(temperature: float, top_p: float) -> Tensor:
        return sampler(temperature, top_p, dice)(logits).bincount(minlength=4) / len(logits)

    for temperature, top_p, expected in (
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (1.0, 0.8, [0.625, 0.375, 0, 0]),  # 0.5 is too little, 0.8 is enough
        (1.0, 0.81, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (1.0, 0.01, [1, 0, 0, 0]),
        (0.5, 1.0, [0.6849, 0.2466, 0.0616, 0.0068]),
        (1e-320, 1.0, [1, 0, 0, 0]),
        (0.0, 1.0, [1, 0, 0, 0]),
    ):
        actual = shares(temperature, top_p)
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), atol=0.015, rtol=0)


@pytest.mark.parametrize(("temperature", "top_p"), [(-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, 1.5)])
def test_settings_of_a_sampler_that_are_refused(temperature: float, top_p: float) -> None:
    with pytest.raises(ValueError, match=r"temperature|top_p"):
        sampler(temperature, top_p)


def test_only_the_most_probable_tokens_are_drawn() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.3, 0.05, 0.5, 0.15]]).log().expand(20_000, -1)
    for top_k, top_p, expected in (
        (2, 1.0, [0.375, 0, 0.625, 0]),
        (9, 1.0, [0.3, 0.05, 0.5, 0.15]),
        (2, 0.6, [0, 0, 1, 0]),
    ):
        shares = sampler(1.0, top_p, rng, top_k)(logits).bincount(minlength=4) / len(logits)
        torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float32), atol=0.015, rtol=0)
    with pytest.raises(ValueError, match="top_k must be at least 1, not 0"):
        sampler(top_k=0)


@pytest.mark.parametrize(
    ("top_p", "top_k", "name"), [(0.5, None, "top_p"), (1.0, 3, "top_k"), (0.5, 3, "top_k")]
)
def test_what_a_temperature_of_0_would_ignore_is_refused(top_p: float, top_k: int | None, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no effect at temperature 0"):
        sampler(0.0, top_p, None, top_k)


@pytest.mark.parametrize("name", ["rmt", "transformer_xl", "memorizing", "mamba"])
def test_prompts_of_different_lengths_are_continued_as_each_alone(name: str) -> None:
    model = build.model(compose([f"model={name}", "size=nano"])).double().eval()
    rng = torch.Generator().manual_seed(1)
    prompts = [torch.randint(256, (length,), generator=rng) for length in (5, 40, 1, 17)]
    alone = [list(itertools.islice(stream_tokens(model, prompt[None]), 24)) for prompt in prompts]
    continued: list[list[int]] = [[] for _ in prompts]
    for tokens, is_picked in itertools.islice(stream_ragged(model, prompts), 39 + 24):
        for row, token, own in zip(continued, tokens.tolist(), is_picked, strict=True):
            row += [token] if own else []
    for row, expected in zip(continued, alone, strict=True):
        assert row[:24] == [int(token) for token in expected]
    assert [len(row) for row in continued] == [59, 24, 63, 47]


def test_every_part_keeps_its_mode() -> None:
    model = ready(Recurrent).train()
    frozen = next(part for part in model.modules() if part is not model)
    frozen.eval()
    modes = [part.training for part in model.modules()]
    assert {*modes} == {True, False}
    generate(model, text(3), 2)
    assert [part.training for part in model.modules()] == modes
