"""What a comparison needs to know of a task: the group `compare` of the task's yaml file."""

import functools

from omegaconf import OmegaConf

from zoo.train.comparison.groups import FinishedRun
from zoo.train.runs.config import compose
from zoo.train.runs.protocol import Compare


def of_task(run: FinishedRun) -> Compare:
    """Today's rules of the run's task, the same for runs of any age; none where its yaml isn't installed."""
    return named(str(run.config["names.task"]), str(run.config["names.size"]))


@functools.cache
def named(task: str, size: str) -> Compare:
    try:
        rules = OmegaConf.to_object(compose([f"task={task}", f"size={size}", "run_dir=."]).compare)
    except Exception:  # a plug-in that isn't installed may raise anything
        return Compare()
    assert isinstance(rules, Compare)
    return rules


def target_loss(runs: list[FinishedRun]) -> float | None:
    """The loss fixed for the task at the runs' size; None where they have several tasks or sizes."""
    kinds = {(run.config["names.task"], str(run.config["names.size"])) for run in runs}
    if len(kinds) > 1:
        return None
    return of_task(runs[0]).target_loss.get(kinds.pop()[1])
