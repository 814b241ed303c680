"""Corpora: published ones by name, and any text of a user, cut into train, val and test documents.

Texts are files in a folder, rows of a .jsonl or members of an archive.  Their splits:

* where a train and a held-out part are named side by side (zoo.train.corpora.split_names): those, the rest is
  left out;
* otherwise by a hash of the text's relative name, 90/5/5: stable, and independent of all other texts;
* a single text is one long document, cut 90/5/5 from its beginning to its end.

The documents of train are in order of name (rows and members in that of the file); those of val and test in
the order of that hash, so that any prefix of them is a fair sample.
"""

import hashlib
import json
import platform
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from zoo.errors import UserError, nearest
from zoo.train.corpora.cache import cached, key_of
from zoo.train.corpora.documents import FIELD, Documents, Gathered, Source, digest, files_below, gather
from zoo.train.corpora.layouts import LAYOUTS, existing_in_words, find_named, layouts
from zoo.train.corpora.left_out import LEFT_OUT_BECAUSE, refuse_empty
from zoo.train.corpora.splits import (
    ENWIK8,
    PG19,
    SPLIT_NAMES,
    SPLITS,
    WIKITEXT,
    SplitSpans,
    announced,
    announced_or_by_hash,
    by_hash,
    check_enwik8,
    check_pg19,
    check_wikitext,
    enwik8,
    ordered,
    remark,
)
from zoo.train.corpora.unread import READABLE

UNITS = {"stdlib": "files", "wikilong": "articles", "books": "books", "stacks": "files", "pg19": "books"}

Check = Callable[[UInt8[np.ndarray, " bytes"], SplitSpans], None]  # raises UserError


class MissingSplitError(UserError):
    """A split that a corpus doesn't have; `existing` are those that it has."""

    def __init__(self, corpus: object, split: str, existing: list[str]) -> None:
        super().__init__(f"corpus {corpus} has no split {split!r}: found {', '.join(existing) or 'none'}")
        self.existing = existing


class Corpus:
    """Documents in splits; `note` is one line about their number and size, `digest` a hash of their bytes.

    `left_out` says in words which texts are no part of it, "" if all are, and `remark` what is unusual about
    the splits; `is_own` is true of a path of the user's, `is_single` of one with a single text, which is cut.
    """

    def __init__(
        self,
        name: str,
        note: str,
        parts: dict[str, Documents],
        digest: str,
        left_out: str,
        remark: str,
        is_own: bool,
        is_single: bool,
    ) -> None:
        self.name, self.note, self.parts, self.digest = name, note, parts, digest
        self.left_out, self.remark, self.is_own, self.is_single = left_out, remark, is_own, is_single

    def split(self, name: str) -> Documents:
        """The documents of train, val or test.  Raises MissingSplitError if there are none."""
        if name not in self.parts:
            raise MissingSplitError(self.name, name, list(self.parts))
        return self.parts[name]


def open_corpus(name: str, root: str | Path, field: str = FIELD) -> Corpus:
    """A corpus by its name (`stdlib`, or one under `root`) or by the path of a folder or file, where a row's
    text is in `field`.

    Raises UserError if there is no such corpus, if nothing in it is readable, and if it isn't the published
    corpus of that name.
    """
    if name == "stdlib":
        return _open(name, stdlib_sources(), by_hash, f"stdlib of Python {platform.python_version()}")
    if name in LAYOUTS:
        return _open_named(name, Path(root))
    sources = find_sources(name, Path(root))
    title = Path(name).expanduser().resolve().name
    return _open(title, sources, announced_or_by_hash, where=name, field=field)


def require_corpus(name: str, root: str | Path) -> None:
    """Raises UserError, without reading any text, where `open_corpus` would find no corpus."""
    if name in LAYOUTS:
        _named_sources(name, Path(root))
    elif name != "stdlib":
        _own_path(name, Path(root))


def _own_path(name: str, root: Path) -> Path:
    path = Path(name).expanduser()
    if not name.strip() or not (path.is_dir() or path.is_file()):
        raise UserError(
            f"no corpus {name!r}: expected a folder, a file or one of stdlib, {', '.join(LAYOUTS)}"
            f" ({existing_in_words(root)}){nearest(name, ['stdlib', *LAYOUTS])}"
        )
    return path


def find_sources(name: str, root: Path) -> list[Source]:
    """The files at a user's path; UserError where there are none."""
    path = _own_path(name, root)
    sources = files_below(path) if path.is_dir() else [Source(path.name, path)]
    if not sources:
        raise UserError(f"no files in the folder {path}: expected {READABLE}")
    return sources


def _named_sources(name: str, root: Path) -> list[Source]:
    sources = find_named(name, root)[1]
    if not sources:
        existing = existing_in_words(root)
        raise UserError(f"corpus {name} not found: expected {layouts(name)} under {root} ({existing})")
    return sources


def _open_named(name: str, root: Path) -> Corpus:
    sources = _named_sources(name, root)
    if name == "enwik8":
        return _open(name, sources, enwik8, check=check_enwik8)
    if name == "stacks":
        return _open_stacks(sources, root / "stacks_split.json")
    if name == "pg19":
        return _open(name, sources, announced, check=check_pg19)
    if name in WIKITEXT:
        return _open(name, sources, announced, check=partial(check_wikitext, name))
    return _open(name, sources, announced)


def _open_stacks(sources: list[Source], table: Path) -> Corpus:
    """A table beside the archive maps splits to files."""
    try:
        content = table.read_bytes()
        split_of = {
            file: SPLIT_NAMES[split] for split, files in json.loads(content).items() for file in files
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"expected {table} to map train, val and test to names of files: {error!r}"
        ) from error

    def by_table(texts: Gathered) -> SplitSpans:
        return ordered(texts, [split_of.get(name.rsplit("/", 1)[-1]) for name in texts.names])

    return _open("stacks", sources, by_table, rule=f"by_table {digest(content)}")


def stdlib_sources() -> list[Source]:
    """The .py files of Python's standard library, without installed packages.

    Test suites are left out: they are more than half of the bytes, much of it tables and deliberately broken
    input, and many systems don't install them: without them the corpus differs least between machines.
    So are the character tables of `encodings`, a hundred near copies of one another that lie on both sides
    of the split and decide the held-out score, and `pydoc_data`, which is no source code.
    `_sysconfigdata*` describes the machine that Python was built on.
    """
    home = Path(sysconfig.get_path("stdlib"))
    excluded = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    excluded |= {"encodings", "pydoc_data"}
    sources = [
        source
        for source in files_below(home, without=excluded)
        if source.name.endswith(".py") and not source.name.startswith("_sysconfigdata")
    ]
    if not sources:
        raise UserError(f"no .py sources of the standard library in {home}: name another data.corpus")
    return sources


def _open(
    name: str,
    sources: Sequence[Source],
    cut: Callable[[Gathered], SplitSpans],
    title: str | None = None,
    check: Check | None = None,
    rule: str | None = None,
    where: str | None = None,
    field: str = FIELD,
) -> Corpus:
    """`cut` assigns bytes to splits; `check` refuses another corpus of this name, before it is cached."""

    def build(out: BufferedWriter) -> dict[str, Any]:
        texts = gather(sources, out, field)
        refuse_empty(texts, where or name)
        split_spans = cut(texts)
        if check is not None:
            out.flush()
            check(np.memmap(out.name, np.uint8, "r").view(np.ndarray), split_spans)
        index = _write_spans(out, texts, split_spans)
        return index | {"remark": remark(texts, split_spans) if cut is announced_or_by_hash else ""}

    rule = f"{rule or cut.__name__}{'' if field == FIELD else f' {field}'}"
    path, index = cached(key_of(rule, sources), build)
    counts = [index["counts"][split] for split in SPLITS]
    total = sum(counts)
    spans = np.fromfile(path, np.int64, 2 * total, offset=index["size"] - 16 * total).reshape(total, 2)
    spans_of = dict(zip(SPLITS, np.split(spans, np.cumsum(counts)[:-1]), strict=True))
    parts = {split: Documents(path, spans) for split, spans in spans_of.items() if len(spans)}
    skipped = [f"{count:,} {kind}" for kind, count in index["passed"].items() if count]
    return Corpus(
        name,
        _note(name, title or name, index, parts),
        parts,
        index["digest"],
        left_out=", ".join(skipped),
        remark=index["remark"],
        is_own=where is not None,
        is_single=where is not None and index["alone"],
    )


def _write_spans(out: BufferedWriter, texts: Gathered, split_spans: SplitSpans) -> dict[str, Any]:
    """Append the spans of all documents to their bytes; returns the index of the cached file."""
    out.write(bytes(-out.tell() % 8))
    spans = [span for split in SPLITS for span in split_spans.get(split, [])]
    out.write(np.array(spans, np.int64).tobytes())
    out.flush()
    content = np.memmap(out.name, np.uint8, "r").view(np.ndarray)
    counts = {split: len(split_spans.get(split, [])) for split in SPLITS}
    single = len(texts.names) == 1
    reasons = Counter(reason for _, reason in texts.left_out)
    outside = 0 if single else len(texts.names) - len(set(spans))
    skipped = {reason: reasons[reason] for reason in LEFT_OUT_BECAUSE} | {"outside the splits": outside}
    bytes_used = sum(length for _, length in set(spans))
    total = hashlib.blake2b(digest_size=8)
    for split in SPLITS:
        total.update(f"{split} ".encode())
        for start, length in split_spans.get(split, []):
            total.update(f"{length} ".encode())
            total.update(content[start : start + length].data)
    return {
        "counts": counts,
        "bytes": bytes_used,
        "passed": skipped,
        "alone": single,
        "digest": total.hexdigest(),
    }


def _note(name: str, title: str, index: dict[str, Any], parts: dict[str, Documents]) -> str:
    """One line about the number and size of the documents, and about what is left out."""
    sizes = {split: int(documents.lengths.sum()) for split, documents in parts.items()}
    size = index["bytes"]
    if name == "enwik8" and "test" in parts:
        return f"enwik8 ({size:,} bytes, md5 {ENWIK8.md5})"
    if name == "enwik8":
        return f"enwik8, its first {size:,} bytes only: train and val, no test"
    if index["alone"] or all(len(documents) == 1 for documents in parts.values()):
        shares = " / ".join(f"{count:,} {split}" for split, count in sizes.items())
        note = f"{title}: {shares} bytes" + (" of one text" if index["alone"] else "")
    else:
        shares = " / ".join(f"{len(documents):,} {split}" for split, documents in parts.items())
        note = f"{title}: {shares} {UNITS.get(name, 'documents')} ({size:,} bytes)"
    if name == "pg19" and len(parts.get("train", ())) != PG19["train"]:
        note += f", the release has {PG19['train']:,} train"
    skipped = [f"{count:,} {kind}" for kind, count in index["passed"].items() if count]
    note += f"; left out: {', '.join(skipped)}" if skipped else ""
    return note + (f"; {index['remark']}" if index["remark"] else "")
