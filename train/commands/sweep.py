"""`zoo sweep model=a,b,c task=lm size=micro seeds=0:5 …`: a matrix of runs, one process each, resumable.

    model=, task=, size=   one or several, with commas between: every combination is a run
    model.position=, model.position.KEY=   one or several likewise: position methods (docs/positions.md)
    seeds=      0:5 (five seeds, 0 to 4), or 0,3,7 (default 0)
    jobs=       runs at once (default: one per GPU, or one)
    runs=       where runs go: <task>/<model>/<size>-s<seed>, with a code for further settings (default runs)
    results=    folders whose finished runs count as done, commas between (default results/runs)
    keep=       a folder for copies of finished runs' configs, metrics and evaluations (default: none)
    protocol=1  learning rates are chosen for each model and task, seeds are 0, 1, 2 (3, 4 where these
                disagree on whether the task is solved), and runs are evaluated on the test split
    beyond=     with protocol=1: targets count as beyond attention whose evidence lies so far back (default:
                the largest reach of the models whose attention ends)
    experiment= of a matrix in a yaml file (experiment=matrix): all its runs, or those of model= and task=
    …           everything else goes to every run: steps=2000 optim.lr=1e-3

A finished run isn't run again, a dead one is resumed from its last checkpoint, one that another sweep trains
is waited for.  A failed run is reported and the others continue; a run's output is in its output.log.
Ctrl-C lets every run write a checkpoint and ends.  Exit code 0: all done, 1: some failed, 2: a user
error.
"""

import itertools
from typing import Any

from zoo.errors import UserError
from zoo.lazy import large_imports
from zoo.plugins import choices
from zoo.train.commands.cli import command, distinct, integer, parse, text
from zoo.train.runs.override_key import key_of
from zoo.train.sweep.matrix import Matrix, matrix_of_args
from zoo.train.sweep.options import NAME_KEYS, SweepOptions


@command
def main(args: list[str]) -> int:
    options, matrix = parse_args(args)
    refuse_unknown_choices(matrix)
    with large_imports():
        from zoo.train.sweep.plan import plan
        from zoo.train.sweep.protocol import Protocol
        from zoo.train.sweep.scheduler import Sweep
    if options.protocol is not None:
        by_protocol = Protocol(matrix, options)
        return Sweep(by_protocol.jobs(), options, by_protocol.jobs).run()
    return Sweep(plan(matrix, options), options).run()


def refuse_unknown_choices(matrix: list[list[str]]) -> None:
    """Raises UserError, before any large import, for a model, task or size that no yaml file has."""
    for group in NAME_KEYS:
        overrides = dict.fromkeys(arg for cell in matrix for arg in cell if key_of(arg) == group)
        search = [arg for arg in matrix[0] if key_of(arg) == "hydra.searchpath"]
        known = {choice.name for choice in choices(group, "".join(search).partition("=")[2])}
        for override in overrides:
            if override.partition("=")[2] not in known:
                from zoo.train.runs.config import compose

                compose([override, *search])


def seeds(value: str) -> list[int]:
    """0:5 is 0 1 2 3 4, as in Python."""
    first, colon, end = value.partition(":")
    numbers = [first or "0", end] if colon else value.strip("[]").split(",")
    integers = [int(part) for part in numbers if part.isdecimal()]
    if colon and len(integers) == 2 and integers[0] < integers[1]:
        return list(range(*integers))
    if colon or len(integers) < len(numbers) or len(set(integers)) < len(integers):
        raise ValueError(f"expected 0:5 (0 to 4) or 0,3,7, each once, found {value!r}")
    return integers


def any_text(value: str) -> str:
    return value


def is_position(arg: str) -> bool:
    """True for a setting of the group model.position."""
    key = arg.lstrip("+").partition("=")[0]
    return key == "model.position" or key.startswith("model.position.")


def position_values(arg: str) -> list[str]:
    """One override for each value of a setting of model.position; a list or a mapping in brackets is one."""
    key, _, value = arg.partition("=")
    if value.startswith(("[", "{", "'", '"')):
        return [arg]
    try:
        return [f"{key}={name}" for name in distinct(value)]
    except ValueError as error:
        raise UserError(f"sweep: {key}: {error}") from error


KEYS = {
    "seeds": seeds,
    "jobs": integer(least=1),
    "runs": text,
    "results": any_text,
    "keep": any_text,
    "protocol": integer(least=1, most=1),
    "beyond": integer(least=1),
    **dict.fromkeys(NAME_KEYS, distinct),
}
REFUSED = {
    "seed": "use seeds=",
    "run_dir": "use runs=",
    "resume": "zoo sweep resumes unfinished runs",
}


def parse_args(args: list[str]) -> tuple[SweepOptions, list[list[str]]]:
    """The sweep's options, and the command line of every run without its folder, the seed last; under a
    protocol of every model and task, without seed."""
    matrix = matrix_of_args(args)
    arguments = [*matrix.options.split(), *args] if matrix else args
    options, others = parse("sweep", arguments, KEYS, pass_unknown=True, refused=REFUSED)
    if "beyond" in options and "protocol" not in options:
        raise UserError("sweep: beyond has no effect without protocol=1")
    if fixed := [arg for arg in others if arg.lstrip("+~").startswith("compare")]:
        raise UserError(
            f"sweep: {fixed[0].partition('=')[0]} can't be set here; the task's yaml file fixes it"
        )
    seeds = options.pop("seeds", None)
    if matrix:
        cells = matrix_cells(matrix, options, others)
    else:
        named = [[f"{key}={name}" for name in options.pop(key)] for key in [*options] if key in NAME_KEYS]
        named += [position_values(arg) for arg in others if is_position(arg)]
        others = [arg for arg in others if not is_position(arg)]
        cells = [[*names, *others] for names in itertools.product(*named)]
    sweep_options = SweepOptions(options.pop("jobs", None), seeds=tuple(seeds or ()), **options)
    if sweep_options.protocol is not None:
        return sweep_options, cells
    return sweep_options, [[*cell, f"seed={seed}"] for cell in cells for seed in seeds or [0]]


def matrix_cells(matrix: Matrix, options: dict[str, Any], others: list[str]) -> list[list[str]]:
    """The overrides of every run of a matrix without its seed; takes those of `options` that pick rows and
    columns, and sizes."""
    models, tasks, sizes = (options.pop(key, ()) for key in NAME_KEYS)
    further = [arg for arg in others if not arg.startswith("experiment=")]
    by_size = [[f"size={size}", *further] for size in sizes] or [further]
    return [cell for words in by_size for cell in matrix.cells_with(words, models, tasks)]
