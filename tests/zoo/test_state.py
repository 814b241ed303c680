"""The helpers on any nest of tensors."""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.state import (
    State,
    contents,
    detach,
    from_leaves,
    lazy_field_names,
    leaves,
    named_leaves,
    nbytes,
    replace_rows,
    reset_rows,
    special_fields,
    take_rows,
    tree_map,
)

ROWS = 3


class Inner(NamedTuple):
    keys: Tensor
    writes: Tensor


class Outer(NamedTuple):
    layers: tuple[Any, ...]
    memory: Any


def tensor(shape: list[int], integer: bool) -> Tensor:
    values = torch.randn(ROWS, *shape)
    return (100 * values).long() if integer else values


TENSORS = st.builds(tensor, st.lists(st.integers(0, 3), max_size=2), st.booleans())
STATES = st.recursive(
    TENSORS,
    lambda inner: st.one_of(
        st.builds(Inner, inner, inner),
        st.builds(Outer, st.lists(inner, max_size=3).map(tuple), inner),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=6,
)


def shape(state: State) -> Any:
    """The nest without its tensors."""
    return type(state) if isinstance(state, Tensor) else (type(state), [shape(part) for part in state])


def tensors(state: State) -> list[Tensor]:
    """Depth first, without the help of zoo.state."""
    return [state] if isinstance(state, Tensor) else [leaf for part in state for leaf in tensors(part)]


def same(actual: list[Tensor], expected: list[Tensor]) -> bool:
    return len(actual) == len(expected) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(actual, expected, strict=True)
    )


def example() -> Outer:
    layers = (
        Inner(torch.randn(ROWS, 2), torch.arange(ROWS)),
        Inner(torch.randn(ROWS, 1, 4), torch.zeros(ROWS)),
    )
    return Outer(layers, torch.randn(ROWS))


def test_names() -> None:
    names = ["layers.0.keys", "layers.0.writes", "layers.1.keys", "layers.1.writes", "memory"]
    assert [name for name, _ in named_leaves(example())] == names
    assert [name for name, _ in named_leaves(torch.zeros(1))] == [""]
    assert list(named_leaves(((), ()))) == []


@settings(max_examples=50, deadline=None)
@given(STATES)
def test_leaves_and_back(state: State) -> None:
    assert all(a is b for a, b in zip(leaves(state), tensors(state), strict=True))
    rebuilt = from_leaves(tree_map(torch.zeros_like, state), leaves(state))
    assert shape(rebuilt) == shape(state)
    assert same(tensors(rebuilt), tensors(state))


@pytest.mark.parametrize("change", [-1, 1])
def test_from_leaves_refuses_too_few_or_too_many_tensors(change: int) -> None:
    saved = (leaves(example()) * 2)[: 5 + change]
    with pytest.raises(ValueError, match=f"expected 5 tensors for this state, found {5 + change}"):
        from_leaves(example(), saved)


@settings(max_examples=50, deadline=None)
@given(STATES)
def test_tree_map_keeps_the_nest_and_takes_counterparts(state: State) -> None:
    before = [leaf.clone() for leaf in tensors(state)]
    doubled = tree_map(lambda a, b: a + b, state, state)
    assert shape(doubled) == shape(state)
    assert same(tensors(doubled), [leaf + leaf for leaf in before])
    assert same(tensors(state), before)


def test_tree_map_refuses_a_different_nest() -> None:
    with pytest.raises(ValueError, match="zip"):
        tree_map(torch.add, (torch.zeros(1), torch.zeros(1)), (torch.zeros(1),))


@settings(max_examples=50, deadline=None)
@given(STATES, st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=5))
def test_take_rows(state: State, rows: list[int]) -> None:
    picked = take_rows(state, torch.tensor(rows))
    assert shape(picked) == shape(state)
    assert same(tensors(picked), [torch.stack([leaf[row] for row in rows]) for leaf in tensors(state)])


@settings(max_examples=50, deadline=None)
@given(STATES, st.lists(st.booleans(), min_size=ROWS, max_size=ROWS))
def test_replace_rows(state: State, rows: list[bool]) -> None:
    fresh = tree_map(lambda leaf: leaf + 1, state)
    before = [leaf.clone() for leaf in tensors(state)]
    mixed = replace_rows(state, fresh, torch.tensor(rows))
    assert shape(mixed) == shape(state)
    expected = [
        torch.stack([(new if marked else old)[row] for row, marked in enumerate(rows)])
        for old, new in zip(tensors(state), tensors(fresh), strict=True)
    ]
    assert same(tensors(mixed), expected)
    assert same(tensors(state), before)


@special_fields(lazy=("slots",), identity=("stamp",))
class Counted(NamedTuple):
    slots: tuple[Tensor, ...]
    written: Tensor
    stamp: Tensor


@settings(max_examples=50, deadline=None)
@given(STATES, st.lists(st.booleans(), min_size=ROWS, max_size=ROWS))
def test_reset_rows(state: State, rows: list[bool]) -> None:
    """Lazy fields aren't copied, however deep they lie; the rest equals `replace_rows`."""
    empty, marked = tree_map(torch.zeros_like, state), torch.tensor(rows)
    assert same(tensors(reset_rows(state, empty, marked)), tensors(replace_rows(state, empty, marked)))
    bank = Counted((torch.ones(ROWS, 2), torch.ones(ROWS, 2)), torch.ones(ROWS), torch.ones(ROWS))
    nest = reset_rows((state, (bank,)), (empty, (tree_map(torch.zeros_like, bank),)), marked)
    assert type(nest[1][0]) is Counted
    assert [new is old for new, old in zip(nest[1][0].slots, bank.slots, strict=True)] == [True, True]
    assert nest[1][0].written.tolist() == [0 if row else 1 for row in rows]
    assert same(tensors(nest[0]), tensors(replace_rows(state, empty, marked)))


def test_contents_leave_out_identity_fields() -> None:
    slots, written, stamp = torch.ones(ROWS, 2), torch.zeros(ROWS), torch.arange(ROWS)
    state = (Counted((slots,), written, stamp), stamp)
    assert [leaf.data_ptr() for leaf in contents(state)] == [
        leaf.data_ptr() for leaf in (slots, written, stamp)
    ]
    assert list(lazy_field_names((state, state))) == ["0.0.slots", "1.0.slots"]


def test_a_special_field_that_is_no_field_is_refused() -> None:
    with pytest.raises(TypeError, match="expected fields of Inner, found values"):
        special_fields(lazy=("keys", "values"))(Inner)


def test_replace_rows_has_gradients_in_both_states() -> None:
    old, new = torch.zeros(ROWS, 2, requires_grad=True), torch.zeros(ROWS, 2, requires_grad=True)
    replace_rows((old,), (new,), torch.tensor([True, False, True]))[0].sum().backward()
    assert old.grad is not None
    assert new.grad is not None
    assert old.grad.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert new.grad.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_detach_cuts_every_tensor_and_copies_none() -> None:
    state = tree_map(lambda leaf: leaf.requires_grad_() if leaf.is_floating_point() else leaf, example())
    cut = detach(tree_map(lambda leaf: leaf * 1, state))
    assert not any(leaf.requires_grad for leaf in leaves(cut))
    assert all(
        a.data_ptr() == b.data_ptr() for a, b in zip(leaves(detach(state)), leaves(state), strict=True)
    )


def test_nbytes() -> None:
    assert nbytes(example()) == 4 * ROWS * 2 + 8 * ROWS + 4 * ROWS * 4 + 4 * ROWS + 4 * ROWS
    assert (
        nbytes((torch.zeros(ROWS, 5, dtype=torch.bfloat16), torch.zeros(ROWS, dtype=torch.complex128))) == 78
    )
    assert nbytes(((), ())) == 0


def test_a_state_without_tensors() -> None:
    empty = ((), Outer((), ()))
    assert leaves(empty) == []
    for result in (
        from_leaves(empty, []),
        detach(empty),
        take_rows(empty, torch.tensor([0])),
        replace_rows(empty, empty, torch.tensor([True])),
    ):
        assert result == empty
        assert type(result[1]) is Outer
