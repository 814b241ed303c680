"""`zoo sweep model=a,b,c task=lm size=micro seeds=0:5 …`: a matrix of runs, one process each, resumable.

    model=, task=, size=   one or several, with commas between: every combination is a run
    seeds=      0:5 (five seeds, 0 to 4), or 0,3,7 (default 0)
    jobs=       runs at once (default: one per GPU, or one)
    runs=       where runs go: <task>/<model>/<size>-s<seed>, with a code for further settings (default runs)
    results=    folders whose finished runs count as done, commas between (default results/runs)
    keep=       a folder for copies of finished runs' configs, metrics and evaluations (default: none)
    …           everything else goes to every run: steps=2000 optim.lr=1e-3

A finished run isn't run again, a dead one is resumed from its last checkpoint, one that another sweep trains
is waited for.  A failed run is reported and the others continue; a run's output is in its output.log.
Ctrl-C lets every run write a checkpoint and ends.  Exit code 0: all done, 1: some failed, 2: a user
error.
"""

import itertools

from zoo.train.commands.cli import command, distinct, integer, parse, text
from zoo.train.sweep.plan import NAME_KEYS, SweepOptions, plan
from zoo.train.sweep.scheduler import Sweep


@command
def main(args: list[str]) -> int:
    options, matrix = parse_args(args)
    return Sweep(plan(matrix, options), options).run()


def seeds(value: str) -> list[int]:
    """0:5 is 0 1 2 3 4, as in Python."""
    first, colon, end = value.partition(":")
    numbers = [first or "0", end] if colon else value.strip("[]").split(",")
    integers = [int(part) for part in numbers if part.isdigit()]
    if colon and len(integers) == 2 and integers[0] < integers[1]:
        return list(range(*integers))
    if colon or len(integers) < len(numbers) or len(set(integers)) < len(integers):
        raise ValueError(f"expected 0:5 (0 to 4) or 0,3,7, each once, found {value!r}")
    return integers


def any_text(value: str) -> str:
    return value


KEYS = {
    "seeds": seeds,
    "jobs": integer(least=1),
    "runs": text,
    "results": any_text,
    "keep": any_text,
    **dict.fromkeys(NAME_KEYS, distinct),
}
REFUSED = {
    "seed": "use seeds=",
    "run_dir": "use runs=",
    "resume": "zoo sweep resumes unfinished runs",
}


def parse_args(args: list[str]) -> tuple[SweepOptions, list[list[str]]]:
    """The sweep's options, and the command line of every run without its folder, the seed last."""
    options, others = parse("sweep", args, KEYS, pass_unknown=True, refused=REFUSED)
    named = [[f"{key}={name}" for name in options.pop(key)] for key in [*options] if key in NAME_KEYS]
    combinations = itertools.product(*named, options.pop("seeds", [0]))
    matrix = [[*names, *others, f"seed={seed}"] for *names, seed in combinations]
    return SweepOptions(options.pop("jobs", None), **options), matrix
