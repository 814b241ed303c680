"""The training step that all architectures share."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.mutants import SEGMENT, VOCAB, Honest, Recurrent
from zoo.law_tools import perturbed
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
BUILDS = pytest.mark.parametrize("build", [Honest, Recurrent])


def window(seed: int, fresh: list[bool], share: float = 0.5) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(VOCAB, (2, ROWS, WINDOW), generator=generator)
    hidden = torch.rand(ROWS, WINDOW, generator=generator) >= share
    return Batch(tokens, targets.masked_fill(hidden, IGNORE), torch.tensor(fresh))


@BUILDS
def test_the_loss_is_the_mean_over_the_targets(build: Callable[[], SequenceModule]) -> None:
    model, batch = perturbed(build).eval(), window(0, [True] * ROWS)
    outputs, _ = model.compute_loss(batch, None)
    logits = model(batch.tokens)[0].detach()
    total, num_targets = 0.0, 0
    for row in range(ROWS):
        for time in range(WINDOW):
            target = int(batch.targets[row, time])
            nats = 0.0
            if target != IGNORE:
                scores = logits[row, time]
                nats = float(scores.exp().sum().log() - scores[target])
                total, num_targets = total + nats, num_targets + 1
            assert outputs["nats"][row, time].item() == pytest.approx(nats, abs=1e-12)
            assert bool(outputs["hits"][row, time]) == (int(logits[row, time].argmax()) == target)
    assert 0 < num_targets < ROWS * WINDOW
    assert outputs["loss"].item() == pytest.approx(total / num_targets, rel=1e-12)
    assert outputs["loss"].requires_grad
    assert not outputs["nats"].requires_grad


@BUILDS
def test_a_window_without_targets_has_no_loss_and_no_gradient(build: Callable[[], SequenceModule]) -> None:
    model = perturbed(build).eval()
    outputs, state = model.compute_loss(window(0, [True] * ROWS, share=0.0), None)
    outputs["loss"].backward()
    assert outputs["loss"].item() == 0
    assert not outputs["hits"].any()
    assert all(weight.grad is None or not weight.grad.any() for weight in model.parameters())
    assert any(leaf.any() for leaf in leaves(state)), "it was read all the same"


@BUILDS
def test_fresh_rows_start_anew_and_the_others_continue(build: Callable[[], SequenceModule]) -> None:
    model = perturbed(build)
    first, second = window(0, [True] * ROWS, 1.0), window(1, [False, True, False], 1.0)
    state = model.compute_loss(first, None)[1]
    nats = model.compute_loss(second, state)[0]["nats"]
    alone = model.compute_loss(second, None)[0]["nats"]
    tokens = torch.cat([first.tokens, second.tokens], dim=1)
    logits = model(tokens)[0][:, WINDOW:].log_softmax(-1)
    continued = -logits.gather(2, second.targets[..., None])[..., 0]
    torch.testing.assert_close(nats[1], alone[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(nats[[0, 2]], continued[[0, 2]], rtol=1e-10, atol=1e-10)
    assert (continued - alone).abs().amin(dim=0).max() > 1e-3, "it makes a difference in every row"


@BUILDS
def test_the_carried_state_is_detached_from_the_window_before(build: Callable[[], SequenceModule]) -> None:
    """Truncated back-propagation: a step's gradient is its own window's, from a constant state."""
    model = perturbed(build)
    state = model.compute_loss(window(0, [True] * ROWS), None)[1]
    assert not any(leaf.requires_grad for leaf in leaves(state))
    batch = window(1, [False] * ROWS)
    model.compute_loss(batch, state)[0]["loss"].backward()
    logits = model(batch.tokens, state)[0]
    has_target = batch.targets != IGNORE
    loss = torch.nn.functional.cross_entropy(logits[has_target], batch.targets[has_target])
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for weight, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, grad, rtol=1e-10, atol=1e-12)


def test_the_loss_of_low_precision_logits_is_in_float32() -> None:
    model = Honest().bfloat16()
    outputs, _ = model.compute_loss(window(0, [True] * ROWS), None)
    assert outputs["loss"].dtype == outputs["nats"].dtype == torch.float32
    assert perturbed(Honest).compute_loss(window(0, [True] * ROWS), None)[0]["loss"].dtype == torch.float64


def test_a_training_step_sets_the_progress_and_carries_the_state() -> None:
    calls = []

    class Scheduled(Honest):
        def set_progress(self, step: int, steps: int) -> None:
            calls.append((step, steps))

    model = perturbed(Scheduled)
    trainer = SimpleNamespace(global_step=4, max_steps=9, accumulate_grad_batches=1, world_size=1)
    model.trainer = trainer  # type: ignore[assignment]
    batches = [window(at, [at == 0] * ROWS) for at in range(2)]
    state = None
    for batch in batches:
        loss = model.training_step(batch, 0)["loss"]
        expected, state = model.compute_loss(batch, state)
        assert torch.equal(loss, expected["loss"])
        assert all(map(torch.equal, leaves(model.train_state), leaves(state)))
    assert calls == [(trainer.global_step, trainer.max_steps)] * 2
    assert model.val_state is None


def test_validation_starts_from_nothing_and_never_touches_the_training_state() -> None:
    model = perturbed(Honest)
    model.train_state = saved = model.compute_loss(window(0, [True] * ROWS), None)[1]
    before = [leaf.clone() for leaf in leaves(saved)]
    batches = [window(at, [False] * ROWS) for at in (1, 2)]  # none fresh: the hook empties the state
    losses = []
    for _ in range(2):
        model.on_validation_epoch_start()
        losses.append([model.validation_step(batch, at)["loss"].item() for at, batch in enumerate(batches)])
        model.on_validation_epoch_end()
        assert model.val_state is None
    first, state = model.compute_loss(batches[0], None)
    assert losses == [[first["loss"].item(), model.compute_loss(batches[1], state)[0]["loss"].item()]] * 2
    assert model.train_state is saved
    assert all(map(torch.equal, leaves(saved), before))


def test_an_interrupted_validation_leaves_no_state_to_the_next() -> None:
    model = perturbed(Honest)
    model.validation_step(window(0, [True] * ROWS), 0)
    assert model.val_state is not None
    model.on_validation_epoch_start()
    assert model.val_state is None


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_groups_hold_every_parameter_once(model: str, tied: bool) -> None:
    built = MODELS[model](tied=tied)
    groups = built.parameter_groups()
    in_groups = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(in_groups) == sorted({id(weight) for weight in built.parameters()})
    decaying = [weight for group in groups if group.get("decays", True) for weight in group["params"]]
    assert all(weight.ndim >= 2 for weight in decaying)  # which of these: tests/models/test_weight_decay.py


def test_frozen_parameters_are_in_no_group() -> None:
    built = MODELS["rmt"]()
    assert isinstance(built, RMT)
    built.embed.requires_grad_(False)
    in_groups = {id(weight) for group in built.parameter_groups() for weight in group["params"]}
    assert in_groups == {id(weight) for weight in built.parameters()} - {id(built.embed.weight)}


@pytest.mark.parametrize("model", MODELS)
def test_a_budget_counts_tied_weights_once_and_leaves_out_tables_and_output(model: str) -> None:
    """Attention, feed-forward and norms of two layers of width 12, and those of each memory."""
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
    model = perturbed(Honest)
    tokens = torch.randint(VOCAB, (2, 2 * SEGMENT + 1))
    state, outputs = model.init_state(2), list[Tensor]()
    for start in range(0, 2 * SEGMENT + 1, SEGMENT):
        logits, state = model.segment(tokens[:, start : start + SEGMENT], state)
        outputs.append(logits)
    logits, end = model(tokens)
    assert torch.equal(logits, torch.cat(outputs, dim=1))
    assert end.segments.tolist() == [3, 3]
    assert all(map(torch.equal, leaves(end), leaves(state)))
