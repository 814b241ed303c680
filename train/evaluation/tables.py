"""Tables of an evaluation, for the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from zoo.train.evaluation.memory_table import memory_tables
from zoo.train.evaluation.results import (
    EvalEntry,
    EvalResult,
    axis_names,
    baselines,
    has_grid,
    losses,
    memory_mode,
    memory_worth,
    share_names,
)
from zoo.train.plotting.charts import bucket, format_number, format_share
from zoo.train.plotting.terminal import new_table, print_table
from zoo.train.tasks.score_name import short_name


def show(entry: EvalEntry, console: Console) -> None:
    """Prints all results of an entry."""
    console.print(entry["title"], style="bold", highlight=False)
    for table in tables(entry):
        print_table(console, table)


def tables(entry: EvalEntry) -> list[Table]:
    """All results of an entry: of a grid one table for each share, then of samples of any depth."""
    if entry["unit"] == "bits per byte":
        return [_text_table(entry), _position_table(entry)]
    result = []
    if grid := [cell for cell in entry["results"] if has_grid(cell)]:
        result += [_grid_table(entry, grid, share, name) for share, name in share_names(entry).items()]
        result += memory_tables(entry | {"results": grid})
    if other := [cell for cell in entry["results"] if not has_grid(cell)]:
        result.append(_sample_table(entry | {"results": other}))
        result += memory_tables(entry | {"results": other})
    return result


# -- samples


def _sample_table(entry: EvalEntry) -> Table:
    axes, results = axis_names(entry), entry["results"]
    names = share_names(entry)
    captions = [
        _baselines(entry, share, f", {name}" if len(names) > 1 else "") for share, name in names.items()
    ]
    scores = list(dict.fromkeys(name for result in results for name in result.get("scores", {})))
    table = new_table(
        *axes,
        "samples",
        names["exact"],
        "95 % interval",
        *([short_name(names["targets"])] if "targets" in names else []),
        *scores,
        "tokens read/s",
        "peak memory",
        caption="\n".join(filter(None, captions)),
    )
    for result in results:
        table.add_row(
            *(format_value(result["axes"].get(axis)) for axis in axes),
            *_shares(result, "targets" in names),
            *(f"{result['scores'][s]:.1%}" if s in result.get("scores", {}) else "" for s in scores),
            f"{result['tokens_per_s']:,.0f}",
            f"{result['peak_memory_bytes'] / 2**20:,.0f} MiB",
        )
    if len(results) == 1:
        for name, members in results[0]["groups"].items():
            table.add_section()
            for member in members:
                label = f"{name} {format_value(member['value'])}"
                empty = [""] * len(scores)
                table.add_row(*[""] * len(axes), *_shares(member, "targets" in names), *empty, label)
    return table


def _shares(result: EvalResult, per_target: bool) -> list[str]:
    """Cells: samples, share of exact matches, its interval, and with `per_target` the share of targets."""
    exact = result["exact"]
    cells = [f"{exact['of']:,}", f"{exact['share']:.1%}", f"{exact['low']:.1%} to {exact['high']:.1%}"]
    return [*cells, f"{result['targets']['share']:.1%}"] if per_target else cells


def _baselines(entry: EvalEntry, share: str, measure: str = "") -> str:
    """Scores of predictors that learn nothing under one of the shares; "" if the task has none."""
    references = baselines(entry, share)
    values = ", ".join(f"{name} {format_share(value)}" for name, value in references.items())
    return f"learning nothing{measure}: {values}" if values else ""


def _grid_table(entry: EvalEntry, grid: list[EvalResult], share: str, name: str) -> Table:
    """Depth down, length across: one of the shares and its interval in per cent."""
    lengths = sorted({result["axes"]["length"] for result in grid})
    table = new_table(
        "depth",
        *(f"{format_number(length)} tokens" for length in lengths),
        title=f"{name}, 95 % interval",
        caption=_baselines(entry, share),
    )
    proportions = {(result["axes"]["length"], result["axes"]["depth"]): result[share] for result in grid}
    for depth in sorted({depth for _, depth in proportions}):
        cells = [proportions.get((length, depth)) for length in lengths]
        table.add_row(f"{depth:g} %", *(_grid_cell(cell) if cell else "" for cell in cells))
    return table


def _grid_cell(share: dict[str, Any]) -> str:
    return f"{share['share']:.0%}\n{100 * share['low']:.0f}-{100 * share['high']:.0f}"


def format_value(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- text


def _text_table(entry: EvalEntry) -> Table:
    results = entry["results"]
    captions = []
    if values := ", ".join(f"{name} {value:.3f}" for name, value in results[-1]["reference"].items()):
        captions.append(f"baselines in bits per byte: {values}")
    if "word_unit" in results[-1]:
        captions.append(f"perplexity per {results[-1]['word_unit']}")
    head = ("read with", "bytes", "bits per byte", "± over documents", "word perplexity", "targets/s")
    table = new_table(*head, caption="; ".join(captions))
    for result in results:
        table.add_row(
            memory_mode(result["axes"]),
            f"{result['bytes']:,}",
            f"{result['bits_per_byte']:.4f}",
            f"{result['standard_errors']['bits_per_byte']:.4f}" if "standard_errors" in result else "",
            _perplexity(result["word_perplexity"]) if "word_perplexity" in result else "",
            f"{result['tokens_per_s']:,.0f}",
        )
    return table


def _perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def _position_table(entry: EvalEntry) -> Table:
    """Loss by bucket of positions, and the worth of the memory: the loss that a reset adds."""
    results = entry["results"]
    table = new_table("position", title="nats per token by position in the document")
    for result in results:
        table.add_column(memory_mode(result["axes"]), no_wrap=True)
    worth = memory_worth(results)
    if worth:
        table.add_column("worth of the memory", no_wrap=True)
    columns = [losses(result) for result in results]
    for edge in sorted({edge for column in columns for edge in column}, key=lambda pair: pair[0]):
        cells = [f"{column[edge]:.4f}" if edge in column else "" for column in columns]
        if worth:
            cells.append(f"{worth[edge]:+.4f}" if edge in worth else "")
        table.add_row(bucket(*edge), *cells)
    return table
