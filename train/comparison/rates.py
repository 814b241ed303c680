"""Learning rates of a protocol's rows: what was tried, and whether the best lay at the edge of the grid."""

from collections.abc import Sequence

from zoo.train.comparison import solved
from zoo.train.comparison.groups import FinishedRun, RunGroup, differing_settings
from zoo.train.runs import protocol


def describe(group: RunGroup, rate_runs: Sequence[FinishedRun]) -> str:
    """The rate of a row, and whether it follows from an edge of the grid."""
    run = group.runs[0]
    return f"{run.config['optim.lr']:g}" + (", edge" if at_edge(run, rate_runs) else "")


def at_edge(run: FinishedRun, rate_runs: Sequence[FinishedRun]) -> bool:
    """True if the best of the rates that were tried for the run's model is the smallest or the largest of
    them, so that a better one may lie beyond."""
    grid = {
        float(peer.config["optim.lr"]): peer.metrics or None
        for peer in rate_runs
        if peer.protocol["purpose"] == protocol.SHORT_RATE and helped(peer, run)
    }
    return bool(grid) and protocol.is_edge(protocol.best_rate(grid), grid)


def helped(peer: FinishedRun, run: FinishedRun) -> bool:
    """True if a peer, a run with the selecting seed, is one of those that chose the run's rate."""
    if any(peer.config[f"names.{kind}"] != run.config[f"names.{kind}"] for kind in ("model", "size")):
        return False
    tasks = {run.config["names.task"]}
    if peer.protocol["purpose"] == protocol.SHORT_RATE and "val/bits_per_byte" not in run.metrics:
        tasks = {protocol.SHORT_TASK}  # all tasks of samples have it in common
    derived = ("model.vocab_size", f"model.{run.config.get('model.free')}")  # they follow from the task
    differing = [key for key in differing_settings(peer, run) if key.startswith("model.")]
    return peer.config["names.task"] in tasks and all(key in derived for key in differing)


HEAD = ["model", "task", "learning rate", "solved at step", "held-out loss", "the row's"]


def rows(group: RunGroup, rate_runs: Sequence[FinishedRun]) -> list[tuple[FinishedRun, list[str]]]:
    """The runs that chose a row's rate, each with its cells under HEAD."""
    run = group.runs[0]
    peers = sorted(
        (peer for peer in rate_runs if helped(peer, run)),
        key=lambda peer: (peer.protocol["purpose"] != protocol.SHORT_RATE, float(peer.config["optim.lr"])),
    )
    return [(peer, [group.label, *cells(peer, run)]) for peer in peers]


def cells(peer: FinishedRun, run: FinishedRun) -> list[str]:
    is_short = peer.protocol["purpose"] == protocol.SHORT_RATE
    return [
        f"{peer.config['names.task']}, {'short' if is_short else 'as in the table'}",
        f"{peer.config['optim.lr']:g}",
        describe_outcome(peer),
        f"{peer.metrics['val/loss']:.3f}" if peer.metrics else "",
        "x" if peer.config["optim.lr"] == run.config["optim.lr"] else "",
    ]


def describe_outcome(run: FinishedRun) -> str:
    """The step at which a run had solved its task, or how it ended instead."""
    if not run.metrics:
        return "diverged"
    if run.metrics.get("collapsed"):
        return "collapsed"
    step = run.metrics.get("solved_at")
    return f"> {solved.end(run):,}" if step is None else f"{step:,}"
