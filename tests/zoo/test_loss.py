"""The loss in chunks of tokens against the plain one, and what a step doesn't compute."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.test_module import MODELS, ROWS
from zoo import loss
from zoo.law_tools import perturbed
from zoo.models.griffin import Griffin
from zoo.models.landmark import Landmark
from zoo.models.megalodon import Megalodon
from zoo.module import IGNORE, Batch, SequenceModule
from zoo.state import leaves

VOCAB, TIME, CHUNK = 11, 21, 5  # 21 positions: two segments of 8 and a short one
SHAPE: dict[str, Any] = {"vocab_size": VOCAB, "segment_len": 8, "depth": 2, "width": 16, "heads": 2}
BUILDS: dict[str, Callable[..., SequenceModule]] = MODELS | {
    "griffin": lambda: Griffin(
        **SHAPE, mlp_width=20, window=4, pattern=("recurrent", "attention"), soft_cap=3.0
    ),
    "landmark": lambda: Landmark(**SHAPE, mlp_width=20, mem_freq=4, topk=2, capacity=9),
    "megalodon": lambda: Megalodon(**SHAPE, mlp_width=20, key_width=4, value_width=16, chunk_size=4),
}


def window(seed: int = 0, fresh: bool = True) -> Batch:
    """A row full of targets, one with some and one with none."""
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(VOCAB, (2, ROWS, TIME), generator=generator)
    targets[1] = targets[1].masked_fill(torch.rand(TIME, generator=generator) < 0.7, IGNORE)
    targets[2] = IGNORE
    return Batch(tokens, targets, torch.full((ROWS,), fresh))


def results(model: SequenceModule, batch: Batch, state: Any) -> tuple[dict[str, Tensor], list[Tensor], Any]:
    outputs, state = model.compute_loss(batch, state)
    weights = list(model.parameters())
    grads = torch.autograd.grad(outputs["loss"], weights, allow_unused=True)
    return (
        outputs,
        [
            torch.zeros_like(weight) if grad is None else grad
            for weight, grad in zip(weights, grads, strict=True)
        ],
        state,
    )


def in_chunks(monkeypatch: pytest.MonkeyPatch, tokens: int = CHUNK) -> list[int]:
    """Makes every vocabulary a large one; returns a list that gets the number of tokens of all logits."""
    sizes: list[int] = []
    monkeypatch.setattr(loss, "LARGE_VOCABULARY", 1)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", tokens * VOCAB + 1)
    plain = loss.cross_entropy

    def watched(logits: Tensor, targets: Tensor, *options: Any) -> Any:
        sizes.append(len(targets))
        return plain(logits, targets, *options)

    monkeypatch.setattr(loss, "cross_entropy", watched)
    return sizes


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("train", [False, True])
def test_in_chunks_all_is_as_in_one_piece(name: str, train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = perturbed(BUILDS[name]).train(train)
    assert model.separates_projection
    batches = [window(0), window(1, fresh=False)]
    expected: list[Any] = []
    state = None
    for batch in batches:
        expected.append(results(model, batch, state))
        state = expected[-1][2]
    sizes, state = in_chunks(monkeypatch), None
    for batch, (outputs, grads, after) in zip(batches, expected, strict=True):
        sizes.clear()
        chunked, chunked_grads, state = results(model, batch, state)
        assert max(sizes) == CHUNK
        assert sum(sizes) == 2 * ROWS * TIME, "forward, and again in backward"
        assert chunked.keys() == outputs.keys() == {"loss", "nats", *([] if train else ["hits"])}
        for key, value in outputs.items():
            torch.testing.assert_close(chunked[key], value, rtol=1e-12, atol=1e-12)
        for grad, chunked_grad in zip(grads, chunked_grads, strict=True):
            torch.testing.assert_close(chunked_grad, grad, rtol=1e-12, atol=1e-12)
        if state is not None:
            for leaf, other in zip(leaves(after), leaves(state), strict=True):
                torch.testing.assert_close(leaf, other, rtol=1e-12, atol=1e-12)


def test_without_gradient_every_chunk_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = perturbed(BUILDS["transformer"]), in_chunks(monkeypatch)
    with torch.inference_mode():
        model.compute_loss(window(), None)
    assert sum(sizes) == ROWS * TIME


def test_a_subclass_with_logits_of_another_kind_is_read_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `segment` counts, not the `hidden_segment` that it inherits."""

    class Halved(Griffin):
        def segment(self, tokens: Tensor, state: Any) -> Any:
            logits, state = super().segment(tokens, state)
            return logits / 2, state

    model, batch = perturbed(lambda: Halved(**SHAPE, mlp_width=20, window=4)), window()
    in_chunks(monkeypatch)
    logits = model(batch.tokens)[0]
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(model.compute_loss(batch, None)[0]["loss"], expected)
    assert not model.separates_projection


def test_under_autocast_the_gradients_of_all_chunks_are_added_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One bfloat16 sum over 64 chunks would be several times as far from the truth as the plain gradient."""
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(32, 50, bias=False)
    hidden = torch.randn(2048, 32, generator=generator)
    targets = torch.randint(50, (2048,), generator=generator)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 32 * 50)

    def grad(chunked: bool, dtype: torch.dtype = torch.float32) -> Tensor:
        layer = torch.nn.Linear(32, 50, bias=False).to(dtype)
        with torch.no_grad():
            layer.weight.copy_(head.weight)
        x = hidden.to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            if chunked:
                nats, _ = loss.chunked_cross_entropy(layer, x, targets, 50, with_hits=False)
            else:
                nats, _ = loss.cross_entropy(layer(x), targets, with_hits=False)
        nats.mean().backward()
        assert layer.weight.grad is not None
        return layer.weight.grad.double()

    truth = grad(chunked=False, dtype=torch.float64)
    plain, in_pieces = ((grad(chunked) - truth).norm() / truth.norm() for chunked in (False, True))
    assert plain < 0.01
    assert in_pieces < 1.1 * plain


def test_small_vocabularies_and_short_texts_are_in_one_piece() -> None:
    assert not loss.is_chunked(10**9, 257)
    assert not loss.is_chunked(1024, 32_000)
    assert loss.is_chunked(1100, 32_000)
    assert loss.CHUNK_LOGITS // 32_000 > 1000


@pytest.mark.parametrize("name", ["transformer_xl", "megalodon"])
def test_no_state_is_copied_where_no_row_is_fresh(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = perturbed(BUILDS[name]).train()
    _, state = model.compute_loss(window(), None)
    received = []
    read = model.hidden_segment
    monkeypatch.setattr(
        model, "hidden_segment", lambda tokens, state: (received.append(state), read(tokens, state))[1]
    )
    model.compute_loss(window(1, fresh=False), state)
    assert received[0] is state
    received.clear()
    model.compute_loss(window(1)._replace(fresh=torch.tensor([False, True, False])), state)
    pairs = list(zip(leaves(state), leaves(received[0]), strict=True))
    assert any(not torch.equal(before[1], read[1]) for before, read in pairs)
    assert all(torch.equal(before[[0, 2]], read[[0, 2]]) for before, read in pairs)


def test_a_learned_initial_state_has_a_gradient_where_no_row_is_fresh() -> None:
    """Of zero, since a rank without it would wait for the others, and Adam's moments decay in every step."""
    model = perturbed(MODELS["rmt"]).train()
    _, state = model.compute_loss(window(), None)
    model.compute_loss(window(1, fresh=False), state)[0]["loss"].backward()
    memory = dict(model.named_parameters())["memory"]
    assert memory.grad is not None
    assert not memory.grad.any()


def test_only_tokens_and_targets_move_to_the_device() -> None:
    moved = window()._replace(lengths=(3, 0)).to(torch.device("meta"))
    assert [part.device.type for part in moved[:3]] == ["meta", "meta", "cpu"]
    assert moved.lengths == (3, 0)


def test_z_loss_is_in_the_gradient_alone() -> None:
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1, 0, IGNORE, 8, 3, 3])
    plain, _ = loss.cross_entropy(logits, targets, with_hits=False)
    nats, _ = loss.cross_entropy(logits, targets, with_hits=False, z_loss=0.3)
    assert torch.equal(plain, nats)
    penalty = 0.3 * logits.logsumexp(-1).square() * (targets != IGNORE)
    (expected,) = torch.autograd.grad((plain + penalty).sum(), logits)
    (gradient,) = torch.autograd.grad(nats.sum(), logits)
    torch.testing.assert_close(gradient, expected)
