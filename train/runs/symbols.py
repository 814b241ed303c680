"""The symbols of a run's model and of a task: scores mean something only where they are the same.

A model that was trained here has the symbols of its task.  A published one may have any others: its 1,000
pieces of words are not 257 bytes, although every byte is the number of one of them.
"""

from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.runs.stored import IMPORTED_CLASS
from zoo.train.tasks.base import Task
from zoo.train.tasks.lm import VOCAB_SIZE


def check_run_symbols(cfg: DictConfig, model: SequenceModule, command: str) -> None:
    """Raises UserError for an imported model that has other symbols than the task of its run."""
    expected = int(cfg.task.vocab_size)
    if cfg.model["_target_"] == IMPORTED_CLASS and model.vocab_size != expected:
        again = "" if command == "import" else "import it again with "
        raise UserError(
            f"{command}: expected a model of the {expected:,} symbols of task {cfg.names.task}, found one of "
            f"{model.vocab_size:,}; {again}symbols=padded if those from {expected} on only fill up its tables"
        )


def check_task_symbols(cfg: DictConfig, model: SequenceModule, task: Task) -> None:
    """Raises UserError for a task whose symbols are not those of the run's model.

    Bytes need a model of bytes.  The symbols of the other tasks stand for nothing, so that any model with as
    many can read them.
    """
    if task.vocab_size > model.vocab_size:
        raise UserError(
            f"expected a task of at most the {model.vocab_size} symbols of the run's model, "
            f"found {task.name} with {task.vocab_size}"
        )
    run_symbols = int(cfg.task.vocab_size)
    if task.vocab_size == VOCAB_SIZE != run_symbols:
        raise UserError(
            f"evaluate: expected a run on bytes for task {task.name}, found one on {run_symbols:,} other "
            "symbols; a published model of bytes is imported with task=lm, and symbols=padded if its tables "
            "have more rows"
        )


def surplus_symbols(model: SequenceModule, task: Task) -> str:
    """A note on scores over more symbols than the task has, "" where there are no more."""
    if model.vocab_size == task.vocab_size:
        return ""
    symbols = f"all {model.vocab_size:,} symbols of the model"
    return f"scores are over {symbols}; task {task.name} has {task.vocab_size:,}"
