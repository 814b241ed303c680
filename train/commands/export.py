"""`zoo export run=<run_dir> to=<folder>`: a trained run as two files that need nothing of the zoo to be read.

    run=          a run's folder: its config.yaml and checkpoints
    checkpoint=   last (default) or best
    to=           a new folder, for
                    model.safetensors   the weights by name; of tied ones the first
                    config.json         model, task, vocabulary, step, metrics, commit, all other settings

`zoo import from=<folder> run_dir=<run_dir>` makes a run of it again.
"""

from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from zoo.errors import UserError, one_line
from zoo.train.commands.cli import stop, words_or_help
from zoo.train.runs.export import CONFIG, WEIGHTS, export

KEYS = ("run", "to", "checkpoint", "model._target_", "task._target_")


def main() -> None:
    """Exit code 0, or 2 for a slip of the user's."""
    found = words_or_help(__doc__)
    try:
        given = words(found, "export", KEYS, ("run", "to"))
        targets = tuple(f"{key}={value}" for key, value in given.items() if key.endswith("_target_"))
        if (checkpoint := given.get("checkpoint", "last")) not in ("last", "best"):
            raise UserError(f"export: checkpoint: expected last | best, found {checkpoint}")
        export(Path(given["run"]), Path(given["to"]), checkpoint, targets)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        stop(f"can't use {error.filename}: {error.strerror}", 2)
    print(f"{given['to']}: {WEIGHTS}, {CONFIG}")


def words(
    said: list[str],
    command: str,
    keys: tuple[str, ...],
    needed: tuple[str, ...],
    prefixes: tuple[str, ...] = (),
) -> dict[str, str]:
    """key=value words as they were said; UserError: one that is unknown, or none that is needed."""
    given = {}
    for word in said:
        key, equals, value = word.partition("=")
        if not equals or not (key in keys or key.startswith(prefixes)):
            raise UserError(
                f"{command}: unknown key {key!r}; expected one of {', '.join((*keys, *prefixes))}"
            )
        given[key] = value
    if lacking := [key for key in needed if not given.get(key)]:
        raise UserError(f"{command}: expected {', '.join(f'{key}=…' for key in lacking)}")
    return given
