"""`zoo inspect run=<run_dir> [prompt=… or sample=…]`: what a trained run's memory does with one text.

    run=          a run's folder: its config.yaml and checkpoints
    checkpoint=   last (default) or best
    prompt=       a text to read, of bytes or, where the run reads others, of token ids; - reads standard
                  input.  The question is its last segment
    prompt_file=  the same from a file
    sample=       instead of a prompt: a sample of the run's task (default 0), whose targets are the question
    split=        test (default), val or train
    task=         another task than the run's; task.KEY=… changes one of its settings, data.corpus=… its
                  text, model.KEY=… a setting of the model

A line for each segment of the text:

    loss, reset   nats per target with the memory of all that stands before the segment, and with an empty one
    retention     the part of what was remembered before the segment that is left after it; not of banks
    contribution  nats per target of the question that would be lost if the segment weren't read
    state         the root mean square of the state after it

Models that store tokens (memorizing, focused, unlimiformer, landmark) list those that the question reads
most, with their share of the attention of all heads of a layer.  Figures go to inspection/ in the run's
folder, and to TensorBoard as images.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import UserError
from zoo.lazy import large_imports
from zoo.train.commands.cli import command, integer, one_of, parse, require_run, text
from zoo.train.commands.evaluate import PASSED_ON, split
from zoo.train.commands.generate import VERBATIM, prompt

if TYPE_CHECKING:
    from zoo.train.evaluation.inspection import InspectOptions

KEYS = {
    "run": Path,
    "checkpoint": one_of("last", "best"),
    "prompt": prompt,
    "prompt_file": lambda value: Path(value).read_bytes(),
    "sample": integer(least=0),
    "split": split,
    "task": text,
}


@command
def main(args: list[str]) -> None:
    options = parse_args(args)
    with large_imports():
        from zoo.train.evaluation.inspection import inspect_run
        from zoo.train.evaluation.inspection_figures import save_figures
        from zoo.train.evaluation.inspection_report import show
        from zoo.train.plotting.terminal import table_console
    inspection = inspect_run(options)
    show(inspection, table_console())
    print(f"figures: {save_figures(inspection, options.run)}")


def parse_args(args: list[str]) -> "InspectOptions":
    options, overrides = parse(
        "inspect", args, KEYS, required=["run"], passed_on=PASSED_ON, verbatim=VERBATIM
    )
    if "prompt" in options and "prompt_file" in options:
        raise UserError("inspect: expected prompt= or prompt_file=, found both")
    if "prompt_file" in options:
        options["prompt"] = options.pop("prompt_file")
    without_effect = {"sample", "split", "task"} & options.keys()
    others = [arg for arg in overrides if arg.startswith(("task.", "data.")) and "._target_=" not in arg]
    if "prompt" in options and (without_effect or others):
        key = min(without_effect, default="") or others[0].partition("=")[0]
        raise UserError(f"inspect: {key} has no effect beside a prompt")
    require_run(options["run"])
    with large_imports():
        from zoo.train.evaluation.inspection import InspectOptions
    return InspectOptions(overrides=tuple(overrides), **options)
