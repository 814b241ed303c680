"""Positions: each kind's rotations, biases and scores, and a kind with neither of today's forms."""

import math
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.memory.attention.loops import complex_rotation
from zoo.memory.attention.biases import Alibi, alibi_exponents
from zoo.memory.attention.position_kinds import build_positions
from zoo.memory.attention.position_options import Position
from zoo.memory.attention.positions import InterleavedRope, Positions, Rope, repeat_kv
from zoo.memory.attention.rotary import rotary, rotary_table
from zoo.memory.attention.rotary_scaling import Frequencies

KINDS: dict[str, Positions] = {
    "none": Positions(),
    "rope": Rope(base=50.0),
    "partial rope": Rope(base=50.0, rotated=4),
    "interleaved rope": InterleavedRope(base=50.0),
    "alibi": Alibi(heads=4),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rope_is_complex_multiplication() -> None:
    x, positions = draw(2, 3, 5, 8), torch.tensor([0, 1, 7, -4, 1000])
    rotated = Rope(base=500.0).rotate(x, positions)
    for row in range(2):
        for head in range(3):
            for t, position in enumerate(positions.tolist()):
                expected = complex_rotation(x[row, head, t], position, 500.0)
                torch.testing.assert_close(rotated[row, head, t], expected)


def test_rope_may_rotate_the_first_features_alone() -> None:
    x, positions = draw(2, 3, 5, 8), torch.arange(5)
    rotated = Rope(base=500.0, rotated=6).rotate(x, positions)
    assert torch.equal(rotated[..., :6], rotary(x[..., :6], positions, 500.0))
    assert torch.equal(rotated[..., 6:], x[..., 6:])


def test_interleaved_rope_rotates_neighbouring_features() -> None:
    x, positions = draw(2, 3, 5, 8), torch.arange(5)
    halves_of = [0, 2, 4, 6, 1, 3, 5, 7]
    rotated = InterleavedRope(base=500.0).rotate(x, positions)
    assert torch.equal(rotated[..., halves_of], rotary(x[..., halves_of], positions, 500.0))


def test_positions_may_differ_between_rows() -> None:
    x, positions = draw(2, 3, 4, 6), torch.randint(50, (2, 1, 4))
    rotated = rotary(x, positions, base=10000.0)
    for row in range(2):
        assert torch.equal(rotated[row], rotary(x[row], positions[row, 0], base=10000.0))


def test_rotary_angles_are_exact_in_bfloat16() -> None:
    """The rotation is that of float32; only the result is rounded."""
    x, positions = torch.randn(1, 1, 4, 8).bfloat16(), torch.tensor([1001, 3003, 4095, 30000])
    assert torch.equal(rotary(x, positions, 10000.0), rotary(x.float(), positions, 10000.0).bfloat16())


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (3, [4, 8, 2]),
        (4, [2, 4, 6, 8]),
        (6, [2, 4, 6, 8, 1, 3]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
        (15, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5]),
        (16, [h / 2 for h in range(1, 17)]),
    ],
)
def test_alibi_slopes_are_those_of_the_published_code(heads: int, exponents: list[float]) -> None:
    assert alibi_exponents(heads) == [-exponent for exponent in exponents]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        bias = (
            Alibi(heads)
            .to(dtype)
            .bias(torch.zeros(1, heads, 1, 2, dtype=dtype), torch.tensor([1]), torch.tensor([0]))
        )
        slopes = torch.tensor([2.0**-exponent for exponent in exponents], dtype=torch.float64)
        torch.testing.assert_close(bias.flatten(), -slopes.to(dtype))


@pytest.mark.parametrize("heads", [1, 3, 6, 12, 16])
def test_checkpoints_without_slopes_had_those_of_the_papers_text(heads: int) -> None:
    (earlier,) = Alibi(heads).legacy_buffers().values()
    torch.testing.assert_close(2**earlier, torch.tensor([2 ** (-8 * h / heads) for h in range(1, heads + 1)]))
    assert (Alibi(heads).log2_slopes.tolist() == earlier.tolist()) == (heads in (1, 16))


def test_alibi_falls_with_the_distance_alone() -> None:
    q, kind = draw(2, 4, 3, 8), Alibi(heads=4)
    bias = kind.bias(q, torch.tensor([5, 6, 7]), torch.tensor([0, 6]))
    expected = [[[-(2.0 ** (-2 * h)) * (i - j) for j in (0, 6)] for i in (5, 6, 7)] for h in range(1, 5)]
    assert bias.tolist() == expected
    shifted = kind.bias(
        q, torch.tensor([[[5, 6, 7]], [[105, 106, 107]]]), torch.tensor([[[0, 6]], [[100, 106]]])
    )
    assert torch.equal(shifted, bias.expand(2, -1, -1, -1))
    assert torch.equal(kind.rotate(q, torch.arange(3)), q)


def test_no_positions_leave_everything_alone() -> None:
    q, kind = draw(2, 4, 3, 8), Positions()
    assert kind.rotate(q, torch.arange(3)) is q
    assert kind.bias(q, torch.arange(3), torch.arange(3)) is None
    assert not any(list(kind.parameters()) for kind in KINDS.values())


@pytest.mark.parametrize("name", KINDS)
def test_attend_is_a_softmax_of_the_scores(name: str) -> None:
    """With grouped queries, two masks, and for scores the definition pair by pair."""
    kind, (q, k, v) = KINDS[name], (draw(2, 4, 5, 8), draw(2, 2, 7, 8, seed=1), draw(2, 2, 7, 3, seed=2))
    q_positions, k_positions = torch.arange(2, 7), torch.arange(7)
    mask = (k_positions <= q_positions[:, None]).repeat(2, 1, 1, 1)
    mask[1, :, :, :2] = False
    q, k = kind.rotate(q, q_positions), kind.rotate(k, k_positions)
    scores = kind.scores(q, k, q_positions, k_positions, mask)
    for head in range(4):
        expected = q[:, head] @ k[:, head // 2].mT / math.sqrt(8)
        if name == "alibi":
            expected = expected - 2.0 ** (-2 * (head + 1)) * (q_positions[:, None] - k_positions)
        torch.testing.assert_close(scores[:, head], expected.masked_fill(~mask[:, 0], -torch.inf))
    y = kind.attend(q, k, v, q_positions, k_positions, mask)
    torch.testing.assert_close(y, scores.softmax(-1) @ v.repeat_interleave(2, dim=1))


@pytest.mark.parametrize("name", ["none", "rope", "partial rope", "interleaved rope"])
def test_without_a_bias_attend_is_the_fused_kernel_bit_for_bit(name: str) -> None:
    kind, (q, k, v) = KINDS[name], (draw(2, 4, 5, 8, seed=seed).float() for seed in range(3))
    positions, mask = torch.arange(5), torch.ones(5, 5, dtype=torch.bool).tril()
    q, k = kind.rotate(q, positions), kind.rotate(k, positions)
    y = kind.attend(q, k, v, positions, positions, mask)
    assert torch.equal(y, F.scaled_dot_product_attention(q, k, v, mask))


class Gated(Positions):
    """Contextual positions: the bias of key j is minus the sum of the gates of the keys j .. i."""

    fused: ClassVar[bool] = False

    def bias(
        self, q: Tensor, q_positions: Tensor, k_positions: Tensor, scores: Tensor | None = None
    ) -> Tensor:
        assert scores is not None
        return -scores.sigmoid().flip(-1).cumsum(-1).flip(-1)


def test_a_bias_may_see_the_scores() -> None:
    """No gradient or output is nan, also of a query without any key, which yields 0."""
    kind, positions = Gated(), torch.arange(4)
    q, k, v = (draw(1, 2, 4, 8, seed=seed).requires_grad_() for seed in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[0] = False
    y = kind.attend(q, k, v, positions, positions, mask)
    assert not y[:, :, 0].any()
    for i in range(1, 4):
        raw = (q[:, :, i, None] * k[:, :, : i + 1]).sum(-1) / math.sqrt(8)
        bias = torch.stack([-raw[..., j:].sigmoid().sum(-1) for j in range(i + 1)], dim=-1)
        expected = ((raw + bias).softmax(-1)[..., None] * v[:, :, : i + 1]).sum(2)
        torch.testing.assert_close(y[:, :, i], expected)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(y.square().sum(), [q, k, v]))


@pytest.mark.parametrize(
    ("position", "kind"), [("none", Positions), ("learned", Positions), ("alibi", Alibi), ("rope", Rope)]
)
def test_a_configuration_names_a_kind(position: Position, kind: type[Positions]) -> None:
    assert type(build_positions(position, 4, 8)) is kind


def test_rope_needs_pairs_of_features() -> None:
    rope = build_positions("rope", 4, 8, base=5.0, rotated=4)
    assert isinstance(rope, Rope)
    assert (rope.base, rope.rotated) == (5.0, 4)
    for rotated in (3, 0, 10):
        with pytest.raises(ValueError, match=f"even head_dim, not {rotated} of 8"):
            build_positions("rope", 4, 8, rotated=rotated)


def test_key_heads_are_repeated_for_their_group() -> None:
    x = draw(2, 3, 4)
    assert torch.equal(repeat_kv(x, 2), x[:, [0, 0, 1, 1, 2, 2]])
    assert torch.equal(repeat_kv(x, 2, dim=0), x[[0, 0, 1, 1]])
    assert repeat_kv(x, 1) is x


def test_the_rates_of_a_scaling_are_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is decoded has a table of its own, which is made of rates that are on the device."""
    scaling = Frequencies((0.5, 0.03), factor=1.5)
    arguments = (2, 10000.0, torch.device("cpu"), torch.float64, scaling)
    rotary_table(range(1), *arguments)

    def copied(*arguments: Any, **options: Any) -> Tensor:
        raise AssertionError

    with monkeypatch.context() as watched:
        watched.setattr(torch, "tensor", copied)
        tables = [rotary_table(range(i, i + 1), *arguments) for i in range(5)]
    for i, (cos, sin) in enumerate(tables):
        angles = [i * rate for rate in scaling.rates]
        assert cos[0].tolist() == pytest.approx([1.5 * math.cos(angle) for angle in angles])
        assert sin[0].tolist() == pytest.approx([1.5 * math.sin(angle) for angle in angles])
