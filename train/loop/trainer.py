"""One training run, from its configuration to its metrics.json: the same for every architecture and task."""

import datetime
import json
import logging
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from zoo.errors import UserError, first_line
from zoo.module import SequenceModule
from zoo.train.data.module import DataModule
from zoo.train.loop.checkpointing import Checkpoints, ExactResume, FitLoopThatValidatesFirst
from zoo.train.loop.gradients import GradientGuard
from zoo.train.loop.metrics import Metrics
from zoo.train.loop.progress import ProgressReport
from zoo.train.loop.signals import SignalHandler
from zoo.train.loop.tensorboard import RunLogger, position_figure, start_logs
from zoo.train.loop.validation_curve import ValidationCurve
from zoo.train.runs import budget, build
from zoo.train.runs.checkpoint import AtomicCheckpointIO, check_weights, read_checkpoint
from zoo.train.runs.config import hparams, names, stored_config, validate_config
from zoo.train.runs.files import write_text
from zoo.train.runs.load import silence_lightning
from zoo.train.runs.provenance import code_fingerprint, commit, fingerprint
from zoo.train.runs.resources import peak_memory_bytes, state_bytes
from zoo.train.runs.resume_check import check_progress
from zoo.train.tasks.base import Task

log = logging.getLogger(__name__)


def train(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Train what `cfg` says in `run_dir`, or go on with the run that lies there (`cfg.resume`); returns what
    metrics.json holds.  Raises UserError for what the user can mend."""
    silence_lightning()
    validate_config(cfg)
    began = time.perf_counter()
    L.seed_everything(cfg.seed, verbose=False)
    task = build.task(cfg)
    cfg.model = budget.solve_width(cfg)
    model = build.model(cfg)
    model.optim = build.optim(cfg)
    if cfg.trainer.compile:
        model.compile()
    data = DataModule(
        task,
        batch_size=cfg.data.batch_size,
        seq_len=cfg.data.seq_len,
        segment_len=model.segment_len,
        seed=cfg.seed,
        val_bytes=cfg.data.val_bytes,
    )
    last = run_dir / "checkpoints" / "last.ckpt"
    goes_on = bool(cfg.resume) and any(last.parent.glob("*.ckpt"))  # one killed before begins anew
    seen = 0
    if goes_on:
        checkpoint = read_checkpoint(last)
        check_weights(model, checkpoint, last)
        seen = int(checkpoint["metrics"]["tokens_seen"])
        done = checkpoint["global_step"]
        if done > cfg.steps or (done == cfg.steps and (run_dir / "metrics.json").exists()):
            raise UserError(f"resume: the run has done {done} of {cfg.steps} steps; steps=… makes it longer")
    metrics = Metrics(task, cfg.trainer.log_every, cfg.val_every)
    metrics.since = began
    logger = RunLogger(run_dir, name="", version="tb", purge_step=seen if cfg.resume else None)
    validations = ValidationCurve(metrics)
    trainer = make_trainer(cfg, run_dir, metrics, logger, validations)
    if goes_on:
        fresh = trainer.fit_loop.state_dict()
        sharded = not cfg.trainer.strategy.startswith(("auto", "ddp"))
        check_progress(model, cfg.data.batch_size, fresh, metrics.KEPT, checkpoint, last, sharded)
    config = stored_config(cfg)
    if goes_on:
        trainer.callbacks.insert(0, WriteResumedConfig(run_dir, config))  # type: ignore[attr-defined]
    elif getattr(rank_zero_only, "rank", 0) == 0:  # known before the ranks are launched
        write_text(run_dir / "config.yaml", config)
        start_logs(logger, hparams(cfg), ["val/loss", f"val/{task.metric}", "cost/tokens_per_s"], config)
    log.info(
        "%s on %s: %s parameters (%s with embeddings), %s bytes of state per row",
        cfg.names.model,
        cfg.names.task,
        f"{model.count_parameters():,}",
        f"{sum(weight.numel() for weight in model.parameters()):,}",
        f"{state_bytes(model):,}",
    )
    code = {"model_code": code_fingerprint(type(model)), "task_code": code_fingerprint(type(task))}
    trainer.fit(model, data, ckpt_path=last if goes_on else None)  # while it trains, one edits
    results = summary(cfg, model, task, data, metrics, validations) | code | {"wall_s": metrics.wall()}
    if trainer.is_global_zero:
        step = int(metrics.tokens_seen)
        logger.experiment.add_figure("val/loss_by_position", position_figure(metrics.latest), step)
        logger.experiment.close()
        write_text(run_dir / "metrics.json", json.dumps(results, indent=1) + "\n")
        print_summary(results, run_dir)
    return results


def make_trainer(
    cfg: DictConfig, run_dir: Path, metrics: Metrics, logger: RunLogger, validations: ValidationCurve
) -> L.Trainer:
    keys = cfg.trainer
    checkpoints = Checkpoints(run_dir / "checkpoints", cfg.checkpoint_every, metrics)
    try:
        trainer = L.Trainer(
            accelerator=keys.accelerator,
            devices=keys.devices,
            num_nodes=keys.num_nodes,
            strategy=keys.strategy,
            precision=keys.precision,
            accumulate_grad_batches=keys.accumulate,
            max_steps=cfg.steps,
            max_epochs=-1,
            val_check_interval=sys.maxsize,  # Checkpoints says when
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # our loaders share their lanes out themselves
            logger=logger,
            callbacks=[  # in this order: measured, then saved, then perhaps stopped
                metrics,
                validations,
                GradientGuard(cfg.optim.clip, metrics),
                ProgressReport(metrics),
                ExactResume(cfg.seed, cfg.data.batch_size),
                checkpoints,
                SignalHandler(checkpoints),
            ],
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (ValueError, RuntimeError, L.pytorch.utilities.exceptions.MisconfigurationException) as error:
        raise UserError(f"trainer: {first_line(error)}") from error
    trainer.fit_loop = FitLoopThatValidatesFirst(trainer.fit_loop)
    return trainer


class WriteResumedConfig(L.Callback):
    """A resumed run's settings take the place of those that it had, once all of it is read and nothing can
    refuse them any more."""

    def __init__(self, run_dir: Path, config: str) -> None:
        self.run_dir, self.config = run_dir, config

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            # of a shorter run: it would stand beside the settings of this one, as if it were finished
            (self.run_dir / "metrics.json").unlink(missing_ok=True)
            if (path := self.run_dir / "config.yaml").read_text() != self.config:
                write_text(path, self.config)


def summary(
    cfg: DictConfig,
    model: SequenceModule,
    task: Task,
    data: DataModule,
    metrics: Metrics,
    validations: ValidationCurve,
) -> dict[str, Any]:
    """What metrics.json says of a finished run."""
    device = model.device
    return {
        **names(cfg),
        "seed": cfg.seed,
        "steps": cfg.steps,
        "corpus": cfg.data.corpus,
        "unit": "bits per byte" if task.metric == "bits_per_byte" else "accuracy",
        "parameters": model.count_parameters(),
        "parameters_total": sum(weight.numel() for weight in model.parameters()),
        "state_bytes": state_bytes(model),
        "tokens_seen": int(metrics.tokens_seen),
        "train_s": metrics.train_s,
        "tokens_per_s": metrics.tokens_seen / max(metrics.train_s, 1e-9),
        "eval_tokens_per_s": validations.tokens_per_s,
        "peak_memory_bytes": peak_memory_bytes(device),
        **{tag: value for tag, value in sorted(metrics.latest.items()) if tag.startswith(("val/", "train/"))},
        "reference": task.baselines(data.val_dataset()),
        "val_bytes": len(data.val_text),
        "task_version": task.VERSION,
        "data_fingerprint": fingerprint(task),
        "curve": validations.curve,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def print_summary(results: dict[str, Any], run_dir: Path) -> None:
    """The last lines: what was reached, beside what anyone gets for nothing, and where to look."""
    if "val/bits_per_byte" in results:
        text, unit = f" on {results['val_bytes']:,} bytes of held-out text", ".3f"
        reached = f"{results['val/bits_per_byte']:.3f} bits per byte"
    else:
        text, unit = " on held-out samples", ".1%"
        reached = f"{results['val/accuracy']:.1%} accuracy"
    beside = ", ".join(f"{name} {value:{unit}}" for name, value in results["reference"].items())
    shown = Path(os.path.relpath(run_dir))
    root = "runs" if shown.parts[0] == "runs" else shown
    log.info("%s reached %s%s (there: %s)", results["model"], reached, text, beside)
    log.info("run: %s   curves: tensorboard --logdir %s", shown, root)
