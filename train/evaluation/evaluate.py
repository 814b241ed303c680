"""A trained run on any length or task: load it, measure, draw, store."""

import datetime
import platform
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.evaluation import figures, grids, results
from zoo.train.evaluation.grids import EvalOptions, Log
from zoo.train.plotting.charts import add_images
from zoo.train.runs import build
from zoo.train.runs.config import compose, to_dict
from zoo.train.runs.load import LOCAL_OVERRIDES, load_run, silence_lightning
from zoo.train.runs.provenance import commit
from zoo.train.runs.resources import state_bytes
from zoo.train.runs.stored import load_stored


def task_config(cfg: DictConfig, asked: EvalOptions) -> tuple[str, DictConfig]:
    """Name and settings of the task to evaluate on: the run's, or another one as its yaml has it."""
    name = asked.task or str(cfg.names.task)
    if name != cfg.names.task:
        other = compose([f"task={name}", f"size={cfg.names.size}"])
        other.data.corpus, other.data.root = cfg.data.corpus, cfg.data.root
    else:
        other = cfg.copy()
    for word in asked.overrides:
        group, _, rest = word.partition(".")
        key = rest.partition("=")[0]
        if group == "model" or key == "_target_":
            continue
        if group == "data" and key not in ("corpus", "root"):
            raise UserError(f"evaluate: unknown key data.{key}; of data only data.corpus and data.root")
        if key not in other.task:
            raise UserError(
                f"evaluate: {group}.{key}: task {name} has no such setting; expected one of "
                f"{', '.join(_settings(other.task))}"
            )
        other.task[key] = OmegaConf.from_dotlist([rest])[key]
    return name, other


def _settings(node: DictConfig) -> dict[str, Any]:
    """What a task or a model was built with, without where data lies on this machine."""
    return {key: value for key, value in to_dict(node).items() if key not in ("_target_", "root")}


# -- the evaluation ------------------------------------------------------------------------------------------
FIGURES = "evaluation"
FOR_SAMPLES = ("lengths", "depths", "prompts")
FOR_TEXT = ("positions", "stride", "context")


def evaluate(run_dir: Path, asked: EvalOptions | None = None, say: Log = lambda line: None) -> dict[str, Any]:
    """The entry of evaluation.json that this evaluation made or added to (see
    zoo.train.evaluation.results)."""
    asked = asked or EvalOptions()
    silence_lightning()
    cfg, model, far = load_run(run_dir, asked.checkpoint, asked.overrides, asked.model)
    own, reading = model, None
    if asked.model is not None:
        run = load_stored(run_dir / "config.yaml")
        assert isinstance(run, DictConfig)
        reading = {key: value for key, value in _settings(cfg.model).items() if run.model.get(key) != value}
        own = build.model(run)
    name, chosen = task_config(cfg, asked)
    task = build.task(chosen)
    if task.vocab_size > model.vocab_size:
        raise UserError(
            f"expected a task of at most the {model.vocab_size} symbols that the run's model knows, "
            f"found {name} with {task.vocab_size}"
        )
    settings = _settings(chosen.task)
    changed = chosen.task["_target_"] == cfg.task["_target_"] and settings != _settings(cfg.task)
    if changed and asked.split != "train":
        task.check_unseen(build.task(cfg), asked.split)
    text = task.metric == "bits_per_byte"
    for key in FOR_SAMPLES if text else FOR_TEXT:
        if getattr(asked, key) is not None:
            kind, usual = ("reads text", FOR_TEXT) if text else ("is made of samples", FOR_SAMPLES)
            raise UserError(
                f"evaluate: {key}= says nothing of task {name}, which {kind}: expected {'=, '.join(usual)}="
            )
    if (asked.stride is None) != (asked.context is None):
        raise UserError("evaluate: expected stride= and context= together, found one alone")

    file = results.load_or_create(run_dir / results.FILE, run_facts(run_dir, cfg, own))
    entry = file.entry(
        {
            "task": name,
            "version": task.VERSION,
            "settings": settings,
            "split": asked.split,
            "checkpoint": asked.checkpoint,
            **far,
            "read_by": asked.model,
            "reading": reading,
            "unit": "bits per byte" if text else "accuracy",
        },
        *label_and_title(str(cfg.names.model), name, asked, far["step"]),
    )
    facts = {
        "asked": {
            key: value
            for key, value in (
                ("rows", asked.batch_size),
                ("window", asked.seq_len),
                ("tokens", asked.tokens),
                ("prompts", asked.prompts),
            )
            if value is not None
        },
        "device": torch.cuda.get_device_name(model.device)
        if model.device.type == "cuda"
        else f"{platform.machine()} CPU",
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    rows = grids.evaluate_text if text else grids.evaluate_samples
    for row in rows(model, task, asked, settings.get("length"), say):
        file.put(entry, row | facts)
    drawn = figures.draw_figures(entry, settings.get("length") if name == cfg.names.task else None)
    for title, figure in drawn.items():
        (run_dir / FIGURES).mkdir(exist_ok=True)
        figure.savefig(run_dir / FIGURES / f"{title}.png", dpi=120)
    add_images(
        run_dir, {f"evaluation/{title}": figure for title, figure in drawn.items()}, far["tokens_seen"]
    )
    return entry


def label_and_title(model: str, name: str, asked: EvalOptions, step: int) -> tuple[str, str]:
    """What tells this evaluation from others of the same run, for files; and a title."""
    words = [word for word in asked.overrides if not word.startswith(LOCAL_OVERRIDES)]
    of_model = [word.removeprefix("model.") for word in words if word.startswith("model.")]
    of_task = [word.partition(".")[2] for word in words if not word.startswith("model.")]
    what = " ".join([name, *of_task, *([f"by {asked.model}", *of_model] if asked.model else [])])
    others = [asked.split] * (asked.split != "test") + [asked.checkpoint] * (asked.checkpoint != "last")
    return " ".join([what, *others]), f"{model} on {what} ({asked.split} split, step {step:,})"


def run_facts(run_dir: Path, cfg: DictConfig, model: SequenceModule) -> dict[str, Any]:
    """What evaluation.json says of the run itself."""
    return {
        "run": run_dir.resolve().name,
        **{group: str(chosen) for group, chosen in cfg.names.items()},
        "seed": cfg.seed,
        "trained_at": {"window": cfg.data.seq_len}
        | ({"length": cfg.task.length} if "length" in cfg.task else {}),
        "segment_len": model.segment_len,
        "parameters": model.count_parameters(),
        "state_bytes": state_bytes(model),
    }
