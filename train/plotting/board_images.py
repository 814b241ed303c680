"""Figures as images in TensorBoard, legible in its cards."""

from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

CARD_WIDTH = 4.4  # inches: a card is some 340 pixels wide, and an image is shrunk to that
WIDEST = 7  # inches, of a figure that can be made so small


def event_folder(run_dir: Path) -> Path:
    """Where a run's TensorBoard events are: its folder, or `tb` in it of a run of an earlier version."""
    return run_dir / "tb" if (run_dir / "tb").is_dir() else run_dir


def add_images(run_dir: Path, figures: dict[str, Figure], step: int) -> None:
    """Add figures to a finished run's curves in TensorBoard."""
    with SummaryWriter(str(event_folder(run_dir))) as writer:
        for tag, figure in figures.items():
            writer.add_figure(tag, fit_card(figure), step)


def fit_card(figure: Figure) -> Figure:
    """The figure in a card's size, so that its text is legible there, with pixels for a larger view.

    A figure of several panels, or of many cells, keeps its size.
    """
    width, height = figure.get_size_inches()
    if width <= WIDEST and len(figure.axes) == 1:
        scale = CARD_WIDTH / width
        figure.set_size_inches(CARD_WIDTH, max(2.8, height * scale))
        for axes in figure.axes:
            axes.title.set_wrap(True)
    figure.set_dpi(200)
    return figure
