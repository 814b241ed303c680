"""Provenance of a run: device, and fingerprints of its data and its code in 16 hexadecimal digits."""

import hashlib
import inspect
import platform
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from zoo.train.tasks.base import Dataset, Split, Task


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


SPLITS: tuple[Split, ...] = ("train", "val")
SAMPLES, SAMPLE_LEN = 128, 256  # read per split, spread evenly: a corpus of gigabytes costs no more


def fingerprint(task: Task) -> str:
    """A hash of the length of every document of train and val, and of 128 samples of each split."""
    digest = hashlib.blake2b(digest_size=8)
    for split in SPLITS:
        dataset = task.split(split)
        digest.update(np.ascontiguousarray(dataset.lengths, "<i8").tobytes())
        for document, start, stop in sample_spans(dataset):
            for part in dataset.window(document, start, stop):
                digest.update(np.ascontiguousarray(part, "<i8").tobytes())
    return digest.hexdigest()


def sample_spans(dataset: Dataset) -> list[tuple[int, int, int]]:
    """(document, start, stop) of samples spread evenly over the split."""
    ends = np.cumsum(dataset.lengths)
    spans = []
    for position in np.linspace(0, int(ends[-1]) - 1, SAMPLES).astype(np.int64):
        document = int(np.searchsorted(ends, position, side="right"))
        length = int(dataset.lengths[document])
        start = int(position - (ends[document] - length)) // SAMPLE_LEN * SAMPLE_LEN
        spans.append((document, start, min(start + SAMPLE_LEN, length)))
    return list(dict.fromkeys(spans))


def code_fingerprint(cls: type) -> str:
    """A hash of the sources of a class outside the zoo; "" for the zoo's, whose commit is known.

    The sources are its module and all modules whose classes and functions that uses, as far as they lie in
    the same package, or in the same folder where there is none.
    """
    name = cls.__module__.partition(".")[0]
    if name == "zoo":
        return ""
    package = sys.modules[name]
    paths = list(getattr(package, "__path__", []))  # of a package, also one without an __init__.py
    folder = Path(paths[0]) if paths else Path(getattr(package, "__file__", None) or "/").parent
    files = source_files(sys.modules[cls.__module__], folder, {})
    digest = hashlib.blake2b(digest_size=8)
    for module in sorted(files):
        digest.update(f"{module} {hashlib.blake2b(files[module].read_bytes()).hexdigest()} ".encode())
    return digest.hexdigest()


def source_files(module: ModuleType, folder: Path, files: dict[str, Path]) -> dict[str, Path]:
    """`files` with those below `folder` of a module and of all that it uses, by the module's name."""
    path = Path(getattr(module, "__file__", None) or "/")
    if module.__name__ in files or not path.is_relative_to(folder) or not path.is_file():
        return files
    if "site-packages" in path.relative_to(folder).parts:  # a virtual environment in the working directory
        return files
    files[module.__name__] = path
    for value in list(vars(module).values()):
        if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
            used = value if inspect.ismodule(value) else sys.modules.get(value.__module__)
            if used is not None:
                source_files(used, folder, files)
    return files
