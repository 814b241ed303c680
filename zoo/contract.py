"""The laws of the zoo: what every SequenceModule promises, written as checks that anyone can run.

    for name, check in laws(lambda: MyModel(...)):
        check()          # an AssertionError says what was expected and what was found

They run in float64, dropout off, on a model shaken away from its initial weights (a gate or a matrix that is
zero at birth would hide a dead memory), in eval mode; the laws of `BOTH_MODES` again in train mode, as
"causality-train".  States are compared by their contents (zoo.state): stamps differ between equal
ones.  Small models serve best: a few texts of four segments are read many times.
"""

import copy
import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from zoo.generate import generate, greedy
from zoo.module import SequenceModule
from zoo.state import (
    State,
    contents,
    from_leaves,
    lazy_field_names,
    leaves,
    named_leaves,
    nbytes,
    reset_rows,
    take_rows,
    tree_map,
)

ROWS, SEGMENTS = 3, 4
TOLERANCE = 1e-8  # float64: far above rounding, far below any real difference

Law = Callable[[SequenceModule], None]
Build = Callable[[], SequenceModule]
Model = TypeVar("Model", bound=SequenceModule)


def text_for(model: SequenceModule, segments: int = SEGMENTS, rows: int = ROWS, seed: int = 0) -> Tensor:
    """A random text (rows, segments * segment_len)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.vocab_size, (rows, segments * model.segment_len), generator=generator)


def other(model: SequenceModule, tokens: Tensor) -> Tensor:
    """A text that differs from `tokens` at every place."""
    return (tokens + 1) % model.vocab_size


def equal(found: Tensor | list[Tensor], expected: Tensor | list[Tensor], what: str) -> None:
    assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda detail: f"{what}: {detail}")


def differs(one: Tensor, two: Tensor) -> bool:
    return bool((one - two).abs().max() > TOLERANCE)


def learnable(state: State) -> list[tuple[str, Tensor]]:
    """The floating and complex tensors of a state that hold anything, by name."""
    return [
        (name, leaf)
        for name, leaf in named_leaves(state)
        if leaf.numel() and (leaf.is_floating_point() or leaf.is_complex())
    ]


def memory_cuts(model: SequenceModule) -> tuple[int, int]:
    """After whole segments, and after a short last one: open blocks and chunks are empty at a boundary."""
    return 2 * model.segment_len, 2 * model.segment_len + max(1, model.segment_len - 3)


def shapes(model: SequenceModule) -> None:
    """Logits for every token; every state tensor has the rows first and keeps its shape and type."""
    text = text_for(model)
    logits, state = model(text)
    assert logits.shape == (*text.shape, model.vocab_size), (
        f"logits {tuple(logits.shape)} for a text {tuple(text.shape)}"
    )
    for (name, leaf), (_, born) in zip(
        named_leaves(state), named_leaves(model.init_state(ROWS)), strict=True
    ):
        assert leaf.shape[:1] == (ROWS,), f"state `{name}` {tuple(leaf.shape)} has not {ROWS} rows first"
        assert leaf.shape == born.shape, (
            f"state `{name}` was {tuple(born.shape)} and became {tuple(leaf.shape)}"
        )
        assert leaf.dtype == born.dtype, f"state `{name}` was {born.dtype} and became {leaf.dtype}"


def odd_lengths(model: SequenceModule) -> None:
    """One token, and a last segment that is not full, are texts like any other; reading goes on after."""
    text = text_for(model)
    whole = model(text)[0]
    for length in (1, model.segment_len + 1, text.shape[1] - 1):
        logits, state = model(text[:, :length])
        equal(logits, whole[:, :length], f"the first {length} tokens")
        assert model(text, state)[0].isfinite().all(), f"not finite when read on after {length} tokens"


def causality(model: SequenceModule) -> None:
    """What comes later never changes what was said before."""
    text = text_for(model)
    whole = model(text)[0]
    for cut in (1, model.segment_len, model.segment_len + 2, text.shape[1] - 1):
        changed = torch.cat([text[:, :cut], other(model, text[:, cut:])], dim=1)
        equal(model(changed)[0][:, :cut], whole[:, :cut], f"logits before token {cut}, changed from there on")


def streaming(model: SequenceModule) -> None:
    """Cutting a text in two at any segment boundary, or anywhere where the model says so, changes nothing."""
    text = text_for(model)
    whole, end = model(text)
    for cut in (
        range(1, text.shape[1])
        if model.cuts_anywhere
        else range(model.segment_len, text.shape[1], model.segment_len)
    ):
        first, state = model(text[:, :cut])
        second, state = model(text[:, cut:], state)
        equal(torch.cat([first, second], dim=1), whole, f"logits of a text cut at token {cut}")
        equal(contents(state), contents(end), f"the state after a text cut at token {cut}")


def purity(model: SequenceModule) -> None:
    """All memory is in the state: reading leaves it as it was, and nothing hides on the module."""
    text = text_for(model)
    twin, weights = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    said_at_birth, state = model(text)
    kept = copy.deepcopy(state)
    said = model(text, state)[0]
    assert_close(
        leaves(state),
        leaves(kept),
        rtol=0,
        atol=0,
        msg=lambda detail: f"the state given in was changed: {detail}",
    )
    model(text.flip(1))  # other traffic in between
    equal(model(text, state)[0], said, "the same state read twice")
    equal(twin(text, kept)[0], said, "the same state read by a copy of the model that never read the text")
    equal(model(text)[0], said_at_birth, "a fresh text read twice")
    assert_close(
        dict(model.state_dict()),
        dict(weights),
        rtol=0,
        atol=0,
        msg=lambda detail: f"reading changed the weights: {detail}",
    )


def memory_is_alive(model: SequenceModule) -> None:
    """Each floating or complex tensor of the state, swapped alone for its counterpart after another text,
    changes what is said next, at some cut; a model that doesn't remember says after any text what it says
    after none.

    Of a bank in pieces, a lazy field (see zoo.state), those are spared that neither text came
    to write, where any was written.
    """
    text, born = text_for(model, segments=5), model.init_state(ROWS)
    dead, empty = {name for name, _ in learnable(born)}, dict(named_leaves(born))
    untouched = {
        name for name in dead if name.startswith(tuple(f"{bank}." for bank in lazy_field_names(born)))
    }
    assert dead or not model.remembers, "remembers=True, but the state has no floating tensor"
    for cut in memory_cuts(model):
        before, after = text[:, :cut], text[:, cut : cut + 2 * model.segment_len]
        state, another = model(before)[1], model(other(model, before))[1]
        said = model(after, state)[0]
        if not model.remembers:
            equal(said, model(after)[0], "what a model without memory says after a text, and after none")
            continue
        mine, others = dict(named_leaves(state)), dict(named_leaves(another))
        untouched = {
            name for name in untouched if all(torch.equal(held[name], empty[name]) for held in (mine, others))
        }
        for name in sorted(dead - untouched):
            swapped = from_leaves(state, [others[key] if key == name else leaf for key, leaf in mine.items()])
            if differs(said, model(after, swapped)[0]):
                dead.discard(name)
    for bank in lazy_field_names(born):
        pieces = {name for name, _ in learnable(born) if name.startswith(f"{bank}.")}
        if pieces - untouched:
            dead -= pieces & untouched
    found = ", ".join(f"`{name}`" for name in sorted(dead))
    assert not (model.remembers and dead), (
        f"dead: {found} of another text changes nothing said next: it is never written, or never read"
    )


def batch_invariance(model: SequenceModule) -> None:
    """A row's answers and state do not depend on its neighbours in the batch."""
    text = text_for(model)
    logits, state = model(text)
    changed = torch.cat([text[:1], other(model, text[1:])])
    for rows, neighbours, which in (
        (torch.tensor([2, 0, 1]), text[[2, 0, 1]], "rows in another order"),
        (torch.tensor([0]), text[:1], "a row read alone"),
        (torch.tensor([0]), changed, "a row beside other neighbours"),
    ):
        found, after = model(neighbours)
        equal(found[: len(rows)], logits[rows], f"logits of {which}")
        held = take_rows(after, torch.arange(len(rows)))
        equal(contents(held), contents(take_rows(state, rows)), f"the state of {which}")


def fresh_rows_forget(model: SequenceModule) -> None:
    """A row given a fresh state amid others answers as if it had read nothing; the others remember."""
    text, rows = text_for(model), torch.tensor([True, False, True])
    for cut in memory_cuts(model):
        _, state = model(text[:, :cut])
        said, _ = model(text, reset_rows(state, model.init_state(ROWS), rows))
        equal(said[rows], model(text)[0][rows], "a fresh row amid continuing ones")
        equal(said[~rows], model(text, state)[0][~rows], "a continuing row amid fresh ones")


def bounded_state(model: SequenceModule) -> None:
    """A longer text does not make a larger state."""
    short, long = (nbytes(model(text_for(model, segments))[1]) for segments in (2, 6))
    assert short == long, f"the state has {short} bytes after 2 segments and {long} after 6"


def gradient_reach(model: SequenceModule) -> None:
    """The next segment's loss has a gradient that runs through each tensor of the state, at some cut, back
    into the embeddings of what was read, where `learns_through_memory` says so and nowhere else."""
    promise, text = model.learns_through_memory, text_for(model)
    found = {name: False for name, _ in learnable(model.init_state(ROWS))}
    for cut in memory_cuts(model):
        with torch.enable_grad():
            _, state = model(text[:, :cut])
            said, _ = model(text[:, cut : cut + model.segment_len], state)
            for name, leaf in learnable(state):
                (grad,) = _grad(_weigh(said), [leaf])
                if grad is not None and grad.any():
                    tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
                    ends = _grad(_weigh(leaf * grad.conj()), tables)
                    found[name] |= not tables or any(end is not None and bool(end.any()) for end in ends)
    fields = {name.rpartition(".")[2] for name in found}
    assert isinstance(promise, bool) or fields.issuperset(promise), (
        f"learns_through_memory={promise}, but the state has the fields {', '.join(sorted(fields))}"
    )
    for name, reaches in found.items():
        promised = promise if isinstance(promise, bool) else name.rpartition(".")[2] in promise
        a = "a" if reaches else "no"
        assert reaches == promised, (
            f"learns_through_memory={promise}, but {a} gradient runs through state `{name}`"
        )


def parallel_equals_fold(model: SequenceModule) -> None:
    """`forward` says, carries and learns what the fold of `segment` does, from fresh and carried states."""
    text = text_for(model)
    start = model(text_for(model, seed=1)[:, : memory_cuts(model)[1]])[1]
    mixed = reset_rows(start, model.init_state(ROWS), torch.tensor([True, False, False]))
    ragged = text[:, : text.shape[1] - 3]
    for tokens, begin in ((text, None), (ragged, start), (ragged, mixed)):
        results = []
        for read in (model.fold, model.forward):
            with torch.enable_grad():
                given = None if begin is None else tree_map(_leaf, begin)
                logits, state = read(tokens, given)
                total = torch.stack([_weigh(part) for part in (logits, *leaves(state)) if part.requires_grad])
                learns = [*model.parameters(), *([] if given is None else leaves(given))]
                grads = _grad(total.sum(), learns)
            reached = [
                torch.zeros_like(leaf) if grad is None else grad
                for leaf, grad in zip(learns, grads, strict=True)
            ]
            results.append((logits, contents(state), reached))
        (folded, folded_state, folded_reached), (logits, held, reached) = results
        equal(logits, folded, "logits of the parallel form")
        equal(held, folded_state, "the state of the parallel form")
        equal(reached, folded_reached, "gradients of the parallel form")


def _leaf(tensor: Tensor) -> Tensor:
    return (
        tensor.detach().clone().requires_grad_()
        if tensor.is_floating_point() or tensor.is_complex()
        else tensor
    )


def _weigh(tensor: Tensor) -> Tensor:
    """A scalar in which every entry has a weight of its own."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return (real.flatten() * torch.linspace(1, 2, real.numel(), dtype=real.dtype)).sum()


def _grad(total: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    """Gradients, None where nothing leads from an input to the total."""
    reachable = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(
        torch.autograd.grad(total, reachable, allow_unused=True, retain_graph=True)
        if reachable and total.requires_grad
        else [None] * len(reachable)
    )
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


def bf16_is_finite(model: SequenceModule) -> None:
    """Under bf16 autocast logits, loss and gradients are finite, and the state keeps its types."""
    model.float()
    text = text_for(model)
    with torch.enable_grad():
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = model(text)
            logits, state = model(text, state)
            loss = F.cross_entropy(logits.float().flatten(0, 1), text.flatten())
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert logits.isfinite().all(), "logits are not finite"
    assert all(grad is None or grad.isfinite().all() for grad in grads), "a gradient is not finite"
    for (name, leaf), (_, born) in zip(
        named_leaves(state), named_leaves(model.init_state(ROWS)), strict=True
    ):
        assert leaf.dtype == born.dtype, f"state `{name}` was {born.dtype} and became {leaf.dtype}"
        assert leaf.isfinite().all(), f"state `{name}` is not finite"


def generation_is_teacher_forcing(model: SequenceModule) -> None:
    """Token by token, a model says what it says of the finished text read at once."""
    text = text_for(model, segments=2)
    length, count = model.segment_len, model.segment_len + 3
    for prompt in (text[:, :1], text[:, :length], text[:, : length + 2]):
        said: list[Tensor] = []

        def listen(logits: Tensor, said: list[Tensor] = said) -> Tensor:
            said.append(logits)
            return greedy(logits)

        stream = generate(model, prompt, listen)
        made = torch.stack([next(stream) for _ in range(count)], dim=1)
        logits = model(torch.cat([prompt, made], dim=1))[0][:, prompt.shape[1] - 1 : -1]
        equal(torch.stack(said, dim=1), logits, "logits read token by token")


LAWS: tuple[Law, ...] = (
    shapes,
    odd_lengths,
    causality,
    streaming,
    purity,
    memory_is_alive,
    batch_invariance,
    fresh_rows_forget,
    bounded_state,
    parallel_equals_fold,
    bf16_is_finite,
    generation_is_teacher_forcing,
)
BOTH_MODES = {
    odd_lengths,
    causality,
    streaming,
    batch_invariance,
    fresh_rows_forget,
    parallel_equals_fold,
    bf16_is_finite,
}
TRAIN_MODE: tuple[Law, ...] = (gradient_reach,)


def shaken(build: Callable[[], Model]) -> Model:
    """The model in float64, built from seed 0, dropout off, noise on every parameter."""
    torch.manual_seed(0)
    model = build().double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


@torch.no_grad()
def saved_and_loaded(build: Build) -> None:
    """The weights alone turn a model built from another seed into this one, and the plain list of its tensors
    is a state, both from a safe file."""
    model = shaken(build).eval()
    text = text_for(model)
    said, state = model(text)
    file = io.BytesIO()
    torch.save({"weights": model.state_dict(), "state": leaves(state)}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    twin = build().double().eval()
    twin.load_state_dict(kept["weights"])
    assert_close(twin(text)[0], said, rtol=0, atol=0)
    restored = from_leaves(twin.init_state(ROWS), kept["state"])
    assert_close(twin(text, restored)[0], model(text, state)[0], rtol=0, atol=0)


@torch.no_grad()
def deterministic_by_seed(build: Build) -> None:
    """The same seed builds the same weights and, dropout on, says the same in train mode."""
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        model = build().train()
        results.append([*model.state_dict().values(), model(text_for(model))[0]])
    assert_close(results[0], results[1], rtol=0, atol=0)


def laws(build: Build) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every law by name, each to be checked on a model built anew from the same seed."""
    in_train_mode = [law for law in LAWS if law in BOTH_MODES] + list(TRAIN_MODE)
    for law, training in [(law, False) for law in LAWS] + [(law, True) for law in in_train_mode]:

        def check(law: Law = law, training: bool = training) -> None:
            model = shaken(build).train(training)
            if training and model.mixes_rows_in_training and law in (batch_invariance, fresh_rows_forget):
                return
            with torch.no_grad():
                law(model)

        yield law.__name__ + ("-train" if training and law not in TRAIN_MODE else ""), check
    for of_the_build in (saved_and_loaded, deterministic_by_seed):
        yield of_the_build.__name__, partial(of_the_build, build)
