"""`backend: fla`: which function of flash-linear-attention gets which arguments, what is refused, and on a
GPU the kernels themselves (tests/interpreted has them interpreted).

pip install -c constraints/cuda.txt fla-core
python -m pytest -m gpu tests/memory/fast_weights/test_fla_kernels.py
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.memory.fast_weights.mixers import MIXERS
from tests.memory.fast_weights.random_inputs import DECAYS, RULES, Form, random_inputs, run
from zoo.errors import UserError
from zoo.memory.fast_weights import fla_kernels
from zoo.memory.fast_weights.inputs import Inputs
from zoo.memory.fast_weights.recurrence import Recurrence, fast_weights, fast_weights_loop
from zoo.train.runs import build
from zoo.train.runs.config import compose

MODELS = ["deltanet", "gated_deltanet", "kda", "gla", "hgrn2", "retnet", "lightning", "rwkv6", "rwkv7"]
MODELS += ["gated_deltanet_hybrid"]


class Functions:
    """The functions of fla.ops by their equations; `called` has the name and the q of every call."""

    def __init__(self) -> None:
        self.called: list[tuple[str, Tensor]] = []

    def _compute(self, name: str, q: Tensor, parts: dict[str, Any], options: dict[str, Any]) -> Any:
        assert options.pop("scale") == 1.0
        assert options.pop("output_final_state")
        state = options.pop("initial_state")
        assert not options
        assert state.dtype == torch.float32
        assert parts["g"] is None or parts["g"].dtype == torch.float32
        self.called.append((name, q))
        inputs = Inputs(q, parts.pop("k"), parts.pop("v"), parts.pop("g"), state, **parts)
        o, state = fast_weights_loop(Inputs(*(x if x is None else x.float() for x in inputs)))
        return o.to(q.dtype), state

    def chunk_simple_gla(self, q: Tensor, k: Tensor, v: Tensor, *, g: Tensor | None, **options: Any) -> Any:
        g = None if g is None else g[..., None]
        return self._compute("simple_gla", q, {"k": k, "v": v, "g": g}, options)

    def chunk_gla(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, **options: Any) -> Any:
        assert g.shape == q.shape
        return self._compute("gla", q, {"k": k, "v": v, "g": g}, options)

    def chunk_rwkv6(self, q: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, **options: Any) -> Any:
        assert w.shape == q.shape
        return self._compute("rwkv6", q, {"k": k, "v": v, "g": w, "bonus": u}, options)

    def chunk_delta_rule(self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, **options: Any) -> Any:
        assert q.dtype != torch.float32
        parts = {"k": k, "v": v, "g": None, "strength": beta[..., None]}
        return self._compute("delta", q, parts, options)

    def chunk_gated_delta_rule(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **options: Any
    ) -> Any:
        parts = {"k": k, "v": v, "g": g[..., None], "strength": beta[..., None]}
        return self._compute("gated", q, parts, options)

    def chunk_kda(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **options: Any) -> Any:
        assert g.shape == q.shape
        return self._compute("kda", q, {"k": k, "v": v, "g": g, "strength": beta[..., None]}, options)

    def chunk_dplr_delta_rule(
        self, q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, gk: Tensor, **options: Any
    ) -> Any:
        assert gk.shape == q.shape
        return self._compute("dplr", q, {"k": k, "v": v, "g": gk, "a": a, "b": b}, options)


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> Functions:
    """In place of the package, on a machine that interprets its kernels."""
    functions: Any = Functions()
    monkeypatch.setitem(sys.modules, "fla", sys)
    monkeypatch.setitem(sys.modules, "fla.ops", functions)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    fake: Functions = functions
    return fake


NAMES = {
    "additive": ("simple_gla", "simple_gla", "gla"),
    "bonus": ("rwkv6", "rwkv6", "rwkv6"),
    "delta": ("gated", "gated", "kda"),
    "general": ("dplr", "dplr", "dplr"),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decay", DECAYS)
def test_the_function_of_a_rule(rule: str, decay: str, functions: Functions) -> None:
    inputs = random_inputs(decay, rule, 7)
    result = run(partial(fast_weights, backend="fla"), inputs, torch.float32)
    expected = run(fast_weights_loop, inputs, torch.float32)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in functions.called] == [NAMES[rule][DECAYS.index(decay)]]


def test_the_delta_rule_without_decay_in_16_bits(functions: Functions) -> None:
    inputs = random_inputs("none", "delta", 7, 6)
    inputs = Inputs(*(x if x is None else x.float() for x in inputs))
    o, state = fla_kernels.fast_weights(inputs, torch.bfloat16)
    assert [name for name, _ in functions.called] == ["delta"]
    assert o.dtype == state.dtype == torch.float32


@pytest.mark.parametrize("new_mixer", MIXERS.values(), ids=MIXERS)
def test_mixers_under_autocast_multiply_in_bfloat16(
    new_mixer: Callable[..., Any], functions: Functions
) -> None:
    """And keep the types of their outputs and states."""
    torch.manual_seed(0)
    mixer, kernel = new_mixer(), new_mixer(backend="fla")
    kernel.load_state_dict(mixer.state_dict())
    x = torch.randn(1, 9, 16)
    for dtype, used in {torch.bfloat16: torch.bfloat16, torch.float16: torch.float32}.items():
        with torch.autocast("cpu", dtype):
            y, state, *_ = mixer(x, mixer.init_state(1))
            result, after, *_ = kernel(x, kernel.init_state(1))
        assert functions.called.pop()[1].dtype == used
        assert (result.dtype, after[-1].dtype) == (y.dtype, state[-1].dtype)
        assert (result - y).abs().max() <= 3e-2 * y.abs().max()
    kernel(x, kernel.init_state(1))
    assert functions.called.pop()[1].dtype == torch.float32


@pytest.mark.parametrize("new_mixer", MIXERS.values(), ids=MIXERS)
def test_a_missing_package_is_an_error(
    new_mixer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fla", None)
    with pytest.raises(UserError, match=r"expected the package fla-core: pip install -c .* fla-core "):
        new_mixer(backend="fla")


@pytest.mark.parametrize("model", MODELS)
def test_models_take_the_backend(model: str, functions: Functions, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"model={model}", "size=nano"]
    assert compose(words).model.backend == "torch"
    built = build.model(compose([*words, "model.backend=fla"]))
    notes = built.device_notes(torch.device("cuda"))
    assert sum("backend fla: interpreted in tests, never run on a GPU" in note for note in notes) == 1
    monkeypatch.setitem(sys.modules, "fla.ops", None)
    with pytest.raises(UserError, match="expected the package fla-core"):
        build.model(compose([*words, "model.backend=fla"]))


def test_torch_asks_for_no_package_and_has_no_note() -> None:
    assert Recurrence(32, "torch").device_note(torch.device("cuda")) == ""
    assert "fla" not in sys.modules


@pytest.mark.parametrize(
    ("rule", "head_dim", "value_dim", "dtype", "message"),
    [
        ("delta", 258, 2, torch.float32, "a head_dim of at most 256 for the delta rules .* found 258"),
        ("general", 258, 2, torch.float32, "a head_dim of at most 256 for the delta rules .* found 258"),
        ("additive", 6, 3, torch.bfloat16, "even head_dim and value_dim .* in bfloat16, found 6 and 3"),
    ],
)
def test_head_sizes_that_kernels_do_not_take(
    rule: str, head_dim: int, value_dim: int, dtype: torch.dtype, message: str, functions: Functions
) -> None:
    inputs = random_inputs("none", rule, 2, head_dim, value_dim)
    inputs = Inputs(*(x if x is None else x.float() for x in inputs))
    with pytest.raises(UserError, match=message):
        fla_kernels.fast_weights(inputs, dtype)
    assert not functions.called


def test_devices_and_types_that_kernels_do_not_take(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = random_inputs("none", "additive", 2)
    with pytest.raises(UserError, match=r"expected float32, .* the kernels of fla-core, found float64"):
        fast_weights(inputs, backend="fla")
    monkeypatch.delenv("TRITON_INTERPRET")
    inputs = Inputs(*(x if x is None else x.float() for x in inputs))
    with pytest.raises(UserError, match="expected a CUDA device for the kernels of fla-core, found cpu"):
        fast_weights(inputs, backend="fla")


# -- on a GPU


def assert_close(results: list[Tensor], references: list[Tensor], tolerance: float) -> None:
    """`tolerance` is relative to each tensor's largest entry."""
    for index, (result, expected) in enumerate(zip(results, references, strict=True)):
        assert result.dtype == expected.dtype
        gap, largest = (result - expected).abs().max(), expected.abs().max()
        assert gap <= tolerance * largest + 1e-6, f"tensor {index}: off by {gap:.2g} of {largest:.2g}"


@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("time", [1, 5, 64, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels(rule: str, decay: str, time: int, dtype: torch.dtype) -> None:
    """Their products are in TF32 where inputs are in float32."""
    inputs = random_inputs(decay, rule, time, 32, 64)
    inputs = Inputs(*(x if x is None else x.float().cuda() for x in inputs))
    kernel: Form = partial(fla_kernels.fast_weights, dtype=dtype)
    tolerance = 1e-2 if dtype == torch.float32 else 5e-2
    assert_close(run(kernel, inputs, torch.float32), run(fast_weights, inputs, torch.float32), tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models(name: str, dtype: torch.dtype) -> None:
    """Logits and weights' gradients over two segments, also under bf16 autocast."""
    results = []
    for backend in ("torch", "fla"):
        torch.manual_seed(0)
        model = build.model(compose([f"model={name}", "size=nano", f"model.backend={backend}"])).cuda()
        tokens = torch.randint(200, (2, 2 * model.segment_len), device="cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits, _ = model(tokens, model.init_state(2))
        logits.float().logsumexp(-1).sum().backward()
        weights = [weight.grad for weight in model.parameters() if weight.grad is not None]
        results.append([logits.float(), *weights])
    assert_close(results[1], results[0], 2e-2 if dtype == torch.float32 else 1e-1)
