"""config.yaml files on disk, also those of earlier versions of the zoo, with other names of classes and keys.

`MOVED` and `RENAMED` apply to stored files only: on a command line an old key is an error that names the
new one.
"""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

IMPORTED_CLASS = "zoo.models.published.imported.Imported"  # a name: train knows no models

TASKS = {
    "babilong": "Babilong",
    "induction": "Induction",
    "listops": "Listops",
    "lm": "LanguageModelling",
    "mqar": "Mqar",
    "needle": "Needle",
    "passkey": "Passkey",
    "selective_copy": "SelectiveCopy",
}
MOVED = {
    f"zoo.train.{module}.{name}": f"zoo.train.tasks.{module}.{name}" for module, name in TASKS.items()
} | {"zoo.train.importing.Tokens": "zoo.train.tasks.tokens.Tokens"}
"""Current paths of classes by those in older files."""

RENAMED = {
    "data.rows": "data.batch_size",
    "data.window": "data.seq_len",
    "size.rows": "size.batch_size",
    "size.window": "size.seq_len",
    "size.hidden": "size.mlp_width",
    "task.held_out": "task.eval_samples",
    "model.hidden": "model.mlp_width",
    "model.slots": "model.memory_tokens",
    "model.taps": "model.conv_size",
    "model.states": "model.state_size",
    "model.rank": "model.dt_rank",
    "model.chunk": "model.chunk_size",
    "model.head_width": "model.head_dim",
}
"""Current keys by former ones; those of `model` and `task` are keys of the zoo's classes."""


def load_stored(path: Path) -> DictConfig:
    """A stored config.yaml under the current names, not resolved.

    Raises the errors of the file system and of yaml, and ValueError where the file holds no mapping.
    """
    container = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(container, dict):
        raise ValueError("expected keys and values")
    cfg = OmegaConf.create(update_names(container))
    assert isinstance(cfg, DictConfig)
    return cfg


def update_names(config: dict[Any, Any]) -> dict[Any, Any]:
    """Nested settings with the current class paths and keys."""
    config = dict(config)
    for group in ("model", "task", "data", "size"):
        if isinstance(config.get(group), dict):
            config[group] = _update_group(group, config[group])
    return config


def _update_group(group: str, keys: dict[Any, Any]) -> dict[Any, Any]:
    target = keys.get("_target_")
    keys = keys | ({"_target_": MOVED.get(str(target), target)} if target is not None else {})
    if group in ("model", "task") and not str(target).startswith("zoo."):
        return keys
    prefix = f"{group}."
    current_names = {
        old.removeprefix(prefix): current.removeprefix(prefix)
        for old, current in RENAMED.items()
        if old.startswith(prefix)
    }
    current: dict[Any, Any] = {}
    for key, value in keys.items():
        name = current_names.get(key, key)
        current[key if name in keys else name] = value
    if current.get("free") in current_names:
        current["free"] = current_names[current["free"]]
    return current


def renamed_key(message: str) -> str:
    """The end of a message that quotes an old key: its new name; "" if it quotes none."""
    for old in re.findall(r"'([a-z_]+\.[a-z_]+)'", message):
        if old in RENAMED:
            return f"; {old} is called {RENAMED[old]} now"
    return ""
