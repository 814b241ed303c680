"""`zoo list [models] [tasks] [corpora] [size=micro] [key=value …]`: what can be trained, and on what.

    models      paper, bytes of state per row and parameters at the size, traits, golden cases
    tasks       score, symbols, what is asked
    corpora     which lie below data.root (default $ZOO_DATA, or data/)
    size=       nano, micro (default), tiny, small, base
    …           everything else goes to every configuration: data.root=… hydra.searchpath=[file://my_configs]

Traits: `gradient` says whether it runs back through the state into earlier segments (or through which parts
of the state), `goes on` where a call may end and the next one go on.  Golden cases are tensors of the
published implementation that tests hold the model to; they lie in the checkout.
"""

import json
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.utils import get_class
from rich import box
from rich.console import Console
from rich.table import Table

import zoo
from zoo import plugins
from zoo.errors import UserError, one_line
from zoo.module import SequenceModule
from zoo.plugins import Choice
from zoo.state import nbytes
from zoo.train.commands.cli import command
from zoo.train.corpora.catalog import LAYOUTS
from zoo.train.corpora.documents import READABLE
from zoo.train.plotting.terminal import WIDE
from zoo.train.runs import build
from zoo.train.runs.config import compose

SECTIONS = ("models", "tasks", "corpora")
PAPER = re.compile(r"((?:[A-Z][\w-]+ (?:& [A-Z][\w-]+ )?(?:et al\. )?)\d{4})(?:, arXiv:(\d{4}\.\d{4,5}))?")
FIXTURES = Path(zoo.__file__).parents[1] / "tests" / "golden" / "fixtures"
GOLDEN = {  # kinds of golden cases whose first word isn't the model's name
    "mamba": "mamba1/",
    "focused": "fot/",
    "rmt": "rmt/(cell|gpt2)",
    "rmt_xl": "rmt/xl",
    "armt": "rmt/armt",
    "griffin": "hybrids/(griffin|rglru)",
    "jamba": "hybrids/jamba",
    "samba": "hybrids/samba",
    "mamba2_hybrid": "hybrids/mamba_ssm",
}


class Listed(NamedTuple):
    """What there is to say of a model."""

    paper: str
    state_bytes: str
    parameters: str
    gradient: str
    goes_on: str
    golden: str


@command
def main(words: list[str] = []) -> None:  # noqa: B006  # never changed
    sections, others = arguments(words)
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    for section in sections:
        console.print(TABLES[section](others))


def arguments(words: list[str]) -> tuple[list[str], list[str]]:
    """The sections requested, all if none is, and the words of every configuration."""
    requested = [word for word in words if "=" not in word]
    if unknown := [word for word in requested if word not in SECTIONS]:
        raise UserError(
            f"list: expected models, tasks, corpora or key=value, found {' and '.join(unknown)!r}"
        )
    others = [word for word in words if "=" in word]
    if not any(word.startswith("size=") for word in others):
        others.insert(0, "size=micro")
    compose(others)  # raises user errors once, not model by model
    return [section for section in SECTIONS if section in requested or not requested], others


def _table(title: str, *columns: str) -> Table:
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        drawn.add_column(column, no_wrap=number == 0, overflow="fold")
    return drawn


def chosen(group: str, words: list[str]) -> Iterator[tuple[Choice, str]]:
    """Every choice of a group that `group=name` finds, and its name with its owner's where that isn't us."""
    search = next((word.partition("=")[2] for word in words if word.startswith("hydra.searchpath=")), "")
    taken = set()
    for choice in plugins.choices(group, search):
        if choice.name not in taken:
            taken.add(choice.name)
            yield choice, choice.name if choice.owner == "zoo" else f"{choice.name} ({choice.owner})"


def comment(text: str) -> str:
    """The first lines of a yaml that are comments, Hydra's directive left out."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(line for line in lines if not line.startswith("@package"))


# -- models
def models(words: list[str]) -> Table:
    size = next(word for word in words if word.startswith("size="))
    drawn = _table(
        f"models at {size}", "model=", "paper", "state bytes", "parameters", "gradient", "goes on", "golden"
    )
    for choice, name in chosen("model", words):
        drawn.add_row(name, *listed(choice, words))
    return drawn


def listed(choice: Choice, words: list[str]) -> Listed:
    """Built on the meta device, where weights take no room."""
    paper = paper_of(choice.text)
    try:
        cfg = compose([*words, f"model={choice.name}"])
        with torch.device("meta"):
            model = build.model(cfg)
            held = f"{nbytes(model.init_state(1)):,}"
    except Exception as error:  # a plug-in's may fail in any way; the others are listed
        return Listed(paper, "-", "-", "-", "-", f"can't be built: {one_line(error)}")
    ours = cfg.model["_target_"].startswith("zoo.models.")
    return Listed(
        paper,
        held,
        f"{model.count_parameters():,}",
        gradient(model),
        "anywhere" if model.cuts_anywhere else "at segments",
        golden(choice.name) if ours else "-",
    )


def paper_of(text: str) -> str:
    """Authors, year and arXiv number from the comment that a model's yaml begins with."""
    said = comment(text)
    found = PAPER.search(said)
    if not found:
        return said.partition(". ")[0].rstrip(".") or "-"
    return f"{found[1]}, {found[2]}" if found[2] else found[1]


def gradient(model: SequenceModule) -> str:
    if not model.remembers:
        return "forgets"
    through = model.learns_through_memory
    said = ("yes" if through else "no") if isinstance(through, bool) else ", ".join(through)
    return said + (", rows mix" if model.mixes_rows_in_training else "")


def golden(name: str) -> str:
    """How many cases the checkout has of a model, and of what; "-" where there are none, or no checkout."""
    pattern = re.compile(GOLDEN.get(name, f"{name}/"))
    kinds = [kind for kind in golden_kinds() if pattern.match(kind)]
    different = dict.fromkeys(kind.partition("/")[2] for kind in kinds)
    return f"{len(kinds)}: {', '.join(different)}" if kinds else "-"


def golden_kinds() -> list[str]:
    return [json.loads(path.read_text())["kind"] for path in sorted(FIXTURES.rglob("*.json"))]


# -- tasks and corpora
def tasks(words: list[str]) -> Table:
    drawn = _table("tasks", "task=", "score", "symbols", "what")
    for choice, name in chosen("task", words):
        try:
            cfg = compose([*words, f"task={choice.name}"])
            unit = getattr(get_class(cfg.task["_target_"]), "metric").replace("_", " ")  # noqa: B009
            drawn.add_row(name, unit, f"{cfg.task.vocab_size:,}", comment(choice.text).partition(";")[0])
        except Exception as error:
            drawn.add_row(name, "-", "-", f"can't be used: {one_line(error)}")
    return drawn


def corpora(words: list[str]) -> Table:
    root = Path(compose(words).data.root)
    drawn = _table(f"corpora below data.root={root}", "data.corpus=", "found")
    drawn.add_row("stdlib", f"the sources of Python {platform.python_version()}'s standard library")
    for name in LAYOUTS:
        drawn.add_row(name, lying(name, root) or f"no: expected {layouts(name)}")
    drawn.add_row("a path", f"a file or folder of your own: {READABLE}")
    return drawn


def layouts(name: str) -> str:
    return " or ".join(layout.replace("{}", "{train,valid,test}") for layout in LAYOUTS[name])


def lying(name: str, root: Path) -> str:
    """Where a named corpus lies below the root, "" if it doesn't."""
    found = [layout for layout in LAYOUTS[name] if (root / layout.format("train")).exists()]
    return f"yes: {found[0].replace('{}', '{train,valid,test}')}" if found else ""


TABLES: dict[str, Callable[[list[str]], Table]] = {"models": models, "tasks": tasks, "corpora": corpora}
