"""The end of an error's line about a key or choice that doesn't exist: what there is, and the nearest of it.

Only Python's own modules are imported up here, as in cli.py.
"""

import re
import tomllib
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

from zoo.errors import nearest
from zoo.plugins import ENTRY_POINTS


def suggestion(message: str, args: Sequence[str] = ()) -> str:
    """The end of a message about a key or choice that doesn't exist: its new name, or the nearest one."""
    if option := re.search(r"Could not find '([^']+)/([^']+)'", message):
        options = re.findall(r"\S+", message.rpartition("':")[2])
        return nearest(option[2], options, prefix=f"{option[1]}=") + uninstalled_plugin()
    if "'" not in message:
        return ""
    from zoo.train.runs.stored import renamed_key

    if new_name := renamed_key(message):
        return new_name
    if not (unknown := re.search(r"Could not override '([^']+)'", message)):
        return ""
    values = config_values(args)
    group = unknown[1].rpartition(".")[0]
    keys = [key for key, value in values.items() if not follows(key, value) or group == "model"]
    members = [key.removeprefix(f"{group}.") for key in keys if group and key.startswith(f"{group}.")]
    known = f"; {group} takes {', '.join(key for key in members if key[0] != '_')}" if members else ""
    if namesakes := [key for key in keys if key.rpartition(".")[2] == unknown[1]]:
        return f"{known}; did you mean {min(namesakes, key=preference)}?"
    return known + nearest(unknown[1], keys)


def follows(key: str, value: Any) -> bool:
    """True for a key of a task or a model that only repeats another one, as task.corpus does data.corpus."""
    return key.startswith(("task.", "model.")) and bool(re.fullmatch(r"\$\{[\w.]+\}", str(value)))


def preference(key: str) -> int:
    """The rank of a key among those of the same name in other groups: settings of the run come first."""
    groups = ("data", "optim", "trainer")
    group = key.partition(".")[0]
    return groups.index(group) if group in groups else len(groups)


def uninstalled_plugin() -> str:
    """How to install the package in the working directory, "" unless it is a plug-in that isn't installed."""
    try:
        project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
        points = dict(project["entry-points"][ENTRY_POINTS])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    installed = {point.name for point in entry_points(group=ENTRY_POINTS)}
    if not points.keys() - installed:
        return ""
    return f"; this folder's package {project.get('name', '')} isn't installed: pip install -e ."


def config_values(args: Sequence[str]) -> dict[str, Any]:
    """Keys of the configuration that these arguments' groups compose, with their values, interpolations as
    they stand; {} where they don't compose."""
    from omegaconf import OmegaConf

    from zoo.train.runs.config import compose

    groups = ("model=", "task=", "size=", "optim=", "trainer=", "experiment=", "hydra.searchpath=")
    try:
        composed = compose([arg for arg in args if arg.startswith(groups)])
    except Exception:  # the first error is reported anyway
        return {}
    # resolved, the precision asks torch for a GPU
    cfg = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=False))
    inner = {
        f"{group}.{key}": value
        for group, keys in cfg.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    }
    return {**cfg, **inner}
