"""A curriculum's stages: what they read, and where they resume."""

from itertools import chain, islice
from typing import Any

import pytest
import torch

from zoo.errors import UserError
from zoo.module import Batch
from zoo.train.data.curriculum import CurriculumLoader, Loader, Stage, make_stages
from zoo.train.data.loaders import TrainLoader
from zoo.train.data.module import DataModule
from zoo.train.data.prefetch import Prefetcher
from zoo.train.tasks.base import Task
from zoo.train.tasks.chomsky import Chomsky
from zoo.train.tasks.pairs import Pairs
from zoo.train.tasks.passkey import Passkey
from zoo.train.tasks.recall import Recall

TASK = Recall(length=64, samples=40)


def stages(
    segments: Any = (1, 2, 4), lengths: Any = None, task: Any = TASK, seq_len: int = 64
) -> list[Stage]:
    return make_stages(task, 2, seq_len, 16, segments, lengths)


def plain(index: int) -> TrainLoader:
    """The loader of a run that trains on a stage alone."""
    _, task, batch_size, seq_len = stages()[index]
    return TrainLoader(task.split("train"), batch_size, seq_len, seed=7 + index)


def loader(prefetch: bool = False) -> CurriculumLoader:
    def make(index: int) -> Loader:
        return Prefetcher(plain(index), pin=False) if prefetch else plain(index)

    return CurriculumLoader(make, 3)


def read(curriculum: CurriculumLoader, ends: dict[int, int], start: int = 0) -> list[Batch]:
    """The batches up to the last end, a stage ending after as many as `ends` has."""
    batches = []
    for index, batch in enumerate(islice(curriculum, max(ends) - start), start + 1):
        batches.append(batch)
        if ends.get(index):
            curriculum.advance()
    return batches


def same(batches: list[Batch], expected: list[Batch]) -> bool:
    pairs = zip(batches, expected, strict=True)
    return all(
        torch.equal(one, other) for pair in pairs for one, other in zip(pair[0][:3], pair[1][:3], strict=True)
    )


def test_a_stage_is_the_task_at_its_length_with_as_many_positions() -> None:
    assert [(stage.label, stage.batch_size, stage.seq_len) for stage in stages()] == [
        (1, 8, 16),
        (2, 4, 32),
        (4, 2, 64),
    ]
    assert [stage.task for stage in stages()] == [
        Recall(length=length, samples=40) for length in (16, 32, 64)
    ]
    assert [stage[1:] for stage in stages(None, (16, 32, 64))] == [stage[1:] for stage in stages()]
    assert stages(None) == []


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_stage_reads_what_a_run_of_it_alone_reads(prefetch: bool) -> None:
    """Also past the end of its pass: 40 samples are 5 batches of 8."""
    batches = read(loader(prefetch), {7: 1, 10: 1, 14: 0})
    expected = [list(islice(endless(plain(index)), count)) for index, count in enumerate((7, 3, 4))]
    assert same(batches, list(chain.from_iterable(expected)))
    assert all(batch.fresh.all() for batch in batches)
    assert len({batch.tokens.numel() for batch in batches}) == 1


def endless(loader: TrainLoader) -> Any:
    while True:
        yield from loader


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("prefetch", [False, True])
def test_resumed_in_at_and_after_a_boundary(cut: int, prefetch: bool) -> None:
    ends = {2: 1, 4: 1, 9: 0}
    whole = read(loader(), ends)
    first = loader(prefetch)
    read(first, {step: ends.get(step, 0) for step in range(1, cut + 1)})
    resumed = loader(prefetch)
    resumed.load_state_dict(first.state_dict())
    assert same(read(resumed, ends, cut), whole[cut:])


def test_a_stage_that_is_not_there_is_refused() -> None:
    state = loader().state_dict()
    for stage in (3, -1, "1", None):
        with pytest.raises(UserError, match="expected stage 0 to 2, found"):
            loader().load_state_dict({**state, "stage": stage})
    with pytest.raises(UserError, match="can't resume"):
        loader().load_state_dict({**state, "stage": 1})


def test_text_has_shorter_windows() -> None:
    class Text(Task):
        name, VERSION, vocab_size, metric = "text", 1, 257, "bits_per_byte"

        def split(self, name: Any) -> Any:
            raise NotImplementedError

        def byte_count(self, targets: Any) -> Any:
            raise NotImplementedError

    assert [stage[2:] for stage in stages(task=Text())] == [(8, 16), (4, 32), (2, 64)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segments": (1, 2, 2, 4)}, "numbers that grow, found"),
        ({"segments": (4, 2)}, "numbers that grow"),
        ({"segments": (0, 4)}, "numbers that grow"),
        ({"segments": ()}, "numbers that grow"),
        ({"segments": (1, 2)}, r"last stage of task\.length=64, found 2, which is 32"),
        ({"lengths": (16, 64)}, "segments or lengths, found both"),
        ({"segments": (1, 3, 4)}, "windows that divide .* = 128, found 48 in the stage 3"),
        ({"task": Pairs()}, "task pairs has no length that could grow"),
    ],
)
def test_impossible_stages_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        stages(**settings)


def test_a_segment_longer_than_a_sample_is_not_filled_up() -> None:
    """Full attention over the sample: the model's segment is 256, and a stage of 16 reads windows of 16."""
    task = Recall(length=256, samples=64)
    by_segments = make_stages(task, 2, 256, 16, (1, 4, 16), None)
    data = DataModule(task, 2, 256, segment_len=256, seed=0, stages=by_segments)
    curriculum = data.train_dataloader()
    assert isinstance(curriculum, CurriculumLoader)
    assert [batch.tokens.shape for batch in read(curriculum, {1: 1, 2: 1, 3: 0})] == [
        (32, 16),
        (8, 64),
        (2, 256),
    ]
    short = Chomsky(kind="cycle_navigation", answers="running", vocab_size=6, samples=64)
    batch = next(iter(DataModule(short, 2, 48, segment_len=256, seed=0).train_dataloader()))
    assert batch.tokens.shape == (2, 48)


@pytest.mark.parametrize(("seq_len", "task"), [(32, TASK), (96, TASK), (24, TASK)])
def test_a_window_that_cuts_a_sample_within_a_segment_is_refused(seq_len: int, task: Any) -> None:
    with pytest.raises(UserError, match=r"data.seq_len: expected a multiple of segment_len=64, found"):
        DataModule(task, 2, seq_len, segment_len=64, seed=0)


def test_validation_reads_as_many_samples_as_asked_for() -> None:
    task = Passkey(form="compact", length=32, vocab_size=28, eval_samples=10)
    data = DataModule(task, 2, 32, segment_len=16, seed=0, val_samples=6)
    assert len(data.val_dataset().lengths) == 6
    with pytest.raises(UserError, match=r"val_samples: expected at most task.eval_samples=10, found 11"):
        DataModule(task, 2, 32, segment_len=16, seed=0, val_samples=11).val_dataset()
