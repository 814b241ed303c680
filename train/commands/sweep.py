"""`zoo sweep model=a,b,c task=lm size=micro seeds=0:5 …`: a matrix of runs, one process each, resumable.

    model=, task=, size=   one or several, with commas between: every combination is a run
    seeds=      0:5 (five seeds, 0 to 4), or 0,3,7 (default 0)
    jobs=       runs at once (default: one per GPU, or one)
    runs=       where runs go: <task>/<model>/<size>-s<seed>, with a code for further settings (default runs)
    results=    folders whose finished runs count as done, commas between (default results/runs)
    keep=       a folder that gets each finished run's config.yaml and metrics.json (default: none)
    …           everything else goes to every run: steps=2000 optim.lr=1e-3

A finished run isn't run again, a dead one is resumed from its last checkpoint, one that another sweep trains
is waited for.  A failed run is reported and the others go on; what a run printed is in its output.log.
Ctrl-C lets every run write a checkpoint and ends.  Exit code 0: all done, 1: some failed, 2: a slip of the
user's.
"""

import sys

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from zoo.errors import UserError, one_line
from zoo.train.commands.cli import stop, words_or_help
from zoo.train.sweep.plan import arguments, plan
from zoo.train.sweep.scheduler import Sweep


def main() -> None:
    words = words_or_help(__doc__)
    try:
        own, matrix = arguments(words)
        jobs = plan(matrix, own)
        sweep = Sweep(jobs, own)
        code = sweep.run()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        stop(f"can't use {error.filename}: {error.strerror}", 2)
    sys.exit(code)
