"""Weights from elsewhere as a run's folder, which evaluate and generate take like any other."""

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from zoo import plugins
from zoo.errors import UserError
from zoo.train.runs import build, checkpoint
from zoo.train.runs.checkpoint import check_weights
from zoo.train.runs.config import compose, stored_config
from zoo.train.runs.export import CONFIG, FORMAT, VERSION
from zoo.train.runs.files import atomic_folder, replacing, require_empty, write_text
from zoo.train.runs.stored import update_names
from zoo.train.runs.weight_files import check_finite, read_weights, weight_files
from zoo.train.tasks.tokens import Tokens

PREFIXES = ("config.", "task.", "data.")
ROOT = "${oc.env:ZOO_DATA,data}"
IMPORTED = "zoo.models.published.imported"  # imported by name: train knows no models


def bring(given: Mapping[str, str]) -> Path:
    """Make the run's folder; UserError: whatever doesn't fit, and nothing is made."""
    plugins.register()
    source, run_dir = Path(given["from"]), Path(given["run_dir"])
    require_empty(run_dir)
    if not source.exists():
        raise UserError(f"import: from: expected a folder or a file of weights, found none at {source}")
    files = weight_files(source)
    config = read_config(Path(given["config"]) if "config" in given else files[0].parent / CONFIG)
    if given.get("format", FORMAT if config.get("format") == FORMAT else "") == FORMAT:
        made = from_zoo(files, config, given)
    else:
        made = from_published(files, config, given)
    cfg, weights, far, metrics = made
    check_finite(weights)
    model = build.model(cfg)
    kept: dict[str, Any] = {
        "state_dict": weights,
        "pytorch-lightning_version": lightning.__version__,
        "optimizer_states": [],
        "lr_schedulers": [],
        "loops": None,
        "callbacks": {},
        "global_step": far["step"],
        "metrics": {"tokens_seen": far["tokens_seen"]},
        "zoo": {"version": checkpoint.VERSION, "ranks": []},
    }
    check_weights(model, kept, files[0])
    with atomic_folder(run_dir) as folder:
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg))
        if metrics is not None:
            write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        with replacing(folder / "checkpoints" / "last.ckpt") as file:
            torch.save(kept, file)
    return run_dir


Made = tuple[DictConfig, dict[str, Tensor], dict[str, int], dict[str, Any] | None]


def from_zoo(files: list[Path], config: dict[str, Any], given: Mapping[str, str]) -> Made:
    """What `zoo export` wrote."""
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise UserError(
            f"import: expected a {CONFIG} of zoo export, version {VERSION}, found format "
            f"{config.get('format')!r}, version {config.get('version')!r}"
        )
    if strange := [key for key in given if key.startswith(PREFIXES) and not key.endswith("_target_")]:
        raise UserError(f"import: {strange[0]} is settled by the run that was exported")
    try:
        settings = update_names({**config["run"], "model": config["model"], "task": config["task"]})
        about, far = config["weights"], {key: int(config[key]) for key in ("step", "tokens_seen")}
        tied, digest = dict(about["tied"]), str(about["sha256"])
        targets = {f"{group}._target_": str(settings[group]["_target_"]) for group in ("model", "task")}
        names, data = settings["names"], settings["data"]
        if min(far.values()) < 0 or not all(isinstance(one, dict) for one in (names, data, settings["task"])):
            raise ValueError("a setting of the wrong kind")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"import: {CONFIG} is no whole one of zoo export: {error!r}") from error
    for key, target in targets.items():
        if not plugins.trusted(target) and given.get(key) != target:
            raise UserError(
                f"import: {CONFIG} names a class of no installed plug-in: {target}; if you trust it, add "
                f"{key}={target}"
            )
    if len(files) > 1 or files[0].suffix != ".safetensors":
        raise UserError(f"import: expected the .safetensors of zoo export, found {files[0].name}")
    found = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if found != digest:
        raise UserError(f"{files[0]} is damaged: expected sha256 {digest}, found {found}")
    weights = read_weights(files)
    for name, first in tied.items():
        if first not in weights:
            raise UserError(f"import: weight {name} is tied to {first}, which isn't there")
        weights[name] = weights[first]
    cfg = settled(settings)
    cfg.data.root = ROOT
    if "root" in cfg.task:
        cfg.task.root = "${data.root}"
    metrics = config.get("metrics")
    return cfg, weights, far, metrics if isinstance(metrics, dict) else None


def from_published(files: list[Path], config: dict[str, Any], given: Mapping[str, str]) -> Made:
    """What another code made, as models/published reads it; its weights in 32 bits."""
    published = importlib.import_module(IMPORTED)
    name = given.get("format", "")
    if name not in published.formats():
        raise UserError(
            f"import: format: expected {FORMAT} or one of {', '.join(published.formats())}, found "
            f"{name or 'none'}"
        )
    for key, value in given.items():
        if key.startswith("config."):
            config[key.removeprefix("config.")] = literal(value)
    weights = {
        name: weight.float() if weight.is_floating_point() else weight
        for name, weight in read_weights(files).items()
    }
    model = published.loaded(name, weights, config)
    names = ("task", "size")
    asked = [f"{key}={value}" for key, value in given.items() if key in names or key.startswith(PREFIXES[1:])]
    if "task" not in given and (strange := [word for word in asked if word.startswith("task.")]):
        raise UserError(f"import: {strange[0]} is a setting of no task: name one, task=…")
    composed = compose(asked)
    composed.model = settled(
        {
            "_target_": f"{IMPORTED}.Imported",
            "format": name,
            "config": config,
            "shapes": {key: list(weight.shape) for key, weight in weights.items()},
            "tied": ties(weights),
        }
    )
    composed.names.model = name
    composed.size.budget = None
    if "task" not in given:
        composed.names.task = Tokens.name
        composed.task = {"_target_": f"{Tokens.__module__}.{Tokens.__name__}", "vocab_size": model.vocab_size}
    cfg = OmegaConf.create(stored_config(composed))
    assert isinstance(cfg, DictConfig)
    ours = {f"model.{key}": weight for key, weight in model.state_dict().items()}
    return cfg, ours, {"step": 0, "tokens_seen": 0}, None


def settled(settings: dict[str, Any]) -> DictConfig:
    """Settings from a file, none of which may ask for anything to be worked out."""

    def look(node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                look(key)
                look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)
        elif isinstance(node, str) and ("${" in node or node == "???"):
            raise UserError(f"import: {CONFIG}: expected plain values, found {node!r}")

    look(settings)
    cfg = OmegaConf.create(settings)
    assert isinstance(cfg, DictConfig)
    return cfg


def literal(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def ties(weights: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of matrices that are the same numbers."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    shapes = [weight.shape for weight in weights.values()]
    for name, weight in weights.items():
        if weight.ndim > 1 and shapes.count(weight.shape) > 1:
            digest = hashlib.blake2b(weight.contiguous().numpy().tobytes()).digest()
            groups.setdefault((weight.shape, digest), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


# -- files
def read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"import: expected the model's {CONFIG} at {path}, found none; config=… says where it is"
        )
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"import: expected json in {path}, found something else: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"import: expected an object in {path}, found {type(config).__name__}")
    return config
