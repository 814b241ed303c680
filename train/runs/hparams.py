"""A run's settings as loggers take them, and as TensorBoard's HParams tab does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from zoo.errors import printable
from zoo.train.runs.config import compose, names, to_dict
from zoo.train.runs.folder import NOT_SET, RESULT_NEUTRAL_SETTINGS, differences, flatten

Plain = str | int | float | bool


def hparams(cfg: DictConfig) -> dict[str, Plain]:
    """All settings as a logger takes them: one level, plain values."""
    groups = {group: to_dict(cfg[group]) for group in ("model", "task", "size", "optim", "data", "trainer")}
    settings = {**names(cfg), "steps": cfg.steps, "seed": cfg.seed} | flatten(groups)
    return {
        key: plain(value)
        for key, value in settings.items()
        if key.rpartition(".")[2] not in ("_target_", "free", "root", "profiler")
    }


def board_hparams(cfg: DictConfig) -> dict[str, Plain]:
    """Those of the HParams tab: first what a run is known by, then the settings that aren't those of the yaml
    files of its model, task and size.  `cfg` as it was composed, with its interpolations.
    """
    text = f" {Path(cfg.data.corpus).name}" if reads_corpus(cfg) else ""
    settings = {  # in one column what it can be, since few stand beside the score in a window
        "model, size, text": f"{cfg.names.model} {cfg.names.size}{text}",
        "learning rate": float(cfg.optim.lr),
        "seed": int(cfg.seed),
        "steps": int(cfg.steps),
    }
    settings |= {key: OmegaConf.select(cfg, key) for key in changed_keys(cfg)}
    return {key: plain(value) for key, value in settings.items()}


def plain(value: Any) -> Plain:
    return value if isinstance(value, (int, float, bool)) else printable(str(value))


def reads_corpus(cfg: DictConfig) -> bool:
    """True if the task is made from the text `data.corpus`."""
    return "${data.corpus}" in str(OmegaConf.to_container(cfg.task, resolve=False))


def changed_keys(cfg: DictConfig) -> list[str]:
    """The settings, beside those that every row has, that aren't those of the run's model, task and size.

    None where one of their yaml files isn't found, as of a plug-in in a resumed run.
    """
    search = HydraConfig.get().searchpath if HydraConfig.initialized() else []
    overrides = [f"hydra.searchpath=[{','.join(search)}]"] if search else []
    try:
        with apart_from_current():
            defaults = compose([*overrides, *(f"{group}={name}" for group, name in names(cfg).items())])
    except MissingConfigException:
        return []
    current, default = (flatten(OmegaConf.to_container(node, resolve=False)) for node in (cfg, defaults))
    without = (*RESULT_NEUTRAL_SETTINGS, "seed", "steps", "optim.lr", "data.corpus", "run_dir", "resume")
    return [
        key
        for key, (value, _) in differences(current, default, without).items()
        if value != NOT_SET and not key.startswith(("names.", "base", "compare.", "logger."))
    ]


@contextmanager
def apart_from_current() -> Iterator[None]:
    """Inside, a configuration can be composed that takes no part in the one of the command."""
    current, command = HydraConfig.instance().cfg, GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        HydraConfig.instance().cfg, GlobalHydra.instance().hydra = current, command
