"""Colours and looks, and figures as SVG for a page that may be light or dark or as PNG for a document."""

import io
import re
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
INK = "#010203"  # stands for the colour of the page's text
GREY = "0.45"  # legible on both as well
WIDTHS = (1.5, 3.0, 0.75)  # of lines, points: the next behind the last colour
DASHES = ("-", "--", ":", "-.")  # for what is told apart within one colour


def canvas(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    return figure, axes


def legend_below(figure: Figure, key: dict[str, dict[str, Any]] | None = None) -> Figure:
    """The same with the legend out of the curves' way; `key` holds looks by name in place of the curves'."""
    axes = figure.axes[0]
    handles = axes.get_legend_handles_labels()[0]
    if key is not None:
        handles = [Line2D([], [], label=name, **looks) for name, looks in key.items()]
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    if (inside := axes.get_legend()) is not None:
        inside.remove()
    figure.legend(
        handles=handles, loc="outside lower center", ncols=max(1, min(3, 66 // (longest + 8))), fontsize=8
    )
    return figure


def line_style(place: int | None, way: int = 0) -> dict[str, Any]:
    """Of the lines of one row, by its place in the table, the same in every picture; of None in no colour."""
    dash, width = DASHES[way % len(DASHES)], WIDTHS[(place or 0) // len(COLOURS) % len(WIDTHS)]
    colour = GREY if place is None else COLOURS[place % len(COLOURS)]
    return {"color": colour, "linestyle": dash, "linewidth": width}


def with_styles(draw: Callable[[], Figure], looks: Sequence[dict[str, Any]]) -> Callable[[], Figure]:
    """The same, whose lines have these looks in turn."""

    def drawn() -> Figure:
        with matplotlib.rc_context({"axes.prop_cycle": cycle(looks)}):
            return draw()

    return drawn


def cycle(looks: Sequence[dict[str, Any]]) -> Any:
    return cycler(**{part: [one[part] for one in looks] for part in ("color", "linestyle", "linewidth")})


@contextmanager
def style(ink: str | None = None) -> Iterator[None]:
    """Our colours; with `ink` for text and axes, and no ground."""
    settings: Any = {
        "axes.prop_cycle": cycle([line_style(place) for place in range(len(COLOURS) * len(WIDTHS))]),
        "legend.frameon": False,
    }
    if ink:
        named = (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "axes.titlecolor",
            "xtick.color",
            "ytick.color",
        )
        settings |= dict.fromkeys(named, ink)
        settings |= {"axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none"}
        settings |= {"svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        yield


def svg(draw: Callable[[], Figure], name: str, size: tuple[float, float] | None = None) -> str:
    """A figure for the page: its text is text in the page's own colour, its ids begin with `name`."""
    with style(INK), matplotlib.rc_context({"svg.hashsalt": name}):
        figure = draw()
        if size:
            figure.set_size_inches(*size)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, _, rest = text.partition(">")
    text = re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest  # as wide as the page gives room
    return own_ids(text, name)


def own_ids(text: str, name: str) -> str:
    """Ids that something refers to begin with `name`, so that no other picture has them; the rest go."""
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))

    def rename(found: re.Match[str]) -> str:
        return f' id="{name}-{found[1]}"' if found[1] in used else ""

    text = re.sub(r' id="([^"]*)"', rename, text)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)


def png(draw: Callable[[], Figure]) -> bytes:
    """The same on white, for a document."""
    with style():
        file = io.BytesIO()
        draw().savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()
