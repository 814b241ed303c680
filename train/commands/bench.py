"""`zoo bench model=a,b size=micro [lengths=128,1024] [key=value …]`: speed and memory of models side by side.

    model=      one or several, with commas between
    experiment= instead of these, the models of a matrix of runs with their settings there, on the one task
                that task= names; model= picks some of them
    size=       nano, micro (default), tiny, small, base
    lengths=    tokens per row and training step, multiples of segment_len (default: the size's window)
    rounds=     how often each is measured (default 3)
    csv=        a file for every quantity's median and range; one that exists is replaced
    plot=       a .png or .svg file for costs against lengths, a line per model; likewise
    …           everything else goes to every model: data.batch_size=4 trainer.precision=bf16-mixed

Every measurement is a separate process; models and lengths take turns in each round, so that a slow moment
of the machine affects all of them, and the table has medians over the rounds:

    train       tokens per second of a whole training step: forward, backward, clipping, AdamW
    peak        memory of training beyond the libraries': of the GPU, or else of the process
    read        tokens per second without gradient, state carried
    write       tokens per second generated, all rows together, state carried
    state       bytes carried per row; in brackets, how many of them a segment writes anew
    MFLOP/tok   millions of floating-point operations of a training step per token: those of matrix products
                (attention as its two products, with the masked half) + elementwise ones and cumulative sums
    product rate    matrix products per second of training, as a share of what a product of two large square
                matrices reaches on this machine in the same precision

Tokens are random: nothing is learned, and no corpus is needed.

`zoo bench peers` measures our models beside published packages: see `zoo bench peers --help`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import UserError
from zoo.lazy import large_imports
from zoo.train.commands.bench_arguments import REFUSED, ROUNDS, WITHOUT_EFFECT, check_case, print_failures
from zoo.train.commands.cli import (
    command,
    distinct,
    integer,
    list_of,
    output_file,
    parse,
    refuse_without_effect,
)
from zoo.train.runs.override_key import key_of
from zoo.train.sweep.matrix import Matrix, matrix_of_args

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from zoo.train.evaluation.throughput import BenchCase

KEYS = {
    "model": distinct,
    "lengths": list_of(integer(least=1)),
    "rounds": integer(least=1),
    "csv": output_file(".csv"),
    "plot": output_file(".png", ".svg"),
}


@command
def main(args: list[str]) -> int:
    """Exit code 1 where a measurement failed."""
    if args[0] == "peers":
        from zoo.train.commands import bench_peers

        return bench_peers.run(args[1:])
    if args[0].startswith("--"):
        return work(args)
    cases, rounds, files = plan(args)
    with large_imports():
        from zoo.train.evaluation import throughput_report
        from zoo.train.evaluation.throughput import run_rounds
        from zoo.train.plotting.terminal import print_table, table_console

    results = run_rounds(cases, rounds)
    print_table(table_console(), throughput_report.table(results, rounds))
    if "csv" in files:
        throughput_report.write_csv(files["csv"], results, cases)
    if "plot" in files:
        throughput_report.write_figure(files["plot"], results)
    return print_failures(results)


def work(args: list[str]) -> int:
    """What a process does that makes one measurement."""
    with large_imports():
        from zoo.train.commands import bench_peers
        from zoo.train.evaluation.throughput import WORKER_FLAG, measure
        from zoo.train.runs.config import compose

    if args[0] != WORKER_FLAG:
        raise UserError(f"bench: expected key=value, found {args[0]}")
    if args[1].startswith(bench_peers.WORKER_KEY):
        bench_peers.measure_case(args[1:])
    else:
        print(json.dumps(measure(compose(args[1:]))))
    return 0


def plan(args: list[str]) -> "tuple[dict[BenchCase, list[str]], int, dict[str, Path]]":
    """The overrides of every measurement, each checked by building its model; how often to measure; and the
    files to write."""
    matrix = matrix_of_args(args)
    required = [] if matrix else ["model"]
    options, others = parse("bench", args, KEYS, required=required, pass_unknown=True, refused=REFUSED)
    refuse_without_effect("bench", others, WITHOUT_EFFECT, "what is measured")
    from zoo.train.runs.config import compose

    rows = [[f"model={model}", *others] for model in options.get("model", [])]
    if matrix:
        rows = matrix_rows(matrix, options.get("model", []), others)
    cases: dict[BenchCase, list[str]] = {}
    for row in rows:
        for length in options.get("lengths", [None]):
            measured = [*row, *([f"data.seq_len={length}"] if length else [])]
            cfg = compose(measured)
            check_case(cfg)
            name = cfg.names.model
            if sum(name == other[0].removeprefix("model=") for other in rows) > 1:
                name = label(cfg, row)
            cases[name, cfg.data.seq_len] = measured
    files: dict[str, Path] = {key: options[key] for key in ("csv", "plot") if key in options}
    return cases, options.get("rounds", ROUNDS), files


def matrix_rows(matrix: Matrix, models: list[str], others: list[str]) -> list[list[str]]:
    """The overrides of a matrix's models on the task that `others` names.  Raises UserError unless that is
    one of its columns, and for a key that the matrix sets itself."""
    tasks = [arg.removeprefix("task=") for arg in others if arg.startswith("task=")]
    if len(matrix.pick("task", matrix.tasks, tasks)) != 1:
        known, given = ", ".join(matrix.names("task", matrix.tasks)), ", ".join(tasks) or "none"
        raise UserError(f"task: experiment={matrix.name} has {known}, expected one, found {given}")
    further = [arg for arg in others if not arg.startswith(("task=", "experiment="))]
    return matrix.cells_with(further, models, tasks)


def label(cfg: "DictConfig", row: list[str]) -> str:
    """A row's model with its own settings, where a matrix has several rows of it."""
    from omegaconf import OmegaConf

    keys = [key_of(arg) for arg in row if key_of(arg).startswith("model.")]
    settings = (f"{key.removeprefix('model.')}={OmegaConf.select(cfg, key)}" for key in keys)
    return " ".join((cfg.names.model, *settings))
