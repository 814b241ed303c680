"""One training run, from its configuration to its metrics.json: the same for every architecture and task."""

import json
import logging
import sys
import time
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from zoo.errors import UserError, first_line
from zoo.module import SequenceModule
from zoo.train.loop.checkpointing import (
    Checkpoints,
    ExactResume,
    NonSkippingFitLoop,
    WriteResumedConfig,
)
from zoo.train.loop.gradients import GradientGuard
from zoo.train.loop.loggers import closing, log_settings, make_loggers, replay, tensorboard_of
from zoo.train.loop.metrics import Metrics
from zoo.train.loop.profiler import make_profiler
from zoo.train.loop.progress import ProgressReport
from zoo.train.loop.ranks import ranks_meet
from zoo.train.loop.recipe import (
    RecipeCallbacks,
    data_module,
    last_step,
    outcome,
    recipe_callbacks,
    stage_batch_size,
)
from zoo.train.loop.signals import SignalHandler
from zoo.train.loop.summary import print_summary, run_facts, subject, summary
from zoo.train.loop.tensorboard import log_figure, log_setup
from zoo.train.loop.user_callbacks import UserCallbacks, check_resumable
from zoo.train.loop.validation_curve import ValidationCurve
from zoo.train.runs import budget, build
from zoo.train.runs.checkout import commit
from zoo.train.runs.checkpoint import (
    AtomicCheckpointIO,
    check_weights,
    migrate_weights,
    read_checkpoint,
)
from zoo.train.runs.config import stored_config, validate_config
from zoo.train.runs.data_identity import check_data, data_identity, stored_task
from zoo.train.runs.files import write_text
from zoo.train.runs.hparams import board_hparams, hparams
from zoo.train.runs.load import silence_lightning
from zoo.train.runs.optimizer_weights import reorder_moments
from zoo.train.runs.precision import precision_name, refuse_loss_scaler, set_matmul_precision
from zoo.train.runs.provenance import code_fingerprint
from zoo.train.runs.resources import state_bytes
from zoo.train.runs.resume_check import check_training_state
from zoo.train.runs.symbols import surplus_symbols
from zoo.train.tasks.base import Task, score_names
from zoo.train.tasks.corpus_notes import corpus_notes

log = logging.getLogger(__name__)


def train(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """Train a new run in the folder `run_dir` as `cfg` says, or resume the run already in it (`cfg.resume`).

    Returns the contents of metrics.json.  Raises UserError for mistakes that the user can fix.
    """
    silence_lightning()
    validate_config(cfg)
    start = time.perf_counter()
    L.seed_everything(cfg.seed, verbose=False)
    task = stored_task(cfg, run_dir) if cfg.resume else build.task(cfg)
    identity = data_identity(task)  # hashes of its documents: a resumed run reads the same
    settings = {} if cfg.resume else board_hparams(cfg)
    cfg.model = budget.solve_width(cfg)  # the free width, from the size's budget of parameters
    model = build.model(cfg)
    model.optim = build.optim(cfg)
    if cfg.trainer.compile:
        model.compile()
    data = data_module(cfg, task, model)
    last = run_dir / "checkpoints" / "last.ckpt"
    resumes = bool(cfg.resume) and any(last.parent.glob("*.ckpt"))  # without one it starts from step 0
    checkpoint = read_resume_checkpoint(cfg, run_dir, last, model, identity) if resumes else None
    tokens_seen = int(checkpoint["metrics"]["tokens_seen"]) if checkpoint else 0  # loss targets only
    metrics = Metrics(task, cfg.trainer.log_every, cfg.val_every, run_dir)
    metrics.wall_start = start
    loggers = make_loggers(cfg, run_dir, tokens_seen, score_names(task))
    curve = ValidationCurve(metrics)
    batch_size = stage_batch_size(data, checkpoint)
    recipe = recipe_callbacks(cfg, data, metrics)
    further = UserCallbacks(cfg, task)
    trainer = make_trainer(
        cfg, run_dir, model, metrics, loggers, curve, identity, recipe, further, batch_size
    )
    refuse_loss_scaler(precision_name(cfg), trainer.strategy.root_device)
    set_matmul_precision(precision_name(cfg), trainer.strategy.root_device)
    config = stored_config(cfg)
    if checkpoint:
        loop, sharded = trainer.fit_loop.state_dict(), is_sharded(cfg)
        check_training_state(model, batch_size, loop, metrics.state(), checkpoint, last, sharded)
        trainer.callbacks.insert(0, WriteResumedConfig(run_dir, config))  # type: ignore[attr-defined]
        log_settings(loggers, hparams(cfg))
        replay(loggers, run_dir, tokens_seen)
    elif getattr(rank_zero_only, "rank", 0) == 0:  # from the environment, before Lightning launches ranks
        write_text(run_dir / "config.yaml", config)
        begin_logs(loggers, cfg, settings, model, config)
    log_sizes(cfg, model, task)
    for note in model.device_notes(trainer.strategy.root_device):
        log.info("%s", note)
    # before training: the source files may be edited meanwhile
    code = code_facts(model, task)
    with closing(loggers), ranks_meet(trainer, run_dir):
        trainer.fit(model, data, ckpt_path=last if checkpoint else None)
    results = summary(cfg, model, task, data, metrics, curve) | code | {"wall_s": metrics.update_wall_time()}
    results |= outcome([*chain(*recipe)], trainer.global_step) | further.outcome(trainer.global_step)
    if trainer.is_global_zero:
        if board := tensorboard_of(loggers):
            log_figure(board, metrics.latest, subject(cfg), int(metrics.tokens_seen))
            board.experiment.close()
        write_text(run_dir / "metrics.json", json.dumps(results, indent=1) + "\n")
        print_summary(results, run_dir, "tensorboard" in cfg.logger)
    return results


def code_facts(model: SequenceModule, task: Task) -> dict[str, str]:
    """The entries of metrics.json that say which code trained: commit, and fingerprints of plug-ins."""
    fingerprints = {"model_code": code_fingerprint(type(model)), "task_code": code_fingerprint(type(task))}
    return {"commit": commit(), **fingerprints}


def begin_logs(
    loggers: list[Logger], cfg: DictConfig, settings: dict[str, Any], model: SequenceModule, config: str
) -> None:
    """`settings`: those of TensorBoard's HParams tab."""
    if board := tensorboard_of(loggers):
        log_setup(board, settings, run_facts(cfg, model), config)
    log_settings(loggers, hparams(cfg))


def log_sizes(cfg: DictConfig, model: SequenceModule, task: Task) -> None:
    log.info(
        "%s on %s: %s parameters (%s with embeddings), %s bytes of state per row",
        cfg.names.model,
        cfg.names.task,
        f"{model.count_parameters():,}",
        f"{sum(weight.numel() for weight in model.parameters()):,}",
        f"{state_bytes(model):,}",
    )
    log.info("precision %s", precision_name(cfg))
    for note in corpus_notes(task):
        log.info("%s", note)
    if note := surplus_symbols(model, task):
        log.info("%s", note)
    if not type(model).__module__.startswith("zoo."):
        log.info("laws aren't checked by training: zoo check model=%s", cfg.names.model)


def read_resume_checkpoint(
    cfg: DictConfig, run_dir: Path, path: Path, model: SequenceModule, identity: dict[str, str]
) -> dict[str, Any]:
    """The run's last checkpoint.

    Raises UserError if it isn't this model's or of these data, or if the run is already finished or longer
    than `cfg.steps`.
    """
    checkpoint = read_checkpoint(path)
    checkpoint["state_dict"] = check_weights(model, checkpoint["state_dict"], path)
    check_data(cfg, run_dir, checkpoint["zoo"].get("data"), identity)
    check_resumable(run_dir, checkpoint)
    step, steps = checkpoint["global_step"], last_step(cfg, checkpoint)
    if step > steps or (step == steps and (run_dir / "metrics.json").exists()):
        raise UserError(f"resume: the run has done {step} of {steps} steps; steps=… makes it longer")
    return checkpoint


def migrate_checkpoint(model: SequenceModule, sharded: bool, checkpoint: dict[str, Any]) -> None:
    """Bring a checkpoint of an earlier version to today's names of weights and order of moments, in place."""
    checkpoint["state_dict"] = migrate_weights(checkpoint["state_dict"], model)
    if not sharded:
        reorder_moments(checkpoint, model)


def is_sharded(cfg: DictConfig) -> bool:
    """True if no rank holds all weights (FSDP, DeepSpeed): the strategy decides the form of the moments."""
    return not cfg.trainer.strategy.startswith(("auto", "ddp"))


CONFIGURATION_ERRORS = (
    *(ValueError, RuntimeError, L.pytorch.utilities.exceptions.MisconfigurationException),
    ModuleNotFoundError,  # an accelerator or a strategy whose package isn't installed
)


def make_trainer(
    cfg: DictConfig,
    run_dir: Path,
    model: SequenceModule,
    metrics: Metrics,
    loggers: list[Logger],
    curve: ValidationCurve,
    identity: dict[str, str],
    recipe: RecipeCallbacks,
    further: UserCallbacks,
    batch_size: int,
) -> L.Trainer:
    """`recipe` from `recipe_callbacks`; `batch_size` rows at the first step."""
    settings = cfg.trainer
    guard = GradientGuard(cfg.optim.clip, metrics)
    checkpoints = Checkpoints(run_dir / "checkpoints", cfg.checkpoint_every, metrics, guard)
    try:
        trainer = L.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=settings.strategy,
            precision=settings.precision,
            accumulate_grad_batches=settings.accumulate,
            max_steps=model.optim.total_steps,
            max_epochs=-1,
            val_check_interval=sys.maxsize,  # Checkpoints validates: it saves first, and resumes there
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # our loaders divide their streams among the ranks
            logger=loggers,
            profiler=make_profiler(settings.profiler, run_dir),
            callbacks=[  # in this order: checked, measured, then saved, then perhaps stopped
                guard,
                *recipe.before_metrics,
                metrics,
                curve,
                *recipe.after_metrics,
                *further.all(),  # before ExactResume: it restores the RNGs that they draw from
                ProgressReport(metrics, run_dir),
                ExactResume(cfg.seed, batch_size, identity),  # adds carried states and RNGs
                checkpoints,
                SignalHandler(checkpoints),
            ],
            plugins=[AtomicCheckpointIO(partial(migrate_checkpoint, model, is_sharded(cfg)))],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except CONFIGURATION_ERRORS as error:
        raise UserError(f"trainer: {first_line(error)}") from error
    trainer.fit_loop = NonSkippingFitLoop(trainer.fit_loop)  # to validate even if no step is left
    return trainer
