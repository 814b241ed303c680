"""The step that every architecture is trained with."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.mutants import SEGMENT, VOCAB, Honest, Recurrent
from zoo.contract import shaken
from zoo.models.armt import ARMT
from zoo.models.rmt import RMT
from zoo.models.rmt_xl import RMTXL
from zoo.models.transformer import Transformer
from zoo.models.transformer_xl import TransformerXL
from zoo.module import IGNORE, Batch, SequenceModule
from zoo.optim import Optim
from zoo.state import leaves

ROWS, WINDOW = 3, 2 * SEGMENT
SHAPE: dict[str, Any] = {
    "vocab_size": 11,
    "segment_len": 8,
    "depth": 2,
    "width": 12,
    "heads": 2,
    "mlp_width": 20,
}
MODELS: dict[str, Callable[..., SequenceModule]] = {
    "transformer": partial(Transformer, **SHAPE),
    "gpt2": partial(Transformer, **SHAPE, position="learned", norm="layer", activation="gelu", bias=True),
    "window": partial(Transformer, **SHAPE, window=5, sinks=2),
    "rmt": partial(RMT, **SHAPE, memory_tokens=3),
    "armt": partial(ARMT, **SHAPE, memory_tokens=3, key_width=4),
    "transformer_xl": partial(TransformerXL, **SHAPE, memory_len=8),
    "rmt_xl": partial(RMTXL, **SHAPE, memory_len=8, memory_tokens=3),
}
BOTH = pytest.mark.parametrize("build", [Honest, Recurrent])


def window(seed: int, fresh: list[bool], asked: float = 0.5) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(VOCAB, (2, ROWS, WINDOW), generator=generator)
    hidden = torch.rand(ROWS, WINDOW, generator=generator) >= asked
    return Batch(tokens, targets.masked_fill(hidden, IGNORE), torch.tensor(fresh))


@BOTH
def test_the_loss_is_the_mean_over_the_targets_that_are_asked(build: Callable[[], SequenceModule]) -> None:
    model, batch = shaken(build), window(0, [True] * ROWS)
    said, _ = model.compute_loss(batch, None)
    logits = model(batch.tokens)[0].detach()
    total, asked = 0.0, 0
    for row in range(ROWS):
        for time in range(WINDOW):
            target = int(batch.targets[row, time])
            nats = 0.0
            if target != IGNORE:
                scores = logits[row, time]
                nats = float(scores.exp().sum().log() - scores[target])
                total, asked = total + nats, asked + 1
            assert said["nats"][row, time].item() == pytest.approx(nats, abs=1e-12)
            assert bool(said["hits"][row, time]) == (int(logits[row, time].argmax()) == target)
    assert 0 < asked < ROWS * WINDOW
    assert said["loss"].item() == pytest.approx(total / asked, rel=1e-12)
    assert said["loss"].requires_grad
    assert not said["nats"].requires_grad


@BOTH
def test_a_window_that_asks_nothing_has_no_loss_and_no_gradient(build: Callable[[], SequenceModule]) -> None:
    model = shaken(build)
    said, carried = model.compute_loss(window(0, [True] * ROWS, asked=0.0), None)
    said["loss"].backward()
    assert said["loss"].item() == 0
    assert not said["hits"].any()
    assert all(weight.grad is None or not weight.grad.any() for weight in model.parameters())
    assert any(leaf.any() for leaf in leaves(carried)), "it was read all the same"


@BOTH
def test_fresh_rows_begin_anew_and_the_others_go_on(build: Callable[[], SequenceModule]) -> None:
    model = shaken(build)
    first, second = window(0, [True] * ROWS, 1.0), window(1, [False, True, False], 1.0)
    carried = model.compute_loss(first, None)[1]
    nats = model.compute_loss(second, carried)[0]["nats"]
    alone = model.compute_loss(second, None)[0]["nats"]
    both = torch.cat([first.tokens, second.tokens], dim=1)
    logits = model(both)[0][:, WINDOW:].log_softmax(-1)
    on = -logits.gather(2, second.targets[..., None])[..., 0]
    torch.testing.assert_close(nats[1], alone[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(nats[[0, 2]], on[[0, 2]], rtol=1e-10, atol=1e-10)
    assert (on - alone).abs().amin(dim=0).max() > 1e-3, "it makes a difference in every row"


@BOTH
def test_what_is_carried_is_cut_off_from_the_window_before(build: Callable[[], SequenceModule]) -> None:
    """Truncated back-propagation: a step's gradient is its own window's, from a constant state."""
    model = shaken(build)
    carried = model.compute_loss(window(0, [True] * ROWS), None)[1]
    assert not any(leaf.requires_grad for leaf in leaves(carried))
    batch = window(1, [False] * ROWS)
    model.compute_loss(batch, carried)[0]["loss"].backward()
    logits = model(batch.tokens, carried)[0]
    asked = batch.targets != IGNORE
    loss = torch.nn.functional.cross_entropy(logits[asked], batch.targets[asked])
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for weight, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, grad, rtol=1e-10, atol=1e-12)


def test_low_precision_logits_are_weighed_in_float32() -> None:
    model = Honest().bfloat16()
    said, _ = model.compute_loss(window(0, [True] * ROWS), None)
    assert said["loss"].dtype == said["nats"].dtype == torch.float32
    assert shaken(Honest).compute_loss(window(0, [True] * ROWS), None)[0]["loss"].dtype == torch.float64


def test_a_training_step_tells_the_progress_and_carries_on() -> None:
    heard = []

    class Scheduled(Honest):
        def set_progress(self, step: int, steps: int) -> None:
            heard.append((step, steps))

    model = shaken(Scheduled)
    model.trainer = trainer = SimpleNamespace(global_step=4, max_steps=9)  # type: ignore[assignment]
    batches = [window(at, [at == 0] * ROWS) for at in range(2)]
    state = None
    for batch in batches:
        loss = model.training_step(batch, 0)["loss"]
        expected, state = model.compute_loss(batch, state)
        assert torch.equal(loss, expected["loss"])
        assert all(
            torch.equal(one, two) for one, two in zip(leaves(model.train_state), leaves(state), strict=True)
        )
    assert heard == [(trainer.global_step, trainer.max_steps)] * 2
    assert model.val_state is None


def test_validation_starts_from_nothing_and_never_touches_the_training_state() -> None:
    model = shaken(Honest)
    model.train_state = kept = model.compute_loss(window(0, [True] * ROWS), None)[1]
    before = [leaf.clone() for leaf in leaves(kept)]
    batches = [window(at, [False] * ROWS) for at in (1, 2)]  # none fresh: the empty start is the hook's doing
    losses = []
    for _ in range(2):
        model.on_validation_epoch_start()
        losses.append([model.validation_step(batch, at)["loss"].item() for at, batch in enumerate(batches)])
        model.on_validation_epoch_end()
        assert model.val_state is None
    first, state = model.compute_loss(batches[0], None)
    assert losses == [[first["loss"].item(), model.compute_loss(batches[1], state)[0]["loss"].item()]] * 2
    assert model.train_state is kept
    assert all(torch.equal(one, two) for one, two in zip(leaves(kept), before, strict=True))


def test_a_validation_that_broke_off_leaves_nothing_to_the_next() -> None:
    model = shaken(Honest)
    model.validation_step(window(0, [True] * ROWS), 0)
    assert model.val_state is not None
    model.on_validation_epoch_start()
    assert model.val_state is None


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_groups_hold_every_parameter_once(model: str, tied: bool) -> None:
    made = MODELS[model](tied=tied)
    groups = made.parameter_groups()
    held = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(held) == sorted({id(weight) for weight in made.parameters()})
    for group in groups:
        assert all((weight.ndim >= 2) == group.get("decays", True) for weight in group["params"])


def test_frozen_parameters_are_in_no_group() -> None:
    made = MODELS["rmt"]()
    assert isinstance(made, RMT)
    made.embed.requires_grad_(False)
    held = {id(weight) for group in made.parameter_groups() for weight in group["params"]}
    assert held == {id(weight) for weight in made.parameters()} - {id(made.embed.weight)}


@pytest.mark.parametrize("model", MODELS)
def test_a_budget_counts_tied_weights_once_and_leaves_out_tables_and_output(model: str) -> None:
    """Attention, feed-forward and norms of two layers of width 12, hidden 20, and what each memory adds."""
    width, hidden = 12, 20
    llama = 2 * (4 * width**2 + 3 * width * hidden + 2 * width) + width
    xl = (
        2 * (5 * width**2 + 2 * width * hidden + hidden + width + 4 * width) + 2 * width
    )  # u, v of all layers
    counted = {
        "transformer": llama,
        "window": llama,
        "gpt2": 2 * (4 * (width**2 + width) + 2 * width * hidden + hidden + width + 4 * width) + 2 * width,
        "rmt": llama + 3 * width,
        "armt": llama + 3 * width + 2 * (2 * 4 * width + width**2 + width + 1),
        "transformer_xl": xl,
        "rmt_xl": xl + 3 * width,
    }
    assert MODELS[model](tied=True).count_parameters() == counted[model]
    assert MODELS[model](tied=False).count_parameters() == counted[model]


def test_the_optimiser_gets_the_groups() -> None:
    model = MODELS["transformer_xl"]()
    model.optim = Optim(steps=5, lr=0.1, warmup=1)
    groups = model.configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_text_is_folded_in_segments() -> None:
    """Against a loop over hand-cut pieces."""
    model = shaken(Honest)
    tokens = torch.randint(VOCAB, (2, 2 * SEGMENT + 1))
    state, said = model.init_state(2), list[Tensor]()
    for start in range(0, 2 * SEGMENT + 1, SEGMENT):
        logits, state = model.segment(tokens[:, start : start + SEGMENT], state)
        said.append(logits)
    logits, end = model(tokens)
    assert torch.equal(logits, torch.cat(said, dim=1))
    assert end.segments.tolist() == [3, 3]
    assert all(torch.equal(one, two) for one, two in zip(leaves(end), leaves(state), strict=True))
