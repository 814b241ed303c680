"""The rooms keep their arrows: zoo <- memory <- models, zoo <- train; every import by full name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("zoo", "memory", "models", "train", "configs")
TESTS = [file.relative_to(ROOT).as_posix() for file in sorted(ROOT.glob("tests/**/*.py"))]
FILES = [file.relative_to(ROOT).as_posix() for room in ROOMS for file in sorted(ROOT.glob(f"{room}/**/*.py"))]
MAY_IMPORT = {
    "zoo": {"zoo"},
    "memory": {"zoo", "memory"},
    "models": {"zoo", "memory", "models"},
    "train": {"zoo", "train", "configs"},
    "configs": set[str](),
}


def imports(file: str) -> Iterator[str]:
    """Every module imported, wherever in the file: "zoo.memory.window" for both ways of saying it."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if node.module == "zoo":  # from zoo import state
                yield from (f"zoo.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    """The room of one of our modules, None for other people's."""
    first, _, rest = module.partition(".")
    second = rest.partition(".")[0]
    return None if first != "zoo" else second if second in ROOMS else "zoo"


def test_the_rooms_are_found() -> None:
    assert {file.partition("/")[0] for file in FILES} == set(ROOMS)
    assert room("zoo.memory.window") == "memory"
    assert room("zoo.state") == "zoo"
    assert room("torch.nn") is None


@pytest.mark.parametrize("file", FILES)
def test_arrows(file: str) -> None:
    found = {room(module) for module in imports(file)} - {None}
    assert found <= MAY_IMPORT[file.partition("/")[0]]


@pytest.mark.parametrize("file", FILES + TESTS)
def test_imports_say_the_full_name(file: str) -> None:
    for module in imports(file):
        assert not module.startswith("."), f"relative import of {module}"
        assert module.partition(".")[0] not in ROOMS[1:], f"say zoo.{module}"
        assert module != "__future__", "postponed annotations hide shapes from jaxtyping"


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.startswith("models/") and file.count("/") == 1]
)
def test_a_model_imports_another_only_to_vary_it(file: str) -> None:
    """From another architecture's file come only classes that this one inherits from."""
    tree = ast.parse((ROOT / file).read_text())
    bases = {base.id for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases
             if isinstance(base, ast.Name)}  # fmt: skip
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("zoo.models.")
            and node.module != "zoo.models.layers"
        ):
            assert {alias.name for alias in node.names} <= bases
