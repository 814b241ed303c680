"""Laws on what is remembered: the state, and what of it belongs to which row."""

import copy

import torch

from zoo.interface import StatefulLM
from zoo.law_tools import (
    BATCH_SIZE,
    assert_bitwise_equal,
    assert_close,
    assert_finite,
    different_text,
    float_leaves,
    is_close,
    memory_cuts,
    random_text,
    swapped_states,
    unwritten_leaves,
)
from zoo.state import contents, leaves, nbytes, reset_rows, take_rows


def purity(model: StatefulLM) -> None:
    """All memory is in the state: reading changes neither the state passed in nor the module."""
    text = random_text(model)
    next_text = text[:, : 2 * model.segment_len]
    twin, weights = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    initial, saved_initial = (model.init_state(BATCH_SIZE) for _ in range(2))
    fresh_logits, state = model(text, initial)
    assert_bitwise_equal(leaves(initial), leaves(saved_initial), "the initial state passed in, after reading")
    saved = copy.deepcopy(state)
    logits = model(next_text, state)[0]
    assert_bitwise_equal(leaves(state), leaves(saved), "the state passed in, after reading")
    model(text.flip(1))  # an unrelated text in between
    assert_close(model(next_text, state)[0], logits, "the same state read twice")
    assert_close(twin(next_text, saved)[0], logits, "the same state read by a copy of the model")
    assert_close(model(text)[0], fresh_logits, "a fresh text read twice")
    assert_bitwise_equal(dict(model.state_dict()), dict(weights), "the weights after reading")


def memory_is_alive(model: StatefulLM) -> None:
    """Each floating or complex tensor of the state changes the next logits, at some cut, when it alone is
    replaced by its counterpart: the same tensor of the state after a different text.  A model that doesn't
    remember has the same logits after any text.

    Of a state of integers alone, token ids say, the state as one does.  A lazy field (zoo.state) may be a
    bank that is larger than these texts fill: see `unwritten_leaves`.
    """
    text, initial = random_text(model, segments=5), model.init_state(BATCH_SIZE)
    dead, states = {name for name, _ in float_leaves(initial)}, []
    if model.remembers and not dead:
        dead = {"the whole state"}
    for cut in memory_cuts(model):
        before, after = text[:, :cut], text[:, cut : cut + 2 * model.segment_len]
        state, counterpart = model(before)[1], model(different_text(model, before))[1]
        logits = model(after, state)[0]
        if not model.remembers:
            assert_close(logits, model(after)[0], "remembers=False, but logits after a text and after none")
            continue
        all_at_once = [] if float_leaves(initial) else [("the whole state", counterpart)]
        for name, swapped in [*swapped_states(state, counterpart), *all_at_once]:
            if name in dead and not is_close(model(after, swapped)[0], logits):
                dead.remove(name)
        states += [state, counterpart]
    if model.remembers:
        dead -= unwritten_leaves(initial, states)
        names = ", ".join(f"`{name}`" for name in sorted(dead))
        assert not dead, (
            f"dead memory: expected different logits with {names} of another text, found the same:"
            " never written, or never read"
        )


def batch_invariance(model: StatefulLM) -> None:
    """A row's logits and state don't depend on the rest of the batch."""
    text = random_text(model)
    logits, state = model(text)
    others_changed = torch.cat([text[:1], different_text(model, text[1:])])
    for rows, batch, label in (
        (torch.tensor([2, 0, 1]), text[[2, 0, 1]], "rows in a different order"),
        (torch.arange(9) % 4 % 3, text[torch.arange(9) % 4 % 3], "rows in a batch of nine"),
        (torch.tensor([0]), text[:1], "a row read alone"),
        (torch.tensor([0]), others_changed, "a row beside different rows"),
    ):
        batch_logits, batch_state = model(batch)
        assert_close(batch_logits[: len(rows)], logits[rows], f"logits of {label}")
        compared = take_rows(batch_state, torch.arange(len(rows)))
        assert_close(contents(compared), contents(take_rows(state, rows)), f"the state of {label}")


def fresh_rows_forget(model: StatefulLM) -> None:
    """A row reset among continuing ones has the logits of a new text; the others remember."""
    text, rows = random_text(model), torch.tensor([True, False, True])
    next_text = text[:, : 2 * model.segment_len]
    for cut in memory_cuts(model):
        _, state = model(text[:, :cut])
        logits, _ = model(next_text, reset_rows(state, model.init_state(BATCH_SIZE), rows))
        assert_close(logits[rows], model(next_text)[0][rows], "logits of a fresh row among continuing ones")
        assert_close(
            logits[~rows], model(next_text, state)[0][~rows], "logits of a continuing row among fresh ones"
        )


def bounded_state(model: StatefulLM) -> None:
    """A longer text doesn't make a larger state, and is read to its end."""
    _, state = model(random_text(model, segments=2, rows=1))
    for segments in (6, 24):
        logits, longer = model(random_text(model, segments, rows=1))
        assert_finite(logits, f"logits of {segments} segments")
        assert nbytes(longer) == nbytes(state), (
            f"size of the state: expected {nbytes(state)} bytes as after 2 segments, found {nbytes(longer)}"
            f" after {segments}"
        )
