"""A matrix of a sweep in a yaml file, configs/experiment/NAME.yaml with one key, `sweep`:

    sweep:
      options: protocol=1 beyond=80     # keys of zoo sweep itself
      settings: size=micro steps=1200   # of every run
      tasks:                            # the arguments of each column
        - task=recall data.batch_size=8
      models:                           # the arguments of each row
        - model=rmt model.memory_tokens=8

`zoo sweep experiment=NAME` runs every row in every column, or those that `task=` and `model=` pick, column by
column.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from zoo import plugins
from zoo.errors import UserError
from zoo.train.runs.override_key import key_of


@dataclass(frozen=True)
class Matrix:
    name: str
    options: str
    settings: str
    tasks: list[str]
    models: list[str]

    def cells(self, models: Sequence[str] = (), tasks: Sequence[str] = ()) -> list[list[str]]:
        """The overrides of every run without its seed; of rows and columns with these models and tasks, of
        all if there are none.  Raises UserError for a name that the matrix doesn't have."""
        rows, columns = self.pick("model", self.models, models), self.pick("task", self.tasks, tasks)
        return [[*row.split(), *column.split(), *self.settings.split()] for column in columns for row in rows]

    def cells_with(
        self, further: Sequence[str], models: Sequence[str] = (), tasks: Sequence[str] = ()
    ) -> list[list[str]]:
        """The same with further overrides.  Raises UserError for a key that the matrix sets itself."""
        cells = self.cells(models, tasks)
        fixed = {key_of(override) for cell in cells for override in cell}
        if twice := [key_of(override) for override in further if key_of(override) in fixed]:
            raise UserError(f"{twice[0]}: experiment={self.name} sets it")
        return [[*cell, *further] for cell in cells]

    def pick(self, kind: str, lines: list[str], names: Sequence[str]) -> list[str]:
        known = self.names(kind, lines)
        if missing := [name for name in names if name not in known]:
            expected = ", ".join(dict.fromkeys(known))
            raise UserError(f"{kind}: experiment={self.name} has {expected}, found {', '.join(missing)}")
        return [line for line, name in zip(lines, known, strict=True) if not names or name in names]

    def names(self, kind: str, lines: list[str]) -> list[str]:
        """The models of rows, or the tasks of columns."""
        return [line.split()[0].removeprefix(f"{kind}=") for line in lines]


def matrix_of_args(args: Sequence[str]) -> Matrix | None:
    """The matrix that experiment= names on a command line; None without one."""
    values = dict(arg.partition("=")[::2] for arg in args)
    return read_matrix(values.get("experiment", ""), values.get("hydra.searchpath", ""))


def read_matrix(name: str, search: str = "") -> Matrix | None:
    """The matrix of an experiment; None for an experiment that is a single run, and for none.

    `search` is hydra.searchpath.  Raises UserError for a matrix that isn't one.
    """
    file = next((choice for choice in plugins.choices("experiment", search) if choice.name == name), None)
    if file is None or not file.is_matrix:
        return None
    from omegaconf import OmegaConf  # not for help

    content = OmegaConf.to_container(OmegaConf.create(file.text), resolve=False)
    table = content[plugins.MATRIX_KEY] if isinstance(content, dict) and len(content) == 1 else None
    keys = {field.name for field in fields(Matrix)} - {"name"}
    if not isinstance(table, dict) or table.keys() != keys:
        expected = ", ".join(sorted(keys))
        raise UserError(f"sweep: experiment={name}: expected {plugins.MATRIX_KEY} alone, with {expected}")
    for kind in ("task", "model"):
        lines = table[f"{kind}s"]
        if not isinstance(lines, list) or not all(str(line).startswith(f"{kind}=") for line in lines):
            raise UserError(f"sweep: experiment={name}: expected {kind}s to be lines that begin with {kind}=")
    return Matrix(name, str(table["options"]), str(table["settings"]), table["tasks"], table["models"])
