"""The training loader: every target once per pass, streams that continue, and exact resumption."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.data.numbered import DOCUMENT, Numbered, equal, make_loader, read_runs, shapes, take
from zoo.errors import UserError
from zoo.module import IGNORE, Batch
from zoo.train.data.loaders import TrainLoader
from zoo.train.data.prefetch import Prefetcher


def loader_of(shape: dict[str, Any]) -> TrainLoader:
    return TrainLoader(Numbered(shape["lengths"]), shape["batch_size"], shape["seq_len"], shape["seed"])


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_each_pass_has_every_target_once(shape: dict[str, Any]) -> None:
    loader, expected = loader_of(shape), Numbered(shape["lengths"]).targets()
    runs = read_runs(take(loader, 6 * len(loader) + 50))
    for _ in range(2):
        targets: list[int] = []
        while len(targets) < len(expected):
            targets += runs.pop(0)
        assert sorted(targets) == expected


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_a_row_continues_where_it_stopped_and_only_ends_are_padded(shape: dict[str, Any]) -> None:
    loader = loader_of(shape)
    last_token = [-1] * shape["batch_size"]
    for batch in take(loader, 3 * len(loader)):
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        assert batch.fresh.dtype == torch.bool
        for row, (tokens, targets, fresh) in enumerate(zip(*batch[:3], strict=True)):
            has_target = targets != IGNORE
            size = int(has_target.sum())
            assert size > 0
            assert has_target[:size].all()
            assert (tokens[size:] == 0).all()
            assert torch.equal(tokens[:size], torch.arange(size) + tokens[0])
            assert fresh or int(tokens[0]) == last_token[row] + 1
            last_token[row] = int(tokens[size - 1])


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_a_row_s_length_counts_what_it_has_read_since_it_was_fresh(shape: dict[str, Any]) -> None:
    loader = loader_of(shape)
    expected = [0] * shape["batch_size"]
    for batch in take(loader, 3 * len(loader)):
        fresh = batch.fresh.tolist()
        expected = [0 if new else length for new, length in zip(fresh, expected, strict=True)]
        assert batch.lengths == tuple(expected)
        expected = [length + shape["seq_len"] for length in expected]


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(2, 3))
def test_all_ranks_together_are_one_rank_with_all_rows(shape: dict[str, Any], world: int) -> None:
    dataset, batch_size, seq_len = Numbered(shape["lengths"]), shape["batch_size"], shape["seq_len"]
    ranks = [TrainLoader(dataset, batch_size, seq_len, shape["seed"], rank, world) for rank in range(world)]
    single = TrainLoader(dataset, batch_size * world, seq_len, shape["seed"])
    assert {len(rank) for rank in ranks} == {len(single)}
    count = 2 * len(single) + 1
    batches_of_rank = [take(rank, count) for rank in ranks]
    joined = [
        Batch(
            *(torch.cat(parts) for parts in zip(*(batch[:3] for batch in batches), strict=True)),
            sum((batch.lengths for batch in batches), ()),
        )
        for batches in zip(*batches_of_rank, strict=True)
    ]
    assert equal(joined, take(single, count))
    assert all(rank.state_dict() == single.state_dict() for rank in ranks)


def test_an_epoch_is_one_pass_and_seeds_differ() -> None:
    dataset = Numbered([10, 25, 3])  # 2 + 5 + 1 windows of 5
    assert len(TrainLoader(dataset, 3, 5, seed=0)) == 3
    assert len(list(TrainLoader(dataset, 3, 5, seed=0))) == 3
    assert [len(TrainLoader(dataset, 3, 5, 0, accumulate=n)) for n in (1, 2, 3, 4)] == [3, 4, 3, 4]
    wide = Numbered([5] * 30)
    assert equal(take(TrainLoader(wide, 2, 5, 1), 40), take(TrainLoader(wide, 2, 5, 1), 40))
    assert not equal(take(TrainLoader(wide, 2, 5, 1), 15), take(TrainLoader(wide, 2, 5, 2), 15))
    loader = TrainLoader(wide, 2, 5, 1)
    assert read_runs(list(loader)) != read_runs(list(loader))  # every pass is shuffled differently


def test_rows_of_one_long_text_read_different_parts() -> None:
    for batch in TrainLoader(Numbered([1000]), 8, 10, seed=0):
        assert len(set(batch.tokens[:, 0].tolist())) == 8


def test_documents_no_longer_than_a_rows_share_are_not_cut() -> None:
    runs = read_runs(list(TrainLoader(Numbered([64] * 8), 8, 8, seed=0)))
    assert all(run[0] % DOCUMENT == 0 and len(run) == 64 for run in runs)


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    torch.manual_seed(0)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    batches = take(TrainLoader(Numbered([7] * 9), 2, 4, 0), 30)
    assert torch.equal(before, torch.get_rng_state())
    assert before_numpy == np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    torch.manual_seed(1)
    assert equal(batches, take(TrainLoader(Numbered([7] * 9), 2, 4, 0), 30))


def test_a_dataset_without_documents_is_refused() -> None:
    with pytest.raises(UserError, match="at least one document"):
        TrainLoader(Numbered([]), 1, 4, 0)


# -- saved states --------------------------------------------------------------------------------------------


def through_a_checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", [TrainLoader, Prefetcher])
def test_a_loader_resumes_exactly_after_every_batch_of_three_epochs(kind: Any) -> None:
    loader = make_loader(kind)
    epochs = [list(loader) for _ in range(5)]
    size = len(epochs[0])
    loader, states = make_loader(kind), []
    for _ in range(3):
        for _batch in loader:
            states.append(through_a_checkpoint(loader.state_dict()))
    for batches_before, state in enumerate(states, 1):
        resumed = make_loader(kind)
        resumed.load_state_dict(state)
        iter(resumed)  # Lightning may create an iterator and drop it
        assert resumed.state_dict() == state
        epoch, within = divmod(batches_before, size)
        assert equal(list(resumed), epochs[epoch][within:])  # the epoch ends where it ended before
        assert equal(list(resumed), epochs[epoch + 1])
    assert states[-1]["pass"] >= 2


@pytest.mark.parametrize("kind", [TrainLoader, Prefetcher])
def test_an_iterator_dropped_in_the_middle_loses_no_batch(kind: Any) -> None:
    loader = make_loader(kind)
    batches = [batch for _, batch in zip(range(2), loader, strict=False)]
    batches += [*loader, *loader]
    assert equal(batches, take(make_loader(TrainLoader), 2 + 2 * len(loader)))


def test_a_state_of_other_data_is_refused() -> None:
    state = TrainLoader(Numbered([9, 30]), 3, 4, seed=5).state_dict()
    for loader, message in [
        (TrainLoader(Numbered([9, 30]), 2, 4, seed=5), "global_batch_size=2, found global_batch_size=3"),
        (TrainLoader(Numbered([9, 30]), 3, 8, seed=5), "seq_len=8, found seq_len=4"),
        (TrainLoader(Numbered([9, 30]), 3, 4, seed=6), "seed=6, found seed=5"),
        (TrainLoader(Numbered([9, 20, 10]), 3, 4, seed=5), "documents=3, found documents=2"),
        (TrainLoader(Numbered([9, 31]), 3, 4, seed=5), "positions=40, found positions=39"),
    ]:
        with pytest.raises(UserError, match=f"expected {message}"):
            loader.load_state_dict(state)
    three_ranks = TrainLoader(Numbered([9, 30]), 1, 4, seed=5, rank=2, world_size=3)
    three_ranks.load_state_dict(state)  # as many rows in all


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pass", -1),
        ("pass", 0.5),
        ("position", 4),
        ("position", None),
        ("given", 99),
        ("given", True),
        ("lanes", None),
        ("lanes", [[0, 4, 9]]),
        ("lanes", [[0, 4, 9], [1, 8]]),
        ("lanes", [[0, 4, 9], [2, 4, 8]]),
        ("lanes", [[0, 4, 10], [1, 8, 30]]),
        ("lanes", [[0, 9, 9], [1, 8, 30]]),
        ("lanes", [[0, 5, 9], [1, 8, 30]]),
        ("lanes", [[-1, 4, 9], [1, 8, 30]]),
        ("lanes", [[0, 4.0, 9], [1, 8, 30]]),
    ],
)
def test_an_impossible_state_is_refused(key: str, value: Any) -> None:
    loader = TrainLoader(Numbered([9, 30]), 2, 4, seed=5)
    take(loader, 1)
    state = loader.state_dict()
    with pytest.raises(UserError, match=f"saved position in the data: expected {key}"):
        loader.load_state_dict({**state, key: value})
    assert loader.state_dict() == state
    loader.load_state_dict(state)
