"""The output projection with a multiple of 64 columns, as on a GPU, against the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from tests.contract.test_contract import MODELS
from tests.zoo.test_loss import BUILDS, in_chunks, results, window
from zoo.law_tools import perturbed
from zoo.models.blocks import OutputProjection, output_projection

WHOLE_WINDOW, CHUNK = 100, 5


def pad(patch: pytest.MonkeyPatch) -> list[int]:
    """The CPU pads from here on; returns a list that gets the columns of every linear map."""
    linear, columns = F.linear, list[int]()
    patch.setattr(OutputProjection, "aligned_devices", ("cpu",))
    patch.setattr(F, "linear", lambda x, w, b=None: (columns.append(len(w)), linear(x, w, b))[1])
    return columns


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("vocab", "padded"), [(1, 64), (63, 64), (64, 64), (257, 320), (32_000, 32_000)])
def test_the_columns_are_a_multiple_of_64(
    bias: bool, vocab: int, padded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = output_projection(nn.Embedding(vocab, 8), tied=True, bias=bias).double()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    plain = head(x)
    columns = pad(monkeypatch)
    logits = head(x)
    assert columns == [padded]
    assert logits.shape == (2, 3, vocab)
    torch.testing.assert_close(logits, plain, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("tokens_at_once", [WHOLE_WINDOW, CHUNK])
def test_losses_and_gradients_are_those_without_padding(
    name: str, tokens_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = perturbed(BUILDS[name]), window()
    in_chunks(monkeypatch, tokens_at_once)
    expected, expected_grads, _ = results(model, batch, None)
    columns = pad(monkeypatch)
    outputs, grads, _ = results(model, batch, None)
    assert 64 in columns
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-12, atol=1e-12)
    assert model(batch.tokens)[0].shape[-1] == model.vocab_size


@pytest.mark.parametrize("name", MODELS)
def test_every_model_s_projection_pads_and_none_of_its_weights_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"model={name}", "task=lm", "size=nano")
    plain = zoo.build_model(*words).eval()
    columns = pad(monkeypatch)
    model = zoo.build_model(*words).eval()
    assert isinstance(model.head, OutputProjection)
    assert model.count_parameters() == plain.count_parameters()
    weights, plain_weights = model.state_dict(), plain.state_dict()
    assert weights.keys() == plain_weights.keys()
    assert all(torch.equal(weight, plain_weights[key]) for key, weight in weights.items())
    logits, _ = model(torch.zeros(1, 3, dtype=torch.long))
    assert 320 in columns
    assert 257 not in columns
    assert logits.shape == (1, 3, 257)
