"""`model.base=<run_dir>`: a new run that starts from the weights of a trained one, with a fresh optimiser."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from zoo import trust
from zoo.errors import UserError, first_line
from zoo.module import SequenceModule
from zoo.train.runs.checkpoint import check_weights, read_checkpoint
from zoo.train.runs.config import to_dict
from zoo.train.runs.construct import parameters
from zoo.train.runs.folder import no_run, read_json
from zoo.train.runs.model_settings import SAME_AT_EVERY_LENGTH, keep_trained_positions, trained_positions
from zoo.train.runs.override_key import key_of
from zoo.train.runs.stored import IMPORTED_CLASS, load_stored

CHANGEABLE = ("position", "rope_base", "rotated", "shifted", "segment_len", "window", "sinks")
"""Arguments besides dropouts in which a run may differ from a base of its class: how far and how it looks."""


def start_from_base(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Notes in `cfg.base` what the run starts from; the model of an imported base becomes the run's.

    `overrides` are those that `cfg` was composed with.  Raises UserError for a base that is no run.
    """
    if OmegaConf.select(cfg, "base") is not None:
        raise UserError("base: written by a run that starts from another; expected model.base=<run_dir>")
    base = OmegaConf.select(cfg, "model.base")
    if base is None:
        return
    run_dir = Path(str(base))
    stored = read_base(run_dir, overrides)
    if stored.model["_target_"] == IMPORTED_CLASS and not any(
        override.startswith("model=") for override in overrides
    ):
        keys = [key_of(override) for override in overrides]
        if settled := [key for key in keys if key.startswith("model.") and key != "model.base"]:
            raise UserError(f"{settled[0]}: settled by the imported model of {run_dir}")
        with open_dict(cfg):
            cfg.model = {**to_dict(stored.model), "base": str(base)}
            cfg.names.model, cfg.size.budget = stored.names.model, None
    keep_base_positions(cfg, stored, overrides)
    checkpoint = read_checkpoint(last_checkpoint(run_dir))
    metrics = run_dir / "metrics.json"
    cfg.base = {
        "run": run_dir.resolve().name,
        "step": checkpoint["global_step"],
        "commit": read_json(metrics).get("commit", "") if metrics.is_file() else "",
        "weights": weights_digest(checkpoint["state_dict"]),
    }


def keep_base_positions(cfg: DictConfig, stored: DictConfig, overrides: Sequence[str]) -> None:
    """The length that the base's positions were trained with stays that of the new run."""
    position = cfg.model.get("position")
    is_plain = position is None or position in SAME_AT_EVERY_LENGTH
    if is_plain or "position" not in stored.model or stored.model["_target_"] == IMPORTED_CLASS:
        return
    from zoo.train.runs import build  # which imports this module

    trained = {key: v for key, v in trained_positions(build.model(stored)).items() if key == "trained"}
    with open_dict(cfg):
        cfg.model.position = keep_trained_positions(to_dict(cfg.model), trained, overrides)["position"]


def read_base(run_dir: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The config.yaml of the run, whose classes are trusted or named in the overrides."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"model.base: {no_run(run_dir)}")
    try:
        stored = load_stored(path)
        assert isinstance(stored, DictConfig)
        to_dict(stored.model)["_target_"], stored.names.model, stored.names.size
    except Exception as error:  # not yaml, or not a run's
        raise UserError(f"model.base: {path} is not the config of a run: {first_line(error)}") from error
    trust.check_targets(trust.run_targets(stored), list(overrides), f"model.base: {path}")
    return stored


def last_checkpoint(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.ckpt"


def load_base(cfg: DictConfig, built: SequenceModule, run_dir: Path, keys: dict[str, Any]) -> None:
    """Give the model, built with these keys, the weights of a trained run of its class or of the one that it
    extends, if their arguments agree."""
    base_keys = to_dict(read_base(run_dir).model)
    cls, parent, target = type(built), type(built).__mro__[1], base_keys["_target_"]
    is_same = target == dotted(cls)
    if not is_same and target != dotted(parent):
        raise UserError(f"model.base: {class_mismatch(cls, parent, target)}")
    own_parameters = parameters(cls)
    for name, parameter in parameters(cls if is_same else parent).items():
        expected = keys.get(name, (own_parameters.get(name) or parameter).default)
        value = base_keys.get(name, parameter.default)
        if value != expected and not may_differ(name, is_same):
            path = run_dir / "config.yaml"
            raise UserError(f"model.base: expected a run with {name} {expected}, found {value} in {path}")
    last = last_checkpoint(run_dir)
    weights = read_checkpoint(last)["state_dict"]
    noted = OmegaConf.select(cfg, "base.weights")
    if noted is not None and weights_digest(weights) != noted:
        raise UserError(f"model.base: expected weights {noted}, found {weights_digest(weights)} in {last}")
    built.load_state_dict(check_weights(built, weights, last))


def may_differ(name: str, is_same_class: bool) -> bool:
    return name.endswith("dropout") or (is_same_class and name in CHANGEABLE)


def class_mismatch(cls: type, parent: type, target: str) -> str:
    """Names the classes whose runs a model can start from: its own, and a parent that runs can have."""
    has_runs = "mixers" not in parameters(parent) and parent.__module__ != SequenceModule.__module__
    expected = dotted(parent) if has_runs else dotted(cls)
    message = f"{cls.__name__} starts from a run of {expected}, found one of {target}"
    if target == IMPORTED_CLASS:
        return f"{message}: an imported model, which is trained further without model="
    return f"{message}; one of {dotted(cls)} is right too" if has_runs else message


def dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


def weights_digest(weights: dict[str, Tensor]) -> str:
    """A hash of names, types, shapes and values, in 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(weights):
        weight = weights[name].detach().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        digest.update(weight.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
