"""What runs in one table must have in common: task, data, budget and tokens."""

from collections.abc import Callable
from typing import Any

from zoo.errors import UserError
from zoo.train.comparison.groups import Run, full_settings
from zoo.train.runs import budget
from zoo.train.runs.folder import NOT_SET

TOKENS_TOLERANCE = (
    0.05  # tokens seen may differ by so much: how much of a window is padding hangs on seed and window
)


# -- what may not differ
def positions_read(run: Run) -> int:
    """Positions that training read."""
    config, product = run.config, 1
    for key in (
        "steps",
        "data.batch_size",
        "data.seq_len",
        "trainer.accumulate",
        "trainer.devices",
        "trainer.num_nodes",
    ):
        product *= int(config.get(key, 1))
    return product


def task_facts(run: Run) -> dict[str, Any]:
    named = {
        "task": run.config["names.task"],
        "task version": run.metrics.get("task_version", NOT_SET),
        "task code": run.metrics.get("task_code", ""),
    }
    without = ("task.root", "task.corpus")
    own = {
        key: value
        for key, value in full_settings(run).items()
        if key.startswith("task.") and key not in without
    }
    return named | own


def data_facts(run: Run) -> dict[str, Any]:
    return {
        "bytes held out": run.metrics.get("val_bytes", NOT_SET),
        "corpus": run.config.get("data.corpus", NOT_SET),
        "fingerprint": run.metrics.get("data_fingerprint", NOT_SET),
    }


KINDS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "task": task_facts,
    "data": data_facts,
    "budget": lambda run: {
        "size": run.config["names.size"],
        "budget": run.config.get("size.budget", NOT_SET),
    },
    "tokens": lambda run: {"positions read": positions_read(run)},
}


def check_comparable(runs: list[Run], allowed: list[str]) -> list[str]:
    """In what the runs differ of what was allowed, in words; UserError: of anything else."""
    said: dict[str, list[str]] = {}
    known = all("data_fingerprint" in run.metrics for run in runs)
    for kind, facts in KINDS.items():
        told = [facts(run) for run in runs]
        for key in dict.fromkeys(key for one in told for key in one):
            if key == "corpus" and known:  # older runs know their corpus by name alone
                continue
            groups: dict[str, list[str]] = {}
            for one, run in zip(told, runs, strict=True):
                value = one.get(key, NOT_SET)
                if key != "fingerprint" or value != NOT_SET:
                    groups.setdefault(format_value(value), []).append(run.name)
            if len(groups) > 1:
                parts = [f"{value} ({some(names)})" for value, names in groups.items()]
                said.setdefault(kind, []).append(f"{key}: {', '.join(parts)}")
                if key == "task":  # the rest follows
                    break
    budgeted = runs[0].config.get("size.budget") is not None
    if (
        "budget" not in said
        and budgeted
        and (apart := metric_range(runs, "parameters", budget.BUDGET_TOLERANCE))
    ):
        said["budget"] = [apart]
    if "tokens" not in said and (apart := metric_range(runs, "tokens_seen", TOKENS_TOLERANCE)):
        said["tokens"] = [apart]
    if refused := [kind for kind in said if kind not in allowed]:
        words = "; ".join(f"in {kind}: {'; '.join(said[kind])}" for kind in refused)
        mix = ",".join([*allowed, *refused])
        raise UserError(f"compare: the runs differ {words}. mix={mix} compares them all the same")
    return [line for lines in said.values() for line in lines]


def metric_range(runs: list[Run], key: str, near: float) -> str:
    """The least and the most of a metric, and whose they are; "" where they lie within a share `near`."""
    least, most = (end(runs, key=lambda run: run.metrics[key]) for end in (min, max))
    if most.metrics[key] <= (1 + near) * least.metrics[key]:
        return ""
    said = [f"{format_value(run.metrics[key])} ({run.name})" for run in (least, most)]
    return f"{key.replace('_', ' ')}: {', '.join(said)}"


def format_value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
