"""`torch.compile` reads every model as one graph, and the graph computes what the model does.

tests/train/loop/test_compile.py trains with the code that torch generates from them.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.train.runs.test_build import MODELS

BREAKS = {
    "gru": "torch.compile leaves the recurrent layers of torch.nn to their kernels",
    "lstm": "as gru",
    "mamba2": "torch 2.13's compiled code for CPUs is wrong (memory/state_space/ssd.py)",
    "mamba2_hybrid": "as mamba2",
    "memorizing": "every write of the bank draws a stamp on the host",
}
"""Models that need more than one graph on a CPU, and why."""


def measured(*arguments: str) -> Any:
    command = [sys.executable, "-m", "tests.models.graphs", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_one_graph_reads_a_window() -> None:
    assert {name for name, breaks in measured(*MODELS).items() if breaks} == set(BREAKS)


@pytest.mark.slow
def test_graphs_compute_what_the_models_do() -> None:
    assert max(measured("parity", *MODELS).values()) < 1e-9
