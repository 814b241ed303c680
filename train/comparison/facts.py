"""What a comparison's runs were trained on, in a line: text, steps, settings of the task."""

from collections.abc import Iterable
from typing import Any

from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.groups import FinishedRun
from zoo.train.comparison.page_figure import capitalised

UNSAID = ("_target_", "root", "corpus", "field", "vocab_size", "seed")
"""Keys of a task that don't say what is asked."""


def facts(comparison: Comparison) -> str:
    """Values in which the runs differ are joined by "or"."""
    runs = comparison.runs
    texts = alternatives(text for run in runs if (text := text_read(run)))
    parts = [f"text {texts}"] if texts else []
    steps = alternatives(format(run.config["steps"], ",") for run in runs)
    parts.append(f"{steps} steps")
    if sizes := [size for run in runs if (size := batch(run))]:
        parts.append(f"{alternatives(sizes)} tokens each")
    parts.append(f"learning rate {alternatives(run.config['optim.lr'] for run in runs)}")
    keys = dict.fromkeys(key for run in runs for key in run.config if key.startswith("task."))
    settings = [key for key in keys if key.split(".")[1] not in UNSAID]
    described = [f"{key}={alternatives(v)}" for key in settings if (v := values(runs, key))]
    return capitalised(", ".join([*parts, *described]))


def text_read(run: FinishedRun) -> str:
    """The text that the task is made of, "" where it is made of none."""
    text = run.config.get("task.corpus")  # passkey's is read for filler=books alone, which is a setting
    return str(text) if text is not None and text == run.config.get("data.corpus") else ""


def batch(run: FinishedRun) -> str:
    """Rows by tokens of a step, "" where the config has none."""
    rows, tokens = run.config.get("data.batch_size"), run.config.get("data.seq_len")
    return "" if rows is None or tokens is None else f"{rows:,} x {tokens:,}"


def values(runs: Iterable[FinishedRun], key: str) -> list[Any]:
    return [value for run in runs if (value := run.config.get(key)) is not None]


def alternatives(choices: Iterable[Any]) -> str:
    return " or ".join(dict.fromkeys(map(str, choices)))
