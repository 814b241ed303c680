"""results/README.md names only what lies below results/, and its numbers are those of the files there."""

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from zoo.train.comparison.report import report
from zoo.train.comparison.reproduce import sweep_commands
from zoo.train.comparison.text import write
from zoo.train.runs.stored import load_stored

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


# -- every number of a run on results/README.md stands in the files of its runs

RESULTS = ROOT / "results"
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", (RESULTS / "README.md").read_text(), re.M))
COMMAND = re.compile(r"python -m zoo(?:\.train| train| sweep| evaluate) ")
FOLDER = re.compile(r"`runs/([\w-]+)/`")
WITH_RUNS = [name for name, text in SECTIONS.items() if COMMAND.search(text) or FOLDER.search(text)]
KEYS_OF_NAMES = {"model", "task", "size"}
LEFT_OUT = {"run_dir", "model.base", "seeds", "jobs", "keep", "experiment"}
"""Keys of a command that are no settings of a run."""


def folders(section: str) -> list[Path]:
    return [RESULTS / "runs" / name for name in FOLDER.findall(SECTIONS[section])]


@cache
def configs(section: str) -> list[DictConfig]:
    paths = [path for folder in folders(section) for path in folder.rglob("config.yaml")]
    return [config for path in paths if isinstance(config := load_stored(path), DictConfig)]


def leaves(content: Any) -> Iterator[Any]:
    if isinstance(content, (dict, list)):
        for part in content.values() if isinstance(content, dict) else content:
            yield from leaves(part)
    else:
        yield content


@cache
def facts(folder: Path) -> list[Any]:
    """All values in the files below a folder; of a run also the positions that it read."""
    values: list[Any] = []
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            values += leaves(json.loads(path.read_text()))
        elif path.name == "config.yaml":
            cfg: Any = load_stored(path)
            values += leaves(OmegaConf.to_container(cfg, resolve=False))
            values.append(cfg.steps * cfg.data.batch_size * cfg.data.seq_len)
    return values


def row_facts(section: str, row: str) -> list[Any]:
    """Of the run or of the results at the length that a table's row names."""
    name = row.strip("`").replace(",", "")
    values: list[Any] = []
    for folder in folders(section):
        if (folder / name).is_dir():
            values += facts(folder / name)
        for path in folder.rglob("evaluation.json"):
            for entry in json.loads(path.read_text())["evaluations"]:
                results = [r for r in entry["results"] if str(r["axes"].get("length")) == name]
                values += leaves(results)
    return values


def claims(text: str) -> list[str]:
    """Numbers with a point, a comma or a sign of per cent, and commits."""
    words = [word.strip(".,:;()") for word in re.findall(r"[\w.,:;()%=^-]+", text)]
    number = re.compile(r"(?=.*[.,%])\d{1,3}(,\d{3})*(\.\d+)?%?|\d+\.\d+%?|[0-9a-f]{9}(?<!\d{9})")
    return [word for word in words if number.fullmatch(word)]


def holds(claim: str, values: list[Any]) -> bool:
    """True if a value is this number to the digits shown, as it is, in per cent or in MiB; or this commit."""
    if not re.search(r"[.,%]", claim):
        return any(isinstance(value, str) and value.startswith(claim) for value in values)
    number = claim.strip("%").replace(",", "")
    form = f".{len(number.partition('.')[2])}f"
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return any(format(value * factor, form) == number for value in numbers for factor in (1, 100, 2.0**-20))


def test_every_run_is_named_and_every_named_run_is_there() -> None:
    named = {folder for section in WITH_RUNS for folder in folders(section)}
    assert [section for section in WITH_RUNS if not folders(section)] == []
    assert named == {folder for folder in (RESULTS / "runs").iterdir() if folder.is_dir()}
    for section in WITH_RUNS:
        assert configs(section), section


@pytest.mark.parametrize("section", WITH_RUNS)
def test_numbers_of_runs_are_those_of_their_files(section: str) -> None:
    prose = [line for line in SECTIONS[section].splitlines() if not line.startswith(("    ", "|"))]
    rows = [line.strip("|").split(" | ") for line in SECTIONS[section].splitlines() if line.startswith("|")]
    everywhere = [value for folder in folders(section) for value in facts(folder)]
    wrong = [claim for claim in claims("\n".join(prose)) if not holds(claim, everywhere)]
    for row, *cells in [[cell.strip() for cell in row] for row in rows]:
        values = row_facts(section, row)
        wrong += [f"{row}: {claim}" for claim in claims(" ".join(cells)) if not holds(claim, values)]
    assert wrong == []


@pytest.mark.parametrize("section", WITH_RUNS)
def test_every_row_of_models_is_a_run_and_every_run_a_row(section: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", SECTIONS[section], re.M)
    if rows:
        assert sorted(rows) == sorted(path.name for folder in folders(section) for path in folder.iterdir())


@pytest.mark.parametrize("section", WITH_RUNS)
def test_a_command_has_the_settings_of_the_runs(section: str) -> None:
    text = SECTIONS[section].replace("\\\n", " ")
    words = [line.split() for line in text.splitlines() if re.search(r"zoo(?:\.train| train| sweep) ", line)]
    settings = dict(word.strip("`").split("=", 1) for line in words for word in line if "=" in word[1:])
    for cfg in configs(section):
        for key, value in settings.items():
            if key.isupper() or key in LEFT_OUT or key.startswith("OMP"):
                continue
            if key == "model" and "," not in value:  # an example, of which each row is another
                continue
            setting = OmegaConf.select(cfg, f"names.{key}" if key in KEYS_OF_NAMES else key)
            assert str(setting) in value.split(","), f"{key}: {setting}"


@pytest.mark.parametrize(
    ("name", "baseline", "mix"),
    [
        ("passkey", None, ["code"]),
        ("extrapolation-text", None, []),
        ("extrapolation-tuned-text", None, []),
        ("extrapolation-tuned-passkey", None, ["task", "data", "tokens", "code"]),
        ("extrapolation-trained-text", None, []),
        ("extrapolation-trained-passkey", None, []),
        ("extrapolation-windows-text", None, []),
        ("extrapolation-windows-passkey", None, []),
        ("extrapolation-passkey", None, []),
        ("overwriting", "deltanet rule=delta", []),
        ("parity", None, []),
        ("recall-by-state", None, []),
        ("contrast-xl-memory", "transformer_xl memory_len=0", []),
        ("contrast-rmt-bptt", None, []),
    ],
)
def test_a_committed_comparison_is_what_compare_writes(
    name: str, baseline: str | None, mix: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = [f"results/runs/{name}", f"out=results/{name}", *([f"mix={','.join(mix)}"] if mix else [])]
    words += [f"baseline={baseline}"] if baseline else []
    command = shlex.join(["zoo", "compare", *words])
    compared = report([Path(f"results/runs/{name}")], baseline=baseline, mix=mix, command=command)
    write(compared, [sweep_commands(comparison) for comparison in compared.comparisons], tmp_path)
    for file in ("comparison.md", "comparison.csv"):
        committed, written = (folder / file for folder in (RESULTS / name, tmp_path))
        assert committed.read_text() == written.read_text(), f"{file} is out of date: {command}"
