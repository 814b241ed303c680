"""The compressive memory: its parallel form against its definition, and properties of the definition."""

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
        draw(ROWS, segments, HEADS, time, size, seed=10 * seed + index)
        for index, size in enumerate((KEY, KEY, VALUE))
    )
    return q, k, v


def empty(dtype: torch.dtype = torch.float64) -> MemoryState:
    matrix, normaliser = torch.zeros(ROWS, HEADS, KEY, VALUE), torch.zeros(ROWS, HEADS, KEY)
    return MemoryState(matrix.to(dtype), normaliser.to(dtype), torch.zeros(ROWS, dtype=torch.long))


def initial_state(rule: Rule) -> MemoryState:
    """Rows that have written three segments, none, and three."""
    state = read_and_write_loop(*parts(3, 2, seed=9), empty(), rule)[1]
    return replace_rows(state, empty(), torch.tensor([False, True, False]))


def build(rule: Rule = "delta", segment_len: int = SEGMENT) -> CompressiveAttention:
    torch.manual_seed(3)
    layer = CompressiveAttention(WIDTH, HEADS, segment_len=segment_len, rule=rule).double()
    torch.nn.init.normal_(layer.gate)
    return layer


@pytest.mark.parametrize(("segments", "time"), [*product((1, 2, 5), (1, 3)), (9, 2)])
@pytest.mark.parametrize("rule", RULES)
def test_the_parallel_form_equals_the_loop(rule: Rule, segments: int, time: int) -> None:
    """Outputs, memory, and the gradients of both with respect to all inputs."""
    results = []
    for form in (read_and_write_loop, read_and_write):
        q, k, v = (part.requires_grad_() for part in parts(segments, time))
        start = tree_map(
            lambda leaf: leaf.requires_grad_() if leaf.is_floating_point() else leaf, initial_state(rule)
        )
        retrieved, after = form(q, k, v, start, rule)
        total = torch.stack(
            [(draw(*part.shape, seed=7) * part).sum() for part in (retrieved, *after[:2])]
        ).sum()
        grads = torch.autograd.grad(total, [q, k, v, *start[:2]])
        results.append([retrieved, *after, *grads])
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)
    assert all(part.any() for part in results[1])


@pytest.mark.parametrize("rule", RULES)
def test_a_text_may_be_cut_between_any_segments(rule: Rule) -> None:
    q, k, v = parts(5, 3)
    retrieved, after = read_and_write(q, k, v, initial_state(rule), rule)
    for cut in (1, 2, 4):
        first, state = read_and_write(q[:, :cut], k[:, :cut], v[:, :cut], initial_state(rule), rule)
        second, state = read_and_write(q[:, cut:], k[:, cut:], v[:, cut:], state, rule)
        torch.testing.assert_close(torch.cat([first, second], dim=1), retrieved)
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
def test_an_empty_memory_returns_0_and_the_gate_is_applied(rule: Rule) -> None:
    retrieved, _ = read_and_write(*parts(1, 4), empty(), rule)
    assert not retrieved.any()
    layer, x = build(rule), draw(2, SEGMENT, WIDTH)
    q, k, v = layer.project(x)
    local = (1 - layer.gate.sigmoid())[:, None, None] * layer.attend(q, k, v)
    expected = layer.out_proj(local.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, layer.init_state(2))[0], expected)


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_memory_has_no_gradient(rule: Rule) -> None:
    """In either form."""
    for form in (read_and_write_loop, read_and_write):
        start = tree_map(lambda leaf: leaf.requires_grad_() if leaf.is_floating_point() else leaf, empty())
        retrieved, _ = form(*parts(1, 4), start, rule)
        grads = torch.autograd.grad(retrieved.sum(), start[:2], allow_unused=True)
        assert not any(grad is not None and grad.any() for grad in grads)


@pytest.mark.parametrize("form", [read_and_write_loop, read_and_write])
@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_a_row_without_writes_is_empty_whatever_its_matrix(form: Any, rule: Rule) -> None:
    (q, k, v), old = parts(1, 4), initial_state(rule)
    state = old._replace(matrix=draw(ROWS, HEADS, KEY, VALUE), writes=torch.zeros_like(old.writes))
    retrieved, after = form(q, k, v, state, rule)
    assert not retrieved.any()
    torch.testing.assert_close(
        after.matrix, state.matrix + sigma(k[:, 0]).mT @ v[:, 0]
    )  # without a subtraction


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_fresh_rows_stand_among_continuing_ones(rule: Rule) -> None:
    """Every row returns and writes the same as alone."""
    (q, k, v), start = parts(3, 2), initial_state(rule)
    retrieved, after = read_and_write(q, k, v, start, rule)
    for row in range(ROWS):
        index = torch.tensor([row])
        expected, state = read_and_write(q[index], k[index], v[index], take_rows(start, index), rule)
        torch.testing.assert_close(retrieved[index], expected)
        torch.testing.assert_close(leaves(take_rows(after, index)), leaves(state))
    fresh, _ = read_and_write(q, k, v, empty(), rule)
    torch.testing.assert_close(retrieved[1], fresh[1])
    assert not retrieved[1, 0].any()
    assert retrieved[0, 0].any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [30.0, 200.0, 1e4])
def test_far_features_give_no_nan(rule: Rule, size: float) -> None:
    """Features that underflow in float32: those of queries, keys, or both in some segments."""
    signs = draw(ROWS, 4, HEADS, 1, 1, seed=5).sign()
    for form in (read_and_write_loop, read_and_write):
        q, k, v = parts(4, 2)
        q, k, v = (part.float().requires_grad_() for part in (q - size * (signs > 0), k + size * signs, v))
        retrieved, after = form(q, k, v, empty(torch.float32), rule)
        (retrieved.square().sum() + after.normaliser.sum()).backward()
        for part in (retrieved, *leaves(after), *(leaf.grad for leaf in (q, k, v))):
            assert isinstance(part, Tensor)
            assert part.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_a_position_reads_earlier_segments_alone(rule: Rule) -> None:
    q, k, v = parts(3, 2)
    retrieved, _ = read_and_write(q, k, v, empty(), rule)
    for segment, after in ((0, 1), (1, 2)):
        step = torch.zeros(3, 1, 1, 1, dtype=torch.float64)
        step[segment] = 1
        for keys, values in ((k + step, v), (k, v + step)):
            changed, _ = read_and_write(q, keys, values, empty(), rule)
            torch.testing.assert_close(changed[:, :after], retrieved[:, :after], rtol=0, atol=0)
            assert (changed[:, after] - retrieved[:, after]).abs().amin((-1, -2)).gt(1e-6).all()


@torch.no_grad()
def test_the_delta_rule_writes_a_pair_only_once() -> None:
    """A pair given twice leaves M as after the first time; the linear rule doubles it."""
    q, k, v = (part.expand(-1, 2, -1, -1, -1) for part in parts(1, 1))
    for rule, times in zip(RULES, (2, 1), strict=True):
        once = read_and_write(q[:, :1], k[:, :1], v[:, :1], empty(), rule)[1]
        retrieved, twice = read_and_write(q, k, v, empty(), rule)
        torch.testing.assert_close(twice.matrix, times * once.matrix)
        torch.testing.assert_close(twice.normaliser, 2 * once.normaliser)
        torch.testing.assert_close(retrieved[:, 1], v[:, 0])  # after one pair every query reads its value


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_the_memory_has_no_positions(rule: Rule) -> None:
    """The order of tokens inside a segment doesn't count."""
    layer, x = build(rule), draw(2, SEGMENT, WIDTH)
    state, flipped = (layer(tokens, layer.init_state(2))[1] for tokens in (x, x.flip(1)))
    torch.testing.assert_close(leaves(state), leaves(flipped))


@pytest.mark.parametrize("position", ["rope", "none"])
@torch.no_grad()
def test_a_closed_gate_is_attention_and_an_open_one_memory(position: Any) -> None:
    layer = CompressiveAttention(WIDTH, HEADS, segment_len=SEGMENT, position=position).double()
    local = Attention(WIDTH, HEADS, position=position).double()
    local.load_state_dict({name: x for name, x in layer.state_dict().items() if name != "gate"})
    x = draw(2, 3 * SEGMENT, WIDTH)
    layer.gate.fill_(-100.0)
    expected = torch.cat([local(piece, ())[0] for piece in x.split(SEGMENT, dim=1)], dim=1)
    torch.testing.assert_close(layer(x, layer.init_state(2))[0], expected)
    layer.gate.fill_(100.0)
    y, _ = layer(x, layer.init_state(2))
    assert y[:, :SEGMENT].abs().max() < 1e-12
    q, k, v = (part[:, None] for part in layer.project(x[:, :SEGMENT]))
    _, state = read_and_write_loop(q, k, v, layer.init_state(2), "delta")
    q, k, v = (part[:, None] for part in layer.project(x[:, SEGMENT : 2 * SEGMENT]))
    retrieved, _ = read_and_write_loop(q, k, v, state, "delta")
    expected = layer.out_proj(retrieved[:, 0].transpose(1, 2).flatten(2))
    torch.testing.assert_close(y[:, SEGMENT : 2 * SEGMENT], expected)


@pytest.mark.parametrize(
    ("weights", "sums"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
@torch.no_grad()
def test_sums_over_a_text_have_float32_at_least(weights: torch.dtype, sums: torch.dtype) -> None:
    layer = build().to(weights)
    y, state = layer(draw(2, 3 * SEGMENT, WIDTH).to(weights), layer.init_state(2))
    assert y.dtype == weights
    assert state.matrix.dtype == state.normaliser.dtype == sums


@torch.no_grad()
def test_small_writes_add_up_under_autocast() -> None:
    """600 times the same segment: in bfloat16 the sum would stop growing at 256 times the first."""
    layer = build("linear", segment_len=1).float()
    token = draw(1, 1, WIDTH).float()
    with torch.autocast("cpu", torch.bfloat16):
        _, once = layer(token, layer.init_state(1))
        _, often = layer(token.expand(-1, 600, -1), layer.init_state(1))
        _, more = layer(token, often)
    for writes, state in ((600, often), (601, more)):
        torch.testing.assert_close(state.normaliser, writes * once.normaliser, rtol=1e-4, atol=0)
        torch.testing.assert_close(state.matrix, writes * once.matrix, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_products_keep_their_precision_under_autocast(rule: Rule) -> None:
    q, k, v = (part.float() for part in parts(4, 6))
    expected, state = read_and_write(q, k, v, empty(torch.float32), rule)
    with torch.autocast("cpu", torch.bfloat16):
        retrieved, after = read_and_write(q, k, v, empty(torch.float32), rule)
    torch.testing.assert_close([retrieved, *after], [expected, *state], rtol=0, atol=0)


@torch.no_grad()
def test_the_memory_stays_small_over_many_segments() -> None:
    """By the delta rule the outputs stay of the size of the values."""
    q, k, v = parts(300, 6, seed=4)
    retrieved, state = read_and_write(q, k, v, empty(), "delta")
    assert retrieved.abs().max() < v.abs().max()
    assert state.matrix.norm(dim=(-1, -2)).max() < 300


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="width 8 is not a multiple of heads 3"):
        CompressiveAttention(8, 3, segment_len=4)
    with pytest.raises(ValueError, match="even head_dim, not 3"):
        CompressiveAttention(8, 2, segment_len=4, head_dim=3)
    CompressiveAttention(8, 2, segment_len=4, head_dim=3, position="none")
