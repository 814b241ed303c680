"""The laws, and the mechanisms of zoo.memory, need torch, einops and jaxtyping alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.laws import untyped
from zoo import state
from zoo.contract import LAWS, laws
from zoo.interface import StatefulLM, stateful

ROOT = Path(__file__).parents[2]
BLOCKED = """
import sys

class Blocked:
    names = {"lightning", "hydra", "omegaconf", "tensorboard", "matplotlib", "torchmetrics", "rich"}
    names |= {"faiss", "safetensors", "triton", "mamba_ssm", "causal_conv1d", "fla", "transformers"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Blocked())
"""
GRU = '''
import torch
import torch
from torch import Tensor, nn

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
    modules.remove("zoo.memory.state_space.triton_scan")  # kernels are written in triton's language
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


class Memory(nn.Module):
    """A running sum of embeddings, which subclasses get wrong in one way."""

    vocab_size, segment_len, learns_through_memory, cuts_anywhere = 7, 1, True, True

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

    def init_state(self, rows: int) -> Any:
        return self.head.weight.new_zeros(rows, 5)

    def forward(self, tokens: Tensor, state: Any) -> Any:
        sums = state[:, None] + self.embed(tokens).cumsum(1)
        return self.head(sums.tanh()), sums[:, -1]


class LastTokens(Memory):
    """A memory of integers: the last two tokens."""

    learns_through_memory = False

    def init_state(self, rows: int) -> Any:
        return torch.zeros(rows, 2, dtype=torch.long)

    def forward(self, tokens: Tensor, state: Any) -> Any:
        text = torch.cat([state, tokens], dim=1)
        x = self.embed(text)
        return self.head(x[:, 2:] + 0.5 * x[:, 1:-1] + 0.25 * x[:, :-2]), text[:, -2:]


@pytest.mark.parametrize("module", [Memory, LastTokens])
def test_segments_of_one_token_and_memories_of_integers_are_models_like_others(module: Any) -> None:
    for _, check in laws(module):
        check()


class WritesIntoAFreshState(Memory):
    def forward(self, tokens: Tensor, state: Any) -> Any:
        logits, after = super().forward(tokens, state.clone())
        if not state.any():
            state += 1e-3 * after.detach()
        return logits, after


class LogitsAlone(Memory):
    def forward(self, tokens: Tensor, state: Any) -> Any:
        return super().forward(tokens, state)[0]


class Float32State(Memory):
    def init_state(self, rows: int) -> Any:
        return torch.zeros(rows, 5)


class Parallel(Memory):
    parallel = "anylength"


def test_purity_covers_the_initial_state() -> None:
    with pytest.raises(AssertionError, match="the initial state passed in, after reading"):
        dict(laws(WritesIntoAFreshState))["purity"]()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (LogitsAlone, "forward: expected a pair of logits and state, found Tensor"),
        (
            Float32State,
            r"init_state\(3\): expected torch.float64 as the weights or wider, found torch.float32",
        ),
        (Parallel, "parallel: expected none | segments | segments_as_batch | any_length, found 'anylength'"),
        (lambda: object(), "expected a torch.nn.Module, found object"),
        (lambda: nn.Module(), "found no vocab_size"),
        (lambda: Memory().to("meta"), "expected weights on a device with memory, found meta"),
    ],
)
def test_every_law_says_in_one_line_what_a_module_lacks(build: Any, message: str) -> None:
    with untyped():
        for name, check in laws(build):
            if name not in ("deterministic_by_seed", "saved_and_loaded"):  # of two models
                with pytest.raises(TypeError, match=message):
                    check()


def test_laws_take_what_builds_a_model() -> None:
    with pytest.raises(TypeError, match=r"expected what builds a model, .* found Memory"), untyped():
        next(laws(Memory()))
    same = Memory()
    with pytest.raises(AssertionError, match="expected a new model at every call"):
        dict(laws(lambda: same))["deterministic_by_seed"]()


def test_a_model_with_the_interface_is_not_wrapped() -> None:
    class Model(StatefulLM):
        def init_state(self, rows: int) -> state.State:
            return ()

        def segment(self, tokens: object, state: object) -> object:  # type: ignore[override]
            return None

    model = Model()
    assert stateful(model) is model
    assert len(LAWS) >= 12
