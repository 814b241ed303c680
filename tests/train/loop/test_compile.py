"""`trainer.compile=true` changes the speed and no weight."""

from typing import Any

import pytest
import torch


@pytest.mark.slow
@pytest.mark.parametrize("model", ["transformer_xl", "rmt", "mamba2", "griffin"])
def test_a_compiled_run_learns_the_same(zoo: Any, model: str) -> None:
    settings = (f"model={model}", "steps=3", "trainer.precision=64-true")
    assert zoo.run_process(*settings, "run_dir=eager").code == 0
    ended = zoo.run_process(*settings, "run_dir=compiled", "trainer.compile=true")
    assert ended.code == 0, ended.err
    expected, actual = (zoo.checkpoint(run)["state_dict"] for run in ("eager", "compiled"))
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)
