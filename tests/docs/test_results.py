"""results/README.md names only what lies below results/."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "results").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_and_figures_of_the_results_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).is_file()] == []


def test_no_committed_figure_is_left_unnamed() -> None:
    """What a page doesn't mention nobody removes when it is out of date."""
    text = "".join(page.read_text() for page in PAGES)
    assert [path.name for path in sorted((ROOT / "results").rglob("*.png")) if path.name not in text] == []
