"""The laws of the zoo: what every model with memory promises, written as checks that anyone can run.

    for name, check in laws(lambda: MyModel(...)):
        check()          # an AssertionError says what is broken, expected and found

They need torch and jaxtyping alone, and hold any nn.Module with the methods of zoo.interface.  The
laws themselves are in zoo/law_*.py, but for the two on what is built.

They run in float64, dropout off, on a model with noise added to its initial weights (a gate or a matrix that
starts at zero would hide a dead memory), in eval mode; the laws of `BOTH_MODES` again in train mode, as
"causality-train".  States are compared by their contents (zoo.state), which leave out identity fields.  Use
small models: most laws read texts of up to six segments several times, two a text of 24.
"""

import copy
import io
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import torch
from torch import nn

from zoo.interface import StatefulLM, check_interface, stateful
from zoo.law_gradients import gradient_is_true, gradient_reach
from zoo.law_memory import batch_invariance, bounded_state, fresh_rows_forget, memory_is_alive, purity
from zoo.law_reach import bf16_is_causal, last_token_is_remembered, reach_is_true
from zoo.law_reading import (
    bf16_is_finite,
    causality,
    generation_is_teacher_forcing,
    odd_lengths,
    parallel_equals_fold,
    shapes,
    streaming,
)
from zoo.law_tools import (
    BATCH_SIZE,
    assert_bitwise_equal,
    deep_copy,
    modes_agree,
    perturbed,
    random_text,
)
from zoo.state import from_leaves, leaves

Law = Callable[[StatefulLM], None]
Build = Callable[[], nn.Module]


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
    reasons = {}
    if model.reach == "unknown":
        reasons[reach_is_true.__name__] = 'reach is "unknown"'
    if model.mixes_rows_in_training:
        reason = "mixes_rows_in_training is True"
        reasons |= {_name(law, training=True): reason for law in (batch_invariance, fresh_rows_forget)}
    if not model.reads_memory_in_training:
        reason = "reads_memory_in_training is False"
        reasons |= {_name(law, training=True): reason for law in (memory_is_alive, last_token_is_remembered)}
    return reasons


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
