"""The laws, and the mechanisms of zoo.memory, need torch, einops and jaxtyping alone."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from zoo import state
from zoo.contract import LAWS, laws
from zoo.interface import StatefulLM, stateful

ROOT = Path(__file__).parents[2]
BLOCKED = """
import sys

class Blocked:
    names = {"lightning", "hydra", "omegaconf", "tensorboard", "matplotlib", "torchmetrics", "rich"}
    names |= {"faiss", "safetensors", "mamba_ssm", "causal_conv1d", "transformers"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Blocked())
"""
GRU = '''
import torch
from torch import nn

class GRU(nn.Module):
    """Two GRU layers between an embedding and logits; the state is (rows, layers, width)."""

    vocab_size, segment_len, learns_through_memory, cuts_anywhere = 30, 8, True, True

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)
        self.gru = nn.GRU(16, 16, num_layers=2, batch_first=True)

    def init_state(self, rows):
        return self.head.weight.new_zeros(rows, 2, 16)

    def forward(self, tokens, state):
        y, state = self.gru(self.embed(tokens), state.transpose(0, 1).contiguous())
        return self.head(y), state.transpose(0, 1)
'''
CHECK = """
from zoo import laws

failed = []
for name, check in laws({model}):
    try:
        check()
    except AssertionError:
        failed.append(name)
print(*failed)
"""


def python(*parts: str) -> str:
    script = "\n".join(parts)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_every_law_holds_of_a_plain_module_where_nothing_else_can_be_imported() -> None:
    assert python(BLOCKED, GRU, CHECK.format(model="GRU")) == ""


def test_a_plain_module_that_breaks_its_promises_is_caught() -> None:
    forgets = """
class Forgets(GRU):
    def forward(self, tokens, state):
        y, state = super().forward(tokens, state.detach())
        return y, state.roll(1, 0)
"""
    failed = python(BLOCKED, GRU, forgets, CHECK.format(model="Forgets")).split()
    assert {"gradient_reach", "batch_invariance"} <= set(failed)
    assert "shapes" not in failed


def test_mechanisms_need_no_more() -> None:
    files = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "memory").rglob("*.py"))]
    modules = [f"zoo.{'.'.join(file.parts)}".removesuffix(".__init__") for file in files]
    python(BLOCKED, *(f"import {module}" for module in modules))


class Silent(nn.Module):
    vocab_size, segment_len = 5, 4


def test_what_a_plain_module_lacks_is_named() -> None:
    expected = (
        "Silent: expected vocab_size, segment_len, learns_through_memory, init_state and "
        "forward(tokens, state), found no learns_through_memory, init_state"
    )
    with pytest.raises(TypeError) as raised:
        stateful(Silent())
    assert str(raised.value) == expected
    first = next(laws(Silent))[1]
    with pytest.raises(TypeError, match="found no learns_through_memory"):
        first()


class Dictionary(nn.Module):
    vocab_size, segment_len, learns_through_memory = 5, 4, True

    def init_state(self, rows: int) -> dict[str, int]:
        return {"memory": rows}

    def forward(self, tokens: object, state: object) -> None:
        raise NotImplementedError


def test_a_state_of_another_kind_is_named() -> None:
    with pytest.raises(TypeError, match="expected tensors in NamedTuples and tuples, found dict"):
        state.leaves(stateful(Dictionary()).init_state(1))


def test_a_model_with_the_interface_is_not_wrapped() -> None:
    class Model(StatefulLM):
        def init_state(self, rows: int) -> state.State:
            return ()

        def segment(self, tokens: object, state: object) -> object:  # type: ignore[override]
            return None

    model = Model()
    assert stateful(model) is model
    assert len(LAWS) >= 12
