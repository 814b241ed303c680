"""Reading piece by piece, and going on in memory that doesn't grow."""

from collections.abc import Callable
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.contract.mutants import SEGMENT, VOCAB, Honest, Recurrent
from zoo.contract import shaken
from zoo.generate import Reader, generate, greedy
from zoo.module import SequenceModule
from zoo.state import nbytes

BOTH = pytest.mark.parametrize("build", [Honest, Recurrent])


def ready(build: Callable[[], SequenceModule]) -> SequenceModule:
    return shaken(build).eval()


def text(time: int, rows: int = 2) -> Tensor:
    return torch.randint(VOCAB, (rows, time), generator=torch.Generator().manual_seed(time))


@BOTH
@settings(max_examples=25, deadline=None)
@given(pieces=st.lists(st.integers(1, 2 * SEGMENT + 1), min_size=1, max_size=6))
@torch.no_grad()
def test_a_reader_knows_what_comes_next_whatever_the_pieces(
    build: Callable[[], SequenceModule], pieces: list[int]
) -> None:
    model, tokens = ready(build), text(sum(pieces))
    whole, reader, end = model(tokens)[0], Reader(model, 2), 0
    for piece in tokens.split(pieces, dim=1):
        end += piece.shape[1]
        torch.testing.assert_close(reader.read(piece), whole[:, end - 1], rtol=1e-10, atol=1e-10)
        assert reader.open.shape == (2, 0 if model.cuts_anywhere else end % SEGMENT)


@BOTH
@torch.no_grad()
def test_a_reader_needs_no_more_memory_for_a_longer_text(build: Callable[[], SequenceModule]) -> None:
    model = ready(build)
    reader = Reader(model, 2)
    held = []
    for token in text(50 * SEGMENT).split(1, dim=1):
        reader.read(token)
        held.append(nbytes(reader.state) + reader.open.nbytes)
        assert reader.open.shape[1] < SEGMENT
    assert held[SEGMENT:] == held[:-SEGMENT]


def test_a_model_that_closes_segments_reads_no_segment_twice_once_it_is_whole() -> None:
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


@BOTH
def test_generate_is_greedy_by_default(build: Callable[[], SequenceModule]) -> None:
    model, tokens = ready(build), text(SEGMENT + 2)
    made = list(islice(generate(model, tokens), 2 * SEGMENT))
    for token in made:
        with torch.no_grad():
            assert torch.equal(token, model(tokens)[0][:, -1].argmax(-1))
        tokens = torch.cat([tokens, token[:, None]], dim=1)


@BOTH
def test_a_pick_of_ones_own_sees_the_logits_and_decides(build: Callable[[], SequenceModule]) -> None:
    """Sampling from a seeded generator, against drawing by hand from the whole text's logits."""

    def sample(logits: Tensor) -> Tensor:
        assert logits.shape == (2, VOCAB)
        assert not logits.requires_grad
        return torch.multinomial(logits.softmax(-1), 1, generator=dice)[:, 0]

    model, tokens = ready(build), text(3)
    dice = torch.Generator().manual_seed(5)
    made = torch.stack(list(islice(generate(model, tokens, sample), 2 * SEGMENT)), dim=1)
    dice = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for at in range(2 * SEGMENT):
            said = model(torch.cat([tokens, made[:, :at]], dim=1))[0][:, -1]
            assert torch.equal(made[:, at], sample(said))
    assert len(made.unique()) > 2


def test_generating_leaves_gradients_on_and_the_mode_as_it_was() -> None:
    model = shaken(Honest).train()
    next(generate(model, text(4)))
    assert model.training
    assert torch.is_grad_enabled()
    assert greedy(torch.tensor([[0.0, 2.0, 1.0]])).tolist() == [1]
