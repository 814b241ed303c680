"""Every model reads, learns and generates on the meta device, where a value that is read back to the host is
an error, and so is a tensor that was made on another device: no forward waits for a GPU."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.contract.test_contract import MODELS, VARIANTS
from tests.contract.test_contract import build_model as config_model
from tests.laws import untyped
from zoo.generation import Reader
from zoo.host import known_lengths
from zoo.law_tools import perturbed, random_text
from zoo.memory.mixer import no_autocast
from zoo.module import Batch, SequenceModule
from zoo.state import contents, reset_rows
from zoo.train.runs import build
from zoo.train.runs.config import compose

ROWS = 2
SETTINGS = {
    "focused_searches_all": ("model=focused", "model.neighbours=100"),
    "landmark_by_head": ("model=landmark", "model.selection=head"),
    "landmark_by_token": ("model=landmark", "model.selection=token"),
    "landmark_large_bank": ("model=landmark", "model.capacity=1024", "model.topk=1"),
    "memorizing_in_one_block": ("model=memorizing", "model.block=null", "model.memory_dtype=bfloat16"),
    "memorizing_large_bank": (
        "model=memorizing",
        "model.capacity=4096",
        "model.block=512",
        "model.neighbours=1",
    ),
    "unlimiformer_trained": ("model=unlimiformer", "model.retrieval_training=true"),
    "unlimiformer_positions": ("model=unlimiformer", "model.retrieved_positions=spread"),
}
"""Settings of searched memories that take other ways; those of other models are VARIANTS."""


def on_host(name: str) -> SequenceModule:
    return build.model(compose([*SETTINGS[name], "size=nano"])) if name in SETTINGS else config_model(name)


def on_meta(name: str) -> SequenceModule:
    return on_host(name).to("meta")


@pytest.fixture(autouse=True)
def without_types() -> Iterator[None]:
    """The laws check shapes and types in the same calls."""
    with untyped():
        yield


def tokens(time: int) -> Tensor:
    return torch.zeros(ROWS, time, dtype=torch.long, device="meta")


def assert_all_on_meta(values: object) -> None:
    if isinstance(values, Tensor):
        assert values.device.type == "meta"
    elif isinstance(values, tuple):
        for value in values:
            assert_all_on_meta(value)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", [*MODELS, *SETTINGS, *VARIANTS])
def test_segments_and_their_gradient(name: str, training: bool) -> None:
    model = on_meta(name).train(training)
    state, total = model.init_state(ROWS), torch.zeros((), device="meta")
    for time in (model.segment_len - 1, model.segment_len):
        logits, state = model.segment(tokens(time), state)
        total = total + logits.sum()
        assert_all_on_meta((logits, state))
    total.backward()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", [*MODELS, *SETTINGS])
def test_the_loss_of_two_windows(name: str, training: bool) -> None:
    model, state = on_meta(name).train(training), None
    window = tokens(2 * model.segment_len)
    for lengths in ((0, 0), (window.shape[1], 0)):
        fresh = torch.zeros(ROWS, dtype=torch.bool, device="meta")
        outputs, state = model.compute_loss(Batch(window, window, fresh, lengths), state)
        outputs["loss"].backward()
        assert_all_on_meta((*outputs.values(), state))


@pytest.mark.parametrize("name", [*MODELS, *SETTINGS])
def test_generation(name: str) -> None:
    """A prompt that ends inside a segment, then token by token into the next segment."""
    model = on_meta(name).eval()
    reader = Reader(model, ROWS)
    for time in (model.segment_len + 3, 1, model.segment_len - 5, 1, 1):
        assert reader.read(tokens(time)).device.type == "meta"
    assert not reader.open_tokens.shape[1] or (reader.cache is not None) == model.decodes


SIZED_BY_COUNTS = ("focused", "landmark", "megalodon", "memorizing", "unlimiformer", *SETTINGS)


def read_pieces(name: str, training: bool, lengths_known: bool) -> list[Tensor]:
    """Logits, contents of states and gradients of a text in pieces, one of them inside a segment, one of two
    rows starting anew in between."""
    model = perturbed(lambda: on_host(name)).train(training)
    size, text = model.segment_len, random_text(model, segments=6, rows=ROWS)
    text[:, size : 2 * size] = text[:, :size]  # keys that tie
    state, lengths, outputs = model.init_state(ROWS), [0] * ROWS, []
    for piece in text.split([2 * size, size - 3, 2 * size, size + 3], dim=1):
        for part in (piece,) if piece.shape[1] % size == 0 or piece.shape[1] < size else piece.split(size, 1):
            with known_lengths(lengths if lengths_known else None, part.shape[1]):
                logits, state = model(part, state)
            outputs.append(logits)
            lengths = [length + part.shape[1] for length in lengths]
        if len(outputs) == 2:
            state = reset_rows(state, model.init_state(ROWS), torch.tensor([False, True]))
            lengths[1] = 0
    torch.cat(outputs, dim=1).sin().sum().backward()
    grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return [*outputs, *contents(state), *grads]


@pytest.mark.parametrize("lengths_known", [False, True], ids=["unknown", "known"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", SIZED_BY_COUNTS)
def test_results_do_not_depend_on_what_the_host_knows(
    name: str, training: bool, lengths_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_pieces(name, training, lengths_known=False)
    monkeypatch.setattr("zoo.host.READABLE_DEVICES", ())
    for actual, tensor in zip(read_pieces(name, training, lengths_known), expected, strict=True):
        torch.testing.assert_close(actual, tensor, rtol=1e-9, atol=1e-11)


def test_a_model_that_reads_back_fails_here() -> None:
    class ReadsBack(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[: int(x.max())]

    with pytest.raises(RuntimeError, match="meta"):
        ReadsBack()(tokens(3))


def test_no_autocast_where_there_is_none() -> None:
    with no_autocast(tokens(1)):
        pass
    with torch.autocast("cpu", torch.bfloat16), no_autocast(torch.ones(1)):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
