"""What the memory is worth in samples: scores with it kept and reset, of all targets and beyond the reach."""

from typing import Any

from rich.table import Table

from zoo.train.evaluation.lengths import Shares, area, longest_length
from zoo.train.evaluation.results import IN_VIEW, EvalEntry, EvalResult, pool, share_names
from zoo.train.plotting.charts import format_number, format_share
from zoo.train.plotting.terminal import new_table


def memory_tables(entry: EvalEntry) -> list[Table]:
    """A row for every length, all depths together: of all targets, and of those beyond the reach where there
    are any.  None for results of earlier versions, without a reset."""
    results = [result for result in entry["results"] if "reset" in result]
    if not results:
        return []
    share, name = list(share_names(entry).items())[-1]  # per target, where a sample has several
    kept = by_length(results, share)
    views = by_length_in_view(results, share)
    tables = [_table(f"worth of the memory, {name}", results, share, views)]
    if beyond := by_length(results, "beyond"):
        reach = _reach(results)
        tables.append(_table(f"worth of the memory, {name} beyond {reach:,}", results, "beyond", {}))
    tables[-1].caption = "\n".join(captions(entry, beyond or kept, _reach(results)))
    return tables


def _table(title: str, results: list[EvalResult], share: str, views: dict[Any, float]) -> Table:
    """A share by length with the memory kept and reset, and what a reader of the segment has, where known."""
    kept = by_length(results, share)
    reset = by_length([result["reset"] | {"axes": result["axes"]} for result in results], share)
    table = new_table(
        "length", "kept", "95 % interval", "reset", "worth", *(["in view"] if views else []), title=title
    )
    for length, score in kept.items():
        worth = 100 * (score["share"] - reset[length]["share"])
        table.add_row(
            "" if length is None else f"{length:,}",
            f"{score['share']:.1%}",
            f"{score['low']:.1%} to {score['high']:.1%}",
            f"{reset[length]['share']:.1%}",
            f"{worth:+.1f}",
            *([format_share(views[length]) if length in views else ""] if views else []),
        )
    return table


def by_length(results: list[EvalResult], share: str) -> dict[Any, dict[str, Any]]:
    """A share at every length, pooled over all other axes; under None in results without a length."""
    parts: dict[Any, list[dict[str, Any]]] = {}
    for result in results:
        if share in result:
            parts.setdefault(result["axes"].get("length"), []).append(result[share])
    return {length: pool(shares) for length, shares in parts.items()}


def by_length_in_view(results: list[EvalResult], share: str) -> dict[Any, float]:
    """The score of a perfect reader of a target's segment at every length; of targets, or of samples."""
    sums: dict[Any, list[float]] = {}
    for result in results:
        key = "reference_exact" if share == "exact" and "reference_exact" in result else "reference"
        if IN_VIEW in result[key]:
            total = sums.setdefault(result["axes"].get("length"), [0.0, 0])
            total[0] += result[key][IN_VIEW] * result[share]["of"]
            total[1] += result[share]["of"]
    return {length: hits / trials for length, (hits, trials) in sums.items()}


def captions(entry: EvalEntry, shares: Shares, reach: int | None) -> list[str]:
    """How far the share holds, and what stands beside it."""
    lines = [
        "reset: the memory empty at every segment; worth: what keeping it adds, in points",
        "in view: a perfect reader of a target's segment",
    ]
    if reach is not None:
        lines.append(f"beyond {reach:,}: the nearest evidence lies {reach:,} positions back or more")
    trained_at = entry["settings"].get("length")
    if trained_at in shares and len(shares) > 1:
        longest = longest_length(shares, trained_at)
        holds = "nowhere" if longest is None else f"to {format_number(longest)}"
        lines.append(f"lower bound above half of the share at {format_number(trained_at)}: {holds}")
    if trained_at is not None and (under := area(shares, trained_at)):
        lines.append(f"area under the share against log2 of the length: {under[0]:.2f} of {under[1]:.2f}")
    return lines


def _reach(results: list[EvalResult]) -> int | None:
    reaches = [result["beyond"]["reach"] for result in results if "beyond" in result]
    return reaches[0] if reaches else None
