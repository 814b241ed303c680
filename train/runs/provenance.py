"""Texts and classes in 16 hexadecimal digits: runs on other data, or of other code, are told apart."""

import hashlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

import zoo
from zoo.train.tasks.base import Dataset, Split, Task


def commit() -> str:
    """The checkout's commit, with a plus where files differ from it; "" where the zoo is no checkout."""
    house = Path(zoo.__file__).parent.parent

    def git(*words: str) -> str:
        return subprocess.run(
            ("git", *words), cwd=house, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != house:
            return ""
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


SPLITS: tuple[Split, ...] = ("train", "val")
STRETCHES, POSITIONS = 128, 256  # read per split, spread evenly: a corpus of gigabytes costs no more


def fingerprint(task: Task) -> str:
    """Stands for the length of every document of train and val, and for 128 stretches of each split."""
    total = hashlib.blake2b(digest_size=8)
    for split in SPLITS:
        dataset = task.split(split)
        total.update(np.ascontiguousarray(dataset.lengths, "<i8").tobytes())
        for document, start, stop in stretches(dataset):
            for part in dataset.window(document, start, stop):
                total.update(np.ascontiguousarray(part, "<i8").tobytes())
    return total.hexdigest()


def stretches(dataset: Dataset) -> list[tuple[int, int, int]]:
    """(document, start, stop) around evenly spread places of the split."""
    ends = np.cumsum(dataset.lengths)
    found = []
    for place in np.linspace(0, int(ends[-1]) - 1, STRETCHES).astype(np.int64):
        document = int(np.searchsorted(ends, place, side="right"))
        length = int(dataset.lengths[document])
        start = int(place - (ends[document] - length)) // POSITIONS * POSITIONS
        found.append((document, start, min(start + POSITIONS, length)))
    return list(dict.fromkeys(found))


def code_fingerprint(made: type) -> str:
    """Stands for the source of a class that isn't the zoo's own: of its module, and of all modules whose
    classes and functions this one uses and that lie in the same package, or folder where it is in none.  ""
    for the zoo's, whose commit is known."""
    top = made.__module__.partition(".")[0]
    if top == "zoo":
        return ""
    house = sys.modules[top]
    inside = list(getattr(house, "__path__", []))  # of a package, one without a file of its own too
    place = Path(inside[0]) if inside else Path(getattr(house, "__file__", None) or "/").parent
    found = sources(sys.modules[made.__module__], place, {})
    total = hashlib.blake2b(digest_size=8)
    for name in sorted(found):
        total.update(f"{name} {hashlib.blake2b(found[name].read_bytes()).hexdigest()} ".encode())
    return total.hexdigest()


def sources(module: ModuleType, place: Path, found: dict[str, Path]) -> dict[str, Path]:
    """The files below `place` of a module and what it uses, by the module's name."""
    path = Path(getattr(module, "__file__", None) or "/")
    if module.__name__ in found or not path.is_relative_to(place) or not path.is_file():
        return found
    if "site-packages" in path.relative_to(place).parts:  # an environment in the folder one works in
        return found
    found[module.__name__] = path
    for value in list(vars(module).values()):
        if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
            used = value if inspect.ismodule(value) else sys.modules.get(value.__module__)
            if used is not None:
                sources(used, place, found)
    return found
