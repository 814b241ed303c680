"""`zoo evaluate run=<run_dir> lengths=64,256,1024 …`: a trained run on samples of other lengths, streamed.

    run=        a run's folder: its config.yaml and checkpoints/last.ckpt
    lengths=    tokens per sample, as many as you like
    tokens=     about so many are read per length (default 4,194,304), but at least 16 samples and at most 512
    rows=       samples read side by side (default 16)
    window=     tokens per row and call (default 4,096): memory doesn't depend on the length

A sample is read window after window with carried state.  Writes evaluation.json beside the run.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from zoo import plugins
from zoo.errors import UserError
from zoo.module import IGNORE, Batch, SequenceModule
from zoo.train import build
from zoo.train.checkpoints import check_weights, read_checkpoint
from zoo.train.cli import one_line, stop
from zoo.train.files import write_text
from zoo.train.metrics import peak_memory_bytes
from zoo.train.streams import Reading
from zoo.train.task import First

DEFAULTS = {"run": None, "lengths": None, "tokens": 4_194_304, "rows": 16, "window": 4096}
FEWEST, MOST = 16, 512  # samples per length


def main() -> None:
    """Exit code 0, or 2 for a slip of the user's."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return
    try:
        keys = arguments(words)
        results = evaluate(Path(keys["run"]), keys["lengths"], keys["tokens"], keys["rows"], keys["window"])
    except (UserError, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    else:
        show(results)


def arguments(words: list[str]) -> dict[str, Any]:
    given = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    assert isinstance(given, dict)
    for key in given:
        if key not in DEFAULTS:
            raise UserError(f"evaluate: unknown key {key!r}; expected one of {', '.join(DEFAULTS)}")
    keys = {**DEFAULTS, **given}
    if keys["run"] is None or keys["lengths"] is None:
        raise UserError("evaluate: expected run=<a run's folder> and lengths=64,256,…")
    lengths = str(keys["lengths"]).strip("[]").split(",")
    numbers = [("lengths", length) for length in lengths]
    for name, value in [*numbers, *((key, keys[key]) for key in ("tokens", "rows", "window"))]:
        if not str(value).strip().isdigit() or int(value) < 1:
            raise UserError(f"evaluate: {name}: expected a whole number of at least 1, found {value}")
    return {**keys, "lengths": [int(length) for length in lengths]}


def trained(run_dir: Path) -> tuple[DictConfig, SequenceModule]:
    """A run's configuration and its model with the weights of its last checkpoint, ready to read."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"expected a run's folder with a config.yaml, found none in {str(run_dir)!r}")
    cfg = OmegaConf.load(path)
    if not isinstance(cfg, DictConfig) or "model" not in cfg or "task" not in cfg:
        raise UserError(f"{path} is no run's config")
    for group in ("model", "task"):
        if not plugins.trusted(str(cfg[group].get("_target_"))):
            raise UserError(f"{path} names a class of no installed plug-in: {cfg[group].get('_target_')}")
    model = build.model(cfg)
    last = run_dir / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last)
    check_weights(model, checkpoint, last)
    model.load_state_dict(checkpoint["state_dict"])
    return cfg, model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def evaluate(run_dir: Path, lengths: list[int], tokens: int, rows: int, window: int) -> list[dict[str, Any]]:
    """One row per length: accuracy over asked targets with its 95 % Wilson interval, speed, peak memory."""
    plugins.register()
    cfg, model = trained(run_dir)
    if "length" not in cfg.task:
        raise UserError(f"evaluate: task {cfg.names.task} has no length to vary")
    window = max(1, window // model.segment_len) * model.segment_len
    results = []
    for length in lengths:
        cfg.task.length = length
        count = max(FEWEST, min(MOST, tokens // length))
        texts = First(build.task(cfg).split("test"), count)
        hits = asked = 0
        began, state = time.perf_counter(), None
        with torch.inference_mode():
            for batch in Reading(
                texts, rows, min(window, -(-length // model.segment_len) * model.segment_len)
            ):
                batch = Batch(*(part.to(model.device) for part in batch))
                said, state = model.read(batch, state)
                hits += int((said["hits"] & (batch.targets != IGNORE)).sum())
                asked += int((batch.targets != IGNORE).sum())
        low, high = wilson(hits, asked)
        results.append(
            {
                "length": length,
                "samples": len(texts.lengths),
                "accuracy": hits / asked,
                "low": low,
                "high": high,
                "tokens_per_s": int(texts.lengths.sum()) / (time.perf_counter() - began),
                "peak_memory_bytes": peak_memory_bytes(model.device),
            }
        )
        print(f"length {length:,}: {hits} of {asked}", file=sys.stderr, flush=True)
    write_text(run_dir / "evaluation.json", json.dumps(results, indent=1) + "\n")
    return results


def wilson(hits: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """Bounds of the 95 % interval of a share (Wilson 1927)."""
    share, spread = hits / asked, z * z / asked
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / asked + spread / (4 * asked)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def show(results: list[dict[str, Any]]) -> None:
    table = Table("length", "samples", "accuracy", "95 % interval", "tokens/s", "peak memory")
    for row in results:
        table.add_row(
            f"{row['length']:,}",
            str(row["samples"]),
            f"{row['accuracy']:.1%}",
            f"{row['low']:.1%} to {row['high']:.1%}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB",
        )
    Console().print(table)
