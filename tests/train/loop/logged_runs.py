"""A killed and resumed run with the logger of a service, offline, and what the service then has of it.

    python -m tests.train.loop.logged_runs wandb

It prints the values of both runs as JSON: a list for each of the service's runs, of (tokens seen, loss).
"""

import contextlib
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from tests.train.conftest import Workspace
from zoo.train.loop.tensorboard import TRAINING_LOSS

X, LOSS = "trainer/global_step", "train/loss"


class Dead(L.Callback):
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            raise Workspace.KilledError


def records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: after 7 bytes LevelDB's log, blocks of 32 KiB whose records have a
    checksum of 4 bytes, 2 for the length and 1 for the kind (all of it, or its first, middle, last part)."""
    parts, position = b"", 7
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        length, kind = struct.unpack_from("<HB", content, position + 4)
        if left < 7 or kind == 0:  # the end of a block
            position += left
            continue
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_values(run: Path) -> list[Any]:
    """Of every run in the folder, from the files that `wandb sync` would send."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = []
    for file in sorted(run.glob("wandb/wandb/offline-run-*/run-*.wandb")):
        rows = [Record.FromString(record).history.item for record in records(file.read_bytes())]
        values = [{"/".join(item.nested_key) or item.key: item.value_json for item in row} for row in rows]
        runs.append([[int(row[X]), float(row[LOSS])] for row in values if LOSS in row])
    return runs


def mlflow_values(run: Path) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.absolute() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("zoo")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attribute.start_time ASC"])
    histories = [client.get_metric_history(found.info.run_id, LOSS) for found in runs]
    return [[[point.step, point.value] for point in history] for history in histories]


VALUES = {"wandb": wandb_values, "mlflow": mlflow_values}


def main(name: str) -> None:
    patch = pytest.MonkeyPatch()
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
    zoo = Workspace(Path.cwd(), patch)
    words = [f"logger=tensorboard,{name}", "model.dropout=0.1"]
    before = set(os.listdir())
    with contextlib.redirect_stdout(sys.stderr):
        killed = zoo.run(*words, callbacks=[Dead()])
        assert killed.code == "killed", killed
        resumed = zoo.run("resume=run")
        assert resumed.code == 0, resumed.err
    found = VALUES[name](Path("run"))
    expected = [[x, value] for x, value in zoo.scalars("run")[TRAINING_LOSS]]
    stray = sorted(set(os.listdir()) - before - {"run", "cache"})
    print(json.dumps({"runs": found, "expected": expected, "stray": stray}))


if __name__ == "__main__":
    main(sys.argv[1])
