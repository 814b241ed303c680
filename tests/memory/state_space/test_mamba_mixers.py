"""The mixers of Mamba and Mamba-2: their states, initial weights, and errors in place of fallbacks."""

import math
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError
from zoo.memory.mixer import Mixer
from zoo.memory.state_space import kernels
from zoo.memory.state_space.mamba2_mixer import Mamba2Mixer
from zoo.memory.state_space.mamba_mixer import MambaMixer
from zoo.models.blocks import init_weights
from zoo.models.mamba import Mamba
from zoo.state import leaves, nbytes

MIXERS: dict[str, Callable[[], Mixer]] = {
    "mamba": partial(MambaMixer, 8, 12, state_size=3),
    "mamba, normed": partial(MambaMixer, 8, 12, state_size=3, norm_eps=1e-6, dt_rank=2, bias=True),
    "mamba, conv_size 1": partial(MambaMixer, 8, 5, state_size=2, conv_size=1, conv_bias=False),
    "mamba2": partial(Mamba2Mixer, 8, 4, head_dim=3, state_size=2, chunk_size=5),
    "mamba2, groups": partial(
        Mamba2Mixer, 8, 6, head_dim=2, state_size=3, groups=3, gated_width=4, chunk_size=4
    ),
    "mamba2, norm first": partial(Mamba2Mixer, 8, 2, head_dim=4, norm="before_gate", skip_per_channel=True),
    "mamba2, no norm": partial(Mamba2Mixer, 8, 2, head_dim=4, norm="none", dt_limit=(0.01, 0.02)),
}
x = torch.randn(2, 13, 8, generator=torch.Generator().manual_seed(0))


def build(name: str) -> Mixer:
    torch.manual_seed(0)
    return MIXERS[name]()


@pytest.mark.parametrize("name", MIXERS)
def test_a_text_may_be_cut_anywhere(name: str) -> None:
    mixer, text = build(name).double(), x.double()
    expected, end = mixer(text, mixer.init_state(2))
    for lengths in ([1] * 13, [5, 8], [12, 1]):
        state, outputs = mixer.init_state(2), []
        for piece in text.split(lengths, dim=1):
            y, state = mixer(piece, state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(leaves(state), leaves(end), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_recurrence_is_carried_in_float32_at_least(name: str, dtype: torch.dtype) -> None:
    mixer = build(name).to(dtype)
    y, state = mixer(x.to(dtype), mixer.init_state(2))
    assert y.dtype == dtype
    assert state.ssm.dtype == torch.promote_types(dtype, torch.float32)
    assert state.conv.dtype == dtype
    assert all(leaf.shape[0] == 2 for leaf in leaves(state))


@pytest.mark.parametrize("name", MIXERS)
def test_under_autocast_the_recurrence_stays_in_float32(name: str) -> None:
    """Far closer to the same mixer in float32 than a recurrence in bf16 could be."""
    mixer = build(name)
    exact, _ = mixer(x, mixer.init_state(2))
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x, mixer.init_state(2))
    assert {leaf.dtype for leaf in leaves(state)} == {torch.float32}
    assert (y - exact).abs().max() < 0.03 * exact.abs().max()


def test_bytes_of_state() -> None:
    assert nbytes(MambaMixer(8, 12, state_size=3, conv_size=4).init_state(2)) == 2 * 4 * (3 * 12 + 12 * 3)
    mixer = Mamba2Mixer(8, 4, head_dim=3, state_size=2, groups=2, gated_width=5)
    assert nbytes(mixer.init_state(1)) == 4 * (3 * (4 * 3 + 2 * 2 * 2) + 4 * 3 * 2)


@pytest.mark.parametrize("common", [False, True])
def test_initial_weights(common: bool) -> None:
    """A, D, dt and norms as in the papers, also after the decoder's `init_weights`."""
    torch.manual_seed(0)
    mamba, mamba2 = (
        MambaMixer(64, 4096, state_size=5, dt_rank=16),
        Mamba2Mixer(64, 4096, head_dim=1, state_size=2),
    )
    if common:
        init_weights(mamba, 2)
        init_weights(mamba2, 2)
    for mixer in (mamba, mamba2):
        dt = F.softplus(mixer.dt_bias)
        assert 1e-3 <= dt.min() < 1.01e-3
        assert 0.099 < dt.max() <= 0.1001
        assert dt.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.05)
        assert mixer.D.eq(1).all()
    assert torch.allclose(mamba.A_log.exp(), torch.arange(1.0, 6).expand(4096, 5))
    assert mamba.dt_weight.abs().max() <= 0.25
    assert mamba.dt_weight.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.02)
    A = mamba2.A_log.exp()
    assert 1 <= A.min() < 1.1
    assert 15.9 < A.max() <= 16
    assert A.mean().item() == pytest.approx(8.5, rel=0.03)
    assert mamba2.norm_weight is not None
    assert mamba2.norm_weight.eq(1).all()


def test_a_state_of_ones_decays_with_rate_A() -> None:  # noqa: N802
    """Without input the state only fades: h_n by exp(-n dt)."""
    mixer = MambaMixer(4, 6, state_size=3).double()
    empty = torch.zeros(1, 5, 4, dtype=torch.float64)
    state = mixer.init_state(1)
    with torch.no_grad():
        mixer.conv.bias.zero_()  # type: ignore[union-attr]
        _, after = mixer(empty, state._replace(ssm=torch.ones_like(state.ssm)))
    dt = F.softplus(mixer.dt_bias)
    expected: Tensor = (-5 * dt[:, None] * torch.arange(1, 4)).exp()
    torch.testing.assert_close(after.ssm[0], expected)


def test_heads_are_a_multiple_of_groups() -> None:
    with pytest.raises(ValueError, match="heads 4 is not a multiple of groups 3"):
        Mamba2Mixer(8, 4, groups=3)


@pytest.mark.parametrize("build", [partial(MambaMixer, 8, 16), partial(Mamba2Mixer, 8, 2)])
@pytest.mark.parametrize("missing", ["mamba_ssm", "causal_conv1d"])
def test_missing_kernels_are_an_error(
    build: Callable[..., Mixer], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"mamba_ssm": "causal_conv1d", "causal_conv1d": "mamba_ssm"}[missing]
    monkeypatch.setitem(sys.modules, installed, sys)  # any module that exists
    monkeypatch.setitem(sys.modules, missing, None)
    package = missing.replace("_", "-")
    with pytest.raises(UserError, match=f"expected the package {package}: pip install .* {package} "):
        build(backend="mamba_ssm")


def test_runs_on_cuda_are_told_of_the_scan() -> None:
    """Each note once; the Triton kernel is no silent default while no GPU has run it."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    model = Mamba(11, 8, 2, 16, 24)
    assert model.device_notes(cpu) == []
    assert [note.partition(":")[0] for note in model.device_notes(cuda)] == ["backend torch"]
    assert kernels.scan_note("mamba_ssm", cuda) == ""
    assert "never run on a GPU" in kernels.scan_note("triton", cuda)


def test_the_triton_kernel_is_required_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UserError, match=r"expected the package triton: torch for CUDA brings it along"):
        MambaMixer(8, 12, backend="triton")
