"""Muon beside AdamW in one optimiser: the steps of torch's own, and a state that is saved and loaded."""

import copy

import pytest
import torch
from torch import nn

from zoo import build_model
from zoo.muon import Muon
from zoo.optim import AdamW, Optim


def test_matrices_of_the_budget_are_muons() -> None:
    model = build_model("model=rmt", "size=nano", "optim=muon")
    optim = Muon(steps=10)
    groups = optim.configure(model)["optimizer"].param_groups
    names = {id(weight): name for name, weight in model.named_parameters()}
    muon = {names[id(weight)] for group in groups if group["muon"] for weight in group["params"]}
    others = {names[id(weight)] for group in groups if not group["muon"] for weight in group["params"]}
    assert muon | others == {*names.values()}
    assert muon & others == set()
    assert all(dict(model.named_parameters())[name].ndim == 2 for name in muon)
    assert not any(name.startswith(("embed", "head")) for name in muon)
    assert any(name.startswith("embed") for name in others)
    assert [group["weight_decay"] for group in groups] == [0.1 if g["decays"] else 0.0 for g in groups]


@pytest.mark.parametrize("model", ["mamba", "mamba2", "griffin", "deltanet", "mlstm"])
def test_kernels_of_convolutions_are_adamws(model: str) -> None:
    built = build_model(f"model={model}", "size=nano", "optim=muon")
    groups = Muon(steps=10).configure(built)["optimizer"].param_groups
    names = {id(weight): name for name, weight in built.named_parameters()}
    kernels = {name for name in names.values() if name.endswith("conv.weight")}
    assert kernels
    assert not kernels & {names[id(w)] for group in groups if group["muon"] for w in group["params"]}


def steps(matrix: nn.Parameter, vector: nn.Parameter, *optimizers: torch.optim.Optimizer, n: int = 4) -> None:
    for _ in range(n):
        for optimizer in optimizers:
            optimizer.zero_grad()
        ((matrix @ vector).square().sum() + vector.sum()).backward()
        for optimizer in optimizers:
            optimizer.step()


def test_a_step_is_that_of_torch_and_of_adamw_and_resumes() -> None:
    torch.manual_seed(0)
    start = [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))]
    optim = Muon(steps=50, lr=0.02, warmup=0, floor=1.0)
    built = []
    for _ in range(3):
        weights = copy.deepcopy(start)
        groups = [
            {"params": weights[:1], "muon": True},
            {"params": weights[1:], "muon": False, "decays": False},
        ]
        built.append((weights, optim.build(groups)["optimizer"]))
    (whole, optimizer), (cut, first), (_, second) = built
    expected = copy.deepcopy(start)
    muon = torch.optim.Muon(
        expected[:1], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adam = AdamW(expected[1:], lr=0.02, betas=(0.9, 0.95), weight_decay=0.0)
    steps(*expected, muon, adam)
    steps(*whole, optimizer)
    for weight, other in zip(whole, expected, strict=True):
        assert torch.equal(weight, other)
    assert not torch.equal(whole[0], start[0])

    steps(*cut, first, n=2)
    resumed = built[2][0]
    for weight, other in zip(resumed, cut, strict=True):
        weight.data.copy_(other)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(*resumed, second, n=2)
    for weight, other in zip(resumed, whole, strict=True):
        assert torch.equal(weight, other)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_its_schedule_is_that_of_every_optimiser(schedule: str) -> None:
    ours, plain = (cls(steps=20, warmup=3, schedule=schedule) for cls in (Muon, Optim))
    assert [ours.factor(step) for step in range(25)] == [plain.factor(step) for step in range(25)]
