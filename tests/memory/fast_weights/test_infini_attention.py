"""The compressive memory: its parallel form against its definition, and what the definition promises."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.memory.attention.core import Attention
from zoo.memory.fast_weights.infini_attention import (
    CompressiveAttention,
    MemoryState,
    Rule,
    read_and_write,
    read_and_write_loop,
    sigma,
)
from zoo.state import leaves, replace_rows, take_rows, tree_map

ROWS, HEADS, KEY, VALUE = 3, 2, 4, 3
WIDTH, SEGMENT = 8, 5
RULES: tuple[Rule, ...] = ("linear", "delta")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(segments: int, time: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    q, k, v = (
        draw(ROWS, segments, HEADS, time, size, seed=10 * seed + place)
        for place, size in enumerate((KEY, KEY, VALUE))
    )
    return q, k, v


def empty(dtype: torch.dtype = torch.float64) -> MemoryState:
    matrix, normaliser = torch.zeros(ROWS, HEADS, KEY, VALUE), torch.zeros(ROWS, HEADS, KEY)
    return MemoryState(matrix.to(dtype), normaliser.to(dtype), torch.zeros(ROWS, dtype=torch.long))


def begun(rule: Rule) -> MemoryState:
    """Rows that have written three segments, none, and three."""
    state = read_and_write_loop(*parts(3, 2, seed=9), empty(), rule)[1]
    return replace_rows(state, empty(), torch.tensor([False, True, False]))


def made(rule: Rule = "delta", segment: int = SEGMENT) -> CompressiveAttention:
    torch.manual_seed(3)
    layer = CompressiveAttention(WIDTH, HEADS, segment=segment, rule=rule).double()
    torch.nn.init.normal_(layer.gate)
    return layer


@pytest.mark.parametrize(("segments", "time"), [*product((1, 2, 5), (1, 3)), (9, 2)])
@pytest.mark.parametrize("rule", RULES)
def test_all_at_once_is_one_after_another(rule: Rule, segments: int, time: int) -> None:
    """The answers, the memory, and the gradients of both with respect to everything that went in."""
    results = []
    for form in (read_and_write_loop, read_and_write):
        q, k, v = (part.requires_grad_() for part in parts(segments, time))
        start = tree_map(
            lambda leaf: leaf.requires_grad_() if leaf.is_floating_point() else leaf, begun(rule)
        )
        far, after = form(q, k, v, start, rule)
        total = torch.stack([(draw(*part.shape, seed=7) * part).sum() for part in (far, *after[:2])]).sum()
        grads = torch.autograd.grad(total, [q, k, v, *start[:2]])
        results.append([far, *after, *grads])
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)
    assert all(part.any() for part in results[1])


@pytest.mark.parametrize("rule", RULES)
def test_cut_anywhere_between_segments(rule: Rule) -> None:
    q, k, v = parts(5, 3)
    far, after = read_and_write(q, k, v, begun(rule), rule)
    for cut in (1, 2, 4):
        first, state = read_and_write(q[:, :cut], k[:, :cut], v[:, :cut], begun(rule), rule)
        second, state = read_and_write(q[:, cut:], k[:, cut:], v[:, cut:], state, rule)
        torch.testing.assert_close(torch.cat([first, second], dim=1), far)
        torch.testing.assert_close(leaves(state), leaves(after))
    assert after.writes.tolist() == [8, 5, 8]


def test_sigma_by_its_formula() -> None:
    x = torch.cat([draw(50) * 5, torch.tensor([-30.0, -1e-9, 0.0, 1e-9, 30.0], dtype=torch.float64)])
    torch.testing.assert_close(sigma(x), torch.nn.functional.elu(x) + 1)
    assert torch.autograd.gradcheck(sigma, [draw(20).requires_grad_()])
    assert torch.autograd.gradgradcheck(sigma, [draw(20).requires_grad_()])
    small = torch.tensor([-20.0, -60.0])  # where ELU(x) + 1 is 0 in float32
    torch.testing.assert_close(sigma(small), small.double().exp().float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_an_empty_memory_says_nothing_and_the_gate_is_applied(rule: Rule) -> None:
    far, _ = read_and_write(*parts(1, 4), empty(), rule)
    assert not far.any()
    layer, x = made(rule), draw(2, SEGMENT, WIDTH)
    q, k, v = layer.project(x)
    near = (1 - layer.gate.sigmoid())[:, None, None] * layer.attend(q, k, v)
    expected = layer.out(near.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, layer.init_state(2))[0], expected)


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_memory_has_no_gradient(rule: Rule) -> None:
    """What it would say if anything were in it counts for nothing, in both forms."""
    for form in (read_and_write_loop, read_and_write):
        start = tree_map(lambda leaf: leaf.requires_grad_() if leaf.is_floating_point() else leaf, empty())
        far, _ = form(*parts(1, 4), start, rule)
        grads = torch.autograd.grad(far.sum(), start[:2], allow_unused=True)
        assert not any(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize("form", [read_and_write_loop, read_and_write])
@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_nothing_written_is_nothing_there_whatever_lies_in_it(form: Any, rule: Rule) -> None:
    (q, k, v), old = parts(1, 4), begun(rule)
    state = old._replace(matrix=draw(ROWS, HEADS, KEY, VALUE), writes=torch.zeros_like(old.writes))
    far, after = form(q, k, v, state, rule)
    assert not far.any()
    torch.testing.assert_close(after.matrix, state.matrix + sigma(k[:, 0]).mT @ v[:, 0])  # nothing taken off


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_rows_are_as_fresh_as_they_are(rule: Rule) -> None:
    """A fresh row amid continuing ones says and writes what it would alone."""
    (q, k, v), start = parts(3, 2), begun(rule)
    far, after = read_and_write(q, k, v, start, rule)
    for row in range(ROWS):
        one = torch.tensor([row])
        alone, state = read_and_write(q[one], k[one], v[one], take_rows(start, one), rule)
        torch.testing.assert_close(far[one], alone)
        torch.testing.assert_close(leaves(take_rows(after, one)), leaves(state))
    fresh, _ = read_and_write(q, k, v, empty(), rule)
    torch.testing.assert_close(far[1], fresh[1])
    assert not far[1, 0].any()
    assert far[0, 0].any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [30.0, 200.0, 1e4])
def test_no_nan_however_far_away(rule: Rule, size: float) -> None:
    """Features that are all as good as 0 in float32: queries, keys, or both in some segments."""
    signs = draw(ROWS, 4, HEADS, 1, 1, seed=5).sign()
    for form in (read_and_write_loop, read_and_write):
        q, k, v = parts(4, 2)
        q, k, v = (part.float().requires_grad_() for part in (q - size * (signs > 0), k + size * signs, v))
        far, after = form(q, k, v, empty(torch.float32), rule)
        (far.square().sum() + after.normaliser.sum()).backward()
        for part in (far, *leaves(after), *(given.grad for given in (q, k, v))):
            assert isinstance(part, Tensor)
            assert part.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_a_position_reads_earlier_segments_and_not_its_own(rule: Rule) -> None:
    q, k, v = parts(3, 2)
    far, _ = read_and_write(q, k, v, empty(), rule)
    for place, after in ((0, 1), (1, 2)):
        step = torch.zeros(3, 1, 1, 1, dtype=torch.float64)
        step[place] = 1
        for keys, values in ((k + step, v), (k, v + step)):
            said, _ = read_and_write(q, keys, values, empty(), rule)
            torch.testing.assert_close(said[:, :after], far[:, :after], rtol=0, atol=0)
            assert (said[:, after] - far[:, after]).abs().amin((-1, -2)).gt(1e-6).all()


@torch.no_grad()
def test_what_is_known_is_not_written_again_by_the_delta_rule() -> None:
    """One pair, twice: M is as after the first time, where the linear rule doubles it."""
    q, k, v = (part.expand(-1, 2, -1, -1, -1) for part in parts(1, 1))
    for rule, times in zip(RULES, (2, 1), strict=True):
        once = read_and_write(q[:, :1], k[:, :1], v[:, :1], empty(), rule)[1]
        far, twice = read_and_write(q, k, v, empty(), rule)
        torch.testing.assert_close(twice.matrix, times * once.matrix)
        torch.testing.assert_close(twice.normaliser, 2 * once.normaliser)
        torch.testing.assert_close(far[:, 1], v[:, 0])  # after one pair any query finds its value


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_memory_knows_no_positions(rule: Rule) -> None:
    """The order inside a segment that is remembered doesn't count."""
    layer, x = made(rule), draw(2, SEGMENT, WIDTH)
    one, two = (layer(some, layer.init_state(2))[1] for some in (x, x.flip(1)))
    torch.testing.assert_close(leaves(one), leaves(two))


@pytest.mark.parametrize("position", ["rope", "none"])
@torch.no_grad()
def test_a_gate_shut_is_attention_and_one_wide_open_is_memory_alone(position: Any) -> None:
    layer = CompressiveAttention(WIDTH, HEADS, segment=SEGMENT, position=position).double()
    local = Attention(WIDTH, HEADS, position=position).double()
    local.load_state_dict({name: x for name, x in layer.state_dict().items() if name != "gate"})
    x = draw(2, 3 * SEGMENT, WIDTH)
    layer.gate.fill_(-100.0)
    alone = torch.cat([local(piece, ())[0] for piece in x.split(SEGMENT, dim=1)], dim=1)
    torch.testing.assert_close(layer(x, layer.init_state(2))[0], alone)
    layer.gate.fill_(100.0)
    y, _ = layer(x, layer.init_state(2))
    assert y[:, :SEGMENT].abs().max() < 1e-12
    q, k, v = (part[:, None] for part in layer.project(x[:, :SEGMENT]))
    _, state = read_and_write_loop(q, k, v, layer.init_state(2), "delta")
    q, k, v = (part[:, None] for part in layer.project(x[:, SEGMENT : 2 * SEGMENT]))
    far, _ = read_and_write_loop(q, k, v, state, "delta")
    expected = layer.out(far[:, 0].transpose(1, 2).flatten(2))
    torch.testing.assert_close(y[:, SEGMENT : 2 * SEGMENT], expected)


@pytest.mark.parametrize(
    ("weights", "kept"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
@torch.no_grad()
def test_sums_over_a_whole_text_are_kept_in_float32_at_least(weights: torch.dtype, kept: torch.dtype) -> None:
    layer = made().to(weights)
    y, state = layer(draw(2, 3 * SEGMENT, WIDTH).to(weights), layer.init_state(2))
    assert y.dtype == weights
    assert state.matrix.dtype == state.normaliser.dtype == kept


@torch.no_grad()
def test_small_writes_add_up_under_autocast() -> None:
    """600 times the same segment: in bfloat16 the sum would stop growing at 256 times the first."""
    layer = made("linear", segment=1).float()
    token = draw(1, 1, WIDTH).float()
    with torch.autocast("cpu", torch.bfloat16):
        _, once = layer(token, layer.init_state(1))
        _, often = layer(token.expand(-1, 600, -1), layer.init_state(1))
        _, more = layer(token, often)
    for number, state in ((600, often), (601, more)):
        torch.testing.assert_close(state.normaliser, number * once.normaliser, rtol=1e-4, atol=0)
        torch.testing.assert_close(state.matrix, number * once.matrix, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_products_keep_their_precision_under_autocast(rule: Rule) -> None:
    q, k, v = (part.float() for part in parts(4, 6))
    expected, state = read_and_write(q, k, v, empty(torch.float32), rule)
    with torch.autocast("cpu", torch.bfloat16):
        far, after = read_and_write(q, k, v, empty(torch.float32), rule)
    torch.testing.assert_close([far, *after], [expected, *state], rtol=0, atol=0)


@torch.no_grad()
def test_the_memory_stays_small_over_many_segments() -> None:
    """Segments of one kind: by the delta rule what is read stays of the size of the values."""
    q, k, v = parts(300, 6, seed=4)
    far, state = read_and_write(q, k, v, empty(), "delta")
    assert far.abs().max() < v.abs().max()
    assert state.matrix.norm(dim=(-1, -2)).max() < 300


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="width 8 is not a multiple of heads 3"):
        CompressiveAttention(8, 3, segment=4)
    with pytest.raises(ValueError, match="even head width, not 3"):
        CompressiveAttention(8, 2, segment=4, head_dim=3)
    CompressiveAttention(8, 2, segment=4, head_dim=3, position="none")
