"""The depths at which passkey hides its key: exact probabilities, and what datasets make of them."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.train.tasks.samples import read_sample
from zoo.train.tasks.passkey import Passkey, PasskeyDataset, draw_key_offset

COMPACT: dict[str, Any] = {"form": "compact", "vocab_size": 28}
PARTS = 11  # positions of a compact sample without filler
MARKER = 10


class ScriptedGenerator(np.random.Generator):
    """Returns the scripted integers, and records how many values each could have had."""

    def __init__(self, script: list[int]) -> None:
        super().__init__(np.random.Philox(0))
        self.script, self.sizes = script, list[int]()

    def integers(self, low: int, high: int | None = None) -> int:  # type: ignore[override]
        start, stop = (0, low) if high is None else (low, high)
        index = len(self.sizes)
        self.sizes.append(stop - start)
        return start + (self.script[index] if index < len(self.script) else 0)


def probabilities(draw: Callable[[np.random.Generator], int]) -> dict[int, Fraction]:
    """Exact probability of every result, from all sequences of integers that could be drawn."""
    total: dict[int, Fraction] = {}
    scripts: list[list[int]] = [[]]
    while scripts:
        script = scripts.pop()
        rng = ScriptedGenerator(script)
        value = draw(rng)
        if len(rng.sizes) > len(script):
            scripts += [[*script, i] for i in range(rng.sizes[len(script)])]
            continue
        weight = Fraction(1)
        for size in rng.sizes:
            weight /= size
        total[value] = total.get(value, Fraction()) + weight
    return total


@pytest.mark.parametrize("filler_len", [11, 12, 21, 117, 1000])
def test_an_end_of_the_axis_is_as_likely_as_a_tenth_of_what_lies_between(filler_len: int) -> None:
    exact = probabilities(lambda rng: draw_key_offset(rng, filler_len))
    between = Fraction(10, 12) / (filler_len - 1)
    expected = {
        0: Fraction(1, 12),
        **dict.fromkeys(range(1, filler_len), between),
        filler_len: Fraction(1, 12),
    }
    assert exact == expected
    assert sum(exact.values()) == 1


@pytest.mark.parametrize("filler_len", range(11))
def test_all_offsets_of_a_short_filler_are_equally_likely(filler_len: int) -> None:
    exact = probabilities(lambda rng: draw_key_offset(rng, filler_len))
    assert exact == dict.fromkeys(range(filler_len + 1), Fraction(1, filler_len + 1))


def test_every_point_of_the_grid_of_tenths_is_equally_likely() -> None:
    """An end exactly; a point between them with all depths that are nearer to it than 5 %."""
    filler_len = 2001
    exact = probabilities(lambda rng: draw_key_offset(rng, filler_len))
    shares = [exact[0], exact[filler_len]]
    for tenth in range(1, 10):
        low, high = (Fraction(2 * tenth + sign, 20) * filler_len for sign in (-1, 1))
        shares.append(sum((p for offset, p in exact.items() if low < offset <= high), Fraction()))
    assert all(abs(share - Fraction(1, 12)) <= Fraction(10, 12) / (filler_len - 1) for share in shares)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_keys_of_a_dataset_are_where_they_are_drawn(split: Any) -> None:
    """Chi-square of the markers' positions against the exact probabilities: 12 bins, of the data itself."""
    filler_len, count = 101, 3600
    sizes: dict[str, Any] = {"samples": count, "eval_samples": count}
    dataset = Passkey(length=PARTS + filler_len, lengths="fixed", seed=5, **sizes, **COMPACT).split(split)
    offsets = [int(np.flatnonzero(read_sample(dataset, i)[0] == MARKER)[0]) for i in range(count)]
    bins = [0, *(1 + (offset - 1) // 10 for offset in range(1, filler_len)), 11]
    counts = np.bincount([bins[offset] for offset in offsets], minlength=12)
    assert ((counts - count / 12) ** 2 / (count / 12)).sum() < 31.3  # 11 degrees of freedom, p = 0.001


def test_training_samples_of_every_length_have_both_ends() -> None:
    dataset = Passkey(length=PARTS + 117, samples=8_000, **COMPACT).split("train")
    assert isinstance(dataset, PasskeyDataset)
    long = [params for params in map(dataset.params, range(8_000)) if params.filler_len >= 11]
    expected = len(long) / 12
    for ends in (
        sum(params.key_offset == 0 for params in long),
        sum(params.key_offset == params.filler_len for params in long),
    ):
        assert abs(ends - expected) < 4 * (expected * 11 / 12) ** 0.5


def test_a_given_depth_is_not_drawn() -> None:
    for depth, offset in ((0.0, 0), (0.25, 25), (1.0, 101)):
        dataset = Passkey(length=PARTS + 101, depth=depth, **COMPACT).split("test")
        assert isinstance(dataset, PasskeyDataset)
        assert {dataset.params(i).key_offset for i in range(20)} == {offset}


def test_uniform_depths_put_the_key_anywhere_equally_often() -> None:
    """The form of length 256: 246 offsets, and the question where it always is."""
    task = Passkey(**COMPACT, length=256, lengths="fixed", filler="random", depths="uniform")
    for split in ("train", "test"):
        dataset = task.split(split)  # type: ignore[arg-type]
        assert isinstance(dataset, PasskeyDataset)
        counts = np.zeros(246)
        for document in range(6000 if split == "train" else 512):
            counts[dataset.params(document).key_offset] += 1
        expected = counts.sum() / 246
        assert ((counts - expected) ** 2 / expected).sum() < 245 + 5 * (2 * 245) ** 0.5
        tokens, targets = read_sample(dataset, 3)
        assert tokens[251] == 11
        assert (targets[251:] >= 0).all()
        assert tokens[dataset.params(3).key_offset] == MARKER
    fixed = task.at(depth=1.0).split("test")
    assert isinstance(fixed, PasskeyDataset)
    assert fixed.params(0).key_offset == 245
