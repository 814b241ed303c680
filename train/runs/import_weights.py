"""Weights from elsewhere as a run's folder, which evaluate and generate take like any other."""

import hashlib
import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from zoo import composition, trust
from zoo.errors import UserError
from zoo.train.corpora.tokenizer import FILE as TOKENIZER
from zoo.train.corpora.tokenizer import count_ids
from zoo.train.runs import build, checkpoint
from zoo.train.runs.checkpoint import check_weights
from zoo.train.runs.config import compose, stored_config
from zoo.train.runs.export import CONFIG, FORMAT, VERSION
from zoo.train.runs.files import atomic_folder, atomic_write, require_empty, write_text
from zoo.train.runs.import_options import PADDED, PREFIXES, require_source
from zoo.train.runs.stored import IMPORTED_CLASS, update_names
from zoo.train.runs.symbols import check_run_symbols
from zoo.train.runs.tokens import DATA_ROOT, find_tokenizer, token_task, uses_run_tokenizer
from zoo.train.runs.weight_files import check_finite, read_model_config, read_weights, weight_files
from zoo.train.tasks.token_lm import TokenLanguageModelling
from zoo.train.tasks.tokens import Tokens

IMPORTED = IMPORTED_CLASS.rpartition(".")[0]  # imported by name: train knows no models
DETECTION = f"{IMPORTED.rpartition('.')[0]}.detect"


class ImportedRun(NamedTuple):
    """The contents of the new run's folder."""

    cfg: DictConfig
    weights: dict[str, Tensor]
    progress: dict[str, int]  # step and tokens_seen
    metrics: dict[str, Any] | None  # metrics.json, where there is one
    summary: str = f"format {FORMAT}"  # what was read
    tokenizer: Path | None = None  # a tokenizer.json, to be taken along


def import_run(options: Mapping[str, str]) -> tuple[Path, str]:
    """Make the run's folder from the command's options; the folder, and a line on what was read.

    Raises UserError if anything doesn't fit; then no folder is made.
    """
    composition.register()
    source, run_dir = Path(options["from"]), Path(options["run_dir"])
    require_empty(run_dir)
    require_source(source)
    files = weight_files(source)
    config = read_model_config(Path(options["config"]) if "config" in options else files[0].parent / CONFIG)
    default_format = FORMAT if config.get("format") == FORMAT else ""
    is_export = options.get("format", default_format) == FORMAT
    run = from_zoo(files, config, options) if is_export else from_published(files, config, options)
    check_finite(run.weights)
    model = build.model(run.cfg)
    check_run_symbols(run.cfg, model, "import")
    content: dict[str, Any] = {
        "state_dict": check_weights(model, run.weights, files[0]),
        "pytorch-lightning_version": lightning.__version__,
        "optimizer_states": [],
        "lr_schedulers": [],
        "loops": None,
        "callbacks": {},
        "global_step": run.progress["step"],
        "metrics": {"tokens_seen": run.progress["tokens_seen"]},
        "zoo": {"version": checkpoint.FORMAT_VERSION, "ranks": []},
    }
    with atomic_folder(run_dir) as folder:
        write_text(folder / "config.yaml", OmegaConf.to_yaml(run.cfg))
        if run.metrics is not None:
            write_text(folder / "metrics.json", json.dumps(run.metrics, indent=1) + "\n")
        if run.tokenizer is not None:
            shutil.copyfile(run.tokenizer, folder / TOKENIZER)
        with atomic_write(folder / "checkpoints" / "last.ckpt") as file:
            torch.save(content, file)
    return run_dir, run.summary


# -- exports of the zoo


def from_zoo(files: list[Path], config: dict[str, Any], options: Mapping[str, str]) -> ImportedRun:
    """A run that `zoo export` wrote."""
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise UserError(
            f"import: expected a {CONFIG} of zoo export, version {VERSION}, found format "
            f"{config.get('format')!r}, version {config.get('version')!r}"
        )
    settled = (*PREFIXES, "task", "size", "symbols", "tokenizer")
    fixed = [key for key in options if key.startswith(settled) and not key.endswith("_target_")]
    if fixed:
        raise UserError(f"import: {fixed[0]} is settled by the run that was exported")
    try:
        settings = update_names({**config["run"], "model": config["model"], "task": config["task"]})
        progress = {key: int(config[key]) for key in ("step", "tokens_seen")}
        tied, digest = dict(config["weights"]["tied"]), str(config["weights"]["sha256"])
        targets = trust.run_targets(settings)
        groups = [settings[group] for group in ("names", "data", "task")]
        if min(progress.values()) < 0 or not all(isinstance(group, dict) for group in groups):
            raise ValueError("a setting of the wrong kind")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"import: {CONFIG} is not a complete one of zoo export: {error!r}") from error
    trust.check_targets(targets, [f"{key}={value}" for key, value in options.items()], f"import: {CONFIG}")
    weights = read_exported_weights(files, digest, tied)
    cfg = plain_config(settings)
    cfg.data.root = DATA_ROOT
    if "root" in cfg.task:
        cfg.task.root = "${data.root}"
    metrics = config.get("metrics")
    tokenizer = files[0].parent / TOKENIZER if uses_run_tokenizer(cfg) else None
    if tokenizer is not None and not tokenizer.is_file():
        raise UserError(f"import: expected the {TOKENIZER} of the run beside its weights, found none")
    metrics = metrics if isinstance(metrics, dict) else None
    return ImportedRun(cfg, weights, progress, metrics, tokenizer=tokenizer)


def read_exported_weights(files: list[Path], digest: str, tied: dict[str, str]) -> dict[str, Tensor]:
    """The weights of an export, tied ones by all their names, if the file has this sha256."""
    if len(files) > 1 or files[0].suffix != ".safetensors":
        raise UserError(f"import: expected the .safetensors of zoo export, found {files[0].name}")
    file_digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if file_digest != digest:
        raise UserError(f"{files[0]} is damaged: expected sha256 {digest}, found {file_digest}")
    weights = read_weights(files)
    for name, first in tied.items():
        if first not in weights:
            raise UserError(f"import: weight {name} is tied to {first}, which isn't there")
        weights[name] = weights[first]
    return weights


# -- published checkpoints


def from_published(files: list[Path], config: dict[str, Any], options: Mapping[str, str]) -> ImportedRun:
    """A checkpoint of other code, as models/published reads it; its weights in 32 bits."""
    published = importlib.import_module(IMPORTED)
    if targets := [key for key in options if key.endswith("._target_")]:
        raise UserError(f"import: {targets[0]} has no effect on a published checkpoint: it names no class")
    for key, value in options.items():
        if key.startswith("config."):
            config[key.removeprefix("config.")] = parse_value(value)
    plain_config(config)
    format_ = options.get("format") or importlib.import_module(DETECTION).detect(config)
    if format_ not in published.formats():
        raise UserError(
            f"import: format: expected {FORMAT} or one of {', '.join(published.formats())}, found {format_}"
        )
    weights = {
        name: weight.float() if weight.is_floating_point() else weight
        for name, weight in read_weights(files).items()
    }
    typed = [key.removeprefix("config.") for key in options if key.startswith("config.")]
    model = published.loaded(format_, weights, config, typed=typed)
    record = {
        "_target_": IMPORTED_CLASS,
        "format": format_,
        "config": config,
        "shapes": {name: list(weight.shape) for name, weight in weights.items()},
        "tied": ties(weights),
    }
    tokenizer = find_tokenizer(files[0].parent, model.vocab_size, options)
    cfg = published_config(record, model.vocab_size, options, tokenizer)
    state_dict = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    summary = f"format {format_}, {model.count_parameters():,} parameters, {model.vocab_size:,} symbols"
    if new := published.new_weights(format_, weights):
        summary += f"; not in the checkpoint, and new: {', '.join(new)}"
    if tokenizer is not None:
        summary += f"; {TOKENIZER} taken along ({count_ids(tokenizer):,} tokens)"
    elif "task" not in options:
        summary += f"; no {TOKENIZER}: its tokens are numbers"
    return ImportedRun(cfg, state_dict, {"step": 0, "tokens_seen": 0}, None, summary, tokenizer)


def published_config(
    record: dict[str, Any], vocab_size: int, options: Mapping[str, str], tokenizer: Path | None
) -> DictConfig:
    """The config.yaml of a published model, on the task of the options, on texts in its tokenizer's
    tokens, or on its tokens as numbers."""
    keys = [key for key in options if key in ("task", "size") or key.startswith(("task.", "data."))]
    task_keys = [key for key in keys if key.startswith("task.")]
    overrides = [f"{key}={options[key]}" for key in keys]
    if "task" not in options and task_keys:
        setting = f"{task_keys[0]}={options[task_keys[0]]}"
        raise UserError(f"import: {setting} is a setting of no task: name one, task=…")
    composed = compose(overrides)
    if options.get("symbols") == PADDED:
        record = record | {"symbols": padded_symbols(composed, vocab_size, "task" in options)}
    composed.model = plain_config(record)
    composed.names.model = record["format"]
    composed.size.budget = None
    composed.trainer.precision = "32-true"  # as published, whatever this machine would train in
    if tokenizer is not None:
        composed.names.task = TokenLanguageModelling.name
        composed.task = token_task(tokenizer, vocab_size)
    elif "task" not in options:
        composed.names.task = Tokens.name
        composed.task = {"_target_": f"{Tokens.__module__}.{Tokens.__name__}", "vocab_size": vocab_size}
    cfg = OmegaConf.create(stored_config(composed))
    assert isinstance(cfg, DictConfig)
    return cfg


def padded_symbols(cfg: DictConfig, vocab_size: int, has_task: bool) -> int:
    """The task's symbols, of a model with further rows that only fill up its tables."""
    symbols = int(cfg.task.vocab_size)
    if not has_task or vocab_size == symbols:
        reason = f"the model has exactly the {symbols:,} symbols of task {cfg.names.task}"
        raise UserError(
            f"import: symbols={PADDED} has no effect: {reason if has_task else 'it needs a task, task=…'}"
        )
    return min(symbols, vocab_size)  # too few are refused by build.model


def plain_config(settings: dict[str, Any]) -> DictConfig:
    """Settings from a file, none of which may be an expression that OmegaConf resolves."""

    def check(node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                check(key)
                check(value)
        elif isinstance(node, list):
            for value in node:
                check(value)
        elif isinstance(node, str) and ("${" in node or node == "???"):
            raise UserError(f"import: {CONFIG}: expected plain values, found {node!r}")

    check(settings)
    cfg = OmegaConf.create(settings)
    assert isinstance(cfg, DictConfig)
    return cfg


def parse_value(text: str) -> Any:
    """A value as json, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def ties(weights: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups of names of equal matrices."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    shapes = [weight.shape for weight in weights.values()]
    for name, weight in weights.items():
        if weight.ndim > 1 and shapes.count(weight.shape) > 1:
            digest = hashlib.blake2b(weight.contiguous().numpy().tobytes()).digest()
            groups.setdefault((weight.shape, digest), []).append(name)
    return [names for names in groups.values() if len(names) > 1]
