"""The evaluation loader: every document once, complete and in order, for any batch size and ranks."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.data.numbered import DOCUMENT, Numbered, equal, read_runs, shapes
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.data.loaders import EvalLoader


@settings(max_examples=80, deadline=None)
@given(shapes, st.integers(1, 3))
def test_every_target_comes_once_at_any_batch_size_and_number_of_ranks(
    shape: dict[str, Any], world: int
) -> None:
    dataset = Numbered(shape["lengths"])
    ranks = [EvalLoader(dataset, shape["batch_size"], shape["seq_len"], rank, world) for rank in range(world)]
    batches_of_rank = [list(rank) for rank in ranks]
    assert {len(batches) for batches in batches_of_rank} == {len(rank) for rank in ranks} == {len(ranks[0])}
    runs = [run for batches in batches_of_rank for run in read_runs(batches) if run]
    assert sorted(target for run in runs for target in run) == dataset.targets()
    assert all(run[0] % DOCUMENT == 0 for run in runs)  # complete documents
    assert all(run == list(range(run[0], run[0] + len(run))) for run in runs)
    assert equal(list(ranks[0]), batches_of_rank[0])  # every iteration is the same
    for batch in (batch for batches in batches_of_rank for batch in batches):
        padding = (batch.targets == IGNORE).all(1)
        assert batch.fresh[padding].all()
        assert (batch.tokens[padding] == 0).all()


def test_a_row_s_length_counts_what_it_has_read_since_it_was_fresh() -> None:
    batches = list(EvalLoader(Numbered([7, 3, 9]), 2, 4))
    assert [batch.lengths for batch in batches] == [(0, 0), (4, 0), (0, 4), (0, 8)]
    assert [batch.fresh.tolist() for batch in batches] == [[not n for n in b.lengths or ()] for b in batches]


def test_documents_come_in_order_and_a_batch_has_no_more_rows_than_documents() -> None:
    batches = list(EvalLoader(Numbered([3, 3, 3, 3]), 2, 3))
    assert [batch.tokens[:, 0].tolist() for batch in batches] == [[0, DOCUMENT], [2 * DOCUMENT, 3 * DOCUMENT]]
    assert next(iter(EvalLoader(Numbered([50]), 8, 5))).tokens.shape == (1, 5)


def test_a_dataset_without_documents_is_refused() -> None:
    with pytest.raises(UserError, match="at least one document"):
        EvalLoader(Numbered([]), 1, 4)
