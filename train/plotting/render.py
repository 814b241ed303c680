"""Line styles, and figures as SVG for a page that may be light or dark or as PNG for a document."""

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = (  # legible on white and on black
    "#3b82c4",
    "#e07b39",
    "#3a9e5f",
    "#d14970",
    "#8a6fd1",
    "#a08324",
    "#2aa5a0",
    "#9c5a3c",
    "#6b7f99",
    "#b65cb0",
)
INK = "#010203"  # placeholder for the colour of the page's text
GREY = "0.45"  # legible on white and on black too
WIDTHS = (1.5, 3.0, 0.75)  # of lines, in points: the next after the last colour
BAND_ALPHA = 0.15
DASHES = ("-", "--", ":", "-.")  # to distinguish curves of the same colour


def canvas(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def legend_below(figure: Figure, key: dict[str, dict[str, Any]] | None = None) -> Figure:
    """Move a figure's legend below it; a long one makes the figure higher.  `key` has line styles by name,
    instead of the curves'."""
    axes = figure.axes[0]
    handles = axes.get_legend_handles_labels()[0]
    if key is not None:
        handles = [Line2D([], [], label=name, **styles) for name, styles in key.items()]
    names = [textwrap.fill(str(handle.get_label()), 66) for handle in handles]
    longest = max(map(len, names), default=0)
    columns = max(1, min(3, 66 // (longest + 8)))
    if (inside := axes.get_legend()) is not None:
        inside.remove()
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=8)
    lines = sum(1 + name.count("\n") for name in names) / columns
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.18 * max(0, lines - 3))
    return figure


def line_style(index: int | None, dash: int = 0) -> dict[str, Any]:
    """The style of a group's lines by its index in the table, the same in every figure; grey for None."""
    width = WIDTHS[(index or 0) // len(COLOURS) % len(WIDTHS)]
    colour = GREY if index is None else COLOURS[index % len(COLOURS)]
    return {"color": colour, "linestyle": DASHES[dash % len(DASHES)], "linewidth": width}


def draw_band(axes: Axes, line: Line2D, low: Sequence[float], high: Sequence[float], curves: int) -> None:
    """A line's interval as a band in its colour, fainter the more `curves` have one: many hide the lines."""
    alpha = BAND_ALPHA * min(1.0, len(COLOURS) / curves)
    axes.fill_between(line.get_xdata(), low, high, color=line.get_color(), alpha=alpha, linewidth=0)


def with_styles(draw: Callable[[], Figure], styles: Sequence[dict[str, Any]]) -> Callable[[], Figure]:
    """The same figure with these styles for its lines, in order."""

    def styled() -> Figure:
        with matplotlib.rc_context({"axes.prop_cycle": cycle(styles)}):
            return draw()

    return styled


def cycle(styles: Sequence[dict[str, Any]]) -> Any:
    keys = ("color", "linestyle", "linewidth")
    return cycler(**{key: [style[key] for style in styles] for key in keys})


@contextmanager
def style(ink: str | None = None) -> Iterator[None]:
    """Our colours; with `ink` for text and axes, and a transparent background."""
    settings: Any = {
        "axes.prop_cycle": cycle([line_style(index) for index in range(len(COLOURS) * len(WIDTHS))]),
        "legend.frameon": False,
    }
    if ink:
        ink_keys = (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "axes.titlecolor",
            "xtick.color",
            "ytick.color",
        )
        settings |= dict.fromkeys(ink_keys, ink)
        settings |= {"axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none"}
        settings |= {"svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        yield


def svg(draw: Callable[[], Figure], name: str, size: tuple[float, float] | None = None) -> str:
    """A figure for the page: its text is text in the page's colour, its ids start with `name`."""
    with style(INK), matplotlib.rc_context({"svg.hashsalt": name}):
        figure = draw()
        if size:  # higher where a legend below has many lines
            figure.set_size_inches(size[0], max(size[1], figure.get_figheight()))
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, _, rest = text.partition(">")
    text = re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest  # as wide as the page gives room
    return prefix_ids(text, name)


def prefix_ids(text: str, name: str) -> str:
    """Prefix ids that something refers to, so that no other figure has them; remove the others."""
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))

    def rename(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]*)"', rename, text)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)


WITHOUT_DATE = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Metadata by the format of a document's figures: the same figure is the same file."""


def document(draw: Callable[[], Figure], kind: str) -> bytes:
    """A figure on white, for a document: the contents of a file of the format png, pdf or svg."""
    with style(), matplotlib.rc_context({"svg.hashsalt": "zoo"}):
        file = io.BytesIO()
        draw().savefig(file, format=kind, dpi=130, metadata=WITHOUT_DATE[kind])
    return file.getvalue()
