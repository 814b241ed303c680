"""Finished runs side by side: the numbers, before they are written in any format."""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.errors import UserError
from zoo.train.comparison.comparable import check_comparable, metric_range
from zoo.train.comparison.groups import Run, RunGroup, group_runs, read_run
from zoo.train.comparison.reproduce import sweep_command
from zoo.train.evaluation.intervals import Estimate, paired
from zoo.train.runs import budget
from zoo.train.runs.folder import folders

RUN_HEAD = ["model", "seed", "score", "commit", "date", "device", "folder"]


def run_facts(rows: list[RunGroup]) -> list[list[str]]:
    """Where every number comes from; the settings are in the folder's config.yaml."""
    return [
        [
            row.label,
            str(run.config["seed"]),
            f"{run.metrics.get('val/bits_per_byte', run.metrics.get('val/accuracy')):.4f}",
            (found := str(run.metrics.get("commit", "")))[:9] + "+" * found.endswith("+"),
            str(run.metrics.get("date", ""))[:10],
            str(run.metrics.get("device", "")),
            str(run.folder.relative_to(Path.cwd()) if run.folder.is_relative_to(Path.cwd()) else run.folder),
        ]
        for row in rows
        for run in row.runs
    ]


DEFAULT_BASELINE = "transformer"  # the baseline where none is named and it is there
EMPTY_CELL = "-"


class Comparison(NamedTuple):
    """All there is to say, before it is written in any format."""

    rows: list[RunGroup]
    score: str
    """Tag of the score: "val/bits_per_byte" or "val/accuracy"."""
    baseline: RunGroup | None
    loss: float
    mixed: list[str]
    """In what the runs differ although they shouldn't, in words."""
    command: str

    @property
    def unit(self) -> str:
        return "bits per byte" if self.score == "val/bits_per_byte" else "accuracy"


def compare(paths: Sequence[Path], keys: dict[str, str], command: str) -> Comparison:
    """UserError: no runs, or some that don't compare."""
    finished, begun = folders(paths)
    if begun:
        print(f"left out, not finished: {', '.join(map(str, begun))}", file=sys.stderr)
    if not finished:
        raise UserError(f"compare: no finished run below {', '.join(map(str, paths))}")
    runs = [read_run(folder) for folder in finished]
    mixed = check_comparable(runs, [kind for kind in keys["mix"].split(",") if kind])
    rows = group_runs(runs)
    score = score_of(runs)
    named = {row.label: row for row in rows}
    if keys["baseline"] and keys["baseline"] not in named:
        raise UserError(f"compare: baseline: expected one of {', '.join(named)}, found {keys['baseline']}")
    loss = parse_loss(keys["loss"]) if keys["loss"] else default_loss(rows)
    return Comparison(rows, score, named.get(keys["baseline"] or DEFAULT_BASELINE), loss, mixed, command)


def score_of(runs: list[Run]) -> str:
    """Bits per byte if any run has them: accuracy of bytes is said for text as well."""
    some = [run for run in runs if "val/bits_per_byte" in run.metrics]
    if some and len(some) < len(runs):
        without = next(run for run in runs if run not in some)
        raise UserError(
            f"compare: {some[0].name} is scored in bits per byte, {without.name} in accuracy; name one kind"
        )
    return "val/bits_per_byte" if some else "val/accuracy"


def parse_loss(word: str) -> float:
    try:
        loss = float(word)
    except ValueError:
        loss = math.nan
    if not 0 < loss < math.inf:
        raise UserError(f"compare: loss: expected a number of nats above 0, found {word}")
    return loss


def default_loss(rows: list[RunGroup]) -> float:
    """The highest of the rows' final losses, rounded up: every run that ended no worse has reached it."""
    highest = max(run.metrics["val/loss"] for row in rows for run in row.runs)
    return math.ceil(highest * 1000) / 1000


# -- numbers
class Column(NamedTuple):
    """One quantity of a row: its title, how it is said, and whether its interval is worth saying."""

    key: str
    title: str
    value: Callable[[RunGroup], Estimate | None]
    form: Callable[[float], str]
    spread: bool


def columns(comparison: Comparison) -> list[Column]:
    """In the order in which they are shown."""
    score, baseline = comparison.score, comparison.baseline
    if comparison.unit == "accuracy":
        form, change = (lambda x: f"{x:.1%}"), (lambda x: f"{100 * x:+.1f}")
    else:
        form, change = (lambda x: f"{x:.3f}"), (lambda x: f"{x:+.3f}")

    def plain(key: str) -> Callable[[RunGroup], Estimate | None]:
        return lambda row: row.estimate(lambda run: run.metrics.get(key))

    def whole(number: float) -> str:
        return f"{number:,.0f}"

    found = [Column(score, f"held-out {comparison.unit}", plain(score), form, True)]
    if baseline is not None:
        points = " (points)" if comparison.unit == "accuracy" else ""
        base = baseline.by_seed(lambda run: run.metrics[score])

        def difference(row: RunGroup) -> Estimate | None:
            return None if row is baseline else paired(row.by_seed(lambda run: run.metrics[score]), base)

        found.append(Column("difference", f"against {baseline.label}{points}", difference, change, True))
    if comparison.unit == "accuracy":
        found.append(
            Column("val/loss", "held-out loss (nats)", plain("val/loss"), lambda x: f"{x:.3f}", True)
        )
    found += [
        Column("parameters", "parameters", plain("parameters"), whole, False),
        Column("state_bytes", "state bytes per row", plain("state_bytes"), whole, False),
        Column("tokens_seen", "tokens seen", plain("tokens_seen"), whole, False),
        Column("tokens_per_s", "training asked tokens/s", plain("tokens_per_s"), whole, False),
        Column("eval_tokens_per_s", "evaluation asked tokens/s", plain("eval_tokens_per_s"), whole, False),
        Column(
            "peak_memory_bytes",
            "peak memory",
            plain("peak_memory_bytes"),
            lambda x: f"{x / 2**20:,.0f} MiB",
            False,
        ),
        Column(
            "steps_to_loss",
            f"steps to held-out loss {comparison.loss:g}",
            lambda row: row.estimate(lambda run: steps_to(run, comparison.loss)),
            whole,
            True,
        ),
    ]
    return found


def steps_to(run: Run, loss: float) -> float | None:
    """The step of the first validation at or below a loss; None where there was none, or no curve is kept."""
    return next(
        (float(point["step"]) for point in run.metrics.get("curve", []) if point["val/loss"] <= loss), None
    )


def format_cell(column: Column, row: RunGroup) -> str:
    """A cell: mean ± half the interval's width; fewer runs than the row has are counted."""
    found = column.value(row)
    if found is None:
        return EMPTY_CELL
    half = found.half_width if column.spread else None
    width = None if half is None else column.form(half).lstrip("+")
    count = f" ({found.runs} of {len(row.runs)})" if found.runs < len(row.runs) else ""
    return column.form(found.mean) + (f" ± {width}" if width else "") + count


def seeds(row: RunGroup) -> str:
    return ", ".join(str(run.config["seed"]) for run in row.runs)


def notes(comparison: Comparison) -> list[str]:
    """What a reader has to know of the numbers."""
    runs = [run for row in comparison.rows for run in row.runs]
    said = [f"The runs differ: {line}." for line in comparison.mixed]
    said.append(
        "Mean ± half the width of the 95 % interval over seeds (Student's t); a single seed has none."
    )
    free = any(run.config.get("size.budget") is None for run in runs)
    if free and (apart := metric_range(runs, "parameters", budget.BUDGET_TOLERANCE)):
        said.append(f"The size has no budget, the models aren't equally large: {apart}.")
    if comparison.baseline is not None:
        said.append(f"Against {comparison.baseline.label}: differences of runs of the same seed.")
    if (held := runs[0].metrics.get("val_bytes")) and not comparison.mixed:
        said.append(f"Scores and references are those of {held:,} held-out bytes.")
    machines = {
        (run.metrics.get("device"), run.metrics.get("threads"), run.metrics.get("torch")) for run in runs
    }
    told = [
        f"{device}, {threads} threads, torch {torch}" for device, threads, torch in sorted(machines, key=str)
    ]
    said.append(
        ("Measured on " if len(told) == 1 else "Speeds don't compare, measured on ") + "; ".join(told) + "."
    )
    beside = {name: value for run in runs for name, value in run.metrics.get("reference", {}).items()}
    if beside and not comparison.mixed:
        form = (lambda x: f"{x:.1%}") if comparison.unit == "accuracy" else (lambda x: f"{x:.3f}")
        told = [f"{name} {form(value)}" for name, value in beside.items()]
        said.append(f"Without learning: {', '.join(told)} {comparison.unit}.")
    if any("curve" in run.metrics for run in runs):
        every = sorted({run.config["val_every"] for run in runs})
        said.append(
            f"Steps to a loss are those of a validation, held every {' or '.join(map(str, every))} steps."
        )
    return said


# -- formats
def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, as text."""
    shown = columns(comparison)
    head = ["model", "seeds", *(column.title for column in shown)]
    return head, [
        [row.label, seeds(row), *(format_cell(column, row) for column in shown)] for row in comparison.rows
    ]


def title(comparison: Comparison) -> str:
    names = [
        sorted({str(row.runs[0].config[f"names.{kind}"]) for row in comparison.rows})
        for kind in ("task", "size")
    ]
    return f"{len(comparison.rows)} models on {', '.join(names[0])}, size {', '.join(names[1])}"


def sweep_commands(comparison: Comparison) -> list[str]:
    """How each row was trained."""
    return [words for row in comparison.rows if (words := sweep_command(row))]
