"""Protocol 1 with runs that train: a sweep that dies goes on elsewhere; numbers of a page are recomputed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.train.sweep.in_process import run_sweep

pytestmark = pytest.mark.slow

WORDS = (
    "size=nano",
    "task.length=64",
    "task.samples=1000",
    "task.eval_samples=16",
    "data.batch_size=4",
    "steps=16",
    "val_every=4",
    "trainer.accelerator=cpu",
    "protocol=1",
    "beyond=20",
    "jobs=1",
)
VOLATILE = ("tokens_per_s", "train_s", "wall_s", "peak_memory_bytes", "date", "device", "commit")


def numbers(folder: Path) -> dict[str, Any]:
    """Everything in the files of finished runs that doesn't depend on the clock, by run and file."""
    return {
        str(path.relative_to(folder)): stable(json.loads(path.read_text()))
        for path in sorted(folder.rglob("*.json"))
    }


def stable(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: stable(value) for key, value in node.items() if not key.endswith(VOLATILE)}
    return [stable(value) for value in node] if isinstance(node, list) else node


def test_a_sweep_that_dies_goes_on_elsewhere_and_ends_with_the_same_numbers(
    zoo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies when it trains a rate on the task itself, and again when it evaluates a seed; each time only
    the files that were kept are left."""
    words = ["model=rmt", "task=recall", *WORDS]
    assert run_sweep(monkeypatch, *words, "runs=whole", "keep=expected") == 0
    expected = numbers(Path("expected"))
    purposes = [content["purpose"] for name, content in expected.items() if name.endswith("protocol.json")]
    assert purposes.count("short rate") in (3, 4)
    assert (purposes.count("rate"), purposes.count("score") in (3, 5)) == (2, True)
    trainings = len(purposes) - purposes.count("score")
    deaths = (trainings - 1, 3 + 1 + 3)  # of the second sweep: the rate, a seed and its evaluations, another
    for index, death in enumerate(deaths):
        code = run_sweep(
            monkeypatch, *words, f"runs=runs{index}", "keep=kept", *results(), deaths=frozenset({death})
        )
        assert code == "died"
        shutil.rmtree(f"runs{index}")
    before = len([*Path("kept").rglob("metrics.json")])
    assert 0 < before < len(purposes)
    assert run_sweep(monkeypatch, *words, "runs=last", "keep=kept", *results()) == 0
    assert numbers(Path("kept")) == expected
    assert len([*Path("last").rglob("metrics.json")]) == len(purposes) - before


def results() -> list[str]:
    return ["results=kept"] if Path("kept").is_dir() else []
