"""Groups of runs that compare among themselves, where all of them together don't."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UserError, counted, nearest
from zoo.train.comparison.comparable import positions_read, task_facts
from zoo.train.comparison.groups import FinishedRun
from zoo.train.runs.folder import NOT_SET

MOST_LINES, MOST_FACTS = 8, 3
LARGEST, NEWEST = "largest", "newest"


def partition(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Runs of one task, text, budget, number of tokens and protocol each; the largest group first, and of
    equal ones the newest."""
    groups: dict[Any, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(facts(run), []).append(run)
    return sorted(groups.values(), key=lambda group: (len(group), newest_date(group)), reverse=True)


def facts(run: FinishedRun) -> tuple[Any, ...]:
    task = sorted((key, str(value)) for key, value in task_facts(run).items())
    data = run.metrics.get("data_fingerprint", run.config.get("data.corpus"))
    settings = [run.config.get(key, NOT_SET) for key in ("names.task", "names.size", "size.budget")]
    protocol = run.protocol.get("protocol")
    return (*settings, *task, data, run.metrics.get("val_bytes"), positions_read(run), protocol)


def newest_date(runs: Sequence[FinishedRun]) -> str:
    return max(str(run.metrics.get("date", "")) for run in runs)


def select(runs: Sequence[FinishedRun], name: str) -> list[FinishedRun]:
    """The group `largest` or `newest`, or one by its number from 1.  Raises UserError for another name."""
    groups = partition(runs)
    if name == LARGEST:
        return groups[0]
    if name == NEWEST:
        return max(groups, key=newest_date)
    if name.isdecimal() and 1 <= int(name) <= len(groups):
        return groups[int(name) - 1]
    expected = f"{LARGEST}, {NEWEST} or a number from 1 to {len(groups)}"
    raise UserError(f"compare: group: expected {expected}, found {name}{nearest(name, (LARGEST, NEWEST))}")


def describe(groups: Sequence[Sequence[FinishedRun]], command: str) -> list[str]:
    """A line for each group with the command that compares it; of many groups the first ones."""
    lines = []
    distinctions = distinguishing([group[0] for group in groups])
    for number, (group, facts_of) in enumerate(zip(groups[:MOST_LINES], distinctions, strict=False), 1):
        config = group[0].config
        models = len({run.config["names.model"] for run in group})
        lines.append(
            f"{counted(len(group), 'run')} of {counted(models, 'model')}, {config['names.task']} at "
            f"{config['names.size']}, {positions_read(group[0]):,} tokens{facts_of}: {command} group={number}"
        )
    if len(groups) > MOST_LINES:
        lines.append(f"and {counted(len(groups) - MOST_LINES, 'more group')}, to group={len(groups)}")
    return lines


def distinguishing(runs: Sequence[FinishedRun]) -> list[str]:
    """For each run, one of every group, up to MOST_FACTS further facts in which they aren't all alike."""
    all_facts = [
        {"corpus": Path(str(run.config.get("data.corpus"))).name, "protocol": run.protocol.get("protocol")}
        | task_facts(run)
        for run in runs
    ]
    keys = [
        key
        for key in dict.fromkeys(key for facts in all_facts for key in facts)
        if len({str(facts.get(key)) for facts in all_facts if key in facts}) > 1 and key != "task._target_"
    ]
    return [
        "".join(
            f", {key} {facts[key]}"
            for key in [key for key in keys if facts.get(key) not in (None, "", NOT_SET)][:MOST_FACTS]
        )
        for facts in all_facts
    ]
