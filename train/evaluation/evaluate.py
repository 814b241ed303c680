"""Evaluation of a trained run on any length or task: load, check options, measure, draw."""

import datetime
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.plugins.precision import Precision
from omegaconf import DictConfig

from zoo.errors import UserError, printable
from zoo.module import SequenceModule
from zoo.train.evaluation import figures, results
from zoo.train.evaluation.options import EvalOptions, PrintLine, other_split_named
from zoo.train.evaluation.results import EvalEntry
from zoo.train.evaluation.samples import evaluate_samples
from zoo.train.evaluation.streaming import StreamReader
from zoo.train.evaluation.text import evaluate_text
from zoo.train.plotting.board_images import add_images
from zoo.train.plotting.charts import Number
from zoo.train.runs import build
from zoo.train.runs.checkout import commit
from zoo.train.runs.config import DEFAULT_FIELD, compose, to_dict
from zoo.train.runs.data_identity import data_have_changed, stored_task
from zoo.train.runs.load import LOCAL_OVERRIDES, load_trained, silence_lightning
from zoo.train.runs.override_key import expand_home
from zoo.train.runs.overrides import assignments
from zoo.train.runs.precision import convert_weights, make_precision, precision_name
from zoo.train.runs.provenance import device_name
from zoo.train.runs.resources import state_bytes
from zoo.train.runs.stored import load_stored
from zoo.train.runs.symbols import check_run_symbols, check_task_symbols, surplus_symbols
from zoo.train.tasks.base import Split, Task
from zoo.train.tasks.corpus_notes import part_note

FIGURES = "evaluation"
SAMPLE_OPTIONS = ("lengths", "depths", "prompts")
TEXT_OPTIONS = ("positions", "stride", "context")


class Evaluation(NamedTuple):
    """A run's model on a task, ready to be measured."""

    run_dir: Path
    config: DictConfig
    model: SequenceModule
    precision: Precision
    facts: dict[str, Any]
    """About the run, for evaluation.json."""
    changed_settings: dict[str, Any] | None
    """Settings of the model that the run doesn't have; None if it is read as it was trained."""
    progress: dict[str, int]
    """`step` and `tokens_seen` of the checkpoint."""
    task_name: str
    task_config: DictConfig
    task: Task

    @property
    def is_text(self) -> bool:
        return self.task.metric == "bits_per_byte"

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.task_config.task)

    @property
    def is_of_training(self) -> bool:
        """True if the task is the one that the run was trained on."""
        return self.settings == settings_of(self.config.task)


def evaluate(
    run_dir: Path, options: EvalOptions | None = None, print_line: PrintLine = lambda line: None
) -> EvalEntry:
    """The entry of evaluation.json that this evaluation wrote or extended (zoo.train.evaluation.results)."""
    options = options or EvalOptions()
    silence_lightning()
    evaluation = load(run_dir, options)
    check_options(evaluation, options)
    with other_split_named():
        entry = measure(evaluation, options, print_line)
    draw(evaluation, entry)
    return entry


def load(run_dir: Path, options: EvalOptions) -> Evaluation:
    """Raises UserError for a run that can't be loaded and for a task that its model can't read."""
    cfg, model, progress = load_trained(
        run_dir, options.checkpoint, options.overrides, options.model, options.precision
    )
    precision = make_precision(precision_name(cfg), model.device)
    check_run_symbols(cfg, model, "evaluate")
    run_model, changed_settings = model, None
    if read_by(cfg, options) is not None:
        run_cfg = load_stored(run_dir / "config.yaml")
        assert isinstance(run_cfg, DictConfig)
        changed_settings = {
            key: value for key, value in settings_of(cfg.model).items() if run_cfg.model.get(key) != value
        }
        run_model = convert_weights(build.model(run_cfg), precision.precision)
    name, task_cfg = task_config(cfg, options)
    task = stored_task(task_cfg, run_dir)
    check_task_symbols(cfg, model, task)
    facts = run_facts(run_dir, cfg, run_model)
    return Evaluation(run_dir, cfg, model, precision, facts, changed_settings, progress, name, task_cfg, task)


def read_by(cfg: DictConfig, options: EvalOptions) -> str | None:
    """The architecture that reads: another one, or the run's with other settings; else None."""
    changes = (
        override.startswith("model.") and not override.startswith(LOCAL_OVERRIDES)
        for override in options.overrides
    )
    return options.model or (str(cfg.names.model) if any(changes) else None)


def task_config(cfg: DictConfig, options: EvalOptions) -> tuple[str, DictConfig]:
    """Name and configuration of the task to evaluate on: the run's, or another with its yaml's settings."""
    name = options.task or str(cfg.names.task)
    if name != cfg.names.task:
        task_cfg = compose([f"task={name}", f"size={cfg.names.size}"])
        for key in ("corpus", "root", "field"):
            if key in cfg.data:
                task_cfg.data[key] = cfg.data[key]
    else:
        task_cfg = cfg.copy()
    for override in options.overrides:
        group, _, assignment = override.partition(".")
        key = assignment.partition("=")[0]
        if group == "model" or key == "_target_":
            continue
        if group == "data" and key not in ("corpus", "root", "field"):
            raise UserError(
                f"evaluate: unknown key data.{key}; of data only data.corpus, data.root and data.field"
            )
        if key not in task_cfg.task and not (key == "field" and "corpus" in task_cfg.task):
            raise UserError(
                f"evaluate: {group}.{key}: task {name} has no such setting; expected one of "
                f"{', '.join(settings_of(task_cfg.task))}"
            )
        task_cfg.task[key] = setting(task_cfg.task.get(key, DEFAULT_FIELD), assignment)
    return name, task_cfg


def setting(current: Any, assignment: str) -> Any:
    """The value of key=value: as yaml has it, but a text as it is typed unless it is in quotes.

    A corpus may be called 1, or have a # in its name; ~/ is the home folder.
    """
    key, _, value = assignment.partition("=")
    is_typed = isinstance(current, str) and not value.startswith(("'", '"'))
    return expand_home(value) if is_typed else assignments([assignment])[key]


def settings_of(node: DictConfig) -> dict[str, Any]:
    """Constructor arguments of a task or a model, without the data's location on this machine and without a
    field that is named as it always was."""
    settings = {key: value for key, value in to_dict(node).items() if key not in ("_target_", "root")}
    return {key: value for key, value in settings.items() if (key, value) != ("field", DEFAULT_FIELD)}


def check_options(evaluation: Evaluation, options: EvalOptions) -> None:
    """Raises UserError for samples that the run trained on and for options of another kind of task."""
    cfg, task_cfg, name = evaluation.config, evaluation.task_config, evaluation.task_name
    same_class = task_cfg.task["_target_"] == cfg.task["_target_"]
    checks = type(evaluation.task).check_unseen is not Task.check_unseen  # else the run's corpus isn't needed
    if checks and same_class and evaluation.settings != settings_of(cfg.task) and options.split != "train":
        evaluation.task.check_unseen(build.task(cfg), options.split)
    if evaluation.is_text:
        kind, allowed, refused = "reads text", TEXT_OPTIONS, SAMPLE_OPTIONS
    else:
        kind, allowed, refused = "is made of samples", SAMPLE_OPTIONS, TEXT_OPTIONS
    for key in refused:
        if getattr(options, key) is not None:
            raise UserError(
                f"evaluate: {key}= has no effect on task {name}, which {kind}: "
                f"expected {'=, '.join(allowed)}="
            )
    if (options.stride is None) != (options.context is None):
        raise UserError("evaluate: expected stride= and context= together, found one alone")


def measure(evaluation: Evaluation, options: EvalOptions, print_line: PrintLine) -> EvalEntry:
    """Measures every point of the axes and stores each in evaluation.json at once."""
    model, task, settings = evaluation.model, evaluation.task, evaluation.settings
    file = results.load_or_create(evaluation.run_dir / results.FILE, evaluation.facts)
    identity = {
        "task": evaluation.task_name,
        "version": task.VERSION,
        "settings": settings,
        "split": options.split,
        "checkpoint": options.checkpoint,
        **evaluation.progress,
        "read_by": read_by(evaluation.config, options),
        "reading": evaluation.changed_settings,
        "precision": evaluation.precision.precision,
        "changed_data": (evaluation.is_of_training and data_have_changed(evaluation.run_dir, task)) or None,
        "unit": "bits per byte" if evaluation.is_text else "accuracy",
    }
    model_name, step = str(evaluation.config.names.model), evaluation.progress["step"]
    precision = str(evaluation.precision.precision)
    architecture = read_by(evaluation.config, options)
    names = label_and_title(model_name, evaluation.task_name, options, step, precision, architecture)
    entry = file.entry(identity, *names)
    if not evaluation.is_text:
        entry["target"] = task.target_noun
    facts = measurement_facts(model, options)
    if identity["changed_data"]:
        print_line(
            f"the texts of {evaluation.config.data.corpus} have changed since the run was trained: what is "
            "read may hold text that it was trained on, and zoo compare leaves it out"
        )
    if note := surplus_symbols(model, task):
        print_line(note)
    if note := part_that_is_read(evaluation, options.split):
        print_line(note)
    measure_task = evaluate_text if evaluation.is_text else evaluate_samples
    reader = StreamReader(
        model,
        options.batch_size,
        options.seq_len,
        forward_context=evaluation.precision.forward_context,
    )
    for result in measure_task(reader, task, options, settings.get("length"), print_line):
        file.put(entry, result | facts)
    return entry


def part_that_is_read(evaluation: Evaluation, split: Split) -> str:
    """Which part of a single text is read, of one that the run wasn't trained on; "" of all else."""
    is_runs = evaluation.settings.get("corpus") == evaluation.config.task.get("corpus")
    return part_note(evaluation.task, split) if evaluation.is_text and not is_runs else ""


def measurement_facts(model: SequenceModule, options: EvalOptions) -> dict[str, Any]:
    """Options, device, commit and date of a measurement."""
    limits = {
        "rows": options.batch_size,
        "window": options.seq_len,
        "tokens": options.tokens,
        "prompts": options.prompts,
    }
    return {
        "asked": {key: value for key, value in limits.items() if value is not None},
        "device": device_name(model.device),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def label_and_title(
    model: str, task: str, options: EvalOptions, step: int, precision: str, architecture: str | None
) -> tuple[str, str]:
    """A label, unique among the run's evaluations, for files; and a title."""
    overrides = [override for override in options.overrides if not override.startswith(LOCAL_OVERRIDES)]
    model_settings = [item.removeprefix("model.") for item in overrides if item.startswith("model.")]
    task_settings = [item.partition(".")[2] for item in overrides if not item.startswith("model.")]
    parts = [task, *task_settings]
    if architecture:
        parts += [f"by {architecture}", *model_settings]
    subject = " ".join(parts)
    if options.split != "test":
        parts.append(options.split)
    if options.checkpoint != "last":
        parts.append(options.checkpoint)
    facts = f"{options.split} split, step {step:,}"
    if precision != "32-true":
        parts.append(precision)
        facts += f", {precision}"
    return printable(" ".join(parts)), printable(f"{model} on {subject} ({facts})")


def run_facts(run_dir: Path, cfg: DictConfig, model: SequenceModule) -> dict[str, Any]:
    """Fields of evaluation.json that describe the run."""
    trained_at = {"window": cfg.data.seq_len}
    if "length" in cfg.task:
        trained_at["length"] = cfg.task.length
    return {
        "run": run_dir.resolve().name,
        **{group: str(name) for group, name in cfg.names.items()},
        "seed": cfg.seed,
        "trained_at": trained_at,
        "segment_len": model.segment_len,
        "parameters": model.count_parameters(),
        "state_bytes": state_bytes(model),
    }


def draw(evaluation: Evaluation, entry: EvalEntry) -> None:
    """Writes the figures as PNG files beside the run and as images for TensorBoard."""
    same_task = evaluation.task_name == evaluation.config.names.task
    trained_at: Number | None = evaluation.settings.get("length") if same_task else None
    drawings = figures.draw_figures(entry, trained_at)
    folder = evaluation.run_dir / FIGURES
    for name, figure in drawings.items():
        folder.mkdir(exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=120)
    images = {f"zoo evaluate/{name}": figure for name, figure in drawings.items()}
    add_images(evaluation.run_dir, images, evaluation.progress["tokens_seen"])
