"""Every module, attribute, file and identifier that a page names exists."""

import functools
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ["zoo", "memory", "models", "train", "configs", "tests", "benchmarks", "constraints", "examples"]
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
DOTTED = re.compile(r"(?<![\w./-])zoo(?:\.[A-Za-z_]\w*)+")
PYTHON_FILE = re.compile(r"(?<![\w./-])(?:\w+/)*\w+\.py\b")
INLINE_CODE = re.compile(r"`([^`\n]+)`")
EXAMPLES = {  # what a reader of the pages makes or has
    "my_models.py",
    "attention_free_transformer/model.py",  # from examples/attention_free_transformer
    "tests/test_laws.py",
    "submit.py",
    "search.py",
    "models/x.py",
    "activate",
}


@functools.cache
def repository_files() -> list[str]:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.*") if path.is_file()]
    return [path.relative_to(ROOT).as_posix() for path in [*files, *ROOT.glob("*.*")]]


@functools.cache
def repository_words() -> frozenset[str]:
    """Every identifier in source and configs, and every part of a file's name."""
    names = [name for name in repository_files() if ROOT / name != Path(__file__)]
    sources = [
        (ROOT / name).read_text() for name in names if name.endswith((".py", ".pyi", ".yaml", ".toml"))
    ]
    return frozenset(re.findall(r"\w+", " ".join([*sources, *names])))


def is_importable(dotted: str) -> bool:
    """True for a module and for an attribute of one, at any depth."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for name in parts[end:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


def is_file(path: str) -> bool:
    """True for a path from the root; without a folder, for the name of any file."""
    return path in repository_files() or any(
        "/" not in path and name.endswith(f"/{path}") for name in repository_files()
    )


def is_word(word: str) -> bool:
    """True for an identifier, and for the beginning of one that ends in an underscore."""
    known = repository_words()
    return word in known or (word.endswith("_") and any(other.startswith(word) for other in known))


def names_of_nothing(text: str) -> list[str]:
    dotted = [name for name in DOTTED.findall(text) if not is_importable(name)]
    files = [path for path in PYTHON_FILE.findall(text) if not is_file(path)]
    code = " ".join(INLINE_CODE.findall(re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)))
    code = PYTHON_FILE.sub("", code)
    words = [word for word in re.findall(r"[A-Za-z_]\w+", code) if not is_word(word)]
    return sorted({*dotted, *files, *words} - EXAMPLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_name_on_a_page_exists(page: Path) -> None:
    assert names_of_nothing(page.read_text()) == []


def test_a_name_that_does_not_exist_is_noticed() -> None:
    text = (
        "Call `zoo.state.restart_rowz(state)` of zoo/statez.py, `zoo.state.reset_rows` of `zoo/state.py`; "
        "`ring_buffer.py`, `ring_bufferz.py`; `SequenceModulez`, `SequenceModule`; zoo.modulez.State."
    )
    assert names_of_nothing(text) == [
        "SequenceModulez",
        "restart_rowz",
        "ring_bufferz.py",
        "zoo.modulez.State",
        "zoo.state.restart_rowz",
        "zoo/statez.py",
    ]
