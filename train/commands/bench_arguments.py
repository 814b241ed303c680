"""What `zoo bench` and `zoo bench peers` share: settings that don't go with measuring, checks, failures."""

import sys
from typing import TYPE_CHECKING

from zoo.errors import UserError
from zoo.lazy import large_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from zoo.train.evaluation.throughput_report import Results

REFUSED = dict.fromkeys(
    ("run_dir", "resume", "steps", "data.seq_len"), "lengths= are the tokens per row and step"
)
WITHOUT_EFFECT = (
    *("val_every", "checkpoint_every", "logger", "logger.", "callbacks", "callbacks.", "stop_when_solved."),
    *(f"data.{key}" for key in ("corpus", "root", "field", "val_bytes", "val_samples", "curriculum.")),
    *(
        f"trainer.{key}"
        for key in ("devices", "num_nodes", "strategy", "accumulate", "log_every", "profiler")
    ),
)
ROUNDS = 3


def check_case(cfg: "DictConfig") -> None:
    """Raises UserError for what can't be measured; the model is built, without weights."""
    with large_imports():
        import torch

        from zoo.train.evaluation.throughput import PRECISIONS, select_device
        from zoo.train.runs import build
        from zoo.train.runs.config import validate_config

    validate_config(cfg)
    if cfg.trainer.precision not in PRECISIONS:
        raise UserError(
            f"bench: trainer.precision: expected {' or '.join(PRECISIONS)}, found {cfg.trainer.precision}"
        )
    select_device(cfg)
    with torch.device("meta"):
        segment_len = build.model(cfg).segment_len
    if cfg.data.seq_len % segment_len:
        raise UserError(
            f"bench: lengths: expected multiples of segment_len={segment_len}, found {cfg.data.seq_len}"
        )


def print_failures(results: "Results") -> int:
    """Every reason once, on stderr; the exit code: 1 where a measurement failed."""
    failures = {
        case: {entry for entry in entries if isinstance(entry, str)} for case, entries in results.items()
    }
    for (name, length), reasons in failures.items():
        for reason in reasons:
            print(f"failed: {name}, {length} tokens: {reason}", file=sys.stderr)
    return int(any(failures.values()))
