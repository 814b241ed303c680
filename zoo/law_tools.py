"""Tools of the laws in zoo/contract.py: a perturbed model, random texts, states, gradients, comparisons."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import first_line
from zoo.interface import StatefulLM, stateful
from zoo.state import (
    State,
    contents,
    from_leaves,
    lazy_field_names,
    leaves,
    named_leaves,
    reset_rows,
    tree_map,
)

BATCH_SIZE, SEGMENTS = 3, 4
ReadText = Callable[[Tensor, State], tuple[Tensor, State]]
TOLERANCE = 1e-8  # float64: far above rounding, far below any real difference


# -- model and texts


def perturbed(build: Callable[[], nn.Module]) -> StatefulLM:
    """The model in float64, built from seed 0, dropout off, noise on every parameter."""
    torch.manual_seed(0)
    model = stateful(build()).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


def deep_copy(model: StatefulLM) -> StatefulLM:
    """A copy that has the hooks on the weights' gradients, which `copy.deepcopy` leaves out."""
    twin = copy.deepcopy(model)
    for copied, weight in zip(twin.parameters(), model.parameters(), strict=True):
        for hook in (weight._backward_hooks or {}).values():
            copied.register_hook(hook)
    return twin


def random_text(model: StatefulLM, segments: int = SEGMENTS, rows: int = BATCH_SIZE, seed: int = 0) -> Tensor:
    """A random text (rows, segments * segment_len)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.vocab_size, (rows, segments * model.segment_len), generator=generator)


def different_text(model: StatefulLM, tokens: Tensor) -> Tensor:
    """A text that differs from `tokens` at every position."""
    return (tokens + 1) % model.vocab_size


def memory_cuts(model: StatefulLM) -> tuple[int, int]:
    """Where the laws about memory cut a text: at a segment boundary, and inside a segment, where blocks and
    chunks are open that are empty at a boundary."""
    return 2 * model.segment_len, 2 * model.segment_len + max(1, model.segment_len - 3)


def streaming_cuts(model: StatefulLM, length: int) -> list[int]:
    """Positions at which a text may be cut in two: every segment boundary.

    For a model that `cuts_anywhere` also the first tokens, every offset in the second segment, and the last
    token.
    """
    size = model.segment_len
    cuts = {*range(size, length, size)}
    if model.cuts_anywhere:
        cuts |= {1, 2, 3, *range(size, 2 * size), length - 1}
    return sorted(cut for cut in cuts if cut < length)


def continued_states(model: StatefulLM) -> tuple[State, State]:
    """The state after a text, and the same state with its first row reset."""
    _, state = model(random_text(model, seed=1)[:, : memory_cuts(model)[1]])
    return state, reset_rows(state, model.init_state(BATCH_SIZE), torch.tensor([True, False, False]))


# -- states and gradients


def float_leaves(state: State) -> list[tuple[str, Tensor]]:
    """The non-empty floating and complex tensors of a state, by name."""
    return [
        (name, leaf)
        for name, leaf in named_leaves(state)
        if leaf.numel() and (leaf.is_floating_point() or leaf.is_complex())
    ]


def promises_gradient(model: StatefulLM, name: str) -> bool:
    """True if by `learns_through_memory` the gradient runs through the leaf of this name."""
    promise = model.learns_through_memory
    return promise if isinstance(promise, bool) else name.rpartition(".")[2] in promise


def swapped_states(state: State, counterpart: State) -> Iterator[tuple[str, State]]:
    """For each leaf that differs between the two: its name, and `state` with that leaf from `counterpart`."""
    names, old, new = [name for name, _ in named_leaves(state)], leaves(state), leaves(counterpart)
    for i, name in enumerate(names):
        if not torch.equal(old[i], new[i]):
            yield name, from_leaves(state, [*old[:i], new[i], *old[i + 1 :]])


def unwritten_leaves(initial: State, states: list[State]) -> set[str]:
    """Names of the leaves of lazy fields that none of these states has changed, except for fields in which no
    leaf has changed."""
    result: set[str] = set()
    current = [dict(named_leaves(state)) for state in states]
    for field in lazy_field_names(initial):
        field_leaves = {name: leaf for name, leaf in float_leaves(initial) if name.startswith(f"{field}.")}
        unwritten = {
            name
            for name, leaf in field_leaves.items()
            if all(torch.equal(leaf, after[name]) for after in current)
        }
        if len(unwritten) < len(field_leaves):
            result |= unwritten
    return result


def fast_forms(model: StatefulLM) -> dict[str, ReadText]:
    """All ways to read a text but `fold`, by name: `forward`, and where the training loop may project hidden
    states chunk by chunk (zoo.module), all of these at once."""
    module: Any = model

    def read_and_project(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        state = model.init_state(len(tokens)) if state is None else state
        hidden, after = module._read(module.hidden_segment, tokens, state)
        return module.logits(hidden), after

    forms: dict[str, ReadText] = {"the parallel form": model.forward}
    if getattr(model, "separates_projection", False):
        forms["`logits` of `hidden_segment`"] = read_and_project
    return forms


def read_with_gradients(
    model: StatefulLM,
    read: ReadText,
    tokens: Tensor,
    state: State | None,
) -> dict[str, list[Tensor]]:
    """Logits, state, and gradients of their weighted sum in the weights and in the state passed in."""
    start = None if state is None else tree_map(_as_input, state)
    with torch.enable_grad():
        logits, after = read(tokens, start)
        results = [part for part in (logits, *leaves(after)) if part.requires_grad]
        total = torch.stack([weighted_sum(part) for part in results]).sum()
        inputs = [*model.parameters(), *([] if start is None else leaves(start))]
        grads = gradients(total, inputs)
    filled = [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, grads, strict=True)]
    return {"logits": [logits], "state": contents(after), "gradients": filled}


def _as_input(leaf: Tensor) -> Tensor:
    differentiable = leaf.is_floating_point() or leaf.is_complex()
    return leaf.detach().clone().requires_grad_() if differentiable else leaf


def weighted_sum(tensor: Tensor) -> Tensor:
    """A scalar in which every entry has a different weight."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return (real.flatten() * torch.linspace(1, 2, real.numel(), dtype=real.dtype)).sum()


def gradients(total: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    """Gradients of `total`, None for inputs on which it doesn't depend."""
    differentiable = [tensor for tensor in inputs if tensor.requires_grad]
    if not differentiable or not total.requires_grad:
        return [None] * len(inputs)
    grads = iter(torch.autograd.grad(total, differentiable, allow_unused=True, retain_graph=True))
    return [next(grads) if tensor.requires_grad else None for tensor in inputs]


# -- comparisons


def assert_close(actual: Tensor | list[Tensor], expected: Tensor | list[Tensor], label: str) -> None:
    """Raises AssertionError unless both are equal up to rounding; its message starts with `label`."""
    _assert_equal(actual, expected, label, TOLERANCE)


def is_close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= TOLERANCE)


def assert_bitwise_equal(actual: Any, expected: Any, label: str) -> None:
    """As `assert_close`, but without any tolerance."""
    _assert_equal(actual, expected, label, 0.0)


def _assert_equal(actual: Any, expected: Any, label: str, tolerance: float) -> None:
    try:
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    except AssertionError as error:
        message = f"{label}: {largest_difference(actual, expected) or first_line(error)}"
    else:
        return
    raise AssertionError(message)


def largest_difference(actual: Any, expected: Any) -> str:
    """In words, of tensors or lists of them; "" where something else than their values differs."""
    ours, theirs = _tensors(actual), _tensors(expected)
    if not ours or len(ours) != len(theirs):
        return ""
    if any(x.shape != y.shape or x.dtype != y.dtype for x, y in zip(ours, theirs, strict=True)):
        return ""
    gap = torch.cat([_gap(x.detach(), y.detach()).flatten() for x, y in zip(ours, theirs, strict=True)])
    finite = gap[gap.isfinite()]
    different = f"{int((gap != 0).sum()):,} of {len(gap):,} values different"
    if len(finite) < len(gap):
        return f"expected the same, found {different}, of which {len(gap) - len(finite):,} aren't finite"
    return f"expected the same, found {different}, by up to {float(gap.max()):.1e}"


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a list or a mapping, or the one; none where there is anything else."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return parts if all(isinstance(part, Tensor) for part in parts) else []


def _gap(x: Tensor, y: Tensor) -> Tensor:
    is_number = x.is_floating_point() or x.is_complex()
    return ((x - y).abs() if is_number else x != y).double()


def assert_finite(tensor: Tensor, label: str) -> None:
    non_finite = int((~tensor.isfinite()).sum())
    assert not non_finite, (
        f"{label}: expected finite values, found {non_finite} of {tensor.numel()} not finite"
    )


def assert_same_dtypes(state: State, initial: State) -> None:
    for (name, leaf), (_, start) in zip(named_leaves(state), named_leaves(initial), strict=True):
        assert leaf.dtype == start.dtype, f"state `{name}`: expected {start.dtype}, found {leaf.dtype}"


def modes_agree(model: StatefulLM) -> bool:
    """True if train mode computes the same as eval mode, bit for bit.

    Compared are the logits, states and gradients of `fold` and of all fast forms.  A separate code path for
    training would round differently, so that equal bits are evidence of one path.
    """
    try:
        evaluated, trained = (_sample_outputs(deep_copy(model).train(mode)) for mode in (False, True))
    except Exception:  # each law raises it again
        return False
    return len(evaluated) == len(trained) and all(map(torch.equal, evaluated, trained))


@torch.no_grad()
def _sample_outputs(model: StatefulLM) -> list[Tensor]:
    """Logits, states and gradients of a full text, of one token and of a text with a short last segment,
    from initial, continued and partly reset states."""
    text, (after_text, partly_reset) = random_text(model), continued_states(model)
    logits, state = model(text)
    outputs = [logits, *contents(state), *contents(after_text), model(text[:, :1], after_text)[0]]
    ragged = text[:, : model.segment_len + 1]
    for read in (model.fold, *fast_forms(model).values()):
        outputs += [
            tensor
            for part in read_with_gradients(model, read, ragged, partly_reset).values()
            for tensor in part
        ]
    return outputs
