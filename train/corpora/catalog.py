"""Corpora: named ones, and whatever text a user has, cut into train, val and test documents.

How texts fall into splits, whatever they come from (files in a folder, rows of a .jsonl, members of an
archive):

* folders or files called train and val (valid, validation, dev), perhaps test: those, the rest is left out;
* otherwise by a hash of the text's relative name, 90/5/5: stable, and independent of what else is there;
* one text alone is a single long document, cut 90/5/5 from its beginning to its end.

The documents of train stand in order of name (rows and members as they lie); those of val and test in the
order of that hash, so that any prefix of them is a fair sample.
"""

import json
import platform
import sysconfig
from collections.abc import Callable, Sequence
from functools import partial
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from zoo.errors import UserError, nearest
from zoo.train.corpora.cache import cached, key_of
from zoo.train.corpora.documents import READABLE, Documents, Gathered, Source, digest, files_below, gather
from zoo.train.corpora.splits import (
    CALLED,
    ENWIK8,
    PG19,
    SPLITS,
    WIKITEXT,
    Pieces,
    announced,
    announced_or_by_hash,
    by_hash,
    check_enwik8,
    check_pg19,
    check_wikitext,
    enwik8,
    ordered,
)

# name -> where it may lie under the root, the first that is there is taken; {} stands for train, valid, test.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "wikilong": ("wikilong",),
    "books": ("books", "books.tar.xz"),
    "stacks": ("stacks.tar.xz",),
    "wikitext-2": (
        "wikitext-2/wiki.{}.tokens",
        "wikitext-2/{}.txt",
        "wikitext-2-v1.zip",
        "wikitext/wt2.{}.txt.xz",
    ),
    "wikitext-103": (
        "wikitext-103/wiki.{}.tokens",
        "wikitext-103/{}.txt",
        "wikitext-103-v1.zip",
        "wikitext/wt103.{}.txt.xz",
    ),
    "enwik8": ("enwik8", "enwik8/enwik8", "enwik8.gz", "enwik8/enwik8.gz", "enwik8.xz", "enwik8.zip"),
    "pg19": ("pg19", "pg-19", "PG-19"),
}
UNITS = {"stdlib": "files", "wikilong": "articles", "books": "books", "stacks": "files", "pg19": "books"}

Check = Callable[[UInt8[np.ndarray, " bytes"], Pieces], None]  # raises UserError


class Corpus:
    """Documents in splits; `note` is one line that says what was found."""

    def __init__(self, name: str, note: str, parts: dict[str, Documents]) -> None:
        self.name, self.note, self.parts = name, note, parts

    def split(self, name: str) -> Documents:
        """The documents of train, val or test; UserError where there are none."""
        if name not in self.parts:
            raise UserError(f"corpus {self.name} has no split {name!r}: found {', '.join(self.parts)}")
        return self.parts[name]


def open_corpus(name: str, root: str | Path) -> Corpus:
    """A corpus by its name (`stdlib`, or one that lies under `root`) or by the path of a folder or file.

    UserError: nothing of that name, nothing readable in it, or not what its name promises.
    """
    if name == "stdlib":
        return _open(name, _stdlib(), by_hash, f"stdlib of Python {platform.python_version()}")
    if name in LAYOUTS:
        return _open_named(name, Path(root))
    path = Path(name).expanduser()
    if not name or not (path.is_dir() or path.is_file()):
        raise UserError(
            f"no corpus {name!r}: expected a folder, a file or one of stdlib, {', '.join(LAYOUTS)}"
            f" ({_present(Path(root))}){nearest(name, ['stdlib', *LAYOUTS])}"
        )
    sources = files_below(path) if path.is_dir() else [Source(path.name, path)]
    if not sources:
        raise UserError(f"no files in the folder {path}: expected {READABLE}")
    return _open(path.resolve().name, sources, announced_or_by_hash, where=str(path))


def _open_named(name: str, root: Path) -> Corpus:
    sources = _lying(name, root)
    if not sources:
        wanted = " or ".join(layout.replace("{}", "{train,valid,test}") for layout in LAYOUTS[name])
        raise UserError(f"corpus {name} not found: expected {wanted} under {root} ({_present(root)})")
    if name == "enwik8":
        return _open(name, sources, enwik8, check=check_enwik8)
    if name == "stacks":
        return _open_stacks(sources, root / "stacks_split.json")
    check = check_pg19 if name == "pg19" else partial(check_wikitext, name) if name in WIKITEXT else None
    return _open(name, sources, announced, check=check)


def _open_stacks(sources: list[Source], table: Path) -> Corpus:
    """A table beside the archive says which file stands in which split."""
    try:
        content = table.read_bytes()
        split_of = {file: CALLED[split] for split, files in json.loads(content).items() for file in files}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise UserError(
            f"expected {table} to map train, val and test to names of files: {problem!r}"
        ) from problem

    def by_table(found: Gathered) -> Pieces:
        return ordered(found, [split_of.get(name.rsplit("/", 1)[-1]) for name in found.names])

    return _open("stacks", sources, by_table, rule=f"by_table {digest(content)}")


def _lying(name: str, root: Path) -> list[Source]:
    """The sources of a named corpus under the root, none if it isn't there."""
    for layout in LAYOUTS[name]:
        if "{}" in layout:
            paths = {split: root / layout.format(split) for split in ("train", "valid", "test")}
            found = [Source(split + p.suffix, p) for split, p in paths.items() if p.is_file()]
        else:
            path = root / layout
            found = files_below(path) if path.is_dir() and name != "enwik8" else []
            found = [Source(path.name, path)] if path.is_file() else found
        if found:
            return found
    return []


def _present(root: Path) -> str:
    there = [name for name in LAYOUTS if _lying(name, root)]
    return f"under {root}: {', '.join(there) or 'none of them'}"


def _stdlib() -> list[Source]:
    """The interpreter's own library, without what isn't it.

    Test suites are left out: they are more than half of the bytes, much of it tables and deliberately broken
    input, and many systems don't install them: without them the corpus differs least between machines.
    `_sysconfigdata*` describes the machine that Python was built on.
    """
    home = Path(sysconfig.get_path("stdlib"))
    others = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    sources = [
        source
        for source in files_below(home, without=others)
        if source.name.endswith(".py") and not source.name.startswith("_sysconfigdata")
    ]
    if not sources:
        raise UserError(f"no .py sources of the standard library in {home}: name another data.corpus")
    return sources


def _open(
    name: str,
    sources: Sequence[Source],
    cut: Callable[[Gathered], Pieces],
    title: str | None = None,
    check: Check | None = None,
    rule: str | None = None,
    where: str | None = None,
) -> Corpus:
    """`cut` says which bytes are whose; `check` refuses what isn't what its name says, before it is kept."""

    def build(out: BufferedWriter) -> dict[str, Any]:
        found = gather(sources, out)
        if not found.names:
            raise UserError(
                f"no text in {where or name}: expected {READABLE}; "
                f"found {_many(found.binary, 'binary file')} and {_many(found.empty, 'empty file')}"
            )
        pieces = cut(found)
        if check is not None:
            out.flush()
            check(np.memmap(out.name, np.uint8, "r").view(np.ndarray), pieces)
        out.write(bytes(-out.tell() % 8))
        spans = [span for split in SPLITS for span in pieces.get(split, [])]
        out.write(np.array(spans, np.int64).tobytes())
        counts = {split: len(pieces.get(split, [])) for split in SPLITS}
        outside = len(found.names) - sum(counts.values()) if len(found.names) > 1 else 0
        passed = {"binary": found.binary, "empty": found.empty, "outside the splits": outside}
        return {"counts": counts, "passed": passed, "alone": len(found.names) == 1}

    path, index = cached(key_of(rule or cut.__name__, sources), build)
    counts = index["counts"]
    total = sum(counts.values())
    spans = np.fromfile(path, np.int64, 2 * total, offset=index["size"] - 16 * total).reshape(total, 2)
    cuts = np.cumsum([counts[split] for split in SPLITS])[:-1]
    parts = {
        split: Documents(path, own)
        for split, own in zip(SPLITS, np.split(spans, cuts), strict=True)
        if len(own)
    }
    return Corpus(name, _note(name, title or name, index, parts), parts)


def _note(name: str, title: str, index: dict[str, Any], parts: dict[str, Documents]) -> str:
    nbytes = {split: int(documents.lengths.sum()) for split, documents in parts.items()}
    size = sum(nbytes.values())
    if name == "enwik8" and "test" in parts:
        return f"enwik8 ({size:,} bytes, md5 {ENWIK8.md5})"
    if name == "enwik8":
        return f"enwik8, its first {size:,} bytes only: train and val, no test"
    if index["alone"] or all(len(documents) == 1 for documents in parts.values()):
        shares = " / ".join(f"{count:,} {split}" for split, count in nbytes.items())
        note = f"{title}: {shares} bytes" + (" of one text" if index["alone"] else "")
    else:
        shares = " / ".join(f"{len(documents):,} {split}" for split, documents in parts.items())
        note = f"{title}: {shares} {UNITS.get(name, 'documents')} ({size:,} bytes)"
    if name == "pg19" and len(parts.get("train", ())) != PG19["train"]:
        note += f", the release has {PG19['train']:,} train"
    passed = [f"{count:,} {kind}" for kind, count in index["passed"].items() if count]
    return note + (f"; left out: {', '.join(passed)}" if passed else "")


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}" + ("" if count == 1 else "s")
