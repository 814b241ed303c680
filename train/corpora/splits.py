"""Rules that assign texts to train, val or test, and checks of published corpora.

A rule takes the gathered texts and returns the spans of every split; texts that fit none are left out.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from zoo.errors import UserError
from zoo.train.corpora.documents import Gathered, count_words, digest
from zoo.train.corpora.split_names import HELD_OUT, announced_splits, unused_names

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "test": "test"}  # in the table beside stacks.tar.xz
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")

SplitSpans = dict[str, list[tuple[int, int]]]  # split -> (first byte, bytes) of its documents, in order


def announced(texts: Gathered) -> SplitSpans:
    """By the names of folders and files, of a corpus that is known to have splits."""
    split_of = announced_splits(texts.names, complete=False)
    return ordered(texts, ["test" if split == HELD_OUT else split for split in split_of])


def announced_or_by_hash(texts: Gathered) -> SplitSpans:
    """A user's data: their split if a train and a held-out part are named side by side, otherwise by hash.

    A held-out part that is the only one, and isn't named val, is val and test.
    """
    split_of = announced_splits(texts.names)
    if not any(split_of):
        return by_hash(texts)
    held_out = "val" if "test" in split_of and "val" not in split_of else "test"
    spans = ordered(texts, [held_out if split == HELD_OUT else split for split in split_of])
    return spans if "val" in spans else spans | {"val": spans["test"]}


def remark(texts: Gathered, spans: SplitSpans) -> str:
    """What a user has to know of how their data were split, "" where nothing is unusual."""
    if any(announced_splits(texts.names)):
        return "val is the test split, the only held-out one" if spans["val"] == spans.get("test") else ""
    unused = unused_names(texts.names) if len(texts.names) > 1 else []
    if not unused:
        return ""
    more = f" and {len(unused) - 1:,} more" if len(unused) > 1 else ""
    return f"split by hash, not by names ({unused[0]}{more}): no train and held-out part stand side by side"


def by_hash(texts: Gathered) -> SplitSpans:
    """90/5/5 by the hash of each text's name; one text alone is cut 90/5/5 along its length.

    Of two texts or more at least one is for train and one for val.
    """
    if len(texts.names) == 1:
        return _cut_single(texts)
    hashes = [uniform(name) for name in texts.names]
    split_of = ["val" if value < 0.05 else "test" if value < 0.1 else "train" for value in hashes]
    by_value = sorted(range(len(hashes)), key=lambda document: (hashes[document], document))
    if "val" not in split_of:
        split_of[by_value[0]] = "val"
    if "train" not in split_of:
        split_of[by_value[-1]] = "train"
    return ordered(texts, split_of)


def _cut_single(texts: Gathered) -> SplitSpans:
    start, length = texts.spans[0]
    if length < len(SPLITS):
        raise UserError(
            f"{texts.names[0]} has {length} bytes: expected at least {len(SPLITS)}, one for each split"
        )
    held_out = max(1, length // 20)
    val, test = length - 2 * held_out, length - held_out
    return {
        "train": [(start, val)],
        "val": [(start + val, held_out)],
        "test": [(start + test, held_out)],
    }


def ordered(texts: Gathered, split_of: Sequence[str | None]) -> SplitSpans:
    """Train as gathered; val and test by the hash of names, so that any prefix of them is a fair sample."""
    spans: SplitSpans = {}
    for split in SPLITS:
        documents = [document for document in range(len(split_of)) if split_of[document] == split]
        if split != "train":
            documents.sort(key=lambda document: (uniform(texts.names[document]), document))
        if documents:
            spans[split] = [texts.spans[document] for document in documents]
    return spans


def uniform(name: str) -> float:
    """A hash of a name, as a number in [0, 1), the same on every machine."""
    return int(digest(name.encode("utf-8", "surrogatepass")), 16) / 2**64


# -- published corpora ---------------------------------------------------------------------------------------


class Enwik8(NamedTuple):
    size: int = 100_000_000
    md5: str = "a1fa5ffddb56f4953e226637dabbb36a"
    train: int = 90_000_000
    val: int = 5_000_000
    # lucidrains' copy without test has no published md5: its first bytes are checked instead.
    head: int = 4_154_064
    head_md5: str = "caa8f32ee38f60417a622579d80ca54c"


ENWIK8 = Enwik8()
# Tokens, with one <eos> a line (arXiv:1609.07843, table 1): copies differ in white space, never in these.
WIKITEXT = {
    "wikitext-2": {"train": 2_088_628, "val": 217_646, "test": 245_569},
    "wikitext-103": {"train": 103_227_021, "val": 217_646, "test": 245_569},
}
PG19 = {"train": 28_602, "val": 50, "test": 100}  # books (google-deepmind/pg19)


def enwik8(texts: Gathered) -> SplitSpans:
    """The first 90 MB, the next 5, the last 5 (which lucidrains' copy lacks)."""
    start, length = texts.spans[0]
    held_out = ENWIK8.train + ENWIK8.val
    spans = {"train": [(start, ENWIK8.train)], "val": [(start + ENWIK8.train, ENWIK8.val)]}
    if length > held_out:
        spans["test"] = [(start + held_out, length - held_out)]
    return spans


def check_enwik8(text: UInt8[np.ndarray, " bytes"], split_spans: SplitSpans) -> None:
    """Raises UserError unless these are the 100 MB by md5, or the first 95 MB by size and beginning."""
    without_test = ENWIK8.train + ENWIK8.val
    if len(text) not in (ENWIK8.size, without_test):
        raise UserError(
            f"this is not enwik8: expected {ENWIK8.size:,} bytes (or their first {without_test:,}), "
            f"found {len(text):,}"
        )
    complete = len(text) == ENWIK8.size
    size, expected = (ENWIK8.size, ENWIK8.md5) if complete else (ENWIK8.head, ENWIK8.head_md5)
    md5 = hashlib.md5(text[:size].data, usedforsecurity=False).hexdigest()
    if md5 != expected:
        raise UserError(
            f"this is not enwik8: expected md5 {expected} of the first {size:,} bytes, found {md5}"
        )


def check_wikitext(name: str, text: UInt8[np.ndarray, " bytes"], split_spans: SplitSpans) -> None:
    """Raises UserError unless every existing split has the published number of tokens."""
    for split, spans in split_spans.items():
        tokens = sum(count_tokens(text[start : start + length]) for start, length in spans)
        expected = WIKITEXT[name][split]
        if tokens != expected:
            raise UserError(f"this is not {name}: expected {expected:,} tokens in {split}, found {tokens:,}")


def count_tokens(text: UInt8[np.ndarray, " bytes"], chunk_size: int = 1 << 24) -> int:
    """Words between white space, and line ends."""
    return sum(count_words(text[i : i + chunk_size] for i in range(0, len(text), chunk_size)))


def check_pg19(text: UInt8[np.ndarray, " bytes"], split_spans: SplitSpans) -> None:
    """Raises UserError unless val and test, where scores are measured, are complete; train may be a part."""
    for split in ("val", "test"):
        books = len(split_spans.get(split, []))
        if books != PG19[split]:
            raise UserError(f"this is not PG-19: expected {PG19[split]} books in {split}, found {books}")
