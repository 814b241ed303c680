"""TensorBoard's view of a run: its tags, settings, charts and figure.

TensorBoard sorts cards and columns by tag, so the tags are chosen for their order.  For cards "/" comes
before any other character, so "main/…" is before "main score/…".  The columns of the HParams tab have the
order of the characters' codes, where a space is before "/": so the score stands beside the settings.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch.utils.tensorboard.summary import hparams as hparams_summary

from zoo.errors import printable
from zoo.train.plotting.board_images import event_folder, fit_card
from zoo.train.plotting.charts import by_position
from zoo.train.tasks.base import RANGES

HELD_OUT_LOSS, TRAINING_LOSS = "main/held-out loss by targets seen", "main/training loss by targets seen"
TAGS = {
    "val/loss": HELD_OUT_LOSS,
    "train/loss": TRAINING_LOSS,
    "train/bits_per_byte": "score/training bits per byte",
    "train/learning_rate": "optimizer/learning rate",
    "train/grad_norm": "optimizer/gradient norm",
    "data/seq_len": "optimizer/tokens per row and step",
    "cost/tokens_per_s": "resources/training targets per second",
    "cost/peak_gib": "resources/peak memory (GiB)",
}
CONSTANTS = ("cost/state_bytes", "cost/parameters")
"""Values that no step changes: they stand in the Text tab, and are no curves."""
POSITION = "val/loss_by_position/"
POSITION_TAG = "position in the document/held-out loss"


def board_tag(tag: str, scores: dict[str, str]) -> str:
    """TensorBoard's tag for a value of history.jsonl.  `scores`: names of the task's scores by tag, the one
    by which it is judged first."""
    if tag in TAGS:
        return TAGS[tag]
    if tag.startswith(POSITION):
        return f"{POSITION_TAG} {tag.removeprefix(POSITION)}"
    if tag in scores:
        return f"{'main score' if tag == next(iter(scores)) else 'score'}/{scores[tag]}"
    return tag if tag.startswith("memory/") else f"score/{tag.partition('/')[2]}"


def layout(scores: dict[str, str]) -> dict[str, dict[str, list[Any]]]:
    """Charts of the Custom Scalars tab, where tags are regular expressions: curves that share their axes."""
    score = board_tag(next(iter(scores)), scores)
    return {
        "over targets seen": {
            "held-out and training loss": ["Multiline", [f"^{HELD_OUT_LOSS}$", f"^{TRAINING_LOSS}$"]],
            f"held-out {next(iter(scores.values()))}": ["Multiline", [f"^{score}$"]],
            "held-out loss by position in the document": ["Multiline", [f"^{POSITION_TAG} "]],
        }
    }


class RunLogger(TensorBoardLogger):
    """Writes TensorBoard's event file alone, open from a run's first value to its last figure.

    The file stands in the run's folder, so that a run has its folder's name in TensorBoard.  `scores`: names
    of the task's scores by tag.  Of a resumed run, what an earlier process logged from `purge_step` on, in
    targets seen, is dropped.
    """

    def __init__(self, run_dir: Path, scores: dict[str, str], purge_step: int | None = None) -> None:
        super().__init__(event_folder(run_dir), name="", version="", purge_step=purge_step)
        self.scores = scores

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        shown = {board_tag(tag, self.scores): value for tag, value in metrics.items() if tag not in CONSTANTS}
        super().log_metrics(shown, step)

    def save(self) -> None:
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        self.experiment.flush()


def log_setup(logger: RunLogger, hparams: dict[str, Any], facts: dict[str, str], config: str) -> None:
    """Log what is known before training: the run's row in the HParams tab, charts that overlay runs, and as
    text facts by name and the configuration.

    No list of columns is logged with the row: TensorBoard would take one run's for all runs, whereas without
    any it collects the settings of all, and shows those first in which they differ.
    """
    writer = logger.experiment
    _, session_start, _ = hparams_summary(hparams, {HELD_OUT_LOSS: 0.0})
    writer._get_file_writer().add_summary(session_start)  # add_hparams would open a separate run
    writer.add_custom_scalars(layout(logger.scores))
    rows = "\n".join(f"| {name} | {printable(value)} |" for name, value in facts.items())
    writer.add_text("about", f"| | |\n|---|---|\n{rows}")
    writer.add_text("config", f"```yaml\n{printable(config)}\n```")


def log_figure(logger: RunLogger, latest: dict[str, float], subject: str, step: int) -> None:
    """Log the loss by position at the last validation; nothing where all positions are of one range, since a
    single point is no curve."""
    figure = position_figure(latest, subject)
    if len(figure.axes[0].get_xticks()) > 1:
        logger.experiment.add_figure(POSITION_TAG, fit_card(figure), step)


def position_figure(latest: dict[str, float], subject: str) -> Figure:
    """Held-out loss by position in the document, at the last validation."""
    means = {(low, high): latest.get(f"{POSITION}{low}-{high or 'end'}") for low, high in RANGES}
    measured = {edges: loss for edges, loss in means.items() if loss is not None}
    return by_position({"held-out": measured}, title=f"{subject}: loss by position")
