"""The splits that names of folders and files announce: train/a.txt, my_valid.jsonl, wiki.test.tokens,
train-00000-of-00003.txt, data/held-out.txt.

Names announce a split where a train and a held-out part stand side by side and are called alike but for that
word: how_to_train.txt and the_test.txt are not parts of one split.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

HELD_OUT = "held out"  # val or test, whichever there isn't
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("heldout", "holdout"), HELD_OUT),
}
ENDINGS = frozenset(
    ("txt", "text", "tokens", "raw", "jsonl", "json", "ndjson", "gz", "xz", "tar", "tgz", "zip")
)
SOURCE_CODE = frozenset(
    (
        *(".py", ".pyi", ".ipynb", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts", ".go"),
        *(".rs", ".rb", ".sh", ".m", ".jl", ".lua", ".lean", ".v", ".hs", ".php"),
    )
)
"""Endings of files whose names announce nothing: train.py and test.py are programs."""

PathParts = tuple[str, ...]
Words = tuple[str, ...]


def announced_splits(names: Sequence[str], complete: bool = True) -> list[str | None]:
    """The split of every text, by the outermost folder or file of its path that stands beside other parts of
    a split; None for texts that lie elsewhere.

    Unless `complete`, a part of a split may stand alone.
    """
    paths = [path_parts(name) for name in names]
    siblings: dict[PathParts, set[PathParts]] = defaultdict(set)
    for path in dict.fromkeys(paths):
        for depth in range(len(path)):
            siblings[path[:depth]].add(path[: depth + 1])
    files = set(paths)
    announcing = {
        folder
        for folder, children in siblings.items()
        if _is_split([split_and_words(child[-1], child in files) for child in children], complete)
    }

    def split_of(path: PathParts) -> str | None:
        depth = next((depth for depth in range(len(path)) if path[:depth] in announcing), None)
        if depth is None:
            return None
        return split_and_words(path[depth], depth == len(path) - 1)[0]

    return [split_of(path) for path in paths]


def _is_split(children: list[tuple[str | None, Words]], complete: bool) -> bool:
    splits_of_words: dict[Words, set[str]] = defaultdict(set)
    for split, words in children:
        if split is not None:
            splits_of_words[words].add(split)
    if not complete:
        return bool(splits_of_words)
    return any("train" in splits and len(splits) > 1 for splits in splits_of_words.values())


def unused_names(names: Sequence[str]) -> list[str]:
    """Texts with the word of a split in their path."""
    return [
        name
        for name in names
        for path in [path_parts(name)]
        if any(split_and_words(part, depth == len(path) - 1)[0] for depth, part in enumerate(path))
    ]


def path_parts(name: str) -> PathParts:
    """The folders and the file in a text's name, without the hash that names a row."""
    return tuple(re.sub(r"#[0-9a-f]{16}$", "", name).split("/"))


@lru_cache(maxsize=1 << 16)
def split_and_words(part: str, is_file: bool) -> tuple[str | None, Words]:
    """The split that the name of a folder or file announces, None for words of none or of several, and its
    other words, without numbers, hashes and endings."""
    if is_file and os.path.splitext(part)[1].lower() in SOURCE_CODE:
        return None, ()
    part = unicodedata.normalize("NFC", part)
    text = re.sub(r"([a-z])([A-Z])", r"\1 \2", part).lower()
    tokens = re.findall(r"[^\W_]+", re.sub(r"\bh[eo]ld[-_ .]out\b", "heldout", text.replace("_", " ")))
    words = [
        token.rstrip("0123456789") for token in tokens if not re.fullmatch(r"[0-9a-f]*\d[0-9a-f]*", token)
    ]
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    others = tuple(word for word in words if word not in SPLIT_WORDS and word not in ENDINGS)
    return (splits.pop() if len(splits) == 1 else None), others
