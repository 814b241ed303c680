"""What a path holds as a corpus: the documents of every split and what is left out, before a run reads it."""

import tempfile
from bisect import bisect_right
from pathlib import Path
from typing import Any

from zoo.train.corpora.catalog import find_sources
from zoo.train.corpora.documents import FIELD, gather
from zoo.train.corpora.left_out import LEFT_OUT_BECAUSE, refuse_empty
from zoo.train.corpora.splits import SPLITS, announced_or_by_hash, remark

BEGINNING = 40  # bytes


def contents(name: str, root: Path, field: str = FIELD) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """The documents of train, val and test, each as {name, bytes, begins}, and the texts left out, each as
    {name, why}; and a remark on the split.  `root` is where named corpora lie.

    UserError: as `open_corpus`.
    """
    sources = find_sources(name, root)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts")
        with path.open("wb") as out:
            texts = gather(sources, out, field)
        refuse_empty(texts, name)
        spans = announced_or_by_hash(texts)
        starts = [start for start, _ in texts.spans]
        listing: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        used = set()
        with path.open("rb") as file:
            for split, documents in spans.items():
                for start, length in documents:
                    document = bisect_right(starts, start) - 1
                    used.add(document)
                    file.seek(start)
                    begins = file.read(min(length, BEGINNING)).decode("utf-8", "replace")
                    listing[split].append({"name": texts.names[document], "bytes": length, "begins": begins})
    outside = [(name, "outside the splits") for i, name in enumerate(texts.names) if i not in used]
    left_out = [(name, LEFT_OUT_BECAUSE[reason]) for name, reason in texts.left_out] + outside
    listing["left_out"] = [{"name": name, "why": why} for name, why in left_out]
    return listing, remark(texts, spans)
