"""Plug-ins: models, tasks, memories, sizes and experiments from outside the zoo.

An installed package declares its config package in its pyproject.toml:

    [project.entry-points."zoo.configs"]
    my_plugin = "my_package.configs"

Without installation, the working directory serves: classes in its modules, yaml files in its configs/model,
configs/task and so on.  Any further folder is given on the command line:

    python -m zoo.train "hydra.searchpath=[file://my_configs]" model=mine

All of them are searched after the zoo's configs, which therefore can't be shadowed.  zoo.trust decides which
of their classes a run's files may have built.  Only Python's own modules are imported here, so that help
answers at once; zoo.composition hands them to Hydra.
"""

import importlib.util
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

ENTRY_POINTS = "zoo.configs"  # also the package of the zoo's configs
MATRIX_KEY = "sweep"
CONFIG_GROUPS = ("model", "task", "size", "optim", "trainer", "logger", "callbacks", "experiment")
LIST_GROUPS = ("logger", "callbacks")  # of which a run may have several


def import_problem(point: EntryPoint) -> str:
    """The reason why a plug-in's config package can't be imported, "" if it can."""
    try:
        spec = importlib.util.find_spec(point.value)  # imports the parent package
        return "" if spec and spec.origin else f"no package {point.value} with an __init__.py"
    except Exception as error:  # of the plug-in's code: the rest of the zoo works without it
        return f"{type(error).__name__}: {error}".partition("\n")[0]


def local_configs() -> Path | None:
    """`configs` in the working directory, if it has yaml files of CONFIG_GROUPS and isn't the zoo's."""
    try:
        folder = Path.cwd() / "configs"
    except OSError:  # the working directory was deleted
        return None
    spec = importlib.util.find_spec(ENTRY_POINTS)
    zoo_folders = [Path(path).resolve() for path in spec.submodule_search_locations or ()] if spec else []
    has_choices = any(path.parent.name in CONFIG_GROUPS for path in folder.glob("*/*.yaml"))
    return folder if has_choices and folder.resolve() not in zoo_folders else None


class Choice(NamedTuple):
    """A yaml file of a group."""

    name: str
    owner: str
    """"zoo", a plug-in's name, or the folder."""
    text: str

    @property
    def is_matrix(self) -> bool:
        """True for an experiment of many runs, which `zoo sweep` takes: its file has the key `sweep`."""
        return f"\n{MATRIX_KEY}:" in f"\n{self.text}"


def config_folders(search: str = "") -> Iterator[tuple[str, Traversable]]:
    """(owner, config folder) in order of precedence; `search` is hydra.searchpath, `[file://…,pkg://…]`."""
    yield "zoo", files(ENTRY_POINTS)
    for url in filter(None, search.strip("[]").replace(" ", "").split(",")):
        scheme, _, path = url.strip("'\"").rpartition("://")
        yield path, files(path) if scheme == "pkg" else Path(path)
    for point in entry_points(group=ENTRY_POINTS):
        if not import_problem(point):
            yield point.name, files(point.value)
    if folder := local_configs():
        yield "configs", folder


def choices(group: str, search: str = "") -> list[Choice]:
    """Every yaml file of a group, also those that another of the same name shadows."""
    result = []
    for owner, configs in config_folders(search):
        folder = configs.joinpath(group)
        for file in sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else ():
            if file.name.endswith(".yaml"):
                result.append(Choice(file.name.removesuffix(".yaml"), owner, file.read_text("utf-8")))
    return result
