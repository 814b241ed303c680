"""Help pages of commands: the docstring of a command's module, read without importing it.

Only Python's own modules are imported here, so that help answers at once.
"""

import ast
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from zoo import plugins
from zoo.terminal import output_width, reflow

FLAGS = ("-h", "--help")
CHOICES = "CHOICES"
"""In a page, the line that stands for what every config group has."""


SUBCOMMANDS: dict[tuple[str, ...], str] = {
    ("zoo.train.commands.bench", "peers"): "zoo.train.commands.bench_peers"
}
"""Modules with a page of their own, by that of the command and its first argument."""


def page(module: str, args: Sequence[str] = ()) -> str:
    """The help page of a command's module, or of the subcommand that `args` begin with; as wide as the
    terminal at most."""
    spec = importlib.util.find_spec(SUBCOMMANDS.get((module, *args[:1]), module))
    assert spec
    assert spec.origin
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8"))) or ""
    if f"\n{CHOICES}\n" in text:
        text = text.replace(CHOICES, choices())
    return reflow(text, output_width(max(map(len, text.splitlines()), default=1)))


def choices() -> str:
    """A line for each config group, with the names in it."""
    names = {group: dict.fromkeys(choice.name for choice in plugins.choices(group)) for group in GROUPS}
    return "\n".join(f"    {group + '=':<14}{', '.join(names[group])}" for group in GROUPS)


GROUPS = plugins.CONFIG_GROUPS
