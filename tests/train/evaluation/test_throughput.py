"""`zoo bench`: measurements, the order of processes, errors."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.state import nbytes
from zoo.train.commands import bench
from zoo.train.evaluation import throughput, throughput_report
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.sweep.matrix import read_matrix

SMALL = ("size=nano", "data.batch_size=2", "trainer.accelerator=cpu")


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, *words: str) -> tuple[Any, str, str]:
    monkeypatch.setattr(sys, "argv", ["zoo bench", *words])
    code: Any = 0
    try:
        bench.main()
    except SystemExit as error:
        code = error.code
    return (code, *capsys.readouterr())


@pytest.mark.parametrize("model", ["rmt", "mamba", "memorizing", "transformer"])
def test_a_measurement(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setattr(throughput, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(throughput, "MIN_REPEATS", 1)
    cfg = compose([*SMALL, f"model={model}", "data.seq_len=32"])
    measurement = throughput.measure(cfg)
    assert all(measurement[speed] > 0 for speed in ("train", "read", "write"))
    assert measurement["peak"] >= 0
    assert 0 < throughput_report.product_share(measurement) < 1
    weights = sum(w.numel() for w in build.model(cfg).parameters() if w.ndim == 2)
    assert measurement["products"] > 4 * weights  # forward 2 a weight, backward 4; the embedding's are none
    assert measurement["elementwise"] > 0
    assert measurement["rows"] == 2
    built = build.model(cfg)
    assert measurement["state"] == nbytes(built.init_state(1))
    assert measurement["parameters"] == built.count_parameters()
    if model == "memorizing":  # of a bank of 2 blocks one is written
        assert 0 < measurement["written"] < measurement["state"]
    else:
        assert measurement["written"] == measurement["state"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_step_reads_the_weights_as_they_are(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """The output projection's, zeroed between two measured steps, make the next step's logits zero."""
    built: list[Any] = []
    logits: list[Tensor] = []
    outputs: list[tuple[bool, bool, torch.dtype]] = []

    def build_model(cfg: Any) -> Any:
        model = real_build(cfg)
        model.head.register_forward_hook(lambda head, inputs, output: logits.append(output))
        built.append(model)
        return model

    def step_twice(step: Callable[[], object], device: torch.device) -> float:
        step()
        before, weight = logits[-1], built[0].head.weight.detach()
        saved = weight.clone()
        weight.zero_()
        step()
        weight.copy_(saved)
        outputs.append((bool(before.any()), bool(logits[-1].any()), logits[-1].dtype))
        return 1.0

    real_build = build.model
    monkeypatch.setattr(build, "model", build_model)
    monkeypatch.setattr(throughput, "seconds_per_step", step_twice)
    monkeypatch.setattr(throughput, "product_rate", lambda *arguments: 1.0)
    throughput.measure(compose([*SMALL, "model=rmt", "data.seq_len=32", f"trainer.precision={precision}"]))
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    assert outputs == [(True, False, dtype)] * 3  # training, reading, writing


def measurement(value: float) -> dict[str, float]:
    """All its quantities are `value`, but for those that say what was measured."""
    quantities = ("train", "peak", "read", "write", "state", "written", "parameters")
    counted = {"products": 3e6, "elementwise": 5e5, "product_rate": 6e7}
    return dict.fromkeys(quantities, value) | counted | {"rows": 2.0, "threads": 1.0, "cuda": 0.0}


def test_csv_has_every_quantitys_median_and_range_and_the_figure_a_line_per_model(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    values = iter([4.0, 8.0, 1.0, 2.0, "no memory", 6.0, 9.0, 5.0, "no memory"])

    def measure_in_subprocess(words: list[str]) -> Any:
        value = next(values)
        return value if isinstance(value, str) else measurement(value)

    monkeypatch.setattr(throughput, "measure_in_subprocess", measure_in_subprocess)
    monkeypatch.chdir(tmp_path)
    words = ["model=rmt", "lengths=16,32,64", *SMALL, "csv=a.csv", "plot=a.svg"]
    code, _, _ = run(monkeypatch, capsys, *words)
    assert code == 1
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    ranges = [tuple(row[f"train{end}"] for end in ("", "_min", "_max")) for row in rows]
    assert ranges == [("4.0", "2.0", "9.0"), ("6.5", "5.0", "8.0"), ("3.5", "1.0", "6.0")]
    assert [(row["tokens"], row["rounds"], row["failed"]) for row in rows] == [
        ("16", "3", ""),
        ("32", "2", "no memory"),
        ("64", "2", "no memory"),
    ]
    assert [row["product_share_max"] for row in rows] == ["0.45", "0.4", "0.3"]
    assert rows[0]["overrides"] == " ".join([words[0], *SMALL, "data.seq_len=16"])
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


def test_the_figure_draws_the_medians_against_the_tokens() -> None:
    results: throughput_report.Results = {
        ("rmt", 64): [measurement(500.0), measurement(250.0), "failed"],
        ("rmt", 32): [measurement(1000.0)],
        ("mamba", 64): [measurement(2.0**20)],
        ("mamba", 128): ["failed"],
    }
    panels = throughput_report.figure(results).axes
    lines = {panel.get_ylabel(): panel.get_lines() for panel in panels}
    assert [line.get_label() for line in lines["training, s per 1,000 tokens"]] == ["rmt", "mamba"]
    seconds, memory, state = ([line.get_xydata().tolist() for line in drawn] for drawn in lines.values())
    assert seconds == [[[32, 1.0], [64, 3.0]], [[64, 1000 / 2**20]]]
    assert memory[1] == [[64, 1.0]]
    assert state == [[[32, 1000], [64, 375]], [[64, 2**20]]]


def test_models_and_lengths_take_turns(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    calls = []

    def measure_in_subprocess(words: list[str]) -> Any:
        calls.append((words[0].partition("=")[2], words[-1].partition("=")[2]))
        if words[0] == "model=mamba" and words[-1] == "data.seq_len=64":
            return "out of memory"
        return measurement(float(len(calls)))

    monkeypatch.setattr(throughput, "measure_in_subprocess", measure_in_subprocess)
    code, out, err = run(monkeypatch, capsys, "model=rmt,mamba", "lengths=32,64", "rounds=3", *SMALL)
    order = [("rmt", "32"), ("rmt", "64"), ("mamba", "32"), ("mamba", "64")]
    assert calls == order * 3
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "medians of 3 rounds" in out
    assert "rmt 32 5 5 (1 to 9) 0 5 5 5 (5) 3.00 + 0.50 25%" in rows  # of the calls 1, 5 and 9
    assert "mamba 64 failed" in rows
    assert code == 1
    assert err.count("failed: mamba, 64 tokens: out of memory") == 1


def test_a_matrixs_models_are_measured_as_they_run_there() -> None:
    words = ["experiment=matrix", "task=recall", "trainer.accelerator=cpu"]
    cases, _, _ = bench.plan([*words, "model=transformer,rmt", "rounds=1"])
    assert [*cases] == [("transformer segment_len=256", 256), ("transformer", 256), ("rmt", 256)]
    cfg = compose(cases["rmt", 256])
    assert (cfg.model.memory_tokens, cfg.size.segment_len, cfg.data.batch_size) == (8, 16, 8)
    assert len(bench.plan(words)[0]) == len(read_matrix("matrix").models)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["size=nano"], "expected model=…"),
        (["model=rmt,rmt"], "each once"),
        (["model=rmt,"], "each once"),
        (["model=rtm"], "Could not find 'model/rtm'"),
        (
            ["experiment=matrix"],
            "task: experiment=matrix has recall, passkey, chain, chomsky, listops, lm, exp",
        ),
        (["experiment=matrix", "task=recall"], "size: experiment=matrix sets it"),
        (["experiment=parity"], "expected model=…"),
        (["rmt"], "expected key=value, found 'rmt'"),
        (["model=rmt", "steps=3"], "steps can't be set here"),
        (["model=rmt", "data.seq_len=64"], "data.seq_len can't be set here; lengths="),
        (["model=rmt", "lengths=60"], "expected multiples of segment_len=16, found 60"),
        (["model=rmt", "lengths=many"], "lengths: expected a whole number of at least 1, found many"),
        (["model=rmt", "csv=a.txt"], "csv: expected a file that ends with .csv, found a.txt"),
        (["model=rmt", "csv="], "csv: expected a file that ends with .csv, found none"),
        (["model=rmt", "plot=a.pdf"], "plot: expected a file that ends with .png or .svg, found a.pdf"),
        (
            ["model=rmt", "plot=none/a.png"],
            "plot: expected a file in a folder that exists, found no folder none",
        ),
        (["model=rmt", "rounds=0"], "rounds: expected a whole number of at least 1, found 0"),
        (["model=rmt", "rounds="], "rounds: expected a whole number of at least 1, found none"),
        (["model=rmt", "model.memory_tokens=-1"], "memory_tokens"),
        (["model=rmt", "trainer.precision=16-true"], "trainer.precision: expected 32-true or bf16-mixed"),
        (
            ["model=rmt", "trainer.accelerator=tpu"],
            "expected auto, cpu or gpu, found tpu",
        ),
    ],
)
def test_a_user_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str], message: str
) -> None:
    monkeypatch.setattr(
        throughput,
        "measure_in_subprocess",
        lambda words: pytest.fail("expected an error before any measurement"),
    )
    size = [] if any(word.startswith("size=") for word in words) else ["size=nano"]
    code, out, err = run(monkeypatch, capsys, *words, *size)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err


def test_a_failed_process_returns_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    assert throughput.measure_in_subprocess([]) == "exit code 1"


SCRIPT = """
import torch
from zoo.train.runs.resources import PeakMemory
peak = PeakMemory(torch.device("cpu"))
block = torch.ones(320 * 2**20, dtype=torch.uint8)
del block
above = peak.above()
later = PeakMemory(torch.device("cpu"))
print(above, later.before - peak.before, int(later.so_far))
"""


@pytest.mark.slow
def test_peak_memory_is_above_what_the_process_held_before() -> None:
    # In a separate process, as measurements are made: an earlier test of this one may have had a higher peak.
    process = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    above, remaining, so_far = map(int, process.stdout.split())
    assert 300 * 2**20 < above < 400 * 2**20
    assert (remaining < 50 * 2**20) == (not so_far)


@pytest.mark.slow
def test_as_a_command(zoo: Any) -> None:
    command = [sys.executable, "-m", "zoo", "bench", "model=rmt,mamba", "rounds=1", *SMALL]
    process = subprocess.run(command, cwd=zoo.folder, env=zoo.env, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "medians of 1 rounds" in process.stdout
    assert process.stderr.count("tokens/s") == 2
