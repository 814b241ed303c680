"""Imports between rooms run one way: zoo <- memory <- models, zoo <- train; inside train and memory too.

Every import has the full name.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("zoo", "memory", "models", "train", "configs")
TESTS = [file.relative_to(ROOT).as_posix() for file in sorted(ROOT.glob("tests/**/*.py"))]
FILES = [file.relative_to(ROOT).as_posix() for room in ROOMS for file in sorted(ROOT.glob(f"{room}/**/*.py"))]
RUN = {"runs", "tasks"}  # what a run is, on disk and as objects
MAY_IMPORT = {
    "zoo": {"zoo"},
    "memory": {"zoo", "memory"},
    "models": {"zoo", "memory", "models"},
    "train": {"zoo", "train", "configs"},
    "configs": set[str](),
}
INSIDE = {  # of train and memory: folder -> the other folders that it may import from; "" is the room itself
    "train/corpora": set[str](),
    "train/plotting": set[str](),
    "train/tasks": {"corpora"},
    "train/data": {"tasks"},
    "train/runs": {"tasks", "corpora"},
    "train/loop": RUN | {"data", "plotting"},
    "train/evaluation": RUN | {"data", "plotting"},
    "train/comparison": RUN | {"evaluation", "plotting"},
    "train/sweep": RUN | {"plotting"},
    "train/commands": RUN | {"corpora", "data", "loop", "plotting", "evaluation", "comparison", "sweep"},
    "train/api": RUN | {"loop", "evaluation", "commands"},
    "train": {"commands"},
    "memory": set[str](),
    "memory/attention": {""},
    "memory/tokens": {"", "attention"},
    "memory/state_space": {"", "attention"},
    "memory/fast_weights": {"", "attention", "state_space"},
    "memory/retrieval": {"", "attention"},
}
"""Ordered so that nothing imports from a later line: there is no circle of folders."""
SHARED_BY_MODELS = tuple(  # no architectures
    f"zoo.models.{name}" for name in ("blocks", "decoder", "diagonal", "hybrid")
)


def imports(file: str) -> Iterator[str]:
    """Every imported module, anywhere in the file: "zoo.memory.mixer" from either form of import."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if node.module == "zoo":  # from zoo import state
                yield from (f"zoo.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    """The room of one of our modules, None for any other module."""
    first, _, rest = module.partition(".")
    second = rest.partition(".")[0]
    return None if first != "zoo" else second if second in ROOMS else "zoo"


def test_every_room_has_files() -> None:
    assert {file.partition("/")[0] for file in FILES} == set(ROOMS)
    assert room("zoo.memory.attention.sliding_window") == "memory"
    assert room("zoo.state") == "zoo"
    assert room("torch.nn") is None


@pytest.mark.parametrize("file", FILES)
def test_a_room_imports_only_the_rooms_below_it(file: str) -> None:
    rooms = {room(module) for module in imports(file)} - {None}
    assert rooms <= MAY_IMPORT[file.partition("/")[0]]


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith(("train/", "memory/"))])
def test_a_folder_imports_only_the_folders_below_it(file: str) -> None:
    folder = file.rpartition("/")[0]
    top, _, inner = folder.partition("/")
    targets = [module.split(".")[2:] for module in imports(file) if module.startswith(f"zoo.{top}.")]
    folders = {parts[0] if (ROOT / top / parts[0]).is_dir() else "" for parts in targets}
    assert folders - {inner} <= INSIDE[folder]


def test_imports_between_folders_run_one_way() -> None:
    for top in ("train", "memory"):
        order = [folder.partition("/")[2] for folder in INSIDE if folder.partition("/")[0] == top]
        present = {path.parent.relative_to(ROOT / top).as_posix() for path in (ROOT / top).rglob("*.py")}
        assert {"" if folder == "." else folder for folder in present} == set(order)
        for i, folder in enumerate(order):
            allowed = INSIDE[f"{top}/{folder}".rstrip("/")]
            assert allowed <= set(order[:i]), f"{top}/{folder}"


def test_the_picture_shows_every_room() -> None:
    shown = re.findall(r">([\w/]+)</text>", (ROOT / "docs" / "house.svg").read_text())
    folders = {folder.rpartition("/")[2] for folder in INSIDE if "/" in folder}
    assert sorted(shown) == sorted([*folders, "zoo/", "memory/", "models/", "train/"])


def test_train_has_no_file_outside_its_rooms() -> None:
    assert {file.name for file in (ROOT / "train").glob("*.py")} == {"__init__.py", "__main__.py"}


def test_memory_and_models_share_no_file_name() -> None:
    names = [
        {file.name for file in (ROOT / room).rglob("*.py") if "published" not in file.parts}
        for room in ("memory", "models")
    ]
    assert names[0] & names[1] == {"__init__.py"}


def test_every_folder_is_listed_as_a_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    paths = {
        file.parent.relative_to(ROOT).as_posix() for room in ROOMS for file in (ROOT / room).rglob("*.py")
    }
    expected = {"zoo" if path == "zoo" else f"zoo.{path.replace('/', '.')}" for path in paths}
    assert {name for name in listed if not name.startswith("zoo.configs.")} == {
        name for name in expected if not name.startswith("zoo.configs.")
    }


@pytest.mark.parametrize("file", FILES + TESTS)
def test_imports_have_the_full_name(file: str) -> None:
    for module in imports(file):
        assert not module.startswith("."), f"relative import of {module}"
        assert module.partition(".")[0] not in ROOMS[1:], f"expected zoo.{module}, found {module}"
        assert module != "__future__", "postponed annotations hide shapes from jaxtyping"


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.startswith("models/") and file.count("/") == 1]
)
def test_a_model_imports_another_only_to_vary_it(file: str) -> None:
    """It imports from another architecture's file only classes that it inherits from, and their options."""
    tree = ast.parse((ROOT / file).read_text())
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {base.id for node in classes for base in node.bases if isinstance(base, ast.Name)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("zoo.models."):
            continue
        if node.module not in SHARED_BY_MODELS:
            names = {alias.name for alias in node.names}
            assert names & bases
            assert all(name in bases or name.endswith("Options") for name in names)
