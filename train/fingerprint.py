"""A task's texts in 16 hexadecimal digits: runs on other data can't be taken for runs on the same."""

import hashlib

import numpy as np

from zoo.train.task import Split, Task, Texts

SPLITS: tuple[Split, ...] = ("train", "val")
STRETCHES, POSITIONS = 128, 256  # read per split, spread evenly: a corpus of gigabytes costs no more


def fingerprint(task: Task) -> str:
    """Stands for the length of every document of train and val, and for 128 stretches of each split."""
    total = hashlib.blake2b(digest_size=8)
    for split in SPLITS:
        texts = task.split(split)
        total.update(np.ascontiguousarray(texts.lengths, "<i8").tobytes())
        for document, start, stop in stretches(texts):
            for part in texts.window(document, start, stop):
                total.update(np.ascontiguousarray(part, "<i8").tobytes())
    return total.hexdigest()


def stretches(texts: Texts) -> list[tuple[int, int, int]]:
    """(document, start, stop) around evenly spread places of the split."""
    ends = np.cumsum(texts.lengths)
    found = []
    for place in np.linspace(0, int(ends[-1]) - 1, STRETCHES).astype(np.int64):
        document = int(np.searchsorted(ends, place, side="right"))
        length = int(texts.lengths[document])
        start = int(place - (ends[document] - length)) // POSITIONS * POSITIONS
        found.append((document, start, min(start + POSITIONS, length)))
    return list(dict.fromkeys(found))
