"""The results of a finished run: metrics.json, and the last lines that the command prints."""

import datetime
import logging
import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from zoo.module import SequenceModule
from zoo.train.data.module import DataModule
from zoo.train.loop.metrics import Metrics
from zoo.train.loop.validation_curve import ValidationCurve
from zoo.train.plotting.charts import format_share
from zoo.train.runs.config import names
from zoo.train.runs.hparams import reads_corpus
from zoo.train.runs.provenance import device_name, fingerprint
from zoo.train.runs.resources import peak_memory_bytes, state_bytes
from zoo.train.tasks.base import Task, references, score_names
from zoo.train.tasks.lm import too_short

log = logging.getLogger(__name__)


def summary(
    cfg: DictConfig,
    model: SequenceModule,
    task: Task,
    data: DataModule,
    metrics: Metrics,
    curve: ValidationCurve,
) -> dict[str, Any]:
    """The entries of metrics.json that are known at the end; `tokens_seen` and `tokens_per_s` count loss
    targets only."""
    return {
        **names(cfg),
        "seed": cfg.seed,
        "steps": cfg.steps,
        "corpus": cfg.data.corpus,
        "unit": "bits per byte" if task.metric == "bits_per_byte" else "accuracy",  # of "reference"
        "score_names": score_names(task),
        "parameters": model.count_parameters(),
        "parameters_total": sum(weight.numel() for weight in model.parameters()),
        "state_bytes": state_bytes(model),
        "tokens_seen": int(metrics.tokens_seen),
        "train_s": metrics.train_s,
        "tokens_per_s": metrics.tokens_seen / max(metrics.train_s, 1e-9),
        "eval_tokens_per_s": curve.tokens_per_s,
        "peak_memory_bytes": peak_memory_bytes(model.device),
        **{tag: value for tag, value in sorted(metrics.latest.items()) if tag.startswith(("val/", "train/"))},
        **references(task, data.val_dataset()),
        "val_bytes": len(data.val_text),
        "task_version": task.VERSION,
        "data_fingerprint": fingerprint(task),
        "curve": curve.curve,
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def subject(cfg: DictConfig) -> str:
    """The model, its task, and the text where the task reads one: "rmt on lm (wikitext-2)"."""
    text = f" ({Path(cfg.data.corpus).name})" if reads_corpus(cfg) else ""
    return f"{cfg.names.model} on {cfg.names.task}{text}"


def run_facts(cfg: DictConfig, model: SequenceModule) -> dict[str, str]:
    """What doesn't change in a run, by name, for TensorBoard's Text tab."""
    return {
        "run": f"{subject(cfg)}, size {cfg.names.size}, seed {cfg.seed}, {cfg.steps:,} steps",
        "parameters": f"{model.count_parameters():,}",
        "state per row": f"{state_bytes(model):,} bytes",
        "horizontal axis": "targets seen: every token of a text, of a sample only its answer",
    }


def print_summary(results: dict[str, Any], run_dir: Path, has_tensorboard: bool) -> None:
    """Log the held-out scores beside the task's baselines, and the run's folder."""
    if results.get("stopped_by") is not None:
        log.info("stopped by a callback after %d of %d steps", results["steps_done"], results["steps"])
    if "val/bits_per_byte" in results:
        text = f"{results['val_bytes']:,} bytes of held-out text"
        baselines = ", ".join(f"{name} {value:.3f}" for name, value in results["reference"].items())
        scores = [f"{results['val/bits_per_byte']:.3f} bits per byte on {text} (there: {baselines})"]
        if warning := too_short(results["val_bytes"]):
            scores[0] += f"; {warning}"
    else:
        scores = [describe_score(results, tag) for tag in results["score_names"] if tag in results]
    folder = Path(os.path.relpath(run_dir))
    root = "runs" if folder.parts[0] == "runs" else folder
    for score in scores:
        log.info("%s reached %s", results["model"], score)
    curves = f"   curves: tensorboard --logdir {root}" if has_tensorboard else ""
    log.info("run: %s%s", folder, curves)


def describe_score(results: dict[str, Any], tag: str) -> str:
    """A score of samples with the baselines under the same measure."""
    baselines = results["reference_exact" if tag == "val/exact" else "reference"]
    names = ", ".join(f"{name} {format_share(value)}" for name, value in baselines.items())
    score = f"{results['score_names'][tag]} {results[tag]:.1%} on held-out samples"
    return f"{score} ({names})" if names else score
