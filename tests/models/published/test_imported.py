"""A run's imported model trains as the model inside it does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.train.runs.test_import_published import CASES, published
from zoo.models.published.imported import Imported
from zoo.module import Batch, SequenceModule
from zoo.muon import Muon

MAMBA, TRANSFORMER_XL = "mamba1/model_2layer", "txl_model_postln_tied"
TIED = {MAMBA: [["backbone.embedding.weight", "lm_head.weight"]]}


def imported(case: str) -> Imported:
    weights, config = published(case)
    shapes = {name: list(weight.shape) for name, weight in weights.items()}
    model = Imported(CASES[case], config, shapes, TIED.get(case))
    torch.manual_seed(0)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1)
    return model


def batch_of(model: SequenceModule) -> Batch:
    text = torch.randint(model.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    return Batch(text[:, :-1], text[:, 1:], torch.ones(2, dtype=torch.bool))


def test_a_curriculum_counts_its_hits() -> None:
    model = imported(MAMBA).train()
    batch = batch_of(model)
    assert "hits" not in model.compute_loss(batch, None)[0]
    model.counts_hits = True
    outputs, _ = model.compute_loss(batch, None)
    logits, _ = model(batch.tokens)
    assert torch.equal(outputs["hits"], logits.argmax(-1) == batch.targets)


def test_compiled_it_computes_its_loss_by_the_compiled_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = imported(MAMBA).eval(), []

    def compiled(call: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            calls.append(options)
            return call(*args)

        return counted

    monkeypatch.setattr(torch, "compile", compiled)
    model.compile(dynamic=False)
    model.compute_loss(batch_of(model), None)
    model(batch_of(model).tokens)
    assert calls == [{"dynamic": False}] * 2


@pytest.mark.parametrize("case", [MAMBA, TRANSFORMER_XL])
def test_muon_trains_the_matrices_that_it_trains_of_the_model_inside(case: str) -> None:
    model = imported(case)
    of_both = []
    for trained in (model, model.model):
        groups = Muon(steps=10).configure(trained)["optimizer"].param_groups
        of_both.append([{id(weight) for weight in group["params"]} for group in groups if group["muon"]])
    assert of_both[0] == of_both[1]
    outside = {id(weight) for part in (model.model.embed, model.model.head) for weight in part.parameters()}
    assert outside
    assert not outside & {*of_both[0][0]}
