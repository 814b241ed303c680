"""Settings that the composed task and model don't read: refused, or left out where some jobs of a sweep read
them."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from zoo.errors import UserError
from zoo.train.runs.config import compose
from zoo.train.runs.override_key import key_of
from zoo.train.tasks.score_name import class_attribute

READ_BY = {"data.corpus": "task", "data.field": "task", "data.val_bytes": "task", "size.capacity": "model"}
"""Keys that only some tasks or models read."""
OF_CORPUS = ("task.corpus", "task.root", "task.field", "data.field")
"""Keys that a task with a choice of filler reads for that of its corpus alone."""


def unread_overrides(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The overrides of keys that the composed task and model don't read."""
    return [override for override in overrides if not _is_read(cfg, key_of(override))]


def _is_read(cfg: DictConfig, key: str) -> bool:
    """True of a key that isn't in READ_BY, and of one that the composed task or model reads: by its yaml,
    val_bytes by its score, a corpus's by the filler."""
    if key in OF_CORPUS and "filler" in cfg.task and not _has_corpus_filler(cfg):
        return False
    if key not in READ_BY:
        return True
    if key == "data.val_bytes":
        metric = class_attribute(str(cfg.task.get("_target_", "")), "metric")
        return metric in ("", "bits_per_byte")  # "": a class of others, which may be of text
    return f"${{{key}}}" in OmegaConf.to_yaml(cfg[READ_BY[key]])


def _has_corpus_filler(cfg: DictConfig) -> bool:
    """True unless the task's class names the filler that is of a corpus, and the config another one."""
    name = class_attribute(str(cfg.task.get("_target_", "")), "corpus_filler")
    return name in ("", cfg.task.filler)


def refuse_unread(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raises UserError for an override of a key that the composed task and model don't read."""
    if fixed := [override for override in overrides if override.lstrip("+~").startswith("compare")]:
        raise UserError(f"{fixed[0].partition('=')[0]} can't be set here; the task's yaml file fixes it")
    for override in unread_overrides(cfg, overrides):
        key = key_of(override)
        if key in OF_CORPUS and "filler" in cfg.task:
            raise UserError(f"{key} has no effect: task.filler={cfg.task.filler} reads no corpus")
        group = READ_BY[key]
        raise UserError(f"{key} has no effect: {group}={cfg.names[group]} doesn't read it")


def refuse_unread_by_all(jobs: Sequence[list[str]]) -> None:
    """Raises UserError for an override of jobs that none of their tasks and models reads."""
    unread: set[str] | None = None
    for overrides in jobs:
        unread = {*READ_BY, *OF_CORPUS} & {*map(key_of, overrides)} if unread is None else unread
        if not unread:
            return
        unread &= {key_of(override) for override in unread_overrides(compose(overrides), overrides)}
    if unread:
        raise UserError(f"{min(unread)} has no effect: no job's task or model reads it")
