"""A figure of the page: SVG panels for the page itself, one PNG for a document."""

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

Draw = Callable[[], Figure]
FigureSize = tuple[float, float] | None  # inches
PANEL_SIZE = (5.2, 3.8)


class PageFigure(NamedTuple):
    name: str
    title: str
    caption: str
    draw: Draw
    panels: dict[str, tuple[Draw, FigureSize]]
    """Side by side on the page, by name; for most figures one panel with everything."""


def single_panel(
    name: str, title: str, caption: str, draw: Draw, size: FigureSize = PANEL_SIZE
) -> PageFigure:
    return PageFigure(name, title, caption, draw, {"": (draw, size)})


def capitalised(name: str) -> str:
    return name[0].upper() + name[1:]
