"""Evaluation of one run at several contexts and by several position methods: train once, read many ways.

`contexts` sets the tokens that the model attends over (`segment_len`, or `window` where it has one) and what
it reads: samples of that length, or text in windows of that length, whose last tokens count: `stride`, by
default as many as the run's context has.  `methods` are settings of `model.position`: a scaling, a far
distance, `log_n` or `plain`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import get_class
from matplotlib.figure import Figure
from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.train.evaluation import results
from zoo.train.evaluation.evaluate import FIGURES, evaluate, task_config
from zoo.train.evaluation.options import EvalOptions, PrintLine
from zoo.train.evaluation.results import EvalEntry
from zoo.train.plotting.curves import Line, curve_panels
from zoo.train.runs.load import read_run_config

FAR = ("capped", "leaky", "grouped")
PLAIN = "plain"


class Reading(NamedTuple):
    """One evaluation at a context by a method."""

    entry: EvalEntry
    options: EvalOptions


def evaluate_each(
    run_dir: Path, options: EvalOptions, print_line: PrintLine = lambda line: None
) -> list[EvalEntry]:
    """An entry for each method and context, written to evaluation.json as soon as it is measured."""
    cfg = read_run_config(run_dir, options.overrides)
    readings: dict[str, dict[int, Reading]] = {}
    for method in options.methods or [PLAIN]:
        for context in contexts(cfg, options):
            print_line(f"{method}, context {context:,}")
            read_with = at_context(cfg, options, method, context)
            entry = evaluate(run_dir, read_with, print_line)
            readings.setdefault(method, {})[context] = Reading(entry, read_with)
    if options.contexts is not None:
        draw(run_dir, readings)
    return [reading.entry for by_context in readings.values() for reading in by_context.values()]


def contexts(cfg: DictConfig, options: EvalOptions) -> list[int]:
    """The contexts in tokens; the run's own without `contexts`."""
    run_context = run_context_of(cfg)
    values = [
        round(float(word[:-1]) * run_context) if word.endswith("x") else int(word)
        for word in options.contexts or ["1x"]
    ]
    if options.contexts is not None and options.context is not None:
        raise UserError("evaluate: expected contexts= or context=, found both")
    if options.contexts is not None and (options.stride or 0) > min(values):
        raise UserError(
            f"evaluate: stride: expected at most context {min(values):,}, found {options.stride:,}"
        )
    if min(values) < 1:
        raise UserError(f"evaluate: contexts: expected at least 1 token, found {options.contexts}")
    return list(dict.fromkeys(values))


def context_key(cfg: DictConfig) -> str:
    """The model's setting that is its context."""
    key = "window" if cfg.model.get("window") is not None else "segment_len"
    if cfg.model.get(key) is None:
        raise UserError("evaluate: contexts= changes window or segment_len, which the run's model hasn't got")
    return key


def run_context_of(cfg: DictConfig) -> int:
    return int(cfg.model[context_key(cfg)])


def at_context(cfg: DictConfig, options: EvalOptions, method: str, context: int) -> EvalOptions:
    """The options of one evaluation."""
    run_context, overrides = run_context_of(cfg), [*options.overrides, *method_overrides(method)]
    changes: dict[str, Any] = {"contexts": None, "methods": None}
    if options.contexts is not None:
        if context != run_context:
            overrides.append(f"model.{context_key(cfg)}={context}")
        if reads_text(cfg, options):
            changes |= {"context": context, "stride": options.stride or min(run_context, context)}
        else:
            changes |= {"lengths": options.lengths or [str(context)]}
        changes["seq_len"] = max(options.seq_len, context)
        changes["batch_size"] = max(1, options.batch_size * run_context // max(run_context, context))
    return dataclasses.replace(options, overrides=tuple(overrides), **changes)


def method_overrides(method: str) -> list[str]:
    """The settings of the model that a method stands for; the model refuses one that it doesn't know."""
    if method == PLAIN:
        return []
    if method == "log_n":
        return ["model.position.log_n=true"]
    return [f"model.position.{'far' if method in FAR else 'scaling'}={method}"]


def reads_text(cfg: DictConfig, options: EvalOptions) -> bool:
    """True of text, False of samples of a length.  Raises UserError for a task that has neither."""
    name, task_cfg = task_config(cfg, options)
    task: Any = get_class(task_cfg.task._target_)
    if task.metric != "bits_per_byte" and "length" not in task.axes:
        raise UserError(
            f"evaluate: contexts= reads text, or samples of any length, which task {name} hasn't got"
        )
    return bool(task.metric == "bits_per_byte")


def reads_at_context(axes: dict[str, Any], context: int) -> bool:
    """True for the axes of a result that `contexts` asks for: samples that the context holds, or windows of
    text of this length, of which the last tokens count."""
    if "length" in axes:
        return int(axes["length"]) <= context
    return axes.get("memory") == "sliding" and axes["context"] == context


def draw(run_dir: Path, readings: dict[str, dict[int, Reading]]) -> None:
    """A figure with a line for each method over the contexts."""
    entries = [reading.entry for by_context in readings.values() for reading in by_context.values()]
    is_text = all(entry["unit"] == "bits per byte" for entry in entries)
    label = "loss of the last tokens, nats" if is_text else "exact match"
    lines = {}
    for method, by_context in readings.items():
        scores = [
            score(entry, context, read_with.stride, read_with.tokens)
            for context, (entry, read_with) in by_context.items()
        ]
        lines[method] = Line(list(by_context), scores, scores, scores)
    task = entries[0]["task"]
    figure: Figure = curve_panels(
        [(label, lines)], "context, tokens", f"{task} by position method", from_zero=not is_text
    )
    folder = run_dir / FIGURES
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / f"{task}-by-context.png", dpi=120)


def score(entry: EvalEntry, context: int, stride: int | None = None, tokens: int | None = None) -> float:
    """The loss of a text read with this stride, of `tokens` bytes where as many were drawn; of samples the
    exact matches of all cells of the longest that the context holds, of longer ones if there are no others.
    An entry has the results of earlier evaluations too."""
    if entry["unit"] == "bits per byte":
        window = {"memory": "sliding", "context": context, "stride": stride}
        by_axes = {json.dumps(r["axes"], sort_keys=True): float(r["loss"]) for r in entry["results"]}
        drawn, entire = (json.dumps(axes, sort_keys=True) for axes in (window | {"drawn": tokens}, window))
        return by_axes[drawn if drawn in by_axes else entire]
    counted = [r for r in entry["results"] if reads_at_context(r["axes"], context)]
    pooled = results.pooled(counted or entry["results"], "length")
    return float(list(pooled.values())[-1]["share"])
