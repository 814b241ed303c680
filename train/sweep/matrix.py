"""A matrix of a sweep in a yaml file, configs/experiment/NAME.yaml with one key, `sweep`:

    sweep:
      protocol: 1         # beyond, seeds: as on the command line of zoo sweep
      settings: size=micro steps=1200
      tasks:              # the words of every column, those of the setting that all share before them
        - task=recall data.batch_size=8
      models:             # the words of every row
        - model=rmt model.memory_tokens=8

`zoo sweep experiment=NAME` runs every row in every column, or those that `task=` and `model=`
pick, one column after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from zoo import plugins
from zoo.errors import UserError

KEY = "sweep"


@dataclass(frozen=True)
class Matrix:
    """`options`: those of the sweep's own keys that the file sets."""

    name: str
    tasks: list[str]
    models: list[str]
    settings: str
    options: dict[str, Any]

    def cells(self, models: Sequence[str] = (), tasks: Sequence[str] = ()) -> list[list[str]]:
        """The overrides of every run without its seed; of rows and columns with these models and tasks, of
        all if there are none.  Raises UserError for a name that the matrix doesn't have."""
        rows, columns = self.pick(self.models, "model", models), self.pick(self.tasks, "task", tasks)
        return [[*row.split(), *column.split(), *self.settings.split()] for column in columns for row in rows]

    def pick(self, lines: list[str], kind: str, names: Sequence[str]) -> list[str]:
        chosen = {line: line.split()[0].removeprefix(f"{kind}=") for line in lines}
        if missing := [name for name in names if name not in chosen.values()]:
            known = ", ".join(dict.fromkeys(chosen.values()))
            raise UserError(f"sweep: {kind}: experiment={self.name} has {known}, found {', '.join(missing)}")
        return [line for line, name in chosen.items() if not names or name in names]


def read_matrix(name: str, search: str = "") -> Matrix | None:
    """The matrix of an experiment; None for an experiment that is a single run, and for none.

    `search` is hydra.searchpath.  Raises UserError for a matrix that isn't one.
    """
    texts = [choice.text for choice in plugins.choices("experiment", search) if choice.name == name]
    if not texts or f"\n{KEY}:" not in f"\n{texts[0]}":
        return None
    from omegaconf import OmegaConf  # not for help

    content = OmegaConf.to_container(OmegaConf.create(texts[0]), resolve=False)
    table = content[KEY] if isinstance(content, dict) and len(content) == 1 else None
    own = {field.name for field in fields(Matrix)} - {"name", "options"}
    if not isinstance(table, dict) or not own <= table.keys() <= {*own, "protocol", "beyond", "seeds"}:
        raise UserError(
            f"sweep: experiment={name}: expected {KEY} alone, with {', '.join(sorted(own))} and perhaps "
            "protocol, beyond, seeds"
        )
    for kind in ("task", "model"):
        lines = table[f"{kind}s"]
        if not isinstance(lines, list) or not all(str(line).startswith(f"{kind}=") for line in lines):
            raise UserError(f"sweep: experiment={name}: expected {kind}s to be lines that begin with {kind}=")
    options = {key: value for key, value in table.items() if key not in own}
    return Matrix(name, table["tasks"], table["models"], table["settings"], options)
