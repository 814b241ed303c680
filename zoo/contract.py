"""The laws of the zoo: what every SequenceModule promises, written as checks that anyone can run.

    for name, check in laws(lambda: MyModel(...)):
        check()          # an AssertionError says what is broken, expected and found

They run in float64, dropout off, on a model shaken away from its initial weights (a gate or a matrix that
starts at zero would hide a dead memory), in eval mode; the laws of `BOTH_MODES` again in train mode, as
"causality-train".  States are compared by their contents (zoo.state), which leave out identity fields.  Small
models serve best: a few texts of up to six segments are read many times.
"""

import copy
import io
import itertools
from collections.abc import Callable, Iterator
from functools import cached_property, partial
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


# -- texts and comparisons


def text_for(model: SequenceModule, segments: int = SEGMENTS, rows: int = ROWS, seed: int = 0) -> Tensor:
    """A random text (rows, segments * segment_len)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.vocab_size, (rows, segments * model.segment_len), generator=generator)


def change_all(model: SequenceModule, tokens: Tensor) -> Tensor:
    """A text that differs from `tokens` at every position."""
    return (tokens + 1) % model.vocab_size


def memory_cuts(model: SequenceModule) -> tuple[int, int]:
    """After whole segments, and after a short last one: open blocks and chunks are empty at a boundary."""
    return 2 * model.segment_len, 2 * model.segment_len + max(1, model.segment_len - 3)


def streaming_cuts(model: SequenceModule, length: int) -> list[int]:
    """Every segment boundary; where a call may end anywhere, the first tokens, every offset in the second
    segment and the last token too."""
    size = model.segment_len
    cuts = {*range(size, length, size)}
    if model.cuts_anywhere:
        cuts |= {1, 2, 3, *range(size, 2 * size), length - 1}
    return sorted(cut for cut in cuts if cut < length)


def float_leaves(state: State) -> list[tuple[str, Tensor]]:
    """The non-empty floating and complex tensors of a state, by name."""
    return [
        (name, leaf)
        for name, leaf in named_leaves(state)
        if leaf.numel() and (leaf.is_floating_point() or leaf.is_complex())
    ]


def assert_equal(actual: Tensor | list[Tensor], expected: Tensor | list[Tensor], label: str) -> None:
    """Equal up to rounding; `label` says of what in the message."""
    assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda detail: f"{label}: {detail}")


def is_equal(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= TOLERANCE)


def assert_identical(actual: object, expected: object, label: str) -> None:
    """Equal bit for bit."""
    assert_close(actual, expected, rtol=0, atol=0, msg=lambda detail: f"{label}: {detail}")


def assert_finite(tensor: Tensor, label: str) -> None:
    infinite = int((~tensor.isfinite()).sum())
    assert not infinite, f"{label}: expected finite values, found {infinite} of {tensor.numel()} not finite"


def assert_same_dtypes(state: State, initial: State) -> None:
    for (name, leaf), (_, start) in zip(named_leaves(state), named_leaves(initial), strict=True):
        assert leaf.dtype == start.dtype, f"state `{name}`: expected {start.dtype}, found {leaf.dtype}"


# -- the laws


def shapes(model: SequenceModule) -> None:
    """Logits for every token; every state tensor has the rows first and keeps its shape and dtype."""
    text, initial = text_for(model), model.init_state(ROWS)
    logits, state = model(text)
    expected = (*text.shape, model.vocab_size)
    assert logits.shape == expected, f"logits: expected shape {expected}, found {tuple(logits.shape)}"
    for (name, leaf), (_, start) in zip(named_leaves(state), named_leaves(initial), strict=True):
        shape, start_shape = tuple(leaf.shape), tuple(start.shape)
        assert shape[:1] == (ROWS,), f"state `{name}`: expected {ROWS} rows first, found shape {shape}"
        assert shape == start_shape, f"state `{name}`: expected shape {start_shape}, found {shape}"
    assert_same_dtypes(state, initial)


def odd_lengths(model: SequenceModule) -> None:
    """A text of one token, or with a short last segment, is a text like any other, and can be continued."""
    text = text_for(model)
    logits = model(text)[0]
    for length in (1, model.segment_len + 1, text.shape[1] - 1):
        prefix_logits, state = model(text[:, :length])
        assert_equal(prefix_logits, logits[:, :length], f"logits of the first {length} tokens alone")
        continued = model(text[:, : model.segment_len], state)[0]
        assert_finite(continued, f"logits of a text that continues one of {length} tokens")


def causality(model: SequenceModule) -> None:
    """Later tokens never change earlier logits."""
    text = text_for(model)
    logits = model(text)[0]
    for cut in (1, model.segment_len, model.segment_len + 2, text.shape[1] - 1):
        changed = torch.cat([text[:, :cut], change_all(model, text[:, cut:])], dim=1)
        label = f"logits before token {cut} of a text changed from there on"
        assert_equal(model(changed)[0][:, :cut], logits[:, :cut], label)


def streaming(model: SequenceModule) -> None:
    """Cutting a text in two at any segment boundary (anywhere if the model declares it) changes nothing."""
    text = text_for(model)
    logits, end = model(text)
    for cut in streaming_cuts(model, text.shape[1]):
        first, state = model(text[:, :cut])
        second, state = model(text[:, cut:], state)
        assert_equal(torch.cat([first, second], dim=1), logits, f"logits of a text cut at token {cut}")
        assert_equal(contents(state), contents(end), f"the state after a text cut at token {cut}")


def purity(model: SequenceModule) -> None:
    """All memory is in the state: reading changes neither the state passed in nor the module."""
    text = text_for(model)
    next_text = text[:, : 2 * model.segment_len]
    twin, weights = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    fresh_logits, state = model(text)
    saved = copy.deepcopy(state)
    logits = model(next_text, state)[0]
    assert_identical(leaves(state), leaves(saved), "the state passed in, after reading")
    model(text.flip(1))  # an unrelated text in between
    assert_equal(model(next_text, state)[0], logits, "the same state read twice")
    assert_equal(twin(next_text, saved)[0], logits, "the same state read by a copy of the model")
    assert_equal(model(text)[0], fresh_logits, "a fresh text read twice")
    assert_identical(dict(model.state_dict()), dict(weights), "the weights after reading")


def memory_is_alive(model: SequenceModule) -> None:
    """Each floating or complex tensor of the state, replaced alone by its counterpart after another text,
    changes the next logits, at some cut.  A model that doesn't remember has the same logits after any text.

    A lazy field (zoo.state) may be a bank of more pieces than these texts fill: see `unwritten_pieces`.
    """
    text, initial = text_for(model, segments=5), model.init_state(ROWS)
    dead, states = {name for name, _ in float_leaves(initial)}, []
    assert dead or not model.remembers, "remembers=True: expected floating tensors in the state, found none"
    for cut in memory_cuts(model):
        before, after = text[:, :cut], text[:, cut : cut + 2 * model.segment_len]
        state, counterpart = model(before)[1], model(change_all(model, before))[1]
        logits = model(after, state)[0]
        if not model.remembers:
            assert_equal(logits, model(after)[0], "remembers=False, but logits after a text and after none")
            continue
        for name, swapped in swapped_states(state, counterpart):
            if name in dead and not is_equal(model(after, swapped)[0], logits):
                dead.remove(name)
        states += [state, counterpart]
    if model.remembers:
        dead -= unwritten_pieces(initial, states)
        names = ", ".join(f"`{name}`" for name in sorted(dead))
        assert not dead, (
            f"dead memory: expected different logits with {names} of another text, found the same:"
            " never written, or never read"
        )


def swapped_states(state: State, counterpart: State) -> Iterator[tuple[str, State]]:
    """For each leaf that differs: its name, and the state with this leaf alone from the counterpart."""
    names, old, new = [name for name, _ in named_leaves(state)], leaves(state), leaves(counterpart)
    for i, name in enumerate(names):
        if not torch.equal(old[i], new[i]):
            yield name, from_leaves(state, [*old[:i], new[i], *old[i + 1 :]])


def unwritten_pieces(initial: State, states: list[State]) -> set[str]:
    """Leaves of lazy fields that none of these states has changed, unless a field has no other leaves."""
    result: set[str] = set()
    current = [dict(named_leaves(state)) for state in states]
    for field in lazy_field_names(initial):
        pieces = {name: leaf for name, leaf in float_leaves(initial) if name.startswith(f"{field}.")}
        unwritten = {
            name for name, leaf in pieces.items() if all(torch.equal(leaf, after[name]) for after in current)
        }
        if len(unwritten) < len(pieces):
            result |= unwritten
    return result


def batch_invariance(model: SequenceModule) -> None:
    """A row's logits and state don't depend on the rest of the batch."""
    text = text_for(model)
    logits, state = model(text)
    beside_changed = torch.cat([text[:1], change_all(model, text[1:])])
    for rows, batch, label in (
        (torch.tensor([2, 0, 1]), text[[2, 0, 1]], "rows in a different order"),
        (torch.tensor([0]), text[:1], "a row read alone"),
        (torch.tensor([0]), beside_changed, "a row beside different rows"),
    ):
        batch_logits, batch_state = model(batch)
        assert_equal(batch_logits[: len(rows)], logits[rows], f"logits of {label}")
        compared = take_rows(batch_state, torch.arange(len(rows)))
        assert_equal(contents(compared), contents(take_rows(state, rows)), f"the state of {label}")


def fresh_rows_forget(model: SequenceModule) -> None:
    """A row reset among continuing ones has the logits of a new text; the others remember."""
    text, rows = text_for(model), torch.tensor([True, False, True])
    next_text = text[:, : 2 * model.segment_len]
    for cut in memory_cuts(model):
        _, state = model(text[:, :cut])
        logits, _ = model(next_text, reset_rows(state, model.init_state(ROWS), rows))
        assert_equal(logits[rows], model(next_text)[0][rows], "logits of a fresh row among continuing ones")
        assert_equal(
            logits[~rows], model(next_text, state)[0][~rows], "logits of a continuing row among fresh ones"
        )


def bounded_state(model: SequenceModule) -> None:
    """A longer text doesn't make a larger state."""
    short, long = (nbytes(model(text_for(model, segments))[1]) for segments in (2, 6))
    assert short == long, (
        f"size of the state: expected {short} bytes as after 2 segments, found {long} after 6"
    )


def gradient_reach(model: SequenceModule) -> None:
    """The next segment's loss has a gradient that runs through each tensor of the state, at some cut, back
    into the embeddings of earlier tokens, where `learns_through_memory` says so and nowhere else."""
    promise, text = model.learns_through_memory, text_for(model)
    reached = {name: False for name, _ in float_leaves(model.init_state(ROWS))}
    fields = {name.rpartition(".")[2] for name in reached}
    assert isinstance(promise, bool) or fields.issuperset(promise), (
        f"learns_through_memory: expected fields of the state ({', '.join(sorted(fields))}), found {promise}"
    )
    embeddings = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
    for cut in memory_cuts(model):
        with torch.enable_grad():
            _, state = model(text[:, :cut])
            logits, _ = model(text[:, cut : cut + model.segment_len], state)
            for name, leaf in float_leaves(state):
                if _gradient_runs_through(leaf, logits, embeddings):
                    reached[name] = True
    for name, reaches in reached.items():
        promised = promise if isinstance(promise, bool) else name.rpartition(".")[2] in promise
        assert reaches == promised, (
            f"learns_through_memory={promise}: expected {'a' if promised else 'no'} gradient through state"
            f" `{name}`, found {'one' if reaches else 'none'}"
        )


def _gradient_runs_through(leaf: Tensor, logits: Tensor, embeddings: list[Tensor]) -> bool:
    """True if a loss of `logits` has a gradient in this leaf of the state, and that one in the embeddings."""
    (grad,) = gradients(weighted_sum(logits), [leaf])
    if grad is None or not grad.any():
        return False
    table_grads = gradients(weighted_sum(leaf * grad.conj()), embeddings)
    return not embeddings or any(grad is not None and bool(grad.any()) for grad in table_grads)


def parallel_equals_fold(model: SequenceModule) -> None:
    """`forward` has the logits, the state and the gradients of the fold of `segment`, from an initial, a
    carried and a mixed state."""
    text, size = text_for(model), model.segment_len
    later, mixed = later_states(model)
    ragged = text[:, : 3 * size - min(3, size - 1)]
    cases = (ragged, mixed), (ragged, later), (text, None)
    is_fold = type(model).forward is SequenceModule.forward and model.parallel == "none"
    for tokens, state in cases[:1] if is_fold else cases:
        expected = read_with_gradients(model, model.fold, tokens, state)
        actual = read_with_gradients(model, model.forward, tokens, state)
        for part in expected:
            assert_equal(actual[part], expected[part], f"{part} of the parallel form")


def later_states(model: SequenceModule) -> tuple[State, State]:
    """A state after a text, and the same with its first row reset."""
    _, state = model(text_for(model, seed=1)[:, : memory_cuts(model)[1]])
    return state, reset_rows(state, model.init_state(ROWS), torch.tensor([True, False, False]))


def read_with_gradients(
    model: SequenceModule,
    read: Callable[[Tensor, State], tuple[Tensor, State]],
    tokens: Tensor,
    state: State | None,
) -> dict[str, list[Tensor]]:
    """Logits, state, and the gradient of all of them in the weights and in the state passed in."""
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
    """Gradients, None where nothing leads from an input to the total."""
    differentiable = [tensor for tensor in inputs if tensor.requires_grad]
    if not differentiable or not total.requires_grad:
        return [None] * len(inputs)
    grads = iter(torch.autograd.grad(total, differentiable, allow_unused=True, retain_graph=True))
    return [next(grads) if tensor.requires_grad else None for tensor in inputs]


def bf16_is_finite(model: SequenceModule) -> None:
    """Under bf16 autocast logits, loss and gradients are finite, and the state keeps its dtypes."""
    model.float()
    text = text_for(model, segments=2)
    with torch.enable_grad():
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = model(text)
            logits, state = model(text, state)
            loss = F.cross_entropy(logits.float().flatten(0, 1), text.flatten())
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert_finite(logits, "logits")
    for (name, _), grad in zip(model.named_parameters(), grads, strict=True):
        if grad is not None:
            assert_finite(grad, f"the gradient of `{name}`")
    assert_same_dtypes(state, model.init_state(ROWS))
    for name, leaf in named_leaves(state):
        assert_finite(leaf, f"state `{name}`")


def generation_is_teacher_forcing(model: SequenceModule) -> None:
    """Token by token, the logits are those of the finished text read at once."""
    text, size = text_for(model, segments=2), model.segment_len
    for prompt_len, count in ((1, size + 3), (size, 3), (size + 2, size)):
        prompt = text[:, :prompt_len]
        logits: list[Tensor] = []

        def record(next_logits: Tensor, logits: list[Tensor] = logits) -> Tensor:
            logits.append(next_logits)
            return greedy(next_logits)

        generated = list(itertools.islice(generate(model, prompt, record), count))
        tokens = torch.cat([prompt, torch.stack(generated, dim=1)], dim=1)
        expected = model(tokens)[0][:, prompt_len - 1 : -1]
        assert_equal(torch.stack(logits, dim=1), expected, "logits of generated tokens")


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
BOTH_MODES: tuple[Law, ...] = (
    odd_lengths,
    causality,
    streaming,
    batch_invariance,
    fresh_rows_forget,
    parallel_equals_fold,
    bf16_is_finite,
)
TRAIN_MODE: tuple[Law, ...] = (gradient_reach,)


@torch.no_grad()
def saved_and_loaded(build: Build) -> None:
    """The weights alone turn a model built from another seed into this one, and the plain list of its tensors
    is a state, both from a safe file."""
    model = shaken(build).eval()
    text = text_for(model, segments=2)
    logits, state = model(text)
    file = io.BytesIO()
    torch.save({"weights": model.state_dict(), "state": leaves(state)}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    twin = build().double().eval()
    twin.load_state_dict(saved["weights"])
    assert_identical(twin(text)[0], logits, "logits of the loaded weights")
    loaded_state = from_leaves(twin.init_state(ROWS), saved["state"])
    assert_identical(twin(text, loaded_state)[0], model(text, state)[0], "logits after the loaded state")


@torch.no_grad()
def deterministic_by_seed(build: Build) -> None:
    """The same seed builds the same weights and, dropout on, has the same logits in train mode."""
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        model = build().train()
        results.append([*model.state_dict().values(), model(text_for(model, segments=2))[0]])
    assert_identical(results[1], results[0], "weights and logits of the same seed")


# -- running them


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


class LawRunner:
    """Checks laws on copies of one shaken model, and each law once: in train mode only where that differs."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.errors: dict[tuple[Law, bool], Exception | None] = {}  # by law and mode

    @cached_property
    def model(self) -> SequenceModule:
        return shaken(self.build)

    def check(self, law: Law, training: bool) -> None:
        """Raises what the law raises in this mode."""
        if training and self.model.mixes_rows_in_training and law in (batch_invariance, fresh_rows_forget):
            return
        key = law, training and not (law in LAWS and self.modes_agree)
        if key not in self.errors:
            self.errors[key] = self._error(*key)
        if error := self.errors[key]:
            raise error

    def _error(self, law: Law, training: bool) -> Exception | None:
        try:
            with torch.no_grad():
                law(copy.deepcopy(self.model).train(training))
        except Exception as error:
            return error
        return None

    @cached_property
    def modes_agree(self) -> bool:
        """True if `forward` and `fold` are bit for bit the same in train mode, gradients included: a second
        path for training would round otherwise."""
        try:
            evaluated, trained = (_probe(copy.deepcopy(self.model).train(mode)) for mode in (False, True))
        except Exception:  # each law raises it again
            return False
        return len(evaluated) == len(trained) and all(map(torch.equal, evaluated, trained))


@torch.no_grad()
def _probe(model: SequenceModule) -> list[Tensor]:
    """Logits, states and gradients of one reading of each kind: short and long, fresh and carried."""
    text, (later, mixed) = text_for(model), later_states(model)
    logits, state = model(text)
    results = [logits, *contents(state), *contents(later), model(text[:, :1], later)[0]]
    ragged = text[:, : model.segment_len + 1]
    for read in (model.fold, model.forward):
        results += [
            tensor for part in read_with_gradients(model, read, ragged, mixed).values() for tensor in part
        ]
    return results


def laws(build: Build) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every law by name, each to be checked on a copy of one model; "-train" laws repeat the outcome in eval
    mode for a model that computes the same in both."""
    runner = LawRunner(build)
    for law in LAWS:
        yield law.__name__, partial(runner.check, law, training=False)
    for law in BOTH_MODES:
        yield f"{law.__name__}-train", partial(runner.check, law, training=True)
    for law in TRAIN_MODE:
        yield law.__name__, partial(runner.check, law, training=True)
    for build_law in (saved_and_loaded, deterministic_by_seed):
        yield build_law.__name__, partial(build_law, build)
