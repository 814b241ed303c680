"""`backend: flex` of a sliding window against the window's own form: with gradients by flex_attention's
equations, without by its unfused form and compiled for the CPU, and on a GPU by its kernels.

python -m pytest -m gpu tests/memory/attention/test_flex_window.py
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from zoo.errors import UserError
from zoo.memory.attention import flex_window, sliding_window
from zoo.memory.attention.flex_window import BLOCK, _blocks
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.state import detach, leaves, replace_rows
from zoo.train.runs import build
from zoo.train.runs.config import compose

WIDTH, HEADS = 16, 4
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def layers(device: str = "cpu", **options: Any) -> list[WindowAttention]:
    """The same layer by each backend."""
    pair = []
    for backend in ("torch", "flex"):
        torch.manual_seed(0)
        pair.append(WindowAttention(WIDTH, HEADS, backend=backend, **options).double().to(device))
    return pair


def run(layer: WindowAttention, calls: list[int]) -> list[Tensor]:
    """Outputs, final state and gradients of three calls; row 1 begins anew with the second, row 2 with the
    third."""
    torch.manual_seed(1)
    x = torch.randn(3, sum(calls), WIDTH, dtype=torch.float64, requires_grad=True)
    state, outputs = layer.init_state(3), []
    for call, piece in enumerate(x.split(calls, dim=1)):
        fresh = torch.tensor([row == call and call > 0 for row in range(3)])
        state = replace_rows(state, layer.init_state(3), fresh)
        y, state = layer(piece, state)
        outputs.append(y)
    grads = torch.autograd.grad(torch.cat(outputs, 1).sin().sum(), [x, *layer.parameters()])
    return [*outputs, *leaves(detach(state)), *grads]


def by_equations(
    q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask, scale: float, enable_gqa: bool
) -> Tensor:
    """flex_attention, whose own form for the CPU has no gradients: softmax over what the mask shows of the
    listed blocks."""
    rows, queries, keys = (torch.arange(size) for size in (len(q), q.shape[2], k.shape[2]))
    visible = block_mask.mask_mod(rows[:, None, None], torch.tensor(0), queries[:, None], keys)
    listed = block_mask.to_dense()[0, 0].bool()[queries[:, None] // BLOCK, keys // BLOCK]
    mask = (visible & listed)[:, None]
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=enable_gqa)


@pytest.mark.parametrize("calls", [[3, 128, 130], [200, 5, 256]])
@pytest.mark.parametrize("sinks", [0, 4, 130])
@pytest.mark.parametrize("window", [1, 50, 129, 300])
def test_outputs_states_and_gradients(
    window: int, sinks: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls of fewer than 128 tokens aren't flex_attention's."""
    times = []

    def counted(q: Tensor, *rest: Any, **options: Any) -> Tensor:
        times.append(q.shape[2])
        return by_equations(q, *rest, **options)

    monkeypatch.setattr(sliding_window, "require_gpu", lambda *args: None)
    monkeypatch.setattr(flex_window, "flex_attention", counted)
    for kv_heads in (1, HEADS):
        own, flex = layers(window=window, sinks=sinks, kv_heads=kv_heads)
        torch.testing.assert_close(run(flex, calls), run(own, calls), rtol=1e-9, atol=1e-11)
    assert times == 2 * [time for time in calls if time >= BLOCK]


@pytest.mark.parametrize("sinks", [0, 4])
@torch.no_grad()
def test_torchs_own_form(sinks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliding_window, "require_gpu", lambda *args: None)
    own, flex = layers(window=200, sinks=sinks, kv_heads=1)
    x = torch.randn(2, 400, WIDTH, dtype=torch.float64)
    state = replace_rows(own(x, own.init_state(2))[1], own.init_state(2), torch.tensor([True, False]))
    torch.testing.assert_close(flex(x, state)[0], own(x, state)[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("time", [128, 129, 700])
@pytest.mark.parametrize("front", [0, 128, 256])
@pytest.mark.parametrize("window", [1, 2, 128, 129, 130, 500])
def test_the_blocks_are_those_with_something_to_see(window: int, front: int, time: int) -> None:
    counts, indices = (part[0, 0] for part in _blocks(time, window, front, torch.device("cpu")))
    query, key = torch.arange(time)[:, None], torch.arange(window - 1 + time)
    visible = torch.cat(
        [torch.ones(time, front, dtype=torch.bool), (key >= query) & (key < query + window)], dim=1
    )
    for block, (count, row) in enumerate(zip(counts.tolist(), indices.tolist(), strict=True)):
        seen = visible[block * BLOCK : (block + 1) * BLOCK].any(0).nonzero()[:, 0] // BLOCK
        assert sorted(row[:count]) == seen.unique().tolist()


@pytest.mark.slow
@torch.no_grad()
def test_compiled_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernel reads the listed blocks alone."""
    monkeypatch.setattr(sliding_window, "require_gpu", lambda *args: None)
    for sinks in (0, 4):
        own, flex = (layer.float().eval() for layer in layers(window=200, sinks=sinks))
        x = torch.randn(2, 700, WIDTH)
        state = own(x[:, :90], own.init_state(2))[1]
        expected, compiled = own(x, state)[0], torch.compile(flex)(x, state)[0]
        torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


def test_what_it_can_not_compute_is_refused() -> None:
    for options in ({"position": "alibi"}, {"dropout": 0.1}):
        with pytest.raises(ValueError, match="expected torch with biased scores or dropout, found flex"):
            WindowAttention(WIDTH, HEADS, window=4, backend="flex", **options)
    with pytest.raises(UserError, match="attention_backend: expected torch without a window, found flex"):
        build.model(compose(["model=transformer", "size=nano", "model.attention_backend=flex"]))


def test_queries_that_autocast_left_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    types = set()

    def read(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        types.update(part.dtype for part in (q, k, v))
        return by_equations(q, k, v, **options)

    monkeypatch.setattr(flex_window, "flex_attention", read)
    q, k = torch.randn(1, 2, 9, 4), torch.randn(1, 2, 12, 4)
    length = torch.zeros(1, dtype=torch.long)
    y = flex_window.flex_window(q, k, k.bfloat16(), length, window=4, sinks=0, scale=0.5)
    assert {*types, y.dtype} == {torch.bfloat16}


def test_the_cpu_is_refused() -> None:
    layer = layers(window=4)[1]
    with pytest.raises(
        UserError, match="expected a CUDA device for the kernels of flex_attention, found cpu"
    ):
        layer(torch.zeros(1, BLOCK, WIDTH).double(), layer.init_state(1))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sliding_window", "samba", "griffin", "gated_deltanet_hybrid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models(name: str, dtype: torch.dtype) -> None:
    """Logits and weights' gradients over two calls, also under bf16 autocast."""
    results = []
    for backend in ("torch", "flex"):
        torch.manual_seed(0)
        model = build.model(
            compose([f"model={name}", "size=micro", f"model.attention_backend={backend}"])
        ).cuda()
        tokens = torch.randint(200, (2, 4 * model.segment_len), device="cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            first, state = model(tokens[:, :300], model.init_state(2))
            second, _ = model(tokens[:, 300:], state)
        logits = torch.cat([first, second], dim=1).float()
        logits.logsumexp(-1).sum().backward()
        weights = [weight.grad for weight in model.parameters() if weight.grad is not None]
        results.append([logits, *weights])
    tolerance = 2e-2 if dtype == torch.float32 else 1e-1
    for index, (expected, result) in enumerate(zip(*results, strict=True)):
        gap, largest = (result - expected).abs().max(), expected.abs().max()
        assert gap <= tolerance * largest + 1e-6, f"tensor {index}: off by {gap:.2g} of {largest:.2g}"
