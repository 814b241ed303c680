"""Finished runs of `zoo sweep protocol=1` written by hand, with known numbers."""

import json
from pathlib import Path
from typing import Any

from tests.train.stored_runs import make_run

NAMES = {"val/exact": "exact match", "val/accuracy": "accuracy per digit"}
REACH = {"transformer": 16, "sliding_window": 31, "rmt": None, "mamba2": None}


def make_protocol_run(
    folder: Path,
    model: str,
    seed: int,
    beyond: float,
    solved_at: int | None = None,
    purpose: str = "score",
    lr: float = 4e-3,
    **changed: Any,
) -> Path:
    """A run on passkey with samples of 64 whose test split has 100 samples of 5 digits: of 300 digits the
    evidence lies 40 positions back, of 200 it lies 10 back, and those are hit."""
    metrics = {
        "val/bits_per_byte": None,
        "val/exact": beyond,
        "val/accuracy": 0.4 + 0.6 * beyond,
        "score_names": NAMES,
        "solved_at": solved_at,
        "collapsed": False,
        "commit": "0123456789abcdef",
        "reference": {"chance": 0.102, "in view": 0.4},
        "reference_exact": {"chance": 1 / 90_000},
        **changed.pop("metrics", {}),
    }
    settings = {
        "task._target_": "zoo.train.tasks.passkey.Passkey",
        "task.length": 64,
        "task.corpus": "books",
        "names.task": "passkey",
        "optim.lr": lr,
        **changed,
    }
    run = make_run(folder, model, seed, metrics=metrics, **settings)
    file = {"protocol": 1, "purpose": purpose}
    (run / "protocol.json").write_text(json.dumps(file))
    if metrics["solved_at"] is None:  # which make_run leaves out
        stored = json.loads((run / "metrics.json").read_text()) | {"solved_at": None}
        (run / "metrics.json").write_text(json.dumps(stored))
    if purpose == "score":
        evaluation = {"format": 1, "evaluations": [test_entry(beyond)]}
        (run / "evaluation.json").write_text(json.dumps(evaluation))
    return run


def test_entry(beyond: float) -> dict[str, Any]:
    results = [
        figures(beyond, 100)
        | {
            "axes": {"length": length},
            "samples": 100,
            "groups": {},
            "reset": figures(0.1, 100),
            "reference": {"chance": 0.102, "in view": 0.4},
            "reference_exact": {"chance": 1 / 90_000},
        }
        for length in (64, 256)
    ]
    return {
        "task": "passkey",
        "version": 1,
        "settings": {"length": 64, "corpus": "books"},
        "split": "test",
        "checkpoint": "last",
        "step": 40,
        "tokens_seen": 10_000,
        "read_by": None,
        "unit": "accuracy",
        "target": "digit",
        "label": "passkey",
        "title": "passkey",
        "results": results,
    }


test_entry.__test__ = False  # type: ignore[attr-defined]


def figures(beyond: float, samples: int) -> dict[str, Any]:
    far, near = round(3 * samples * beyond), 2 * samples
    return {
        "exact": share(round(samples * beyond), samples),
        "targets": share(far + near, 5 * samples),
        "evidence": {
            "distance": [10, 40],
            "targets": [near, 3 * samples],
            "hits": [near, far],
            "nats": [0.1 * near, 2.0 * (3 * samples - far)],
        },
    }


def share(hits: int, of: int) -> dict[str, Any]:
    value = hits / of
    return {"share": value, "low": value, "high": value, "hits": hits, "of": of}
