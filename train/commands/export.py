"""`zoo export run=<run_dir> to=<folder>`: a trained run as files that need nothing of the zoo to be read.

    run=          a run's folder: its config.yaml and checkpoints
    checkpoint=   last (default) or best
    to=           a new folder, for
                    model.safetensors   the weights by name; of tied ones the first
                    config.json         model, task, vocabulary, step, metrics, commit, all other settings
                    tokenizer.json      of a run on texts in its tokens

`zoo import from=<folder> run_dir=<run_dir>` makes a run of it again.
"""

from pathlib import Path

from zoo.lazy import large_imports
from zoo.train.commands.cli import command, one_of, parse, require_run, text

KEYS = {"run": text, "to": text, "checkpoint": one_of("last", "best")}
TARGETS = ("model._target_", "task._target_")


@command
def main(args: list[str]) -> None:
    options, targets = parse("export", args, KEYS, required=("run", "to"), passed_on=TARGETS)
    run_dir = Path(options["run"])
    require_run(run_dir)
    with large_imports():
        from zoo.train.runs.export import export
    folder = Path(options["to"])
    export(run_dir, folder, options.get("checkpoint", "last"), tuple(targets))
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
