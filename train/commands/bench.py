"""`zoo bench model=a,b size=micro [lengths=128,1024] [key=value …]`: speed and memory of models side by side.

    model=      one or several, with commas between
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

if TYPE_CHECKING:
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
    options, others = parse("bench", args, KEYS, required=["model"], pass_unknown=True, refused=REFUSED)
    refuse_without_effect("bench", others, WITHOUT_EFFECT, "what is measured")
    from zoo.train.runs.config import compose

    cases: dict[BenchCase, list[str]] = {}
    for model in options["model"]:
        for length in options.get("lengths", [None]):
            measured = [f"model={model}", *others, *([f"data.seq_len={length}"] if length else [])]
            cfg = compose(measured)
            check_case(cfg)
            cases[model, cfg.data.seq_len] = measured
    files: dict[str, Path] = {key: options[key] for key in ("csv", "plot") if key in options}
    return cases, options.get("rounds", ROUNDS), files
