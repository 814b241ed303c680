"""The command that trains a group of runs again."""

import shlex

from omegaconf import OmegaConf

from zoo import plugins
from zoo.train.comparison.groups import Run, RunGroup, to_yaml
from zoo.train.runs import budget
from zoo.train.runs.config import compose
from zoo.train.runs.folder import NEUTRAL_SETTINGS, NOT_SET, differences, flatten
from zoo.train.runs.stored import load_stored


def sweep_command(row: RunGroup) -> str:
    """What trains a row's runs today; "" where its configs aren't installed."""
    config = row.runs[0].config
    words = [f"{group}={config[f'names.{group}']}" for group in ("model", "task", "size")]
    words.append(f"steps={config['steps']}")
    try:
        usual = flatten(OmegaConf.to_container(compose([*words, "run_dir=."]), resolve=True))
        found = differences(config, usual, (*NEUTRAL_SETTINGS, "seed", "run_dir", "resume", "task.corpus"))
        if is_solved(row.runs[0]):
            found.pop(f"model.{config['model.free']}", None)
    except Exception:  # a plug-in that isn't there may raise anything
        return ""
    words += [f"{key}={to_yaml(value)}" for key, (value, _) in found.items() if value != NOT_SET]
    return shlex.join(
        ["zoo", "sweep", *words, f"seeds={','.join(str(run.config['seed']) for run in row.runs)}"]
    )


def is_solved(run: Run) -> bool:
    """Whether the budget gives a run its free width, and nobody's hand did."""
    free, target = run.config.get("model.free"), run.config["model._target_"]
    if free is None or run.config.get("size.budget") is None or not plugins.trusted(target):
        return False
    stored = load_stored(run.folder / "config.yaml")
    stored.model[free] = None
    return bool(budget.solve_width(stored)[free] == run.config[f"model.{free}"])
