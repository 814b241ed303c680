"""A trained run's configuration and model."""

import logging
import warnings
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from zoo import composition, trust
from zoo.errors import UserError, one_line
from zoo.module import SequenceModule
from zoo.train.runs import build
from zoo.train.runs.checkpoint import check_weights, read_checkpoint
from zoo.train.runs.config import to_dict
from zoo.train.runs.folder import no_run
from zoo.train.runs.model_settings import (
    check_same_kind,
    keep_trained_positions,
    replace_architecture,
    replace_settings,
    trained_positions,
)
from zoo.train.runs.precision import convert_weights, precision_name
from zoo.train.runs.stored import load_stored

# overrides that change nothing measured: where data lies on this machine, and classes that the user trusts
LOCAL_OVERRIDES = ("data.root=", "task.root=", "model._target_=", "task._target_=")


def silence_lightning() -> None:
    """Turn off Lightning's banners and advertisements."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def load_trained(
    run_dir: Path,
    checkpoint: str = "last",
    overrides: tuple[str, ...] = (),
    architecture: str | None = None,
    precision: str | None = None,
) -> tuple[DictConfig, SequenceModule, dict[str, int]]:
    """A run's configuration, its model in eval mode with a checkpoint's weights, and that checkpoint's `step`
    and `tokens_seen`.

    `architecture` names another model to load these weights into, `precision` another than the run's, and
    overrides of `model` change settings of either; the configuration is changed accordingly.
    """
    composition.register()
    cfg = read_run_config(run_dir, overrides)
    settings = [arg for arg in overrides if not arg.startswith(LOCAL_OVERRIDES)]
    model_settings = [arg for arg in settings if arg.startswith("model.")]
    if architecture is not None or model_settings:
        trained, run_model = trained_positions(build.model(cfg)), to_dict(cfg.model)
        if architecture is None:
            replace_settings(cfg, model_settings)
        else:
            replace_architecture(cfg, architecture, model_settings)
        check_same_kind(to_dict(cfg.model), run_model)
        cfg.model = keep_trained_positions(to_dict(cfg.model), trained, model_settings)
    if precision is not None:
        OmegaConf.update(cfg, "trainer.precision", precision, force_add=True)
    model = convert_weights(build.model(cfg), precision_name(cfg))
    path = run_dir / "checkpoints" / f"{checkpoint}.ckpt"
    content = read_checkpoint(path)
    model.load_state_dict(check_weights(model, content["state_dict"], path))
    progress = {"step": int(content["global_step"]), "tokens_seen": int(content["metrics"]["tokens_seen"])}
    return cfg, model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), progress


def read_run_config(run_dir: Path, overrides: tuple[str, ...]) -> DictConfig:
    """A run's config.yaml.

    Raises UserError if it names a class that neither plug-ins nor the overrides trust.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise no_run(run_dir)
    try:
        cfg = load_stored(path)
        targets = trust.run_targets(cfg)
        to_dict(cfg)
        cfg.names.task, cfg.size, cfg.data, cfg.seed  # noqa: B018
    except Exception as error:  # yaml and the file system raise many kinds
        raise UserError(f"{path} is not the config of a run: {one_line(error)}") from error
    trust.check_targets(targets, overrides, str(path))
    return cfg
