"""Under bfloat16 autocast memories multiply matrices in bfloat16 and keep sums, decays and states in float32:
against the same inputs in float64, over texts long enough for an error to grow.

Errors are root mean squares as shares of the exact result's.  A number rounded to bfloat16 is off by 1.7e-3.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import zoo
from zoo.memory.fast_weights import associative, infini_attention
from zoo.memory.fast_weights.associative import AssociativeMemory
from zoo.memory.fast_weights.infini_attention import MemoryState, Rule, read_and_write
from zoo.memory.mixer import matmul_dtype
from zoo.memory.state_space.inputs import SSDInputs
from zoo.memory.state_space.ssd import ssd
from zoo.state import leaves, tree_map

SUMS, PRODUCTS = 1e-5, 5e-3
"""Bounds of errors: of sums in float32, and of what goes through one or two products in bfloat16."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(result: Tensor, exact: Tensor) -> float:
    assert result.isfinite().all()
    return float((result.double() - exact).norm() / exact.norm())


def in_bfloat16(error: float) -> bool:
    """Neither sums in bfloat16 nor products in float32."""
    return SUMS < error < PRODUCTS


@pytest.mark.parametrize("dt", [1e-3, 3e-2, 1.0])
def test_ssd_over_4096_tokens(dt: float) -> None:
    """Steps that forget within thousands of tokens, within tens, and within one."""
    inputs = {
        "x": draw(1, 4096, 2, 16).bfloat16(),
        "dt": dt * (0.5 + draw(1, 4096, 2, seed=1).abs()),
        "A": -0.5 - draw(2, seed=2).abs(),
        "B": draw(1, 4096, 1, 16, seed=3).bfloat16(),
        "C": draw(1, 4096, 1, 16, seed=4).bfloat16(),
        "state": draw(1, 2, 16, 16, seed=5),
    }

    def run(dtype: torch.dtype | None) -> list[Tensor]:
        tensors = {name: x.to(dtype or x.dtype, copy=True).requires_grad_() for name, x in inputs.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
            y, h = ssd(SSDInputs(**tensors, dt_softplus=False))
        weighted = (y * draw(*y.shape, seed=8)).sum() + (h * draw(*h.shape, seed=9)).sum()
        return [y.detach(), h.detach(), *torch.autograd.grad(weighted, list(tensors.values()))]

    exact, results = run(torch.float64), run(None)
    assert results[0].dtype == results[1].dtype == torch.float32
    errors = [error(result, expected) for result, expected in zip(results, exact, strict=True)]
    assert in_bfloat16(errors[0])
    *others, dA, dB, dC, dstate = errors[1:]  # of h, and the gradients of x and dt
    assert max(*others, dB, dC, dstate) < PRODUCTS
    assert dA < 5e-2, "a sum of both signs over all tokens; in float32 it is right"
    in_float32 = ssd(SSDInputs(**{name: x.float() for name, x in inputs.items()}, dt_softplus=False))
    assert error(in_float32[0], exact[0]) < SUMS


@pytest.mark.parametrize("rule", ["linear", "delta"])
@pytest.mark.parametrize("segments", [8, 1024])
@torch.no_grad()
def test_the_compressive_memory_over_1024_segments(rule: Rule, segments: int) -> None:
    q, k, v = (draw(1, segments, 2, 16, 16, seed=seed).bfloat16() for seed in range(3))
    empty = MemoryState(torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16), torch.zeros(1, dtype=torch.long))
    exact, exact_state = read_and_write(
        q.double(),
        k.double(),
        v.double(),
        tree_map(lambda x: x.double(), empty)._replace(writes=empty.writes),
        rule,
    )
    with torch.autocast("cpu", torch.bfloat16):
        retrieved, state = read_and_write(q, k, v, empty, rule)
    assert state.matrix.dtype == state.normaliser.dtype == torch.float32
    assert in_bfloat16(error(retrieved, exact))
    assert in_bfloat16(error(retrieved[:, -1], exact[:, -1]))
    assert in_bfloat16(error(state.matrix, exact_state.matrix))
    assert error(state.normaliser, exact_state.normaliser) < SUMS


@pytest.mark.parametrize("in_turn_and_bounded", [False, True])
@torch.no_grad()
def test_the_associative_memory_over_256_writes(in_turn_and_bounded: bool) -> None:
    torch.manual_seed(0)
    write: associative.Write = "in_turn" if in_turn_and_bounded else "together"
    memory = AssociativeMemory(32, 8, write=write, bounded=in_turn_and_bounded)
    exact = AssociativeMemory(32, 8, write=write, bounded=in_turn_and_bounded).double()
    exact.load_state_dict(memory.state_dict())
    x, state = draw(1, 64, 32, seed=1), memory.init_state(1)
    for segment in range(256):
        with torch.autocast("cpu", torch.bfloat16):
            state = memory.write(draw(1, 4, 32, seed=segment), state)
    assert state.matrix.dtype == state.normaliser.dtype == torch.float32
    features = associative.dpfp(memory.query(x), 3).bfloat16()
    in_float64 = state._replace(matrix=state.matrix.double(), normaliser=state.normaliser.double())
    kA, d = associative.lookup(features.double(), in_float64, in_turn_and_bounded)
    with torch.autocast("cpu", torch.bfloat16):
        values, denominators = associative.lookup(features, state, in_turn_and_bounded)
        read = memory.read(x, state)
    assert in_bfloat16(error(values, kA))
    assert error(denominators, d) < SUMS
    assert error(read, exact.read(x.double(), in_float64)) < 2 * PRODUCTS  # queries are in bfloat16 too


@pytest.mark.parametrize("name", ["mamba2", "infini"])
@torch.no_grad()
def test_products_in_bfloat16_add_nothing_to_a_model_s_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What autocast rounds elsewhere outweighs it: logits of 2,048 tokens against float64."""
    model = zoo.build_model(f"model={name}", "task=lm", "size=nano").eval()
    text = torch.randint(257, (1, 2048), generator=torch.Generator().manual_seed(0))

    def logits() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = model(text)
        assert all(leaf.dtype != torch.bfloat16 for leaf in leaves(state))
        return logits

    in_bfloat16 = logits()
    keep: Callable[[Tensor, torch.dtype], torch.dtype] = lambda activations, state: state  # noqa: E731
    monkeypatch.setattr("zoo.memory.state_space.ssd.matmul_dtype", keep)
    monkeypatch.setattr(infini_attention, "matmul_dtype", keep)
    in_float32 = logits()
    assert not torch.equal(in_bfloat16, in_float32)
    exact, _ = model.double()(text)
    assert error(in_bfloat16, exact) < 1.1 * error(in_float32, exact)


def test_only_autocast_in_bfloat16_changes_what_is_multiplied() -> None:
    low, half, full = (
        torch.zeros(1, dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)
    )
    assert matmul_dtype(low, torch.float32) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert matmul_dtype(low, torch.float32) == torch.bfloat16
        assert matmul_dtype(full, torch.float32) == torch.float32
        assert matmul_dtype(full.double(), torch.float64) == torch.float64
    with torch.autocast("cpu", torch.float16):
        assert matmul_dtype(half, torch.float32) == torch.float32
    assert matmul_dtype(torch.zeros(1, device="meta"), torch.float32) == torch.float32
