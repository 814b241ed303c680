"""Plug-ins' folders and the functions of yaml files, for Hydra to compose configurations with."""

import logging
import math
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from zoo.plugins import ENTRY_POINTS, import_problem, local_configs

log = logging.getLogger(__name__)


class PluginConfigs(SearchPathPlugin):
    """Appends every plug-in's configs to Hydra's search path, after the zoo's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for point in entry_points(group=ENTRY_POINTS):
            if problem := import_problem(point):
                log.warning("plug-in %s is left out: %s", point.name, problem)
            else:
                search_path.append(provider=f"zoo plug-in {point.name}", path=f"pkg://{point.value}")
        if folder := local_configs():
            search_path.append(provider="the working directory", path=f"file://{folder}")


def register() -> None:
    """Register plug-ins' configs and the resolvers of our yaml files with Hydra; idempotent."""
    Plugins.instance().register(PluginConfigs)
    # Hydra only warns of a search path that doesn't exist, which is a user error.
    warnings.filterwarnings("error", r"provider=hydra\.searchpath", UserWarning)
    OmegaConf.register_new_resolver("mul", lambda value, by: int(value * by), replace=True)
    OmegaConf.register_new_resolver("div", lambda value, by: max(1, math.ceil(value / by)), replace=True)
    OmegaConf.register_new_resolver("round_up", lambda value, to: math.ceil(value / to) * to, replace=True)
    OmegaConf.register_new_resolver("add", lambda *values: sum(values), replace=True)
    OmegaConf.register_new_resolver("pick", pick, replace=True)
    OmegaConf.register_new_resolver(
        "first", lambda *values: next((v for v in values if v), None), replace=True
    )
    OmegaConf.register_new_resolver("default_precision", default_precision, replace=True)


def pick(table: Mapping[str, object], key: str) -> object:
    """The table's value of a key.  Raises ValueError for a key that it doesn't have."""
    if key not in table:
        raise ValueError(f"expected one of {', '.join(table)}, found {key}")
    return table[key]


def default_precision(accelerator: str) -> str:
    """`trainer.precision` unless it is given: bf16-mixed on a CUDA device, 32-true elsewhere."""
    import torch  # not before it is needed: --help answers at once

    on_cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_cuda else "32-true"
