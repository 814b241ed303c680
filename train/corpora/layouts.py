"""Published corpora: in which layouts they may lie below data.root, and which of them do."""

from collections.abc import Sequence
from pathlib import Path

from zoo.train.corpora.documents import Source, files_below

# name -> paths under the root, of which the first existing one is read; {} is train, valid, test.
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
PARTS = ("train", "valid", "test")


def layouts(name: str) -> str:
    """The layouts in which a named corpus may lie below the root, in words."""
    return " or ".join(layout.replace("{}", "{train,valid,test}") for layout in LAYOUTS[name])


def layout_of(name: str, root: Path) -> str:
    """The layout in which a named corpus lies below the root, with those parts that are there; "" if it
    doesn't."""
    layout, sources = find_named(name, root)
    parts = parts_of(sources)
    return layout.replace("{}", parts[0] if len(parts) == 1 else f"{{{','.join(parts)}}}")


def parts_of(sources: Sequence[Source]) -> list[str]:
    """The parts that the files of a layout with `{}` stand for: train, valid, test."""
    return [source.name.partition(".")[0] for source in sources]


def existing_corpora(root: Path) -> list[str]:
    """The named corpora below the root; of those that lie in three files, which are missing."""
    names = []
    for name in LAYOUTS:
        layout, sources = find_named(name, root)
        missing = [part for part in PARTS if part not in parts_of(sources)] if "{}" in layout else []
        if sources:
            names.append(f"{name} (without {', '.join(missing)})" if missing else name)
    return names


def find_named(name: str, root: Path) -> tuple[str, list[Source]]:
    """The layout of a named corpus under the root, and its sources; "" and none if it isn't there."""
    for layout in LAYOUTS[name]:
        path = root / layout
        if "{}" in layout:
            paths = {split: root / layout.format(split) for split in PARTS}
            sources = [Source(split + p.suffix, p) for split, p in paths.items() if p.is_file()]
        elif path.is_dir() and name != "enwik8":
            sources = files_below(path)
        else:
            sources = [Source(path.name, path)] if path.is_file() else []
        if sources:
            return layout, sources
    return "", []


def existing_in_words(root: Path) -> str:
    return f"under {root}: {', '.join(existing_corpora(root)) or 'none of them'}"
