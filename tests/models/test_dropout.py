"""Dropout of every model: each of its places acts in training, and none does in evaluation."""

import pytest
import torch
from torch import Tensor, nn

from tests.contract.test_contract import MODELS
from zoo.module import SequenceModule
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.runs.construct import parameters


def outputs(model: SequenceModule, seed: int) -> Tensor:
    text = torch.randint(model.vocab_size, (2, 3 * model.segment_len), generator=torch.manual_seed(0))
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(text)[0]


@pytest.mark.parametrize("name", MODELS)
def test_every_dropout_acts_in_training_alone(name: str) -> None:
    words = [f"model={name}", "size=nano"]
    taken = parameters(type(build.model(compose(words))))
    rates = [f"++model.{key}=0.5" for key in taken if key.endswith("dropout")]
    model = build.model(compose([*words, *rates]))
    dropouts = {path: part for path, part in model.named_modules() if isinstance(part, nn.Dropout)}
    assert dropouts, f"{name} has no dropout"
    published = "inner_dropout"  # inside the feed-forward, as Transformer-XL alone has it
    assert [path for path, part in dropouts.items() if part.p != 0.5 and not path.endswith(published)] == []
    model.eval()
    assert torch.equal(outputs(model, 1), outputs(model, 2))
    for part in dropouts.values():
        part.p = 0.0
    model.train()
    assert torch.equal(outputs(model, 1), outputs(model, 2))
    for path, part in dropouts.items():
        part.p = 0.5
        assert not torch.equal(outputs(model, 1), outputs(model, 2)), f"{path} drops nothing"
        part.p = 0.0
