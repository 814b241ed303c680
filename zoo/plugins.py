"""Lets an installed package add models, tasks, sizes and experiments to the zoo.

It names its own config package in its pyproject.toml, and `python -m zoo.train model=theirs` finds it:

    [project.entry-points."zoo.configs"]
    theirs = "their_package.configs"

Without installing anything, a folder of configs is named on the command line:

    python -m zoo.train "hydra.searchpath=[file://my_configs]" model=mine
"""

import math
from importlib.metadata import entry_points

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

GROUP = "zoo.configs"


class PluginConfigs(SearchPathPlugin):
    """Appends every plug-in's config package: behind the zoo's own, which therefore can't be shadowed."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for point in entry_points(group=GROUP):
            search_path.append(provider=f"zoo plug-in {point.name}", path=f"pkg://{point.value}")


def trusted(target: str) -> bool:
    """Whether a class named by a file belongs to the zoo or to an installed plug-in."""
    packages = {"zoo", *(point.value.partition(".")[0] for point in entry_points(group=GROUP))}
    return target.partition(".")[0] in packages


def register() -> None:
    """Makes plug-ins' configs and the arithmetic of our yaml files known to Hydra; harmless when repeated."""
    Plugins.instance().register(PluginConfigs)
    OmegaConf.register_new_resolver("mul", lambda value, by: int(value * by), replace=True)
    OmegaConf.register_new_resolver("div", lambda value, by: max(1, math.ceil(value / by)), replace=True)
    OmegaConf.register_new_resolver("round_up", lambda value, to: math.ceil(value / to) * to, replace=True)
    OmegaConf.register_new_resolver(
        "first", lambda *values: next((v for v in values if v), None), replace=True
    )
