"""A carried state stays of one size over hundreds of segments (slow: thousands), or is known to grow.

Models as configured, at size=nano with initial weights, read random text; the size of each tensor of the
state is its root mean square at eight points, the sum of the second four divided by that of the first four:
26 / 10 in proportion to the text, 1.65 as the root of its length.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.contract.test_contract import MODELS
from tests.laws import untyped
from tests.memory.configured import catches, configured, parts
from zoo.law_tools import float_leaves
from zoo.memory.fast_weights.associative import AssociativeMemory
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.module import SequenceModule
from zoo.state import lazy_field_names

CONSTANT, GROWS = 1.4, 2.0  # at most, at least
GROWING: dict[str, set[str]] = {
    "infini": {"matrix", "normaliser"},  # sums over the text; an answer is a quotient of the two
    "linear_transformer": {"matrix"},  # both in one matrix
    "performer": {"matrix"},
    "based": {"matrix"},
    "lightning": {"matrix"},  # its last layer forgets nothing; a norm follows
}
"""{model: fields of its state that grow with the text}"""


def has_bank(model: SequenceModule) -> bool:
    return any(lazy_field_names(model.init_state(1)))


def segments(model: SequenceModule) -> int:
    """A bank is copies of the last tokens' keys and values: twice its length is enough and more."""
    return 64 if has_bank(model) else 128 if model.parallel == "none" else 256


@torch.no_grad()
def growth(model: SequenceModule, count: int) -> dict[str, float]:
    """The sizes at the last four points in proportion to those at the first four, the largest by field."""
    generator = torch.Generator().manual_seed(0)
    state, sizes = model.init_state(2), []
    for _ in range(8):
        shape = (2, model.segment_len * count // 8)
        with untyped():
            _, state = model(torch.randint(model.vocab_size, shape, generator=generator), state)
        sizes.append([leaf.abs().square().mean().sqrt().item() for _, leaf in float_leaves(state)])
    fields: dict[str, float] = {}
    for (name, _), *points in zip(float_leaves(state), *sizes, strict=True):
        (field,) = [word for word in name.split(".") if not word.isdigit()][-1:]
        ratio = (sum(points[4:]) + 1e-9) / (sum(points[:4]) + 1e-9)
        fields[field] = max(ratio, fields.get(field, 0.0))
    return fields


def stays_of_one_size(name: str, count: int | None = None) -> Callable[[SequenceModule], None]:
    def check(model: SequenceModule) -> None:
        for field, ratio in growth(model, count or segments(model)).items():
            grows = field in GROWING.get(name, set())
            assert ratio > GROWS if grows else ratio < CONSTANT, f"{field}: {ratio}"

    return check


@pytest.mark.parametrize("name", MODELS)
def test_a_state_stays_of_one_size(name: str) -> None:
    stays_of_one_size(name)(configured(name, size="nano").float())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_state_stays_of_one_size_over_thousands_of_segments(name: str) -> None:
    model = configured(name, size="nano").float()
    stays_of_one_size(name, 128 if has_bank(model) else 2048)(model)


@torch.no_grad()
def changed_by_the_last_segment(name: str, *overrides: str, segments: int) -> float:
    """By how much another last segment changes memory tokens, as the first layer reads them: normalised."""
    model = configured(name, *overrides, size="nano").float()
    generator, memories = torch.Generator().manual_seed(0), []
    text = torch.randint(model.vocab_size, (4, segments * model.segment_len), generator=generator)
    last = torch.randint(model.vocab_size, (2, 4, model.segment_len), generator=generator)
    with untyped():
        _, state = model(text, model.init_state(4))
        for tokens in last:
            (memory,) = [leaf for field, leaf in float_leaves(model(tokens, state)[1]) if field == "memory"]
            memories.append(F.layer_norm(memory, memory.shape[-1:]))
    return float((memories[0] - memories[1]).norm() / memories[0].norm())


@pytest.mark.parametrize("name", ["rmt", "rmt_xl"])
def test_memory_tokens_stay_open_to_what_comes(name: str) -> None:
    early, late = (changed_by_the_last_segment(name, segments=count) for count in (4, 128))
    assert late > 0.5 * early


def test_memory_tokens_without_a_last_norm_freeze() -> None:
    form = partial(changed_by_the_last_segment, "rmt_xl", "model.memory_norm=false")
    assert form(segments=128) < 0.1 * form(segments=4)
    published = partial(form, "model.prenorm=false")
    assert published(segments=128) > 0.5 * published(segments=4)
    growing = configured("rmt_xl", "model.memory_norm=false", size="nano").float()
    assert min(growth(growing, 128)[field] for field in ("memory", "hidden")) > GROWS


@torch.no_grad()
def memory_growth(*settings: str) -> float:
    """ARMT's memory alone, whose initial W_v is 0 in a model, written by 256 segments of similar tokens."""
    torch.manual_seed(0)
    memory = parts(configured("armt", *settings), AssociativeMemory)[0].float()
    for projection in (memory.key, memory.query, memory.value):
        nn.init.normal_(projection.weight, std=memory.width**-0.5)
    common, state, sizes = torch.randn(1, 1, memory.width), memory.init_state(1), []
    for _ in range(8):
        with untyped():
            for _ in range(32):
                state = memory.write(common + 0.3 * torch.randn(1, 8, memory.width), state)
        sizes.append(state.matrix.square().mean().sqrt().item())
    return sum(sizes[4:]) / sum(sizes[:4])


def test_an_associative_memory_stays_of_one_size_by_its_correction() -> None:
    assert memory_growth() < CONSTANT
    assert memory_growth("model.correction=false") > GROWS


@torch.no_grad()
def test_a_recurrence_that_never_forgets_is_caught() -> None:
    """A sum of random inputs grows as the root of their number."""
    model = configured("mamba", size="nano").float()
    for mixer in parts(model, MambaMixer):
        mixer.A_log.fill_(-80.0)
    assert catches(stays_of_one_size("mamba"), model)
