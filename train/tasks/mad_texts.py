"""The texts of MAD's kinds: their targets, from the tokens alone, and how texts are drawn.

Poli et al. 2024, arXiv:2403.17844; targets are those of athms/mad-lab at 0f49a45 in held-out texts.
A function `…_targets` takes a text's tokens and gives a target for each, IGNORE where there is none.
"""

from itertools import groupby

import numpy as np
from jaxtyping import Bool, Int64

from zoo.module import IGNORE
from zoo.train.tasks.base import Symbols

KEY_SIZE = 3  # symbols of a fuzzy key, and the most of a fuzzy value
NOISE_SYMBOLS = 16

Motif = tuple[int, ...]  # the symbols of a fuzzy key or value


def recall_targets(tokens: Symbols, noise_from: int) -> Symbols:
    """k1 v1 k2 v2 … k, a key of one symbol before every value: at a key that was there before, the value that
    follows it, and of the last key the value that it had last.

    A value that differs from the last one of its key is a new one, and no target.  Symbols `noise_from` and
    above are noise.
    """
    targets = np.full(len(tokens), IGNORE, np.int64)
    keys, values = tokens[::2], np.append(tokens[1::2], IGNORE)
    before, is_repeated = last_of_key(keys)
    is_target = is_repeated & (keys < noise_from) & (values[before] == values)
    is_target[-1] = is_repeated[-1]
    targets[::2] = np.where(is_target, values[before], IGNORE)
    return targets


def last_of_key(keys: Symbols) -> tuple[Symbols, Bool[np.ndarray, " pairs"]]:
    """For each pair the last earlier one of the same key, and whether there is any."""
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    before, is_repeated = np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
    before[order[1:]] = np.where(same, order[:-1], 0)
    is_repeated[order[1:]] = same
    return before, is_repeated


def fuzzy_pairs(tokens: Symbols, vocab_size: int) -> list[tuple[Motif, Motif]]:
    """The keys and values of a text in order; the value of the last key may be cut, or missing."""
    key_symbols = (vocab_size - 1) // 2
    symbols = (token for token in tokens.tolist() if token < vocab_size - 1)  # without padding
    runs = [tuple(run) for _, run in groupby(symbols, key=lambda symbol: symbol >= key_symbols)]
    values = [*runs[1::2], ()] if len(runs) % 2 else runs[1::2]
    return list(zip(runs[::2], values, strict=True))


def fuzzy_targets(tokens: Symbols, vocab_size: int) -> Symbols:
    """Padding, then keys and values of several symbols each: the value's symbols of every key that was there
    before; the last value lacks its last symbol, which is a target all the same.

    Without a target where the last key is new.
    """
    pairs = fuzzy_pairs(tokens, vocab_size)
    targets = np.full(len(tokens), IGNORE, np.int64)
    position = len(tokens) - sum(len(key) + len(value) for key, value in pairs)
    known: dict[Motif, Motif] = {}
    for key, value in pairs:
        position += len(key)
        if answer := known.get(key):
            targets[position - 1 : position - 1 + len(answer)] = answer
        known.setdefault(key, value)
        position += len(value)
    return targets


def fuzzy_evidence(tokens: Symbols, vocab_size: int) -> Symbols:
    """For each target of `fuzzy_targets`, the position of its symbol where the key had this value last."""
    pairs = fuzzy_pairs(tokens, vocab_size)
    position = len(tokens) - sum(len(key) + len(value) for key, value in pairs)
    known: dict[Motif, Motif] = {}
    last_start: dict[Motif, int] = {}
    evidence: list[int] = []
    for key, value in pairs:
        position += len(key)
        if key in known:
            evidence += range(last_start[key], last_start[key] + len(known[key]))
        if known.setdefault(key, value) == value:
            last_start[key] = position
        position += len(value)
    return np.array(evidence, np.int64)


def index_in_value(targets: Symbols) -> Symbols:
    """Of each target of `fuzzy_targets`, which symbol of its value it is, from the positions of all targets:
    those of a value are neighbours, and a key lies between any two values."""
    is_first = np.diff(targets, prepend=-2) != 1
    index = np.arange(len(targets))
    return index - np.maximum.accumulate(np.where(is_first, index, 0))


def memorization_targets(tokens: Symbols, values: Int64[np.ndarray, " keys"]) -> Symbols:
    """k INS k INS …: at every INS the value of the key before it, from the table of all texts."""
    targets = np.full(len(tokens), IGNORE, np.int64)
    targets[1::2] = values[tokens[0:-1:2]]
    return targets


def compression_targets(tokens: Symbols) -> Symbols:
    """x1 … x(n-1) C, and C again n-1 times, where the symbols are targets in their order."""
    length = (len(tokens) + 1) // 2
    targets = np.full(len(tokens), IGNORE, np.int64)
    targets[length:] = tokens[: length - 1]
    return targets


def copying_targets(tokens: Symbols, blank: int, count: int) -> Symbols:
    """Symbols among blanks, COPY, and `count` blanks, at which the symbols are the targets."""
    targets = np.full(len(tokens), IGNORE, np.int64)
    text = tokens[: len(tokens) - count - 1]
    targets[len(tokens) - count :] = text[text != blank]
    return targets


def values_so_far(tokens: Symbols, value_symbols: Symbols) -> tuple[Symbols, Symbols]:
    """At each position the value symbol seen most often up to it, and the last one; -1 before any."""
    is_value = tokens[:, None] == value_symbols
    counts = is_value.cumsum(0)
    commonest = np.where(counts.any(1), value_symbols[counts.argmax(1)], -1)
    last = np.maximum.accumulate(np.where(is_value.any(1), np.arange(len(tokens)), -1))
    return commonest, np.where(last >= 0, tokens[last], -1)


def draw_pairs(
    rng: np.random.Generator,
    pairs: int,
    num_keys: int,
    num_values: int,
    different_keys: int,
    noise: float,
    rewrite: float,
) -> Symbols:
    """Keys and values, pairs of noise among them, and a last key, each that was there before as likely."""
    keys = rng.permutation(num_keys)[:different_keys][rng.integers(different_keys, size=pairs)]
    is_noise = rng.random(pairs) < noise
    is_noise[-1] = False
    if is_noise[:-1].all():  # a key at least
        is_noise[rng.integers(pairs - 1)] = False
    keys[-1] = rng.choice(np.unique(keys[:-1][~is_noise[:-1]]))
    steps = np.where(rng.random(pairs) < rewrite, rng.integers(1, num_values, size=pairs), 0)
    steps[is_noise] = steps[-1] = 0
    # a key's values go on from a random one by its steps; those of other keys, before it in `order`, shift
    # all of them alike
    order = np.argsort(keys, kind="stable")
    shifts = np.empty_like(steps)
    shifts[order] = steps[order].cumsum()
    values = (rng.integers(num_values, size=num_keys)[keys] + shifts) % num_values
    noise_symbols = num_keys + num_values + rng.integers(NOISE_SYMBOLS, size=(pairs, 2))
    symbols = np.stack([keys, num_keys + values], axis=1)
    return np.where(is_noise[:, None], noise_symbols, symbols).ravel()[:-1]


def draw_fuzzy(
    rng: np.random.Generator, length: int, num_keys: int, num_contents: int, exact_keys: bool
) -> Symbols:
    """Padding, keys and values, and at the end the value of a key that was there before, without its last
    symbol; keys of three symbols, or of one to three, as in the suite's texts to train on."""

    most = length // 2  # pairs of a key and a value of one symbol each
    key_sizes, value_sizes = rng.integers(1, KEY_SIZE + 1, size=(2, most)).tolist()
    keys = draw_motifs(rng, 0, num_keys, [KEY_SIZE] * most if exact_keys else key_sizes)
    new_values = draw_motifs(rng, num_keys, num_contents, value_sizes)
    values: dict[Motif, Motif] = {}
    line: list[int] = []
    for key, new_value in zip(keys, new_values, strict=True):
        value = values.get(key, new_value)
        if len(line) + len(key) + len(value) > length + 1 - 2 * KEY_SIZE:
            break
        values[key] = value
        line += key + value
    last = list(values)[rng.integers(len(values))]
    line += last + values[last]
    padding = [num_contents] * (length + 1 - len(line))
    return np.array([*padding, *line[:-1]], np.int64)


def draw_motifs(rng: np.random.Generator, first: int, stop: int, sizes: list[int]) -> list[Motif]:
    """Of each size different symbols `first` to `stop` - 1."""
    symbols = rng.permuted(np.tile(np.arange(first, stop), (len(sizes), 1)), axis=1)[:, :KEY_SIZE].tolist()
    return [tuple(of[:size]) for of, size in zip(symbols, sizes, strict=True)]
