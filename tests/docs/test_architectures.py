"""The pages of docs/architectures, held to the models that they describe."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch

from zoo import plugins
from zoo.module import SequenceModule
from zoo.state import State, named_leaves, nbytes
from zoo.train.commands import list as listing
from zoo.train.runs import build
from zoo.train.runs.config import compose

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "architectures"
FIXTURES = ROOT / "tests" / "golden" / "fixtures"
MODELS = sorted(path.stem for path in (ROOT / "configs" / "model").glob("*.yaml"))
TRAITS = ("remembers", "learns_through_memory", "cuts_anywhere", "mixes_rows_in_training")
SECTIONS = [
    "What is carried",
    "Traits",
    "Training",
    "What differs from the paper",
    "Golden cases",
    "Measured",
    "Pitfalls",
]


@cache
def built(name: str) -> tuple[SequenceModule, State]:
    """At size=tiny, on the meta device, where weights take no room."""
    cfg = compose([f"model={name}", "size=tiny"])
    with torch.device("meta"):
        model = build.model(cfg)
        return model, model.init_state(1)


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def section(name: str, title: str) -> str:
    return page(name).partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in a text, without their heads and rules."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    rules = [number for number, row in enumerate(rows) if set(row) <= set("|-: ")]
    return [
        [cell.strip() for cell in row.strip("|").split("|")]
        for number, row in enumerate(rows)
        if number not in rules and number + 1 not in rules
    ]


def test_each_config_has_a_page() -> None:
    assert sorted(path.stem for path in PAGES.glob("*.md")) == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_all_pages_are_made_alike(name: str) -> None:
    assert re.findall(r"^## (.*)$", page(name), re.MULTILINE) == SECTIONS
    assert f"`model={name}`" in page(name)
    assert "```math\n" in page(name)
    said = listing.comment((ROOT / "configs" / "model" / f"{name}.yaml").read_text())
    for number in re.findall(r"arXiv:(\d{4}\.\d{5})", said):
        assert f"[arXiv:{number}](https://arxiv.org/abs/{number})" in page(name)


def reach(name: str) -> str:
    model, _ = built(name)
    assert model.reach != "unknown"
    if model.reach is not None:
        return f"Reach: {model.reach:,} positions."
    capacity = compose([f"model={name}", "size=tiny"]).model.get("capacity")
    return "Reach: unbounded." if capacity is None else f"Reach: a bank of {capacity:,} tokens."


@pytest.mark.parametrize("name", MODELS)
def test_state_and_traits(name: str) -> None:
    """The totals; the reach; of each tensor its name, shape, type and number; what the model declares."""
    model, state = built(name)
    carried = section(name, "What is carried")
    totals = f"{model.count_parameters():,} parameters, {nbytes(state):,} bytes of state per row"
    assert f"At `size=tiny`: {totals}. {reach(name)}" in carried

    found: Counter[tuple[str, ...]] = Counter()
    sizes: Counter[tuple[str, ...]] = Counter()
    for path, leaf in named_leaves(state):
        if leaf.numel():
            field = [word for word in path.split(".") if not word.isdigit()][-1]
            shape = " \u00d7 ".join(map(str, leaf.shape[1:])) or "1"
            key = (f"`{field}`", shape, str(leaf.dtype).removeprefix("torch."))
            found[key] += 1
            sizes[key] += leaf.numel() * leaf.element_size()
    expected = [[*key, str(found[key]), f"{sizes[key]:,}"] for key in found]
    assert sorted(cells(carried)) == sorted(expected)

    traits = [getattr(model, trait) for trait in TRAITS]
    assert f"| {' | '.join(f'`{trait}`' for trait in TRAITS)} |" in section(name, "Traits")
    said = [", ".join(trait) if isinstance(trait, tuple) else str(trait) for trait in traits]
    assert cells(section(name, "Traits")) == [said]


@pytest.mark.parametrize("name", MODELS)
def test_the_golden_cases(name: str) -> None:
    """A page names the model's cases, all of them, and no others as its own."""
    (choice,) = (choice for choice in plugins.choices("model") if choice.name == name)
    pattern = listing.golden_pattern(choice)
    there = {
        path.relative_to(FIXTURES).with_suffix("").as_posix()
        for path in FIXTURES.rglob("*.json")
        if pattern.match(json.loads(path.read_text())["kind"])
    }
    named_cases: list[str] = []
    for line in section(name, "Golden cases").splitlines():
        if line.startswith("* "):
            named_cases += re.findall(r"`([^`]+)`", line.partition(":")[0])
    assert sorted(named_cases) == sorted(there)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_measured(name: str) -> None:
    """A page points to the headings of results/README.md, or says that there is no number of the model."""
    results = (ROOT / "results" / "README.md").read_text()
    headings = [heading.lower() for heading in re.findall(r"^## (.*)$", results, re.MULTILINE)]
    anchors = {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}
    measured = section(name, "Measured")
    pointed = re.findall(r"\(\.\./\.\./results/README\.md#([^)]+)\)", measured)
    assert set(pointed) <= anchors
    is_there = f"`{name}`" in results or f"model={name} " in results
    assert is_there == bool(pointed), "results/README.md and the page's section Measured disagree"
    assert is_there != ("No number of it" in measured)
