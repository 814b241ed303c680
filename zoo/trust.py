"""The rule of trust: which classes the files of a run may have imported and built.

A run's config.yaml names the classes of its model, its task, its optimiser, its loggers and callbacks, and to
build one is to run its code.  Trusted are classes of the zoo, of Lightning and of installed plug-ins, classes
that a yaml file in the working directory names, and those that the command line names again
(model._target_=CLASS).
"""

import re
from collections.abc import Collection, Mapping
from importlib.metadata import entry_points
from typing import Any

from zoo.errors import UserError
from zoo.plugins import ENTRY_POINTS, local_configs


def is_trusted(target: str) -> bool:
    """True if this class may be built although the command line doesn't name it."""
    plugins = {point.value.partition(".")[0] for point in entry_points(group=ENTRY_POINTS)}
    packages = {"zoo", "lightning", *plugins}
    return target.partition(".")[0] in packages or target in local_targets()


def local_targets() -> set[str]:
    """Classes that yaml files in the working directory name."""
    folder = local_configs()
    texts = [path.read_text("utf-8", "replace") for path in folder.glob("*/*.yaml")] if folder else []
    return {name for text in texts for name in re.findall(r"^\s*_target_:\s*['\"]?([\w.]+)", text, re.M)}


def run_targets(config: Mapping[Any, Any]) -> dict[str, str]:
    """The classes that a run's settings name, by their keys: "model._target_" and "task._target_"."""
    return {f"{group}._target_": str(config[group]["_target_"]) for group in ("model", "task")}


def training_targets(config: Mapping[Any, Any]) -> dict[str, str]:
    """The classes that training a run builds: those of its model, task, optimiser, loggers and callbacks."""
    named_classes = {
        f"{group}.{name}._target_": str(keys["_target_"])
        for group in ("logger", "callbacks")
        for name, keys in (config.get(group) or {}).items()
    }
    target = config["optim"].get("_target_")
    return run_targets(config) | ({} if target is None else {"optim._target_": str(target)}) | named_classes


def check_targets(targets: Mapping[str, str], overrides: Collection[str], source: str) -> None:
    """Raises UserError unless every class is trusted or named by an override, and for an override that names
    another class than the file, `source`."""
    for override in overrides:
        key, _, named = override.lstrip("+").partition("=")
        if key in targets and named != targets[key]:
            raise UserError(f"{key}: expected {targets[key]}, the class in {source}, found {named or 'none'}")
    for key, target in targets.items():
        if not is_trusted(target) and not {f"{key}={target}", f"+{key}={target}"} & {*overrides}:
            plus = "" if key.count(".") == 1 else "+"  # a key that no yaml file of the zoo has
            raise UserError(
                f"{source} names a class of no installed plug-in: {target}; "
                f"if you trust it, add {plus}{key}={target}"
            )
