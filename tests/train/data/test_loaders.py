"""The loaders' promises: everything is asked once, rows go on, and a saved place is the same place."""

import io
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.data.loaders import EvalLoader, TrainLoader
from zoo.train.data.prefetch import Prefetcher
from zoo.train.tasks.base import Dataset

FAR = 10_000


class Numbered(Dataset):
    """Position p of document d has the token d * FAR + p, and asks for it."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths, np.int64)

    def window(self, document, start, stop):
        assert 0 <= start < stop <= self.lengths[document]
        line = document * FAR + np.arange(start, stop)
        return line, line

    def everything(self):
        return sorted(d * FAR + p for d, length in enumerate(self.lengths) for p in range(length))


def batches_of(lanes, count):
    found = []
    while len(found) < count:
        found += list(lanes)
    return found[:count]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for first, second in zip(one, other, strict=True)
        for a, b in zip(first, second, strict=True)
    )


def runs(batches):
    """What each lane read between two fresh windows, in the order in which it was begun."""
    begun, current = [], {}
    for batch in batches:
        for row, fresh in enumerate(batch.fresh.tolist()):
            if fresh:
                current[row] = []
                begun.append(current[row])
            current[row] += batch.targets[row][batch.targets[row] != IGNORE].tolist()
    return begun


shapes = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 40), min_size=1, max_size=9),
        "rows": st.integers(1, 4),
        "window": st.integers(1, 12),
        "seed": st.integers(0, 3),
    }
)


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_each_pass_asks_every_position_once(shape):
    dataset = Numbered(shape["lengths"])
    lanes = TrainLoader(dataset, shape["rows"], shape["window"], shape["seed"])
    read = runs(batches_of(lanes, 6 * len(lanes) + 50))
    everything = dataset.everything()
    for _ in range(2):
        seen = []
        while len(seen) < len(everything):
            seen += read.pop(0)
        assert sorted(seen) == everything


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_a_row_goes_on_where_it_stopped_and_only_ends_are_padded(shape):
    dataset = Numbered(shape["lengths"])
    lanes = TrainLoader(dataset, shape["rows"], shape["window"], shape["seed"])
    before = [None] * shape["rows"]
    for batch in batches_of(lanes, 3 * len(lanes)):
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        assert batch.fresh.dtype == torch.bool
        for row, (tokens, targets, fresh) in enumerate(zip(*batch, strict=True)):
            asked = targets != IGNORE
            size = int(asked.sum())
            assert size > 0
            assert asked[:size].all()
            assert (tokens[size:] == 0).all()
            assert torch.equal(tokens[:size], torch.arange(size) + tokens[0])
            assert fresh or int(tokens[0]) == before[row] + 1
            before[row] = int(tokens[size - 1])


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(2, 3))
def test_ranks_together_are_one_rank_with_all_rows(shape, world):
    dataset, rows, window, seed = Numbered(shape["lengths"]), shape["rows"], shape["window"], shape["seed"]
    ranks = [TrainLoader(dataset, rows, window, seed, rank, world) for rank in range(world)]
    whole = TrainLoader(dataset, rows * world, window, seed)
    assert {len(rank) for rank in ranks} == {len(whole)}
    parts = [batches_of(rank, 2 * len(whole) + 1) for rank in ranks]
    joined = [
        [torch.cat(same) for same in zip(*batches, strict=True)] for batches in zip(*parts, strict=True)
    ]
    assert same(joined, batches_of(whole, 2 * len(whole) + 1))
    assert all(rank.state_dict() == whole.state_dict() for rank in ranks)


def test_an_epoch_is_what_one_pass_takes_and_seeds_differ():
    dataset = Numbered([10, 25, 3])  # 2 + 5 + 1 windows of 5
    assert len(TrainLoader(dataset, 3, 5, seed=0)) == 3
    assert len(list(TrainLoader(dataset, 3, 5, seed=0))) == 3
    wide = Numbered([5] * 30)
    assert same(batches_of(TrainLoader(wide, 2, 5, 1), 40), batches_of(TrainLoader(wide, 2, 5, 1), 40))
    assert not same(batches_of(TrainLoader(wide, 2, 5, 1), 15), batches_of(TrainLoader(wide, 2, 5, 2), 15))
    first, second = (runs(list(lanes)) for lanes in [TrainLoader(wide, 2, 5, 1)] * 2)
    assert first != second  # every pass has an order of its own


def test_lanes_of_one_long_text_read_different_parts():
    lanes = TrainLoader(Numbered([1000]), 8, 10, seed=0)
    for batch in lanes:
        assert len(set(batch.tokens[:, 0].tolist())) == 8


def test_documents_of_a_fair_share_are_not_cut():
    lanes = TrainLoader(Numbered([64] * 8), 8, 8, seed=0)
    assert all(run[0] % FAR == 0 and len(run) == 64 for run in runs(list(lanes)))


def test_the_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].tolist()
    one = batches_of(TrainLoader(Numbered([7] * 9), 2, 4, 0), 30)
    assert torch.equal(before, torch.get_rng_state())
    assert before_numpy == np.random.get_state()[1].tolist()
    torch.manual_seed(1)
    assert same(one, batches_of(TrainLoader(Numbered([7] * 9), 2, 4, 0), 30))


# -- a saved place ----------------------------------------------------------------------------------


def stored(state):
    """Through a checkpoint and back, the strict way."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def make(kind):
    lanes = TrainLoader(Numbered([9, 31, 4, 17, 8]), 3, 4, seed=5)
    return Prefetcher(lanes, pin=False) if kind is Prefetcher else lanes


def epochs_of(loader, count):
    return [list(loader) for _ in range(count)]


@pytest.mark.parametrize("kind", [TrainLoader, Prefetcher])
def test_every_place_of_three_epochs_is_gone_on_from_exactly(kind):
    whole = epochs_of(make(kind), 5)
    size = len(whole[0])
    loader, places = make(kind), []
    for _ in range(3):
        for _batch in loader:
            places.append(stored(loader.state_dict()))
    for given_, place in enumerate(places, 1):
        again = make(kind)
        again.load_state_dict(place)
        iter(again)  # Lightning asks for an iterator and may drop it
        assert again.state_dict() == place
        epoch, within = divmod(given_, size)
        found = epochs_of(again, 2)
        assert same(found[0], whole[epoch][within:])  # the epoch's border stays where it was
        assert same(found[1], whole[epoch + 1])
    assert places[-1]["pass"] >= 2


@pytest.mark.parametrize("kind", [TrainLoader, Prefetcher])
def test_an_iterator_left_in_the_middle_loses_no_batch(kind):
    loader, found = make(kind), []
    for batch in loader:
        found.append(batch)
        if len(found) == 2:
            break
    found += [*loader, *loader]
    assert same(found, batches_of(make(TrainLoader), 2 + 2 * len(loader)))


def test_a_place_in_other_data_is_refused():
    state = TrainLoader(Numbered([9, 30]), 3, 4, seed=5).state_dict()
    for other, words in [
        (
            TrainLoader(Numbered([9, 30]), 2, 4, seed=5),
            "rows_of_all_ranks=2, found rows_of_all_ranks=3",
        ),
        (TrainLoader(Numbered([9, 30]), 3, 8, seed=5), "expected window=8, found window=4"),
        (TrainLoader(Numbered([9, 30]), 3, 4, seed=6), "expected seed=6, found seed=5"),
        (TrainLoader(Numbered([9, 20, 10]), 3, 4, seed=5), "expected documents=3, found documents=2"),
        (TrainLoader(Numbered([9, 31]), 3, 4, seed=5), "expected positions=40, found positions=39"),
    ]:
        with pytest.raises(UserError, match=words):
            other.load_state_dict(state)
    TrainLoader(Numbered([9, 30]), 1, 4, seed=5, rank=2, world=3).load_state_dict(
        state
    )  # the same lanes, on three ranks


@pytest.mark.parametrize(
    ("key", "found"),
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
def test_a_place_that_does_not_exist_is_refused(key, found):
    lanes = TrainLoader(Numbered([9, 30]), 2, 4, seed=5)
    batches_of(lanes, 1)
    place = lanes.state_dict()
    with pytest.raises(UserError, match=f"saved position in the data: expected {key}"):
        lanes.load_state_dict({**place, key: found})
    assert lanes.state_dict() == place
    lanes.load_state_dict(place)


def test_nothing_to_read_is_refused():
    for make_ in (lambda: TrainLoader(Numbered([]), 1, 4, 0), lambda: EvalLoader(Numbered([]), 1, 4)):
        with pytest.raises(UserError, match="at least one document"):
            make_()


# -- evaluation ----------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(shapes, st.integers(1, 3))
def test_reading_asks_everything_once_whatever_the_rows_and_ranks(shape, world):
    dataset = Numbered(shape["lengths"])
    ranks = [EvalLoader(dataset, shape["rows"], shape["window"], rank, world) for rank in range(world)]
    found = [list(rank) for rank in ranks]
    assert {len(batches) for batches in found} == {len(rank) for rank in ranks} == {len(ranks[0])}
    read = [run for batches in found for run in runs(batches) if run]
    assert sorted(position for run in read for position in run) == dataset.everything()
    assert all(run[0] % FAR == 0 for run in read)  # whole documents
    assert all(run == list(range(run[0], run[0] + len(run))) for run in read)
    assert same(found[0], list(ranks[0]))  # and again
    for batch in (batch for batches in found for batch in batches):
        idle = (batch.targets == IGNORE).all(1)
        assert batch.fresh[idle].all()
        assert (batch.tokens[idle] == 0).all()


def test_reading_is_in_order_and_no_wider_than_its_documents():
    batches = list(EvalLoader(Numbered([3, 3, 3, 3]), 2, 3))
    assert [batch.tokens[:, 0].tolist() for batch in batches] == [[0, FAR], [2 * FAR, 3 * FAR]]
    assert next(iter(EvalLoader(Numbered([50]), 8, 5))).tokens.shape == (1, 5)


# -- reading ahead ----------------------------------------------------------------------------------


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_ahead_reports_the_place_of_the_batch_handed_out():
    lanes, ahead = make(TrainLoader), make(Prefetcher)
    for one, other in zip(lanes, ahead, strict=True):
        assert same([one], [other])
        assert ahead.state_dict() == lanes.state_dict()
    assert not readers()


def test_ahead_stops_its_thread():
    ahead = make(Prefetcher)
    iterator = iter(ahead)
    next(iterator)
    assert readers()
    ahead.close()
    assert not readers()
    iterator = iter(ahead)
    next(iterator)
    del iterator  # dropped in the middle, as Lightning does at the end of a run
    assert not readers()


def test_a_fault_in_the_thread_reaches_the_consumer():
    class Broken(Numbered):
        def window(self, document, start, stop):
            if start >= 8:
                raise OSError("the disk is gone")
            return super().window(document, start, stop)

    iterator = iter(Prefetcher(TrainLoader(Broken([20]), 1, 4, 0), pin=False))
    next(iterator)
    next(iterator)
    with pytest.raises(OSError, match="the disk is gone"):
        next(iterator)
    assert not readers()
