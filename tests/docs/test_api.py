"""docs/api.md and docs/laws.md name everything that is public, and no page uses an inner path."""

import inspect
import re
from pathlib import Path

import pytest

import zoo
import zoo.contract
import zoo.memory
import zoo.models
import zoo.train

ROOT = Path(__file__).parents[2]
API, LAWS = (ROOT / "docs" / name for name in ("api.md", "laws.md"))
INNER_PAGES = {"design.md"}  # about the code itself
INNER = re.compile(r"\bzoo\.(?:memory|models|train)\.[a-z_]+(?:\.\w+)*")
PUBLIC_MODULES = {"zoo.errors", "zoo.generation", "zoo.state", "zoo.memory", "zoo.models", "zoo.train"}


def rows(page: Path) -> dict[str, str]:
    """The cells behind the code in the first cell of every table row."""
    cells = re.findall(r"^\| `([^`]+)` \| (.*) \|$", page.read_text(), re.M)
    return dict(cells)


@pytest.mark.parametrize("name", zoo.__all__)
def test_every_public_name_has_a_row(name: str) -> None:
    named = {row.partition("(")[0] for row in rows(API)}
    assert f"zoo.{name}" in named


@pytest.mark.parametrize("package", [zoo.memory, zoo.models, zoo.train], ids=lambda package: package.__name__)
def test_names_for_authors_are_listed(package: object) -> None:
    listed = rows(API)[package.__name__]  # type: ignore[attr-defined]
    names = set(re.findall(r"`(\w+)`", listed.partition(";")[0]))
    assert names == set(package.__all__)  # type: ignore[attr-defined]


def test_signatures_are_true() -> None:
    for row in rows(API):
        if "(" in row:
            name, _, arguments = row.removeprefix("zoo.").partition("(")
            parameters = inspect.signature(getattr(zoo, name)).parameters.values()
            stated = re.findall(r"\*?\w+(?:=[^,)]+)?", arguments.replace("*, ", ""))
            expected = []
            for parameter in parameters:
                star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
                default = parameter.default
                shown = "" if default is parameter.empty else f"={default!r}".replace("'", '"')
                expected.append(f"{star}{parameter.name}{shown}")
            assert stated == expected


def test_every_law_has_a_row_with_its_first_sentence() -> None:
    stated = rows(LAWS)
    for name, _ in zoo.laws(zoo.SequenceModule):
        law = name.removesuffix("-train")
        summary = inspect.getdoc(getattr(zoo.contract, law))
        assert summary is not None
        assert stated[law] == summary.partition("\n\n")[0].replace("\n", " ")


PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_page_needs_an_inner_path(page: Path) -> None:
    if page.name in INNER_PAGES:
        return
    text = page.read_text()
    for module in re.findall(r"^\s*from (zoo[\w.]*) import|^\s*import (zoo[\w.]*)", text, re.M):
        name = "".join(module)
        assert name in PUBLIC_MODULES | {"zoo"} or re.fullmatch(r"zoo\.models\.\w+", name), name
    named = set(INNER.findall(text)) - {f"zoo.{room}" for room in ("memory", "models", "train")}
    assert not {name for name in named if not name.startswith("zoo.models.")}, named
