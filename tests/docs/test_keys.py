"""A setting that a page names as `model.KEY=value` can be typed so: a model's yaml file has it."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILES = sorted((ROOT / "configs" / "model").glob("*.yaml"))
ADDED = {"base", "position", "KEY"}
"""What the command line adds where a yaml file lacks it; and the word for any key."""


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_keys_of_models_that_a_page_names_can_be_set(page: Path) -> None:
    keys = {str(key) for file in FILES for key in OmegaConf.load(file)}
    named = set(re.findall(r"(?<![\w+.])model\.(\w+)=", page.read_text()))
    assert named - keys - ADDED == set()
