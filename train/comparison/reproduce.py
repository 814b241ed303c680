"""Commands that train the runs of a comparison again."""

import shlex
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo import trust
from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.groups import FinishedRun, RunGroup, to_yaml
from zoo.train.runs import budget
from zoo.train.runs.config import compose
from zoo.train.runs.construct import import_class, parameters
from zoo.train.runs.folder import NOT_SET, Pair, differences, equal, flatten, neutral_settings
from zoo.train.runs.protocol import MORE_SEEDS, SEEDS
from zoo.train.runs.stored import load_stored

SET_BY_PROTOCOL = (
    "optim.lr",
    "optim.schedule",
    "optim.decay",
    "stop_when_solved.",
    "data.curriculum.",
    "data.val_samples",
)
"""Beginnings of the settings that `zoo sweep protocol=1` chooses."""


def sweep_commands(comparison: Comparison) -> list[str]:
    """One for all models whose commands differ in nothing else."""
    commands = [sweep_command(group) for group in comparison.groups]
    return [f"{command}{protocol_arguments(comparison)}" for command in merged(list(filter(None, commands)))]


def merged(commands: Sequence[str]) -> list[str]:
    """Commands of sweeps, those that differ in their model alone as one."""
    models: dict[tuple[str, ...], list[str]] = {}
    for command in commands:
        arguments = shlex.split(command)
        rest = tuple(arg for arg in arguments if not arg.startswith("model="))
        models.setdefault(rest, []).extend(arg for arg in arguments if arg.startswith("model="))
    return [
        shlex.join([*rest[:2], "model=" + ",".join(dict.fromkeys(map(model_of, of_rest))), *rest[2:]])
        for rest, of_rest in models.items()
    ]


def model_of(argument: str) -> str:
    return argument.removeprefix("model=")


def protocol_arguments(comparison: Comparison) -> str:
    """What a command has of a protocol, which sets the rest."""
    if comparison.protocol is None:
        return ""
    reach = comparison.runs[0].config.get("stop_when_solved.beyond")
    return f" protocol={comparison.protocol}" + ("" if reach is None else f" beyond={reach}")


def sweep_command(group: RunGroup) -> str:
    """Trains a group's runs with today's configs; "" where they aren't installed."""
    config, by_protocol = group.runs[0].config, bool(group.runs[0].protocol)
    args = [f"{key}={config[f'names.{key}']}" for key in ("model", "task", "size")]
    args.append(f"steps={config['steps']}")
    try:
        ignored = (*neutral_settings(config), "seed", "run_dir", "resume", "task.corpus")
        settings: dict[str, Pair] = {}
        composed = compose([*args, "run_dir=."])
        for accelerator in ("cpu", "auto"):  # the default precision is the device's
            composed.trainer.accelerator = accelerator
            defaults = flatten(OmegaConf.to_container(composed, resolve=True))
            settings |= differences(config, defaults, ignored)
        if is_solved(group.runs[0]):
            settings.pop(f"model.{config['model.free']}", None)
    except Exception:  # a missing plug-in may raise anything
        return ""
    given = dict[str, Any]()
    for key, (value, default) in settings.items():
        trained_with = constructor_default(config, key) if value == NOT_SET else value
        if trained_with not in (NOT_SET, default) and not (by_protocol and key.startswith(SET_BY_PROTOCOL)):
            given[key] = trained_with
    args += [f"{key}={to_yaml(value)}" for key, value in without_consequences(args, given, composed).items()]
    seeds = tuple(int(run.config["seed"]) for run in group.runs)
    if not by_protocol or seeds not in (SEEDS, SEEDS + MORE_SEEDS):
        args.append(f"seeds={','.join(map(str, seeds))}")
    return shlex.join(["zoo", "sweep", *args])


def without_consequences(args: list[str], given: dict[str, Any], defaults: DictConfig) -> dict[str, Any]:
    """The settings without those that follow from the others by the yaml files, as `data.seq_len` does from
    `task.length`: what nobody typed."""
    unresolved = flatten(OmegaConf.to_container(defaults, resolve=False))
    follows = {key for key in given if "${" in str(unresolved.get(key)) and not key.startswith("trainer.")}
    if not follows:
        return given
    causes = [f"{key}={to_yaml(value)}" for key, value in given.items() if key not in follows]
    try:
        result = flatten(OmegaConf.to_container(compose([*args, "run_dir=.", *causes]), resolve=True))
    except Exception:  # settings that are only right together
        return given
    return {
        key: value
        for key, value in given.items()
        if key not in follows or not equal(result.get(key, NOT_SET), value)
    }


def constructor_default(config: dict[str, Any], key: str) -> Any:
    """What a run without this setting was trained with; today's yaml may have another value."""
    group, _, name = key.partition(".")
    target = config.get(f"{group}._target_")
    if target is None or not trust.is_trusted(target):
        return NOT_SET
    parameter = parameters(import_class(target, object, group)).get(name)
    return NOT_SET if parameter is None or parameter.default is parameter.empty else parameter.default


def is_solved(run: FinishedRun) -> bool:
    """True if the run's free width follows from its budget, and wasn't set by hand."""
    free, target = run.config.get("model.free"), run.config["model._target_"]
    if free is None or run.config.get("size.budget") is None or not trust.is_trusted(target):
        return False
    stored = load_stored(run.folder / "config.yaml")
    stored.model[free] = None
    return bool(budget.solve_width(stored)[free] == run.config[f"model.{free}"])
