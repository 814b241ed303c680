"""A run as safetensors and json, which `zoo import` reads again."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors.torch import save
from torch import Tensor

from zoo.train.corpora.tokenizer import FILE as TOKENIZER
from zoo.train.runs.checkout import commit
from zoo.train.runs.files import atomic_folder, atomic_write, require_empty, write_text
from zoo.train.runs.folder import read_json
from zoo.train.runs.load import load_trained, silence_lightning
from zoo.train.runs.tokens import uses_run_tokenizer
from zoo.train.tasks.lm import END, VOCAB_SIZE

FORMAT, VERSION = "zoo", 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
TOP_LEVEL = ("model", "task")  # settings at the top level of config.json; the others are its `run`


def export(run_dir: Path, to: Path, checkpoint: str = "last", overrides: tuple[str, ...] = ()) -> None:
    """Write model.safetensors and config.json.  Raises UserError without a run, and if `to` isn't empty."""
    silence_lightning()
    require_empty(to)
    cfg, model, progress = load_trained(run_dir, checkpoint, overrides)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    for group in ("data", "task"):
        if "root" in settings[group]:
            settings[group]["root"] = None  # a path of this machine
    settings["model"].pop("base", None)  # another; of its weights `base` has the hash
    metrics_path = run_dir / "metrics.json"
    metrics = read_json(metrics_path) if metrics_path.exists() else None
    weights, tied = untied(model.state_dict())
    blob = save(weights, metadata={"format": "pt"})
    tokens = f"those of {TOKENIZER}" if uses_run_tokenizer(cfg) else "numbers"
    if cfg.task.vocab_size == VOCAB_SIZE:
        tokens = f"bytes; {END} opens and closes a document"
    config = {
        "format": FORMAT,
        "version": VERSION,
        "model": settings["model"],
        "task": settings["task"],
        "vocabulary": {
            "size": int(cfg.task.vocab_size),
            "tokens": tokens,
        },
        **progress,
        "checkpoint": checkpoint,
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(blob).hexdigest(), "tied": tied},
        "metrics": metrics,
        "commit": metrics.get("commit", "") if isinstance(metrics, dict) else commit(),
        "run": {key: value for key, value in settings.items() if key not in TOP_LEVEL},
    }
    with atomic_folder(to) as folder:
        with atomic_write(folder / WEIGHTS) as file:
            file.write(blob)
        if uses_run_tokenizer(cfg):
            shutil.copyfile(run_dir / TOKENIZER, folder / TOKENIZER)
        write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def untied(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, by its first name, and the first name by each further one."""
    first_names: dict[tuple[Any, ...], str] = {}
    unique, tied = {}, {}
    for name, weight in weights.items():
        storage = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype)
        first = first_names.setdefault(storage, name) if weight.numel() else name
        if first == name:
            unique[name] = weight.detach().cpu().contiguous().clone()
        else:
            tied[name] = first
    return unique, tied
