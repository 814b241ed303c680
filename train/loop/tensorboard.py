"""TensorBoard's layout, hyperparameters and figures of a run."""

from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch.utils.tensorboard.summary import hparams as hparams_summary

from zoo.train.plotting.charts import by_position
from zoo.train.tasks.base import BUCKETS, RANGES

FINAL = (  # tags whose last values the HParams tab shows
    "val/loss",
    "val/accuracy",
    "train/loss",
    "cost/tokens_per_s",
    "cost/peak_gib",
    "cost/state_bytes",
    "cost/parameters",
)
LAYOUT = {  # of the Custom Scalars tab; tags are regular expressions there
    "comparison": {
        "held-out loss": ["Multiline", ["^val/loss$"]],
        "held-out bits per byte": ["Multiline", ["^val/bits_per_byte$"]],
        "held-out accuracy": ["Multiline", ["^val/accuracy$"]],
        "training loss": ["Multiline", ["^train/loss$"]],
        "tokens per second": ["Multiline", ["^cost/tokens_per_s$"]],
        "state bytes": ["Multiline", ["^cost/state_bytes$"]],
    },
    "held-out loss by position": {
        bucket: ["Multiline", [f"^val/loss_by_position/{bucket}$"]] for bucket in BUCKETS
    },
}


class RunLogger(TensorBoardLogger):
    """Writes TensorBoard's event file alone, open from a run's first value to its last figure."""

    def save(self) -> None:
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        self.experiment.flush()


def start_logs(logger: RunLogger, hparams: dict[str, Any], tags: list[str], config: str) -> None:
    """Write the run's row in the HParams tab (its final values are logged later under the same tags), charts
    that overlay runs, and the configuration as text."""
    writer = logger.experiment
    for summary in hparams_summary(hparams, dict.fromkeys([*tags, *FINAL], 0.0)):
        writer._get_file_writer().add_summary(summary)  # add_hparams would open a separate run
    writer.add_custom_scalars(LAYOUT)
    writer.add_text("config", f"```yaml\n{config}\n```")


def position_figure(latest: dict[str, float]) -> Figure:
    """Held-out loss by position in the document, at the last validation."""
    means = {(low, high): latest.get(f"val/loss_by_position/{low}-{high or 'end'}") for low, high in RANGES}
    measured = {edges: loss for edges, loss in means.items() if loss is not None}
    return by_position({"held-out text": measured}, title="Loss by position")
