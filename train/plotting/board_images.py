"""Figures as images in TensorBoard, legible in its cards."""

import re
from pathlib import Path

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

CARD_WIDTH = 4.4  # inches: a card is some 340 pixels wide, and an image is shrunk to that
WIDEST = 7  # inches, of a figure that can be made so small


def event_folder(run_dir: Path) -> Path:
    """Where a run's TensorBoard events are: its folder, or `tb` in it of a run of an earlier version."""
    return run_dir / "tb" if (run_dir / "tb").is_dir() else run_dir


def add_images(run_dir: Path, figures: dict[str, Figure], step: int) -> None:
    """Add figures to a finished run's curves in TensorBoard, in place of those that have these tags.

    Of two images of one step TensorBoard shows the first, so each has a file of its own, which is replaced.
    """
    folder = event_folder(run_dir)
    for tag, figure in figures.items():
        suffix = "." + re.sub(r"\W+", "-", tag)
        for earlier in folder.glob(f"events.out.tfevents.*{suffix}"):
            earlier.unlink()
        with SummaryWriter(str(folder), filename_suffix=suffix) as writer:
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
