"""TensorBoard's layout, hyperparameters and figures of a run."""

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch.utils.tensorboard.summary import hparams as hparams_summary

from zoo.train.plotting.charts import by_position
from zoo.train.tasks.base import BUCKETS, RANGES

FINAL = (  # tags whose last values the HParams tab shows, beside the task's scores
    "val/loss",
    "train/loss",
    "cost/tokens_per_s",
    "cost/peak_gib",
    "cost/state_bytes",
    "cost/parameters",
)


def layout(scores: dict[str, str]) -> dict[str, dict[str, list[Any]]]:
    """Charts of the Custom Scalars tab, where tags are regular expressions; `scores` are names by tag."""
    charts = {
        "held-out loss": "val/loss",
        **{f"held-out {name}": tag for tag, name in scores.items()},
        "training loss": "train/loss",
        "tokens per second": "cost/tokens_per_s",
        "state bytes": "cost/state_bytes",
    }
    return {
        "comparison": {title: ["Multiline", [f"^{tag}$"]] for title, tag in charts.items()},
        "held-out loss by position": {
            bucket: ["Multiline", [f"^val/loss_by_position/{bucket}$"]] for bucket in BUCKETS
        },
    }


class RunLogger(TensorBoardLogger):
    """Writes TensorBoard's event file alone, in the run's folder `tb`, open from a run's first value to its
    last figure.

    Of a resumed run, what an earlier process logged from `purge_step` on, in targets seen, is dropped.
    """

    def __init__(self, run_dir: Path, purge_step: int | None = None) -> None:
        super().__init__(run_dir, name="", version="tb", purge_step=purge_step)

    def save(self) -> None:
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        self.experiment.flush()


def log_setup(logger: RunLogger, hparams: dict[str, Any], scores: dict[str, str], config: str) -> None:
    """Log what is known before training: the run's row in the HParams tab (its final values are logged later
    under the same tags), charts that overlay runs, and the configuration as text.

    `scores`: names of the task's scores by tag.
    """
    writer = logger.experiment
    for summary in hparams_summary(hparams, dict.fromkeys([*scores, *FINAL], 0.0)):
        writer._get_file_writer().add_summary(summary)  # add_hparams would open a separate run
    writer.add_custom_scalars(layout(scores))
    writer.add_text("config", f"```yaml\n{config}\n```")


def position_figure(latest: dict[str, float]) -> Figure:
    """Held-out loss by position in the document, at the last validation."""
    means = {(low, high): latest.get(f"val/loss_by_position/{low}-{high or 'end'}") for low, high in RANGES}
    measured = {edges: loss for edges, loss in means.items() if loss is not None}
    return by_position({"held-out text": measured}, title="Loss by position")
