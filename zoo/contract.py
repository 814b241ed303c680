"""The laws of the zoo: what every model with memory promises, written as checks that anyone can run.

    for name, check in laws(lambda: MyModel(...)):
        check()          # an AssertionError says what is broken, expected and found

They need torch, einops and jaxtyping alone, and hold any nn.Module with the methods of zoo.interface.  The
laws on gradients are in zoo/law_gradients.py, that on reach in zoo/law_reach.py.

They run in float64, dropout off, on a model with noise added to its initial weights (a gate or a matrix that
starts at zero would hide a dead memory), in eval mode; the laws of `BOTH_MODES` again in train mode, as
"causality-train".  States are compared by their contents (zoo.state), which leave out identity fields.  Use
small models: most laws read texts of up to six segments several times, two a text of 24.
"""

import copy
import io
import itertools
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.generation import greedy, stream_tokens
from zoo.interface import StatefulLM, check_interface, stateful
from zoo.law_gradients import gradient_is_true, gradient_reach
from zoo.law_reach import bf16_is_causal, last_token_is_remembered, reach_is_true
from zoo.law_tools import (
    BATCH_SIZE,
    assert_bitwise_equal,
    assert_close,
    assert_finite,
    assert_same_dtypes,
    continued_states,
    deep_copy,
    different_text,
    fast_forms,
    float_leaves,
    is_close,
    memory_cuts,
    modes_agree,
    perturbed,
    random_text,
    read_with_gradients,
    streaming_cuts,
    swapped_states,
    unwritten_leaves,
)
from zoo.state import contents, from_leaves, leaves, named_leaves, nbytes, reset_rows, take_rows

Law = Callable[[StatefulLM], None]
Build = Callable[[], nn.Module]


def shapes(model: StatefulLM) -> None:
    """Logits for every token; every state tensor has the rows first and keeps its shape and dtype."""
    text, initial = random_text(model), model.init_state(BATCH_SIZE)
    logits, state = model(text)
    expected = (*text.shape, model.vocab_size)
    assert logits.shape == expected, f"logits: expected shape {expected}, found {tuple(logits.shape)}"
    for (name, leaf), (_, start) in zip(named_leaves(state), named_leaves(initial), strict=True):
        shape, start_shape = tuple(leaf.shape), tuple(start.shape)
        for source, actual in (("init_state's ", start_shape), ("", shape)):
            assert actual[:1] == (BATCH_SIZE,), (
                f"{source}state `{name}`: expected {BATCH_SIZE} rows first, found shape {actual}"
            )
        assert shape == start_shape, f"state `{name}`: expected shape {start_shape}, found {shape}"
    assert_same_dtypes(state, initial)


def odd_lengths(model: StatefulLM) -> None:
    """A text of one token, or with a short last segment, is a text like any other, and can be continued."""
    text = random_text(model)
    logits = model(text)[0]
    for length in (1, model.segment_len + 1, text.shape[1] - 1):
        prefix_logits, state = model(text[:, :length])
        assert_close(prefix_logits, logits[:, :length], f"logits of the first {length} tokens alone")
        continued = model(text[:, : model.segment_len], state)[0]
        assert_finite(continued, f"logits of a text that continues one of {length} tokens")


def causality(model: StatefulLM) -> None:
    """Later tokens never change earlier logits."""
    text = random_text(model)
    logits = model(text)[0]
    for cut in (1, model.segment_len, model.segment_len + 2, text.shape[1] - 1):
        changed = torch.cat([text[:, :cut], different_text(model, text[:, cut:])], dim=1)
        label = f"logits before token {cut} of a text changed from there on"
        assert_close(model(changed)[0][:, :cut], logits[:, :cut], label)


def streaming(model: StatefulLM) -> None:
    """Cutting a text in two at any segment boundary (anywhere if the model declares it) changes nothing."""
    text = random_text(model)
    logits, end = model(text)
    for cut in streaming_cuts(model, text.shape[1]):
        first, state = model(text[:, :cut])
        second, state = model(text[:, cut:], state)
        assert_close(torch.cat([first, second], dim=1), logits, f"logits of a text cut at token {cut}")
        assert_close(contents(state), contents(end), f"the state after a text cut at token {cut}")


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


def parallel_equals_fold(model: StatefulLM) -> None:
    """`forward` has the logits, the state and the gradients of the fold of `segment`, from an initial
    state, from that after a text, and from the same with a row reset.  So has `logits` of `hidden_segment`,
    if the model separates its projection."""
    text, size = random_text(model), model.segment_len
    after_text, partly_reset = continued_states(model)
    ragged = text[:, : 3 * size - min(3, size - 1)]
    cases = (ragged, partly_reset), (ragged, after_text), (text, None)
    is_fold = type(model).forward is StatefulLM.forward and model.parallel == "none"
    for tokens, state in cases[:1] if is_fold else cases:
        expected = read_with_gradients(model, model.fold, tokens, state)
        for form, read in fast_forms(model).items():
            actual = read_with_gradients(model, read, tokens, state)
            for part in expected:
                assert_close(actual[part], expected[part], f"{part} of {form}")


def bf16_is_finite(model: StatefulLM) -> None:
    """Under bf16 autocast logits, loss and gradients are finite, and the state keeps its dtypes."""
    model.float()
    text = random_text(model, segments=2)
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
    assert_same_dtypes(state, model.init_state(BATCH_SIZE))
    for name, leaf in named_leaves(state):
        assert_finite(leaf, f"state `{name}`")


def generation_is_teacher_forcing(model: StatefulLM) -> None:
    """Token by token, the logits are those of the finished text read at once."""
    text, size = random_text(model, segments=3), model.segment_len  # 3 tokens where a segment has one
    for prompt_len, count in ((1, size + 3), (size, 3), (size + 2, size)):
        prompt = text[:, :prompt_len]
        logits: list[Tensor] = []

        def record(next_logits: Tensor, logits: list[Tensor] = logits) -> Tensor:
            logits.append(next_logits)
            return greedy(next_logits)

        generated = list(itertools.islice(stream_tokens(model, prompt, record), count))
        tokens = torch.cat([prompt, torch.stack(generated, dim=1)], dim=1)
        expected = model(tokens)[0][:, prompt_len - 1 : -1]
        assert_close(torch.stack(logits, dim=1), expected, "logits of generated tokens")


LAWS: tuple[Law, ...] = (
    shapes,
    odd_lengths,
    causality,
    streaming,
    purity,
    memory_is_alive,
    last_token_is_remembered,
    batch_invariance,
    fresh_rows_forget,
    bounded_state,
    reach_is_true,
    gradient_is_true,
    parallel_equals_fold,
    bf16_is_finite,
    bf16_is_causal,
    generation_is_teacher_forcing,
)
BOTH_MODES: tuple[Law, ...] = (
    odd_lengths,
    causality,
    streaming,
    memory_is_alive,
    last_token_is_remembered,
    batch_invariance,
    fresh_rows_forget,
    gradient_is_true,
    parallel_equals_fold,
    bf16_is_finite,
    bf16_is_causal,
)
TRAIN_MODE: tuple[Law, ...] = (gradient_reach,)


@torch.no_grad()
def saved_and_loaded(build: Build) -> None:
    """Weights loaded into a model of another seed make it this model, and a state round-trips through the
    list of its tensors; both are stored in a file and loaded with weights_only."""
    model = perturbed(build).eval()
    text = random_text(model, segments=2)
    logits, state = model(text)
    file = io.BytesIO()
    torch.save({"weights": model.state_dict(), "state": leaves(state)}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    twin = stateful(build()).double().eval()
    twin.load_state_dict(saved["weights"])
    assert_bitwise_equal(twin(text)[0], logits, "logits of the loaded weights")
    loaded_state = from_leaves(twin.init_state(BATCH_SIZE), saved["state"])
    assert_bitwise_equal(twin(text, loaded_state)[0], model(text, state)[0], "logits after the loaded state")


@torch.no_grad()
def deterministic_by_seed(build: Build) -> None:
    """The same seed builds the same weights and, dropout on, has the same logits in train mode."""
    results, modules = [], []
    for _ in range(2):
        torch.manual_seed(3)
        modules.append(build())
        model = stateful(modules[-1]).train()
        results.append([*model.state_dict().values(), model(random_text(model, segments=2))[0]])
    assert modules[0] is not modules[1], "build: expected a new model at every call, found the same one"
    assert_bitwise_equal(results[1], results[0], "weights and logits of the same seed")


def unpromised(model: StatefulLM) -> dict[str, str]:
    """The laws that say nothing of this model, by name, and the trait by which it doesn't promise them."""
    found = {}
    if model.reach == "unknown":
        found[reach_is_true.__name__] = 'reach is "unknown"'
    if model.mixes_rows_in_training:
        reason = "mixes_rows_in_training is True"
        found |= {_name(law, training=True): reason for law in (batch_invariance, fresh_rows_forget)}
    if not model.reads_memory_in_training:
        reason = "reads_memory_in_training is False"
        found |= {_name(law, training=True): reason for law in (memory_is_alive, last_token_is_remembered)}
    return found


def _name(law: Law, training: bool) -> str:
    return f"{law.__name__}-train" if training and law in BOTH_MODES else law.__name__


class LawRunner:
    """Checks each law once per mode on copies of one perturbed model, and in eval mode alone where train mode
    computes the same."""

    def __init__(self, build: Build) -> None:
        self.build = build
        self.errors: dict[tuple[Law, bool], Exception | None] = {}  # by law and mode

    @cached_property
    def model(self) -> StatefulLM:
        model = perturbed(self.build)
        with torch.no_grad():
            check_interface(copy.deepcopy(model).eval(), BATCH_SIZE)
        return model

    def check(self, law: Law, training: bool) -> None:
        """Raises what the law raises in this mode."""
        if _name(law, training) in unpromised(self.model):
            return
        key = law, training and not (law in LAWS and self.modes_agree)
        if key not in self.errors:
            self.errors[key] = self._error(*key)
        if error := self.errors[key]:
            raise error

    def _error(self, law: Law, training: bool) -> Exception | None:
        try:
            with torch.no_grad():
                law(deep_copy(self.model).train(training))
        except Exception as error:
            return error
        return None

    @cached_property
    def modes_agree(self) -> bool:
        return modes_agree(self.model)


def laws(build: Build) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every law's name and check, for the model that `build` makes: a StatefulLM, or any nn.Module with its
    methods (zoo.interface.stateful).

    Each check uses a copy of one model.  Where a model computes the same in both modes, "-train" laws reuse
    the outcome of eval mode.
    """
    if isinstance(build, nn.Module) or not callable(build):
        raise TypeError(
            f"laws: expected what builds a model, a class or lambda: MyModel(…), found {type(build).__name__}"
        )
    runner = LawRunner(build)
    for law in LAWS:
        yield _name(law, training=False), partial(runner.check, law, training=False)
    for law in (*BOTH_MODES, *TRAIN_MODE):
        yield _name(law, training=True), partial(runner.check, law, training=True)
    for build_law in (saved_and_loaded, deterministic_by_seed):
        yield build_law.__name__, partial(build_law, build)
