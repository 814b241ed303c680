"""Finished runs written by hand: folders as training leaves them, with known numbers."""

import json
from pathlib import Path
from typing import Any

import yaml


def make_run(folder: Path, model: str = "rmt", seed: int = 0, bits: float = 2.0, **changed: Any) -> Path:
    """`changed` has settings by their dotted keys, and entries of metrics.json under "metrics"."""
    changed_metrics = changed.pop("metrics", {})
    config: dict[str, Any] = {
        "model": {"_target_": f"zoo.models.{model}.It", "free": "mlp_width", "mlp_width": 48, "width": 32},
        "task": {
            "_target_": "zoo.train.tasks.lm.LanguageModelling",
            "corpus": "text",
            "root": "${data.root}",
        },
        "size": {"width": 32, "budget": None},
        "optim": {"lr": 1e-3},
        "trainer": {"accumulate": 1, "devices": 1, "num_nodes": 1},
        "data": {"corpus": "text", "root": "data", "rows": 4, "window": 64},
        "names": {"model": model, "task": "lm", "size": "nano"},
        "steps": 40,
        "seed": seed,
        "val_every": 10,
        "checkpoint_every": 4,
    }
    for key, value in changed.items():
        *groups, last = key.split(".")
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        if value is None and last not in node:
            continue
        node[last] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = {
        "parameters": 17_000,
        "state_bytes": 256,
        "tokens_seen": 10_000 + seed,
        "tokens_per_s": 5_000.0,
        "eval_tokens_per_s": 20_000.0,
        "peak_memory_bytes": 400 * 2**20,
        "val/loss": bits * 0.7,
        "val/bits_per_byte": bits,
        "val/accuracy": 0.4,
        "val/loss_by_position/0-512": bits * 0.7,
        "val/loss_by_position/512-2048": bits * 0.65,
        "val/loss_by_position/131072-end": bits * 0.6,
        "reference": {"xz -9": 1.9},
        "val_bytes": 2048,
        "task_version": 1,
        "data_fingerprint": "0123456789abcdef",
        "curve": [
            {"step": step, "tokens_seen": 250 * step, "val/loss": bits * 0.7 + (40 - step) / 10}
            for step in (10, 20, 30, 40)
        ],
        "device": "x86_64 CPU",
        "threads": 1,
        "torch": "2.13.0",
        "commit": "0123456789abcdef",
        "date": "2026-11-25T00:00:00+00:00",
        **changed_metrics,
    }
    metrics = {key: value for key, value in metrics.items() if value is not None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def make_evaluation(folder: Path, share: float) -> None:
    """An evaluation of text, and of 2 lengths and 3 depths; at twice the length half the share is right."""

    def shares(hits: int, of: int) -> dict[str, Any]:
        return {
            "share": hits / of,
            "low": max(0, hits / of - 0.1),
            "high": min(1, hits / of + 0.1),
            "hits": hits,
            "of": of,
        }

    cells = [
        {
            "axes": {"length": length, "depth": depth},
            "samples": 50,
            "exact": shares(int(50 * share * 512 / length), 50),
            "targets": shares(int(250 * share), 250),
            "groups": {},
            "reference": {"chance": 0.1},
        }
        for length in (512, 1024)
        for depth in (0.0, 50.0, 100.0)
    ]
    text = [
        {
            "axes": {"memory": memory},
            "by_position": [
                {"from": 0, "to": 512, "loss": loss},
                {"from": 512, "to": None, "loss": loss - 0.1},
            ],
        }
        for memory, loss in (("kept", 1.4), ("reset", 1.6))
    ]
    shared = {"version": 1, "split": "test", "checkpoint": "last", "step": 40, "tokens_seen": 10_000}
    entries = [
        {
            "task": "passkey",
            "settings": {"length": 512},
            **shared,
            "unit": "accuracy",
            "label": "passkey",
            "title": "passkey",
            "results": cells,
        },
        {
            "task": "lm",
            "settings": {"corpus": "text"},
            **shared,
            "unit": "bits per byte",
            "label": "lm",
            "title": "lm",
            "results": text,
        },
    ]
    (folder / "evaluation.json").write_text(json.dumps({"format": 1, "evaluations": entries}))
