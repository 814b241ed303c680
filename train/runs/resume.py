"""The settings that a run resumes with: its own, but for those that leave its past true."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from zoo import plugins, trust
from zoo.errors import UserError, one_line
from zoo.train.runs.config import DEFAULT_LOGGER, Config, compose
from zoo.train.runs.folder import NOT_SET, differences, equal, flatten, no_run
from zoo.train.runs.override_key import key_of
from zoo.train.runs.overrides import override_value
from zoo.train.runs.stored import IMPORTED_CLASS, load_stored

CHANGEABLE = ("steps", "val_every", "checkpoint_every", "trainer.", "data.root", "data.corpus")
FIXED_TRAINER = ("trainer.accumulate",)
"""What a step is: the positions that a run has read follow from its steps and this alone."""


def stored_settings(run_dir: Path) -> DictConfig:
    """The checked settings of a run's config.yaml.  Raises UserError if it isn't one."""
    path = run_dir / "config.yaml"
    try:
        raw = load_stored(path)
        stored: Any = OmegaConf.merge(OmegaConf.structured(Config), raw)
        if "logger" not in raw:
            stored.logger = DEFAULT_LOGGER
        trust.training_targets(stored)
    except Exception as error:  # yaml and the file system raise many kinds
        raise UserError(f"resume: {path} is not the config of a run: {one_line(error)}") from error
    if missing := OmegaConf.missing_keys(stored):
        raise UserError(f"resume: {path} is not the config of a run: {', '.join(sorted(missing))} missing")
    assert isinstance(stored, DictConfig)
    return stored


def resumed(cfg: DictConfig, run_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """The stored settings with the changes that the overrides ask for, which `cfg` was composed with."""
    stored = stored_settings(run_dir)
    targets = trust.training_targets(stored)
    trust.check_targets(targets, overrides, f"resume: {run_dir / 'config.yaml'}")
    for override in overrides:
        key = key_of(override)
        if override.lstrip("+") == f"{key}={targets.get(key)}":
            continue
        if key != "resume" and not is_changeable(key):
            raise fixed(key, run_dir)
        if key == "data.corpus" and stored.task.get("corpus") == stored.data.corpus:
            stored.task.corpus = cfg.data.corpus  # a place of the same texts, as check_data shows
        OmegaConf.update(stored, key, OmegaConf.select(cfg, key))
    return stored


def fixed(key: str, run_dir: Path, difference: str = "") -> UserError:
    return UserError(
        f"resume: {key} is fixed by the run in {run_dir}{difference}; "
        "only steps, val_every, checkpoint_every, trainer.* without accumulate, data.root and the place of "
        "data.corpus change"
    )


def is_changeable(key: str) -> bool:
    return key.startswith(CHANGEABLE) and not key.startswith(FIXED_TRAINER)


# -- arguments that a run was started with, given again


def args_to_resume(args: Sequence[str]) -> list[str]:
    """A command line's arguments; with `resume=`, without those that only repeat what the run was started
    with.

    Raises UserError if `resume=` names no run, and for an argument that contradicts the run's config.yaml.
    """
    run_dirs = [Path(override_value(arg)) for arg in args if arg.startswith("resume=")]
    repeated = set[str]()
    for run_dir in run_dirs:
        if not (run_dir / "config.yaml").is_file():
            raise UserError(f"resume: {no_run(run_dir)}")
        repeated |= repeated_args(args, run_dir)
    return [arg for arg in args if arg not in repeated]


def repeated_args(args: Sequence[str], run_dir: Path) -> set[str]:
    """Those of a command line's arguments that only repeat what the run in this folder was started with.

    Raises UserError for an argument that contradicts the run's config.yaml.
    """
    stored = stored_settings(run_dir)
    if stored.model["_target_"] == IMPORTED_CLASS and stored.get("base") is None:
        raise UserError(
            f"resume: {run_dir} was imported, without an optimiser to resume with; "
            f"model.base={run_dir} starts a run from its weights"
        )
    repeated = set()
    for arg in args:
        try:
            override = OverridesParser.create().parse_override(arg)
        except Exception:  # Hydra reports it with the others
            continue
        key = override.key_or_group
        passes = key == "resume" or key.endswith("._target_") or is_changeable(key)
        if passes or override.is_hydra_override() or override.is_sweep_override():
            continue
        if difference := _difference(override, args, stored, run_dir):
            raise fixed(key, run_dir, difference)
        repeated.add(arg)
    return repeated


def _difference(override: Override, args: Sequence[str], stored: DictConfig, run_dir: Path) -> str:
    """How an argument differs from the stored settings, "" where it doesn't."""
    key = override.key_or_group
    if override.is_delete():
        current = OmegaConf.select(stored, key)
        return "" if current is None else f": {current} there"
    value = override.value()
    if key == "run_dir":
        return "" if Path(str(value)).resolve() == run_dir.resolve() else f", found {value}"
    if key in stored.names and isinstance(value, str):
        return "" if value == stored.names[key] else f": {stored.names[key]} there, found {value}"
    if key in plugins.CONFIG_GROUPS:
        return _group_difference(override, args, stored)
    if value is None and key == f"model.{stored.model.get('free')}":  # solved from the budget
        return ""
    pairs = differences(_settings(stored, key), _settings(_with_value(stored, key, value), key), without=())
    return "".join(f": {first} there, found {second}" for first, second in list(pairs.values())[:1])


def _with_value(stored: DictConfig, key: str, value: Any) -> DictConfig:
    changed = stored.copy()
    OmegaConf.update(changed, key, value, merge=False, force_add=True)
    return changed


def _settings(cfg: DictConfig, key: str) -> dict[str, Any]:
    node = OmegaConf.select(cfg, key, default=NOT_SET)
    return flatten(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node, key)


def _group_difference(override: Override, args: Sequence[str], stored: DictConfig) -> str:
    """The first setting in which the run differs from a group's yaml file, of those that the file sets apart
    from the default and, of optimisers, from any other file."""
    group = override.key_or_group
    groups = [arg for arg in args if arg.partition("=")[0] in (*plugins.CONFIG_GROUPS, "hydra.searchpath")]
    set_alone = {key_of(arg) for arg in args if key_of(arg) not in plugins.CONFIG_GROUPS}
    with_group = compose(groups)
    after = flatten(OmegaConf.to_container(with_group, resolve=False))
    further = [arg for arg in groups if arg != override.input_line]
    names = {choice.name for choice in plugins.choices(group)} if group == "optim" else set()
    for other in [further, *([*further, f"{group}={name}"] for name in sorted(names))]:
        before = flatten(OmegaConf.to_container(compose(other), resolve=False))
        for key in differences(before, after, without=()):
            value, current = OmegaConf.select(with_group, key), OmegaConf.select(stored, key)
            if key in set_alone or is_changeable(key) or (value is None and other is further):
                continue
            if not equal(value, current):
                return f": its {key} is {current}, found {value}"
    if group == "optim" and with_group.optim.get("_target_") != stored.optim.get("_target_"):
        return f": its class is {stored.optim.get('_target_') or 'the default one'}"
    if group in plugins.LIST_GROUPS and {*with_group[group]} != {*stored[group]}:
        return f": {', '.join(map(str, stored[group])) or 'none'} there"
    return ""
