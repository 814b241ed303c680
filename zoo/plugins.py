"""Lets others add models, tasks, memories, sizes and experiments to the zoo.

An installed package names its own config package in its pyproject.toml:

    [project.entry-points."zoo.configs"]
    theirs = "their_package.configs"

With nothing installed, the folder one works in is enough: classes in its modules, yaml files in its
configs/model, configs/task and so on.  A folder elsewhere is named on the command line:

    python -m zoo.train "hydra.searchpath=[file://my_configs]" model=mine

All of them stand behind the zoo's own configs, which therefore can't be shadowed.
"""

import importlib.util
import logging
import math
import re
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

log = logging.getLogger(__name__)

GROUP = "zoo.configs"
CHOICES = ("model", "task", "size", "optim", "trainer", "experiment")


class PluginConfigs(SearchPathPlugin):
    """Appends every plug-in's configs, behind the zoo's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for point in entry_points(group=GROUP):
            if why := broken(point):
                log.warning("plug-in %s is left out: %s", point.name, why)
            else:
                search_path.append(provider=f"zoo plug-in {point.name}", path=f"pkg://{point.value}")
        if folder := own_folder():
            search_path.append(provider="the folder one works in", path=f"file://{folder}")


def broken(point: EntryPoint) -> str:
    """Why a plug-in's config package can't be used, "" if it can."""
    try:
        spec = importlib.util.find_spec(point.value)  # imports the package that it lies in
        return "" if spec and spec.origin else f"no package {point.value} with an __init__.py"
    except Exception as error:  # whatever the plug-in raises: the others go on
        return f"{type(error).__name__}: {error}".partition("\n")[0]


def own_folder() -> Path | None:
    """The folder `configs` where one works, if it has choices for us and isn't the zoo's own."""
    try:
        folder = Path.cwd() / "configs"
    except OSError:  # the folder is gone
        return None
    spec = importlib.util.find_spec(GROUP)
    ours = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    has_choices = any(path.parent.name in CHOICES for path in folder.glob("*/*.yaml"))
    return folder if has_choices and folder.resolve() not in [path.resolve() for path in ours] else None


class Choice(NamedTuple):
    """One yaml file of a group."""

    name: str
    owner: str
    """"zoo", a plug-in's name, or the folder."""
    text: str


def places(search: str = "") -> Iterator[tuple[str, Traversable]]:
    """Owners and their configs, in the order in which they count; `search` is `[file://…,pkg://…]`."""
    yield "zoo", files(GROUP)
    for place in filter(None, search.strip("[]").replace(" ", "").split(",")):
        scheme, _, path = place.strip("'\"").rpartition("://")
        yield path, files(path) if scheme == "pkg" else Path(path)
    for point in entry_points(group=GROUP):
        if not broken(point):
            yield point.name, files(point.value)
    if folder := own_folder():
        yield "configs", folder


def choices(group: str, search: str = "") -> list[Choice]:
    """Every yaml of a group, those that stand behind another of the same name among them."""
    found = []
    for owner, place in places(search):
        folder = place.joinpath(group)
        for file in sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else ():
            if file.name.endswith(".yaml"):
                found.append(Choice(file.name.removesuffix(".yaml"), owner, file.read_text("utf-8")))
    return found


def trusted(target: str) -> bool:
    """Whether a class named by a file belongs to the zoo or to an installed plug-in, or is what a yaml in the
    folder one works in names."""
    packages = {"zoo", *(point.value.partition(".")[0] for point in entry_points(group=GROUP))}
    return target.partition(".")[0] in packages or target in own_targets()


def own_targets() -> set[str]:
    """Classes that the yaml files in the folder one works in name."""
    folder = own_folder()
    texts = [path.read_text("utf-8", "replace") for path in folder.glob("*/*.yaml")] if folder else []
    return {found for text in texts for found in re.findall(r"^\s*_target_:\s*['\"]?([\w.]+)", text, re.M)}


def register() -> None:
    """Makes plug-ins' configs and the arithmetic of our yaml files known to Hydra; harmless when repeated."""
    Plugins.instance().register(PluginConfigs)
    # A folder of configs that isn't there is a slip; Hydra warns of it, and goes on without.
    warnings.filterwarnings("error", r"provider=hydra\.searchpath", UserWarning)
    OmegaConf.register_new_resolver("mul", lambda value, by: int(value * by), replace=True)
    OmegaConf.register_new_resolver("div", lambda value, by: max(1, math.ceil(value / by)), replace=True)
    OmegaConf.register_new_resolver("round_up", lambda value, to: math.ceil(value / to) * to, replace=True)
    OmegaConf.register_new_resolver("pick", lambda table, key: table[key], replace=True)
    OmegaConf.register_new_resolver(
        "first", lambda *values: next((v for v in values if v), None), replace=True
    )
