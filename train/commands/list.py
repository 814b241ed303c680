"""`zoo list [models] [tasks] [corpora] [size=micro] [key=value …]`: models, tasks and corpora.

    models      bytes of state per row and parameters at the size, traits, paper, golden cases
    tasks       score, symbols, description
    corpora     which lie below data.root (default $ZOO_DATA, or data/)
    path=       how a file or folder is read as a corpus: the documents of each split, and what is left out
    format=     of that: table (default) or json, with all documents
    size=       nano, micro (default), tiny, small, base
    …           everything else goes to every configuration: data.root=… hydra.searchpath=[file://my_configs]

Traits: `gradient` is whether (or through which fields of the state) it flows back into earlier segments,
`cut` is where a text may be split between two calls, `reach` how many positions can change a prediction, the
current one included; ∞ where a memory carries further, ? where a plug-in doesn't say.  Golden cases are
tensors computed by the published implementation, which tests compare the model with; they are part of the
checkout.
"""

import json
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

import zoo
from zoo import plugins
from zoo.errors import UserError, one_line
from zoo.lazy import large_imports
from zoo.plugins import Choice
from zoo.terminal import wrap
from zoo.train.commands.check import TRAINING_KEYS
from zoo.train.commands.cli import command, one_of, parse, refuse_without_effect, text
from zoo.train.corpora.unread import READABLE
from zoo.train.plotting.terminal import new_table, print_table, table_console
from zoo.train.runs.config import compose
from zoo.train.runs.override_key import refuse_repeated
from zoo.train.tasks.score_name import score_name

if TYPE_CHECKING:
    from zoo.module import SequenceModule

KEYS = {"path": text, "format": one_of("table", "json")}
SHOWN = 10  # documents of a split in the table
SECTIONS = ("models", "tasks", "corpora")
PAPER = re.compile(r"((?:[A-Z][\w-]+ (?:& [A-Z][\w-]+ )?(?:et al\. )?)\d{4})(?:, arXiv:(\d{4}\.\d{4,5}))?")
FIXTURES = Path(zoo.__file__).parents[1] / "tests" / "golden" / "fixtures"
GOLDEN = re.compile(r"# golden: (\S+)")  # kinds of golden cases, where they don't begin with the model's name


class ModelRow(NamedTuple):
    state_bytes: str
    parameters: str
    cut: str
    reach: str
    paper: str
    gradient: str
    golden: str


MODEL_HEAD = "model=", "state bytes", "parameters", "cut", "reach", "paper", "gradient", "golden"
MODEL_WIDTHS = 23, 13, 12, 13, 7, 37, 42, 33
"""Columns of a terminal; where it is narrower the last ones are left out."""
FAILURE = "can't be built"
GAP = 2  # at the end of each column


@command
def main(args: Sequence[str] = ()) -> None:
    sections, others, options = parse_args(args)
    composed = compose(others)  # raises user errors once, not model by model
    refuse_without_effect("list", others, TRAINING_KEYS, "these tables")
    console = table_console()
    if "path" in options:
        show_contents(console, options["path"], composed, options.get("format", "table"))
        return
    for section in sections:
        TABLES[section](console, others, composed)


def parse_args(args: Sequence[str]) -> tuple[list[str], list[str], dict[str, str]]:
    """The sections requested, all if none is; the overrides of every configuration; `path` and `format`."""
    requested = [arg for arg in args if "=" not in arg]
    if unknown := [arg for arg in requested if arg not in SECTIONS]:
        raise UserError(
            f"list: expected models, tasks, corpora or key=value, found {' and '.join(unknown)!r}"
        )
    options, others = parse("list", [arg for arg in args if "=" in arg], KEYS, pass_unknown=True)
    if "path" in options and requested not in ([], ["corpora"]):
        raise UserError(f"list: path= is of corpora, found {' '.join(requested)}")
    if "format" in options and "path" not in options:
        raise UserError("list: format= has no effect without path=")
    refuse_repeated(others)
    if not any(arg.startswith("size=") for arg in others):
        others.insert(0, "size=micro")
    return [section for section in SECTIONS if section in requested or not requested], others, options


def choices_of(group: str, args: list[str]) -> Iterator[tuple[Choice, str]]:
    """The choices of a group, and their names, a plug-in's followed by its owner's."""
    search = next((arg.partition("=")[2] for arg in args if arg.startswith("hydra.searchpath=")), "")
    names = set()
    for choice in plugins.choices(group, search):
        if choice.name not in names:
            names.add(choice.name)
            yield choice, choice.name if choice.owner == "zoo" else f"{choice.name} ({choice.owner})"


def comment(content: str) -> str:
    """The comment at the top of a yaml file, without Hydra's directive and the pattern of golden cases."""
    lines = []
    for line in content.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(line for line in lines if not line.startswith(("@package", "golden: ")))


# -- models
def show_models(console: Console, args: list[str], composed: DictConfig) -> None:
    """Prints each model as soon as it was built: all of them take a while."""
    with large_imports():
        from zoo.train.runs import build  # noqa: F401 - before the first row
    size = next(arg for arg in args if arg.startswith("size="))
    shown = [i for i in range(len(MODEL_HEAD)) if sum(MODEL_WIDTHS[: i + 1]) - GAP <= console.width]
    console.print(f"models at {size}\n", style="italic")
    print_row(MODEL_HEAD[: len(shown)], console.width)
    print("─" * (sum(MODEL_WIDTHS[: len(shown)]) - GAP))
    for choice, name in choices_of("model", args):
        row = model_row(choice, args)
        cells = (name, row.golden) if row.golden.startswith(FAILURE) else (name, *row)
        print_row(cells[: len(shown)], console.width)
    if left_out := MODEL_HEAD[len(shown) :]:
        print(wrap(f"left out in {console.width} columns: {', '.join(left_out)}", console.width, "\n", ""))


def print_row(cells: Sequence[str], width: int) -> None:
    """A row of columns of fixed widths, since it is printed before the rows that follow are known."""
    *columns, last = [
        f"{cell:<{columns - GAP}}{' ' * GAP}" for cell, columns in zip(cells, MODEL_WIDTHS, strict=False)
    ]
    line = "".join(columns)
    print(wrap(last.rstrip(), width, line, " " * len(line)), flush=True)


def model_row(choice: Choice, args: list[str]) -> ModelRow:
    """The model is built on the meta device, where weights take no memory."""
    import torch

    from zoo.state import nbytes
    from zoo.train.runs import build

    paper = paper_of(choice.text)
    try:
        cfg = compose([*args, f"model={choice.name}"])
        with torch.device("meta"):
            model = build.model(cfg)
            state_bytes = f"{nbytes(model.init_state(1)):,}"
    except Exception as error:  # a plug-in's may fail in any way; the others are listed
        return ModelRow("-", "-", "-", "-", paper, "-", f"{FAILURE}: {one_line(error)}")
    return ModelRow(
        state_bytes,
        f"{model.count_parameters():,}",
        "anywhere" if model.cuts_anywhere else "at segments",
        reach(model),
        paper,
        gradient(model),
        golden(choice) if choice.owner == "zoo" else "-",
    )


def paper_of(text: str) -> str:
    """Authors, year and arXiv number from the comment that a model's yaml begins with."""
    line = comment(text)
    reference = PAPER.search(line)
    if not reference:
        return line.partition(". ")[0].rstrip(".") or "-"
    return f"{reference[1]}, {reference[2]}" if reference[2] else reference[1]


def gradient(model: "SequenceModule") -> str:
    if not model.remembers:
        return "no memory"
    fields = model.learns_through_memory
    text = ("yes" if fields else "no") if isinstance(fields, bool) else ", ".join(fields)
    return f"{text}, rows mix" if model.mixes_rows_in_training else text


def reach(model: "SequenceModule") -> str:
    if model.reach == "unknown":
        return "?"
    return "∞" if model.reach is None else f"{model.reach:,}"


def golden_pattern(choice: Choice) -> re.Pattern[str]:
    """The kinds of a model's golden cases, from its yaml's line `# golden: …`; by default `model/…`."""
    line = GOLDEN.search(choice.text)
    return re.compile(line[1] if line else f"{choice.name}/")


def golden(choice: Choice) -> str:
    """How many cases the checkout has of a model, and of what; "-" where there are none, or no checkout."""
    pattern = golden_pattern(choice)
    kinds = [kind for kind in golden_kinds() if pattern.match(kind)]
    different = dict.fromkeys(kind.partition("/")[2] for kind in kinds)
    return f"{len(kinds)}: {', '.join(different)}" if kinds else "-"


def golden_kinds() -> list[str]:
    return [json.loads(path.read_text())["kind"] for path in sorted(FIXTURES.rglob("*.json"))]


# -- tasks and corpora
def show_tasks(console: Console, args: list[str], composed: DictConfig) -> None:
    table = new_table("task=", "score", "symbols", "what", title="tasks", prose=["what"])
    unresolved = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(unresolved, dict)
    for choice, name in choices_of("task", args):
        try:
            task = task_keys(choice, unresolved, args)
            score = score_name(task["_target_"]) or imported_score_name(task["_target_"])
            table.add_row(name, score, f"{task.vocab_size:,}", comment(choice.text).partition(";")[0])
        except Exception as error:
            table.add_row(name, "-", "-", f"can't be used: {one_line(error)}")
    print_table(console, table)


def task_keys(choice: Choice, composed: dict[Any, Any], args: list[str]) -> DictConfig:
    """A task's keys in this configuration; composed anew only where its file is more than these keys."""
    content = OmegaConf.create(choice.text)
    is_simple = choice.text.startswith("# @package _global_") and "defaults" not in content
    if is_simple and not any(arg.lstrip("+~").startswith("task.") for arg in args):
        others = {key: value for key, value in composed.items() if key != "task"}
        return OmegaConf.merge(others, content).task
    return compose([*args, f"task={choice.name}"]).task


def imported_score_name(target: str) -> str:
    from hydra.utils import get_class

    from zoo.train.tasks.base import score_names

    return next(iter(score_names(get_class(target)).values()))


def show_corpora(console: Console, args: list[str], composed: DictConfig) -> None:
    from zoo.train.corpora.layouts import LAYOUTS, layout_of, layouts

    root = Path(composed.data.root)
    title = f"corpora below data.root={root}"
    table = new_table("data.corpus=", "present", title=title, prose=["present"])
    table.add_row("stdlib", f"the sources of Python {platform.python_version()}'s standard library")
    for name in LAYOUTS:
        layout = layout_of(name, root)
        table.add_row(name, f"yes: {layout}" if layout else f"no: expected {layouts(name)}")
    table.add_row("a path", f"your own file or folder: {READABLE}")
    print_table(console, table)


TABLES: dict[str, Callable[[Console, list[str], DictConfig], None]] = {
    "models": show_models,
    "tasks": show_tasks,
    "corpora": show_corpora,
}


def show_contents(console: Console, path: str, composed: DictConfig, output_format: str) -> None:
    from zoo.train.corpora.contents import contents

    data = composed.data
    listing, remark = contents(path, Path(data.root), data.field)
    if output_format == "json":
        print(json.dumps(listing, indent=1))
        return
    head = "split", "name", "bytes", "begins"
    table = new_table(*head, title=f"{path} as a corpus", prose=["name", "begins"])
    for split, documents in listing.items():
        for document in documents[:SHOWN]:
            if split == "left_out":
                table.add_row("left out", escape(document["name"]), "", document["why"])
            else:
                begins = escape(json.dumps(document["begins"], ensure_ascii=False))
                table.add_row(split, escape(document["name"]), f"{document['bytes']:,}", begins)
        if len(documents) > SHOWN:
            table.add_row(split.replace("_", " "), f"and {len(documents) - SHOWN:,} more", "", "")
    print_table(console, table)
    if remark:
        console.print(remark, highlight=False)
