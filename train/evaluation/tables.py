"""Tables of an evaluation, for the terminal."""

from typing import Any

from rich.table import Table

from zoo.train.evaluation.results import (
    EvalEntry,
    EvalResult,
    axis_names,
    has_grid,
    losses,
    memory_gain,
    memory_mode,
    multiple_targets,
)
from zoo.train.plotting.charts import bucket, format_number


def tables(entry: EvalEntry) -> list[Table]:
    """All results of an entry."""
    if entry["unit"] == "bits per byte":
        return [_text_table(entry), _position_table(entry)]
    grid = [result for result in entry["results"] if has_grid(result)]
    return [_grid_table(entry, grid) if grid else _sample_table(entry)]


# -- samples


def _sample_table(entry: EvalEntry) -> Table:
    axes, results = axis_names(entry), entry["results"]
    per_target = multiple_targets(results)
    scores = list(dict.fromkeys(name for result in results for name in result.get("scores", {})))
    table = Table(
        *axes,
        "samples",
        *(["exact", "95 % interval", "per target"] if per_target else ["accuracy", "95 % interval"]),
        *scores,
        "tokens read/s",
        "peak memory",
        title=entry["title"],
        caption=_baselines(entry),
    )
    for result in results:
        table.add_row(
            *(format_value(result["axes"].get(axis)) for axis in axes),
            *_shares(result, per_target),
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
                table.add_row(*[""] * len(axes), *_shares(member, per_target), *empty, label)
    return table


def _shares(result: EvalResult, per_target: bool) -> list[str]:
    """Cells: samples, share of exact matches, its interval, and with `per_target` the share of targets."""
    exact = result["exact"]
    cells = [f"{exact['of']:,}", f"{exact['share']:.1%}", f"{exact['low']:.1%} to {exact['high']:.1%}"]
    return [*cells, f"{result['targets']['share']:.1%}"] if per_target else cells


def _baselines(entry: EvalEntry) -> str:
    """Scores of predictors that learn nothing: of targets, not of entire samples."""
    if not entry["results"] or not entry["results"][-1]["reference"]:
        return ""
    values = ", ".join(f"{name} {value:.1%}" for name, value in entry["results"][-1]["reference"].items())
    unit = " (per target)" if multiple_targets(entry["results"]) else ""
    return f"learning nothing{unit}: {values}"


def _grid_table(entry: EvalEntry, grid: list[EvalResult]) -> Table:
    """Depth down, length across: exact match and its interval in per cent."""
    lengths = sorted({result["axes"]["length"] for result in grid})
    table = Table(
        "depth",
        *(f"{format_number(length)} tokens" for length in lengths),
        title=f"{entry['title']}: exact match, 95 % interval",
        caption=_baselines(entry),
    )
    proportions = {(result["axes"]["length"], result["axes"]["depth"]): result["exact"] for result in grid}
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
    if baselines := ", ".join(f"{name} {value:.3f}" for name, value in results[-1]["reference"].items()):
        captions.append(f"baselines in bits per byte: {baselines}")
    if "word_unit" in results[-1]:
        captions.append(f"perplexity per {results[-1]['word_unit']}")
    head = ("read with", "bytes", "bits per byte", "word perplexity", "targets/s")
    table = Table(*head, title=entry["title"], caption="; ".join(captions))
    for result in results:
        table.add_row(
            memory_mode(result["axes"]),
            f"{result['bytes']:,}",
            f"{result['bits_per_byte']:.4f}",
            _perplexity(result["word_perplexity"]) if "word_perplexity" in result else "",
            f"{result['tokens_per_s']:,.0f}",
        )
    return table


def _perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def _position_table(entry: EvalEntry) -> Table:
    """Loss by bucket of positions, and the gain by memory: the loss that a reset adds."""
    results = entry["results"]
    table = Table("position", title="nats per token by position in the document")
    for result in results:
        table.add_column(memory_mode(result["axes"]))
    gains = memory_gain(results)
    if gains:
        table.add_column("gain by memory")
    columns = [losses(result) for result in results]
    for edge in sorted({edge for column in columns for edge in column}, key=lambda pair: pair[0]):
        cells = [f"{column[edge]:.4f}" if edge in column else "" for column in columns]
        if gains:
            cells.append(f"{gains[edge]:+.4f}" if edge in gains else "")
        table.add_row(bucket(*edge), *cells)
    return table
