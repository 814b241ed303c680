"""Overrides of a configuration, `key=value` as Hydra's grammar has them: quoted, read, written."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from zoo import plugins
from zoo.errors import UserError
from zoo.train.runs.override_key import expand_home, key_of
from zoo.train.runs.position_overrides import position_overrides
from zoo.train.runs.stored import IMPORTED_CLASS, load_stored

BASE = "model.base"


def refuse_task_corpus(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raises UserError for task.corpus=, where the task's yaml file takes its corpus from data.corpus: the
    run would be stored under a corpus that it doesn't read."""
    if "task.corpus" not in {key_of(override) for override in overrides}:
        return
    search = next((arg.partition("=")[2] for arg in overrides if arg.startswith("hydra.searchpath=")), "")
    files = {choice.name: choice.text for choice in reversed(plugins.choices("task", search))}
    text = files.get(str(cfg.names.task), "")
    if re.search(r"^\s*corpus: *\$\{data\.corpus\}", text, re.MULTILINE):
        raise UserError(f"task.corpus: task {cfg.names.task} reads the corpus that data.corpus=… names")


def check_grammar(args: Sequence[str]) -> None:
    """Raises UserError for an argument that isn't key=value, or whose value Hydra takes in quotes only."""
    parser = OverridesParser.create()
    for arg in args:
        key, equals, value = arg.partition("=")
        if not equals and not key.startswith("~"):
            choices = [
                f"{group}={arg}"
                for group in plugins.CONFIG_GROUPS
                if arg in {choice.name for choice in plugins.choices(group)}
            ]
            meant = f"; did you mean {' or '.join(choices)}?" if choices else ""
            raise UserError(f"expected key=value, found {arg!r}{meant}")
        try:
            parser.parse_override(home_override(arg))
        except Exception as error:  # Hydra's, of several kinds; the cause is more general than the value
            quoted = path_override(key, value)
            try:
                parser.parse_override(quoted)
            except Exception:  # not the value's fault: Hydra reports it when it composes
                continue
            typed = shlex.quote(quoted) if set(quoted) & set('"$`\\!') else f'"{quoted}"'
            message = f"{key}: expected quotes within quotes for a value such as {value}: {typed}"
            raise UserError(message) from error


def quoted_names(args: Sequence[str]) -> list[str]:
    """Overrides, with names such as 1 or true in quotes: Hydra's grammar takes them for numbers and flags.

    model.base=, which no yaml file of a model need have, is added; without model= and size= with those of the
    run that it names.  ~/ at the beginning of a value is the home folder.
    """
    quoted = [quoted_name(home_override(arg)) for arg in args]
    return position_overrides([added for override in quoted for added in base_overrides(override, args)])


def home_override(arg: str) -> str:
    """The override itself; `key=~/path` with the path in full, in quotes where Hydra's grammar needs them."""
    key, _, value = arg.partition("=")
    return path_override(key, expand_home(value)) if value.startswith("~/") else arg


def base_overrides(arg: str, args: Sequence[str]) -> list[str]:
    """The override itself, or all that model.base=<run_dir> stands for."""
    key, _, value = arg.partition("=")
    if key.lstrip("+") != BASE or not value:
        return [arg]
    keys = {arg.partition("=")[0].lstrip("+") for arg in args}
    try:
        stored = load_stored(Path(override_value(arg)) / "config.yaml")
        names_model = stored.model["_target_"] != IMPORTED_CLASS
        groups = [
            group for group in ("model", "size") if group not in keys and (names_model or group != "model")
        ]
        names = [(group, str(stored.names[group])) for group in groups]
        choices = {group: {choice.name for choice in plugins.choices(group)} for group in groups}
    except Exception:  # reported when the base is read
        return [f"++{BASE}={value}"]
    added = [quoted_name(f"{group}={name}") for group, name in names if name in choices[group]]
    return [f"++{BASE}={value}", *added]


def quoted_name(arg: str) -> str:
    key, _, value = arg.partition("=")
    if key.lstrip("+") not in plugins.CONFIG_GROUPS:
        return arg
    if key in plugins.LIST_GROUPS:
        return f"{key}=[{value.strip('[]')}]"
    try:
        override = OverridesParser.create().parse_override(arg)
    except Exception:  # Hydra reports it when it composes
        return arg
    is_name = override.is_sweep_override() or isinstance(override.value(), str | list | None)
    return arg if is_name else f"{key}='{value}'"


def override_value(override: str) -> str:
    """The value of a `key=value` override, without the quotes that Hydra's grammar asks for."""
    try:
        value = OverridesParser.create().parse_override(home_override(override)).value()
    except Exception:  # Hydra reports it when it composes
        value = None
    return value if isinstance(value, str) else override.partition("=")[2]


def path_override(key: str, path: object) -> str:
    """The Hydra override `key=path`, in quotes where Hydra's grammar needs them."""
    bare = f"{key}={path}"
    try:
        if OverridesParser.create().parse_override(bare).value() == str(path):
            return bare
    except Exception:  # not a bare word
        pass
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def assignments(args: Sequence[str]) -> DictConfig:
    """key=value overrides as settings, values as yaml has them; UserError for one that isn't yaml."""
    parsed = []
    for arg in args:
        try:
            parsed.append(OmegaConf.from_dotlist([arg]))
        except Exception as error:  # yaml and OmegaConf raise many kinds
            key, _, value = arg.partition("=")
            raise UserError(f"{key}: expected a value as yaml has it, found {value!r}") from error
    settings = OmegaConf.unsafe_merge(OmegaConf.create(), *parsed)
    assert isinstance(settings, DictConfig)
    return settings
