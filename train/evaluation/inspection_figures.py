"""Figures of an inspection, as wide as a card of TensorBoard shows them legibly."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from zoo.train.evaluation.inspection import Inspection, SegmentView
from zoo.train.evaluation.inspection_report import words
from zoo.train.plotting.board_images import CARD_WIDTH, add_images

MAX_LABELS = 24  # of tokens that are asked for
TITLE_LENGTH = 52  # characters in a line
FOLDER = "inspection"


def save_figures(inspection: Inspection, run_dir: Path) -> Path:
    """PNG files in the run's folder, returned, and images for TensorBoard."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    figures = draw(inspection, inspection.model)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=200)
    images = {f"zoo inspect/{name}": figure for name, figure in figures.items()}
    add_images(run_dir, images, inspection.tokens_seen)
    return folder


def draw(inspection: Inspection, model: str) -> dict[str, Figure]:
    """By name: the course of the memory, and what was read of stored tokens where a model stores any."""
    title = f"{model} on {inspection.text.title}"
    figures = {"course": course(inspection, title)}
    if inspection.reads:
        figures["reads"] = read_maps(inspection, title)
    return figures


def course(inspection: Inspection, title: str) -> Figure:
    """Panels below each other, over the text: losses, retention, contribution, norms of the state."""
    segments, length = inspection.segments, inspection.segments[0].tokens
    end = segments[-1].start + segments[-1].tokens
    panels = {
        "nats per target": {"memory kept": values(segments, "loss"), "reset": values(segments, "reset")},
        "retention": {"": values(segments, "retention")},
        "contribution (nats)": {"": values(segments, "contribution")},
        "state (root mean square)": {
            f"layer {layer}" if layer.isdecimal() else layer: {s.start: s.norms[layer] for s in segments}
            for layer in segments[-1].norms
        },
    }
    shown = {ylabel: lines for ylabel, lines in panels.items() if any(lines.values())}
    figure = Figure(figsize=(CARD_WIDTH, 0.8 + 1.5 * len(shown)), layout="constrained")
    figure.suptitle(textwrap.fill(title, TITLE_LENGTH), fontsize=9)
    rows = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (ylabel, lines) in zip(rows, shown.items(), strict=True):
        for name, points in lines.items():
            axes.plot(list(points), list(points.values()), marker="o", markersize=3, label=name or None)
        for start in {position // length * length for position in inspection.question}:
            axes.axvspan(start, min(start + length, end), alpha=0.12, linewidth=0)
        axes.set_ylabel(ylabel, fontsize=8)
        axes.tick_params(labelsize=8)
        if not ylabel.startswith("nats"):
            low, high = min(0, axes.get_ylim()[0]), axes.get_ylim()[1]
            axes.set_ylim(low, high + 0.05 * (high - low))  # or markers at the top are cut in half
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=7, loc="best", ncols=1 + len(lines) // 4)
    rows[-1].set_xlabel("token at which a segment begins; shaded: the question", fontsize=8)
    return figure


def values(segments: list[SegmentView], name: str) -> dict[int, float]:
    return {s.start: value for s in segments if (value := getattr(s, name)) is not None}


def read_maps(inspection: Inspection, title: str) -> Figure:
    """A map per layer: the question's tokens down, the stored ones across."""
    reads, text, question = inspection.reads, inspection.text, inspection.question
    height = 1 + len(reads) * (1.1 + 0.16 * min(len(question), MAX_LABELS))
    figure = Figure(figsize=(CARD_WIDTH, height), layout="constrained")
    figure.suptitle(textwrap.fill(f"{title}: attention to stored tokens", TITLE_LENGTH), fontsize=9)
    rows = figure.subplots(len(reads), 1, squeeze=False)[:, 0]
    for axes, (layer, mass) in zip(rows, reads.items(), strict=True):
        image = axes.imshow(np.asarray(mass[:, : question[-1] + 1]), aspect="auto", interpolation="nearest")
        axes.set_title(layer, fontsize=9)
        axes.set_xlabel("stored token", fontsize=8)
        axes.set_ylabel("token asked for", fontsize=8)
        axes.tick_params(labelsize=8)
        if len(question) <= MAX_LABELS:
            labels = [words(text, position + 1, position + 2).replace(" ", "␣") for position in question]
            axes.set_yticks(range(len(labels)), labels, fontsize=8)
        figure.colorbar(image, ax=axes, pad=0.02).ax.tick_params(labelsize=8)
    return figure
