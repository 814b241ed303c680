"""What training asks of every model beside the laws."""

import pytest
import torch

from tests.contract.test_contract import MODELS
from zoo.module import Batch
from zoo.train.runs import build
from zoo.train.runs.config import compose


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_a_gradient_whichever_rows_are_fresh(name: str) -> None:
    """Ranks have different fresh rows, and wait for one another's gradients of the same weights."""
    model = build.model(compose([f"model={name}", "size=nano"])).train()
    dice = torch.Generator().manual_seed(0)
    state = None
    for fresh in ([True, True], [False, False], [True, False]):
        tokens = torch.randint(model.vocab_size, (2, 4 * model.segment_len), generator=dice)
        outputs, state = model.compute_loss(Batch(tokens, tokens, torch.tensor(fresh)), state)
        model.zero_grad(set_to_none=True)
        outputs["loss"].backward()
        assert [key for key, weight in model.named_parameters() if weight.grad is None] == []
