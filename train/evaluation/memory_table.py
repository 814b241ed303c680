"""What the memory is worth in samples: scores with it kept and reset, beyond the reach, by length."""

from typing import Any

from rich.table import Table

from zoo.train.evaluation.lengths import Shares, area, longest_length
from zoo.train.evaluation.results import IN_VIEW, EvalEntry, EvalResult, pool, share_names
from zoo.train.plotting.charts import format_number, format_share
from zoo.train.plotting.terminal import new_table


def memory_table(entry: EvalEntry) -> Table | None:
    """A row for every length, all depths together; None for results of earlier versions, without a reset."""
    results = [result for result in entry["results"] if "reset" in result]
    if not results:
        return None
    share, name = list(share_names(entry).items())[-1]  # per target, where a sample has several
    without_memory = [result["reset"] | {"axes": result["axes"]} for result in results]
    kept, reset = by_length(results, share), by_length(without_memory, share)
    beyond, beyond_reset = by_length(results, "beyond"), by_length(without_memory, "beyond")
    reach = _reach(results)
    views = by_length_in_view(results, share)
    columns = ["length", name, "reset", "worth", *(["in view"] if views else [])]
    if beyond:
        columns += [f"beyond {reach:,}", "interval", "reset", "worth"]
    caption = "\n".join(captions(entry, beyond or kept, reach))
    table = new_table(*columns, title="worth of the memory", caption=caption)
    for length in kept:
        cells = ["" if length is None else f"{length:,}", *_against(kept[length], reset[length])]
        if views:
            cells.append(format_share(views[length]) if length in views else "")
        if length in beyond:
            share_beyond, without = beyond[length], beyond_reset[length]
            score, reset_score, worth = _against(share_beyond, without)
            cells += [score, f"{share_beyond['low']:.1%} to {share_beyond['high']:.1%}", reset_score, worth]
        table.add_row(*cells)
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


def _against(kept: dict[str, Any], reset: dict[str, Any]) -> tuple[str, str, str]:
    worth = 100 * (kept["share"] - reset["share"])
    return f"{kept['share']:.1%}", f"{reset['share']:.1%}", f"{worth:+.1f}"


def _reach(results: list[EvalResult]) -> int | None:
    reaches = [result["beyond"]["reach"] for result in results if "beyond" in result]
    return reaches[0] if reaches else None
