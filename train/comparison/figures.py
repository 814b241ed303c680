"""Figures of a comparison: of training, of the runs' scores, and of their evaluations."""

from functools import partial

from zoo.train.comparison.comparison import Comparison
from zoo.train.comparison.evaluation_figures import evaluation_figures
from zoo.train.comparison.groups import RunGroup
from zoo.train.comparison.method_figures import method_figures
from zoo.train.comparison.page_figure import PageFigure, capitalised, single_panel
from zoo.train.comparison.statistics import censored_median
from zoo.train.evaluation.intervals import estimate
from zoo.train.plotting import charts, curves, render
from zoo.train.plotting.charts import Buckets
from zoo.train.plotting.dots import Dots, dots


def page_figures(comparison: Comparison) -> list[PageFigure]:
    """All figures for which there are numbers."""
    groups = comparison.groups
    colours = {group.label: index for index, group in enumerate(groups)}
    # of a protocol the other scores are in the table and in the figures by length
    tags = list(comparison.score_names) if comparison.protocol is None else [comparison.score]
    figures = [
        *(seeds_figure(comparison, tag, colours) for tag in tags),
        loss_figure(groups),
        *(state_figure(comparison, tag, colours) for tag in tags),
        position_figure(groups),
    ]
    figures += [*evaluation_figures(comparison, colours), *method_figures(groups)]
    return [figure for figure in figures if figure is not None]


def seeds_figure(comparison: Comparison, tag: str, colours: dict[str, int]) -> PageFigure | None:
    """Every run a dot; nothing where no row has two."""
    rows = {}
    for group in comparison.groups:
        values = list(group.by_seed(lambda run: run.metrics.get(tag)).values())
        if values:
            rows[group.label] = row_of_dots(values, comparison.is_solved_or_not)
    if all(len(row.values) < 2 for row in rows.values()):
        return None
    name = comparison.score_names[tag]
    middle = (
        "the bar is the median"
        if comparison.is_solved_or_not
        else ("the bar is the mean, the line Student's 95 % interval")
    )
    is_share = comparison.is_share and not tag.endswith("gain")
    draw = partial(dots, rows, f"{comparison.split_name} {name}", comparison.references(tag), is_share)
    return single_panel(
        "seeds" if tag == comparison.score else "seeds-per-target",
        f"{capitalised(name)} of every seed",
        f"A dot per run; {middle}.",
        render.with_styles(draw, [render.line_style(colours[label]) for label in rows]),
        None,
    )


def row_of_dots(values: list[float], median: bool) -> Dots:
    if median:
        middle = censored_median(values)
        assert middle is not None
        return Dots(values, middle, middle, middle)
    mean = estimate(values)
    assert mean is not None
    half_width = mean.half_width or 0.0
    return Dots(values, mean.mean, mean.mean - half_width, mean.mean + half_width)


# -- of training


def loss_figure(groups: list[RunGroup]) -> PageFigure:
    return single_panel(
        "loss-by-tokens",
        "Held-out loss against targets seen",
        "A point per validation; the band is the 95 % interval over seeds.",
        lambda: curves.curves(
            {group.label: loss_curve(group) for group in groups},
            "targets seen",
            "held-out loss (nats per target)",
        ),
    )


def loss_curve(group: RunGroup) -> curves.Line:
    """Held-out loss by validation, mean over the runs with a validation at that step."""
    by_step: dict[int, list[tuple[float, float]]] = {}
    for run in group.runs:
        final = [{"step": run.config["steps"], **run.metrics}]
        for point in run.metrics.get("curve") or final:  # older runs have no curve
            tokens, loss = float(point["tokens_seen"]), float(point["val/loss"])
            by_step.setdefault(int(point["step"]), []).append((tokens, loss))
    x, y, low, high = [], [], [], []
    for _, points in sorted(by_step.items()):
        mean = estimate([loss for _, loss in points])
        assert mean is not None
        x.append(sum(tokens for tokens, _ in points) / len(points))
        y.append(mean.mean)
        low.append(mean.mean - (mean.half_width or 0))
        high.append(mean.mean + (mean.half_width or 0))
    return curves.Line(x, y, low, high)


def state_figure(comparison: Comparison, tag: str, colours: dict[str, int]) -> PageFigure | None:
    """One of the scores against state bytes, with what is reached without learning."""
    spots = state_scores(comparison, tag)
    if not spots:
        return None
    series = series_by_setting(spots)
    name, caption = comparison.score_names[tag], "Lower is better; left is smaller."
    if comparison.is_share:
        caption = "Higher is better; left is smaller."
    if any(spot.values for spot in spots.values()):
        caption += " A dot per seed."
    styles = [render.line_style(colours[labels[0]]) for labels in series.values()]
    if len(series) < len(spots):
        caption += " A line, in a colour of its own, joins one model's rows that differ in one number."
        styles = [render.line_style(index) for index in range(len(series))]
    points = {title: [spots[label] for label in labels] for title, labels in series.items()}
    axes_names, baselines = (
        ("state bytes per row", f"{comparison.split_name} {name}"),
        comparison.references(tag),
    )
    draw = partial(curves.scatter, points, *axes_names, baselines, comparison.is_share)
    return single_panel(
        "score-by-state" if tag == comparison.score else "score-by-state-per-target",
        f"{capitalised(name)} against state bytes",
        caption,
        render.with_styles(draw, styles),
    )


def state_scores(comparison: Comparison, score: str) -> dict[str, curves.Spot]:
    spots = {}
    for group in comparison.groups:
        size = group.estimate(lambda run: run.metrics.get("state_bytes"))
        values = list(group.by_seed(lambda run: run.metrics.get(score)).values())
        if size and values:
            row = row_of_dots(values, comparison.is_solved_or_not)
            several = values if len(values) > 1 else ()
            spots[group.label] = curves.Spot(size.mean, row.middle, row.high - row.middle, several)
    return spots


def series_by_setting(spots: dict[str, curves.Spot]) -> dict[str, list[str]]:
    """Labels of rows by the title of their series: rows of a model that differ in one number, by which their
    state grows, are one, "gla, head_dim 4 to 16"; any other row is its own."""
    families: dict[tuple[str, ...], list[str]] = {}
    for label in spots:
        words = tuple(word for word in label.split() if numeric_setting(word) is None)
        families.setdefault(words, []).append(label)
    series = {}
    for words, labels in families.items():
        numbers = [dict(filter(None, map(numeric_setting, label.split()))) for label in labels]
        varied = {key for row in numbers for key in row if len({other.get(key) for other in numbers}) > 1}
        sizes = {spots[label].x for label in labels}
        if len(labels) > 1 and len(varied) == 1 and len(sizes) == len(labels):
            [key] = varied
            rows = sorted(labels, key=lambda label: spots[label].x)
            values = sorted(row[key] for row in numbers if key in row)
            series[f"{' '.join(words)}, {key} {values[0]:g} to {values[-1]:g}"] = rows
        else:
            series |= {label: [label] for label in labels}
    return series


def numeric_setting(word: str) -> tuple[str, float] | None:
    """("head_dim", 4.0) of "head_dim=4"; None of a word whose value is no number."""
    key, equals, value = word.partition("=")
    try:
        return (key, float(value)) if equals else None
    except ValueError:
        return None


def position_figure(groups: list[RunGroup]) -> PageFigure | None:
    buckets = {group.label: trained_buckets(group) for group in groups}
    if all(len(losses) < 2 for losses in buckets.values()):
        return None
    return single_panel(
        "loss-by-position",
        "Held-out loss by position in the document",
        "Of the last validation, mean over seeds. Other positions are other text: the worth of the memory is "
        "the gap between memory kept and reset, of zoo evaluate, not the slope of this curve.",
        lambda: render.legend_below(charts.by_position(buckets, "")),
    )


def trained_buckets(group: RunGroup) -> Buckets:
    """Loss by position of the last validation, mean over seeds."""
    prefix, losses = "val/loss_by_position/", dict[tuple[int, int | None], list[float]]()
    for run in group.runs:
        for tag, loss in run.metrics.items():
            if tag.startswith(prefix):
                low, _, high = tag.removeprefix(prefix).partition("-")
                losses.setdefault((int(low), None if high == "end" else int(high)), []).append(loss)
    return {
        bucket: sum(values) / len(values)
        for bucket, values in sorted(losses.items(), key=lambda item: item[0][0])
    }
