"""A run is evaluated in the precision of its training: its number is that of its own validation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo as public
from zoo.train.evaluation.evaluate import evaluate
from zoo.train.evaluation.options import EvalOptions
from zoo.train.evaluation.text_generation import GenerateOptions, generate_text

VAL = EvalOptions(split="val", tokens=150)  # the bytes of the runs' own validation


def loss(entry: Any) -> float:
    return next(result["loss"] for result in entry["results"] if result["axes"]["memory"] == "kept")


@pytest.mark.parametrize("model", ["rmt", "transformer_xl"])
@pytest.mark.parametrize(
    ("precision", "as_named"),
    [
        ("bf16-mixed", "bf16-mixed"),
        ("bf16", "bf16-mixed"),
        ("16-mixed", "bf16-mixed"),  # on a CPU
        ("bf16-true", "bf16-true"),
        ("64-true", "64-true"),
    ],
)
def test_the_loss_is_that_of_the_run_s_validation(
    zoo: Any, model: str, precision: str, as_named: str
) -> None:
    words = (f"model={model}", "steps=4", "val_every=4", "optim.lr=0.01", f"trainer.precision={precision}")
    assert zoo.run(*words).code == 0
    expected = zoo.metrics("run")["val/loss"]
    entry = evaluate(Path("run"), VAL)
    assert loss(entry) == pytest.approx(expected, rel=1e-6)  # a run adds its losses up in 32 bits
    assert (entry["precision"], entry["label"]) == (as_named, f"lm val {as_named}")
    assert entry["title"].endswith(f"(val split, step 4, {as_named})")
    in_float32 = evaluate(Path("run"), EvalOptions(split="val", tokens=150, precision="32-true"))
    assert (in_float32["precision"], in_float32["label"]) == ("32-true", "lm val")
    assert (loss(in_float32) == pytest.approx(expected, rel=1e-5)) == (precision == "64-true")
    stored = json.loads(Path("run/evaluation.json").read_text())["evaluations"]
    assert stored == [entry, in_float32]


def test_results_of_earlier_versions_are_in_float32(zoo: Any) -> None:
    zoo.train_whole()
    path = Path("whole/evaluation.json")
    entry = evaluate(Path("whole"), VAL)
    assert (entry["precision"], entry["label"]) == ("32-true", "lm val")
    assert loss(entry) == pytest.approx(zoo.metrics("whole")["val/loss"], rel=1e-6)
    content = json.loads(path.read_text())
    del content["evaluations"][0]["precision"]
    path.write_text(json.dumps(content))
    evaluate(Path("whole"), VAL)
    assert [stored["precision"] for stored in json.loads(path.read_text())["evaluations"]] == ["32-true"]


def test_a_loaded_run_computes_in_its_precision(zoo: Any) -> None:
    assert zoo.run("steps=2", "trainer.precision=bf16-mixed", "run_dir=mixed").code == 0
    assert zoo.run("steps=2", "trainer.precision=64-true", "run_dir=double").code == 0
    zoo.train_whole()
    text = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(0))
    dtypes = {}
    for name in ("mixed", "double", "whole"):
        run = public.load_run(name)
        with run.in_precision(), torch.no_grad():
            dtypes[name] = run.model(text)[0].dtype, run.model.embed.weight.dtype  # type: ignore[union-attr]
        weights = zoo.checkpoint(name)["state_dict"]
        for key, weight in run.model.state_dict().items():
            assert torch.equal(weight, weights[key]), key  # no bit of a weight of 64 bits is lost
    assert dtypes == {
        "mixed": (torch.bfloat16, torch.float32),
        "double": (torch.float64, torch.float64),
        "whole": (torch.float32, torch.float32),
    }
    assert torch.get_default_dtype() == torch.float32


def test_generation_reads_in_the_run_s_precision(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("bf16-mixed", "bf16-true"):
        assert zoo.run("steps=2", f"trainer.precision={precision}", f"run_dir={precision}").code == 0
        run = public.load_run(precision)
        stream = generate_text(GenerateOptions(Path(precision), prompt=b"zoo", tokens=20, temperature=0))
        text = "".join(piece for _, piece in stream)
        assert torch.get_default_dtype() == torch.float32
        tokens = torch.tensor([[256, *b"zoo"]])
        with run.in_precision(), torch.no_grad():
            expected = public.generate(run.model, tokens, length=20)[0].tolist()
        expected = expected[: expected.index(256)] if 256 in expected else expected
        assert text == "zoo" + bytes(expected).decode("utf-8", "replace")
