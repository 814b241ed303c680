"""The recorded attention to a stored token is what the output changes by, per change of its value."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from zoo.memory.retrieval.focused_attention import FocusedState
from zoo.memory.retrieval.landmark_bank import BankState
from zoo.reads import Read, watched_reads
from zoo.train.runs import build
from zoo.train.runs.config import compose

SEGMENT, SEGMENTS, CAPACITY, LAST = 16, 5, 32, 3
SETTINGS: dict[str, list[str]] = {
    "memorizing": ["model.neighbours=5"],
    "focused": ["model.neighbours=5"],
    "focused ": ["model.neighbours=64"],  # without a search
    "unlimiformer": ["model.neighbours=5"],
    "landmark": ["model.mem_freq=4", "model.topk=2"],
}


class Memory(NamedTuple):
    """A layer that has read SEGMENTS segments of two rows, and what it reads next."""

    mixer: Any
    state: Any
    x: Tensor

    def read(self) -> tuple[Tensor, Read]:
        with torch.no_grad(), watched_reads() as reads:
            y, _ = self.mixer(self.x, self.state)
        (read,) = reads
        return y, read


@pytest.fixture(params=SETTINGS)
def memory(request: Any) -> Memory:
    name = request.param
    torch.manual_seed(0)
    words = [
        f"model={name.strip()}",
        "size=nano",
        f"size.segment_len={SEGMENT}",
        f"model.capacity={CAPACITY}",
    ]
    model = build.model(compose([*words, *SETTINGS[name]])).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        _, states = model(torch.randint(256, (2, SEGMENTS * SEGMENT)))
        layers = zip([block.mixer for block in model.stack], states, strict=True)
        mixer, state = next(pair for pair in layers if pair[1] and getattr(pair[0], "num_blocks", 1))
        width = mixer.out_proj.weight.shape[0]
        mixer.out_proj.weight.copy_(torch.eye(width))
        if name == "unlimiformer":  # a stored input is key and value: its last feature only a value
            mixer.qkv.weight[width : 2 * width, -1] = 0
            mixer.qkv.weight[2 * width :, -1] = 1
    return Memory(mixer, state, torch.randn(2, LAST, width).double())


def changed(state: Any, token: int, change: float) -> Any:
    """The state with another value of this token in all heads of row 0; None where it isn't stored."""

    def ring(blocks: tuple[Tensor, ...], entry: int, *place: int) -> tuple[Tensor, ...]:
        blocks = tuple(block.clone() for block in blocks)
        size = blocks[0].shape[2]
        blocks[entry // size % len(blocks)][(0, slice(None), entry % size, *place)] += change
        return blocks

    if isinstance(state, FocusedState):
        stored = int(state.bank.length[0])
        if token >= stored:
            values = state.previous_values.clone()
            values[0, :, token - stored] += change
            return state._replace(previous_values=values)
        return state._replace(bank=changed(state.bank, token, change))
    if isinstance(state, BankState):
        block, place = divmod(token, state.block_len - 1)
        return state._replace(closed_values=ring(state.closed_values, block, place))
    if state.values:
        return state._replace(values=ring(state.values, token % CAPACITY))
    return state._replace(keys=ring(state.keys, token % CAPACITY, -1))


def test_mass_is_what_the_output_changes_by(memory: Memory) -> None:
    y, read = memory.read()
    end = SEGMENT * SEGMENTS
    question = read.queries[0] >= 0
    heads, total = read.mass.shape[1], torch.zeros(())
    assert read.queries[0][question].tolist() == list(range(end, end + int(question.sum())))
    assert (read.mass >= 0).all()
    assert (read.mass.sum(-1) <= 1 + 1e-9).all()
    assert read.tokens.max() < end
    for token in range(end):
        recorded = (read.mass[0] * (read.tokens[0] == token)).sum(-1)
        total = total + recorded.sum()
        if recorded.any():
            again, _ = memory._replace(state=changed(memory.state, token, 2.0)).read()
            difference = (again - y)[0].unflatten(-1, (heads, -1)).transpose(0, 1) / 2
            assert torch.allclose(difference, recorded[..., None].expand_as(difference), atol=1e-9), token
    assert total > 0
    assert torch.allclose(total, (read.mass[0] * (read.tokens[0] >= 0)).sum())


def test_nothing_is_computed_where_nobody_watches(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Read:
        raise AssertionError

    for name in ("memorizing_attention", "focused_attention", "unlimiformer_attention", "landmark_attention"):
        monkeypatch.setattr(f"zoo.memory.retrieval.{name}.Read", fail)
    with pytest.raises(AssertionError):
        memory.read()
    assert isinstance(memory.mixer, nn.Module)
    with torch.no_grad():
        memory.mixer(memory.x, memory.state)
