"""The splits of a corpus in words."""

from zoo.train.corpora.catalog import Corpus
from zoo.train.corpora.splits import SPLITS


def sizes(corpus: Corpus) -> dict[str, int]:
    """The bytes of every split."""
    return {split: int(documents.lengths.sum()) for split, documents in corpus.parts.items()}


def describe(corpus: Corpus) -> str:
    """What a run on a text of the user's own reads, in a line: texts and bytes of every split, and what is
    left out; "" of stdlib, and of a published corpus of which all is read."""
    if not corpus.is_own and (corpus.name == "stdlib" or not corpus.left_out):
        return ""
    of = sizes(corpus)
    if corpus.is_single:
        shares = f"one text: {', '.join(f'{split} {size:,}' for split, size in of.items())} bytes"
    else:
        parts = (f"{split} {len(corpus.parts[split]):,} ({of[split]:,} bytes)" for split in of)
        shares = f"texts: {', '.join([*parts, *(f'{split} 0' for split in SPLITS if split not in of)])}"
    return f"corpus {corpus.name}, {shares}" + (f"; left out: {corpus.left_out}" if corpus.left_out else "")


def describe_part(corpus: Corpus, split: str) -> str:
    """Which part of a single text a split is, and which the others are; "" of other corpora."""
    if not corpus.is_single:
        return ""
    of = sizes(corpus)
    parts = {
        "train": f"the first {of['train']:,}",
        "val": f"the {of['val']:,} before the last {of['test']:,}",
        "test": f"the last {of['test']:,}",
    }
    first, second = (f"split={name} is {part}" for name, part in parts.items() if name != split)
    total = f"{sum(of.values()):,} bytes"
    return f"{corpus.name}: {split} split, {parts[split]} of {total}; {first}, {second}"
