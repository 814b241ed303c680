"""A trained run's model with other settings: what is replaced, and what stays as the weights were trained.

The run's settings come first and the overrides last, key by key inside `model.position` too.  The lengths
that its positions were trained with stay the run's, so that `model.position.scaling=yarn
model.segment_len=512` of a run that was trained with 128 reads with a factor of 4.
"""

import importlib
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.runs.config import compose, to_dict
from zoo.train.runs.overrides import assignments
from zoo.train.runs.stored import IMPORTED_CLASS

SAME_AT_EVERY_LENGTH = ("rope", "alibi", "learned", "none")
"""Kinds of positions that have no trained length if nothing else is set."""
OWNERS = {"factor": {"scaling"}, "near": {"far"}, "group": {"far"}}
"""Settings of positions that are derived from lengths, and the keys which make them others."""


def replace_settings(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Change settings of the run's model.  Raises UserError for a field of an imported one's config that its
    loader doesn't read."""
    cfg.model = with_overrides(to_dict(cfg.model), overrides)
    keys = [override_key(override) for override in overrides]
    typed = [key.removeprefix("config.") for key in keys if key.startswith("config.")]
    if typed and cfg.model["_target_"] == IMPORTED_CLASS:
        module = importlib.import_module(IMPORTED_CLASS.rpartition(".")[0])
        module.check_config(to_dict(cfg.model), typed)


def replace_architecture(cfg: DictConfig, name: str, overrides: Sequence[str]) -> None:
    """Make `cfg.model` another architecture, with the run's settings where both have them."""
    names = [f"{group}={cfg.names[group]}" for group in ("task", "size")]
    new = to_dict(compose([f"model={name}", *names, *overrides]).model)
    full_keys = {key for key in map(override_key, overrides) if "." not in key}
    fixed = full_keys | {"_target_", "free", "base"}
    shared = {key: value for key, value in to_dict(cfg.model).items() if key in new and key not in fixed}
    parts = [override for override in overrides if override_key(override) not in full_keys]
    cfg.model = with_overrides(new | shared, parts)
    cfg.model.pop("base", None)


def override_key(override: str) -> str:
    """The key inside `model`."""
    return override.lstrip("+").partition("=")[0].removeprefix("model.")


def with_overrides(model: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The settings with `model.KEY=value` and `model.KEY.KEY=value` applied, in order."""
    model = dict(model)
    for override in overrides:
        value = OmegaConf.select(assignments([override.lstrip("+")]), f"model.{override_key(override)}")
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        key, _, inner = override_key(override).partition(".")
        if not inner:
            model[key] = value
        elif "." in inner:
            raise UserError(f"model.{key}.{inner}: expected a key of model.{key}")
        else:
            old = model.get(key)
            if old is not None and not isinstance(old, dict) and key != "position":
                raise UserError(f"model.{key}.{inner}: model.{key} has no keys, it is {old!r}")
            model[key] = {**({"kind": old} if isinstance(old, str) else old or {}), inner: value}
    return model


def as_keys(position: str | dict[str, Any] | None) -> dict[str, Any]:
    """`model.position` with its kind as a key."""
    return {"kind": position} if isinstance(position, str) else {"kind": "rope", **(position or {})}


def check_same_kind(model: dict[str, Any], trained: dict[str, Any]) -> None:
    """Raises UserError if a model would be read with positions of a kind that it wasn't trained with."""
    kind, trained_kind = as_keys(model.get("position"))["kind"], as_keys(trained.get("position"))["kind"]
    if kind not in (trained_kind, "none"):
        raise UserError(
            f"model.position: expected kind {trained_kind}, which the weights were trained with, or none, "
            f"found {kind}"
        )


def trained_positions(model: SequenceModule) -> dict[str, Any]:
    """The lengths that a model's positions were set up with, and what was derived from them."""
    for part in model.modules():
        settings: dict[str, Any] = getattr(part, "lengths", {})
        if settings:
            return settings
    return {}


def keep_trained_positions(
    model: dict[str, Any], trained: dict[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """The settings of a model with those lengths in its position, unless the overrides set others.

    Without draws, which act in training alone and may be for fewer positions than are read now.
    """
    position = model.get("position")
    if position is None or position in SAME_AT_EVERY_LENGTH:
        return model
    position = as_keys(position)
    prefix = "position."
    changed = {key.removeprefix(prefix) for key in map(override_key, overrides) if key.startswith(prefix)}
    if "position" in map(override_key, overrides) or "kind" in changed:
        changed |= {"scaling", "far"}
    for key, value in trained.items():
        if position.get(key) is None and not OWNERS.get(key, set()) & changed:
            position[key] = value
    for key in {"draw", "longest"} - changed:
        position.pop(key, None)
    return {**model, "position": position}
