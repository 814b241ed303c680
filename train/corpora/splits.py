"""Which text falls into train, val or test, and whether a corpus is what its name says.

A rule takes what was gathered and gives the pieces of every split.  What fits none of them is left out.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from zoo.errors import UserError
from zoo.train.corpora.documents import Gathered, count_words, digest

SPLITS = ("train", "val", "test")
CALLED = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}

Pieces = dict[str, list[tuple[int, int]]]  # split -> (first byte, bytes) of its documents, in their order


def announced(found: Gathered) -> Pieces:
    """By the folder or file that a text is in: train/a.txt, my_valid.jsonl, wiki.test.tokens."""
    parts = [name.split("#")[0].split("/") for name in found.names]
    depth = 0  # past the folders that all of them share, such as an archive's name
    while all(len(part) > depth + 1 for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    return ordered(found, [_called(part[depth]) for part in parts])


def _called(part: str) -> str | None:
    words = (re.split("[-_]", word)[-1] for word in part.lower().split(".")[:2])
    return next((CALLED[word] for word in words if word in CALLED), None)


def announced_or_by_hash(found: Gathered) -> Pieces:
    """The user's own data: their split where there is a train and a val, otherwise ours.

    A `test` alone announces nothing: folders of source code have one.
    """
    pieces = announced(found)
    return pieces if {"train", "val"} <= pieces.keys() else by_hash(found)


def by_hash(found: Gathered) -> Pieces:
    """90/5/5 by the hash of each text's name; one text alone is cut 90/5/5 along its length.

    Two texts or more give at least one to train and one to val, whatever their hashes.
    """
    if len(found.names) == 1:
        return _alone(found)
    where = [uniform(name) for name in found.names]
    split_of = ["val" if at < 0.05 else "test" if at < 0.1 else "train" for at in where]
    by_place = sorted(range(len(where)), key=lambda document: (where[document], document))
    if "val" not in split_of:
        split_of[by_place[0]] = "val"
    if "train" not in split_of:
        split_of[by_place[-1]] = "train"
    return ordered(found, split_of)


def _alone(found: Gathered) -> Pieces:
    start, length = found.spans[0]
    if length < len(SPLITS):
        raise UserError(
            f"{found.names[0]} has {length} bytes: expected at least {len(SPLITS)}, one for each split"
        )
    held_out = max(1, length // 20)
    first, second = length - 2 * held_out, length - held_out
    return {
        "train": [(start, first)],
        "val": [(start + first, held_out)],
        "test": [(start + second, held_out)],
    }


def ordered(found: Gathered, split_of: Sequence[str | None]) -> Pieces:
    """Train as gathered; val and test by the hash of names, so that any prefix of them is a fair sample."""
    pieces: Pieces = {}
    for split in SPLITS:
        documents: Iterable[int] = (document for document, own in enumerate(split_of) if own == split)
        if split != "train":
            documents = sorted(documents, key=lambda document: (uniform(found.names[document]), document))
        if spans := [found.spans[document] for document in documents]:
            pieces[split] = spans
    return pieces


def uniform(name: str) -> float:
    """A number in [0, 1) that stands for a name, the same on every machine."""
    return int(digest(name.encode("utf-8", "surrogatepass")), 16) / 2**64


# -- what published corpora must be --------------------------------------------------------------------------


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


def enwik8(found: Gathered) -> Pieces:
    """The first 90 MB, the next 5, the last 5 (which lucidrains' copy lacks)."""
    start, length = found.spans[0]
    held_out = ENWIK8.train + ENWIK8.val
    pieces = {"train": [(start, ENWIK8.train)], "val": [(start + ENWIK8.train, ENWIK8.val)]}
    return pieces if length == held_out else pieces | {"test": [(start + held_out, length - held_out)]}


def check_enwik8(text: UInt8[np.ndarray, " bytes"], pieces: Pieces) -> None:
    """UserError unless these are the 100 MB by their md5, or the first 95 MB by size and beginning."""
    whole, cut = ENWIK8.size, ENWIK8.train + ENWIK8.val
    if len(text) not in (whole, cut):
        raise UserError(
            f"this is not enwik8: expected {whole:,} bytes (or their first {cut:,}), found {len(text):,}"
        )
    first, expected = (whole, ENWIK8.md5) if len(text) == whole else (ENWIK8.head, ENWIK8.head_md5)
    found = hashlib.md5(text[:first].data, usedforsecurity=False).hexdigest()
    if found != expected:
        raise UserError(
            f"this is not enwik8: expected md5 {expected} of the first {first:,} bytes, found {found}"
        )


def check_wikitext(name: str, text: UInt8[np.ndarray, " bytes"], pieces: Pieces) -> None:
    """UserError unless every split that is there has the published number of tokens."""
    for split, spans in pieces.items():
        tokens = sum(count_tokens(text[start : start + length]) for start, length in spans)
        expected = WIKITEXT[name][split]
        if tokens != expected:
            raise UserError(f"this is not {name}: expected {expected:,} tokens in {split}, found {tokens:,}")


def count_tokens(text: UInt8[np.ndarray, " bytes"], chunk_size: int = 1 << 24) -> int:
    """Words between white space, and line ends."""
    return sum(count_words(text[i : i + chunk_size] for i in range(0, len(text), chunk_size)))


def check_pg19(text: UInt8[np.ndarray, " bytes"], pieces: Pieces) -> None:
    """UserError unless val and test, which numbers are read from, are whole; train may be a part."""
    for split in ("val", "test"):
        found = len(pieces.get(split, []))
        if found != PG19[split]:
            raise UserError(f"this is not PG-19: expected {PG19[split]} books in {split}, found {found}")
