"""`zoo import from=<folder or file> run_dir=<run_dir> [key=value …]`: weights from elsewhere as a run's
folder, which evaluate and generate take like any other.

    from=         a folder that `zoo export` made; or a published checkpoint: a folder with its weights and
                  its config.json, or the file of its weights
    run_dir=      a new folder, for the run
    format=       whose names and config it has: transformer, sliding_window, mamba, jamba, …; by default
                  what config.json says, by its model_type
    config=       another place of config.json
    config.KEY=   a field of it: config.segment_len=512 config.num_mem_tokens=16
    tokenizer=    another place of tokenizer.json than beside the weights; none: leave it out.  With it
                  evaluate and generate read and write text; without, the model's tokens are numbers
    task= size=   of a published checkpoint: the task whose symbols it speaks, such as lm if it was trained on
                  bytes.  data.KEY=, task.KEY=: settings of that task
    symbols=      padded: the model's first symbols are the task's, and further ones only fill up its tables

Weights are read from .safetensors, .bin, .pt, .pth or .ckpt, in one file or several with an index; no file's
code is run.
"""

from pathlib import Path

from zoo.lazy import large_imports
from zoo.train.commands.cli import command, one_of, parse, text
from zoo.train.runs.import_options import PADDED, PREFIXES, require_source
from zoo.train.runs.override_key import expand_home

KEYS = {
    **dict.fromkeys(("from", "run_dir", "format", "config", "tokenizer", "task", "size"), text),
    "symbols": one_of(PADDED),
}
TARGETS = ("model._target_", "task._target_")


@command
def main(args: list[str]) -> None:
    options, rest = parse("import", args, KEYS, required=("from", "run_dir"), passed_on=(*PREFIXES, *TARGETS))
    further = [arg.partition("=") for arg in rest]
    require_source(Path(options["from"]))
    with large_imports():
        from zoo.train.runs.import_weights import import_run
    run_dir, summary = import_run(options | {key: expand_home(value) for key, _, value in further})
    print(summary)
    print(f"{run_dir}: zoo evaluate run={run_dir}   zoo generate run={run_dir} prompt=…")
