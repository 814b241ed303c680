"""`zoo import from=<folder or file> run_dir=<run_dir> [key=value …]`: weights from elsewhere as a run's
folder, which evaluate and generate take like any other.

    from=         a folder that `zoo export` made; or a published checkpoint: a folder with its weights and
                  its config.json, or the file of its weights
    run_dir=      a new folder, for the run
    format=       whose names and config it has: rmt, armt, transformer_xl, mamba, mamba2, jamba, …  (what
                  `zoo export` wrote says so itself)
    config=       another place of config.json
    config.KEY=   a field of it: config.segment_len=512 config.num_mem_tokens=16
    task= size=   of a published checkpoint: the task whose symbols it speaks, such as lm if it was trained on
                  bytes; without one its tokens are numbers.  data.KEY=, task.KEY=: settings of that task

Weights are read from .safetensors, .bin, .pt, .pth or .ckpt, in one file or several with an index; no file's
code is run.
"""

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from zoo.errors import UserError, one_line
from zoo.train.commands.cli import stop, words_or_help
from zoo.train.commands.export import words
from zoo.train.runs.import_weights import PREFIXES, bring

KEYS = ("from", "run_dir", "format", "config", "task", "size", "model._target_", "task._target_")


def main() -> None:
    """Exit code 0, or 2 for a slip of the user's."""
    found = words_or_help(__doc__)
    try:
        run_dir = bring(words(found, "import", KEYS, ("from", "run_dir"), PREFIXES))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        stop(f"can't use {error.filename}: {error.strerror}", 2)
    print(f"{run_dir}: zoo evaluate run={run_dir}   zoo generate run={run_dir} prompt=…")
