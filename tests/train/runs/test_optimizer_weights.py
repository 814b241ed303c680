"""A resumed optimiser's moments are those of the same weights, whatever groups they were saved in."""

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.module import SequenceModule
from zoo.train.runs import checkpoint, optimizer_weights

FORMER = "no names stored"
Groups = list[dict[str, Any]]


def former_groups(model: SequenceModule) -> Groups:
    """As earlier versions grouped: every matrix decays but those of a recurrence, which come last."""
    weights = dict(model.named_parameters())
    spared = [weight for name, weight in weights.items() if name.endswith((".A_log", ".D", ".dt_bias"))]
    matrices = [w for w in weights.values() if w.ndim >= 2 and not any(w is other for other in spared)]
    vectors = [w for w in weights.values() if w.ndim < 2]
    spared = [w for w in spared if w.ndim >= 2]
    return [{"params": matrices}, {"params": vectors + spared, "decays": False}]


def reversed_groups(model: SequenceModule) -> Groups:
    """Of a version to come: today's groups, each in another order, and the embedding spared."""
    weights = list(reversed(list(model.parameters())))
    decaying = [w for w in weights if w.ndim >= 2 and w is not model.embed.weight]  # type: ignore[union-attr]
    rest = [w for w in weights if not any(w is other for other in decaying)]
    return [{"params": decaying}, {"params": rest, "decays": False}]


def moments(model: SequenceModule, groups: Groups, saved: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The saved moments by the names of the weights that these groups had."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    weights = chain(*(group["params"] for group in groups))
    return {names[id(weight)]: saved["state"][i] for i, weight in enumerate(weights)}


@pytest.mark.parametrize(
    ("model", "groups", "stored"),
    [
        ("rmt", former_groups, False),
        ("transformer_xl", former_groups, False),
        ("mamba", former_groups, False),
        ("megalodon", None, False),  # its groups stay as they were
        ("rmt", reversed_groups, True),
    ],
)
def test_a_run_saved_with_other_groups(
    zoo: Any, model: str, groups: Any, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if groups:
            patch.setattr(SequenceModule, "parameter_groups", groups)
        assert zoo.run(f"model={model}", "steps=2", "val_every=9", "optim.weight_decay=0.5").code == 0
    content = zoo.checkpoint("run")
    if not stored:
        del content["zoo"][optimizer_weights.KEY]
        torch.save(content, zoo.folder / "run/checkpoints/last.ckpt")
    (saved,) = content["optimizer_states"]
    compared = []

    def compare(trainer: Any, pl_module: SequenceModule) -> None:
        old = moments(pl_module, (groups or SequenceModule.parameter_groups)(pl_module), saved)
        (optimizer,) = trainer.optimizers
        for group in optimizer.param_groups:
            assert group["weight_decay"] == (0.5 if group["decays"] else 0)
        for name, weight in pl_module.named_parameters():
            assert old[name].keys() == optimizer.state[weight].keys()
            for moment, value in optimizer.state[weight].items():
                assert torch.equal(value, old[name][moment]), (name, moment)
        compared.append(len(old))

    ended = zoo.run("resume=run", "steps=3", callbacks=[zoo.AtStep("on_train_start", 2, compare)])
    assert (ended.code, ended.err) == (0, "")
    assert compared == [len(saved["state"])]


def test_a_checkpoint_names_the_weights_of_its_groups(zoo: Any) -> None:
    zoo.train_whole()
    first, second = zoo.checkpoint("whole")["zoo"][optimizer_weights.KEY]
    assert "memory" in second
    assert "embed.weight" in first
    assert all(not name.endswith(".weight") or "norm" in name for name in second if name != "memory")


def swap_groups(content: dict[str, Any]) -> None:
    (saved,) = content["optimizer_states"]
    for group in saved["param_groups"]:
        group["decays"] = not group["decays"]


def rename(content: dict[str, Any]) -> None:
    content["zoo"][optimizer_weights.KEY][0][0] += "s"


def miscount(content: dict[str, Any]) -> None:
    names = content["zoo"][optimizer_weights.KEY]
    names[1].append(names[0].pop())


def regroup_unnamed(content: dict[str, Any]) -> None:
    """Sizes that neither today's groups have nor those of earlier versions."""
    del content["zoo"][optimizer_weights.KEY]
    first, second = content["optimizer_states"][0]["param_groups"]
    second["params"] = [*first["params"][-4:], *second["params"]]
    first["params"] = first["params"][:-4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_groups, "expected groups whose decays and lr_scale are [(True, 1.0), (False, 1.0)], found"),
        (rename, "expected this model's weights in groups of"),
        (miscount, "expected this model's weights in groups of"),
        (regroup_unnamed, "expected groups of [9, 6] weights, found [5, 10]"),
    ],
)
def test_other_groups_that_cannot_be_told_are_refused(zoo: Any, change: Any, message: str) -> None:
    zoo.train_whole()
    path = zoo.folder / "whole/checkpoints/last.ckpt"
    content = zoo.checkpoint("whole")
    change(content)
    torch.save(content, path)
    before = path.read_bytes()
    ended = zoo.run("resume=whole", "steps=9")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "resuming whole\n", 1)
    assert f"last.ckpt: optimizer_states: {message}" in ended.err
    assert path.read_bytes() == before


def test_unnamed_weights_of_which_two_orders_fit_are_refused() -> None:
    names, shapes = [[], ["a", "b"]], {"a": torch.Size([2, 2]), "b": torch.Size([2])}

    def find(state: dict[int, Any]) -> list[list[str]]:
        saved = {"param_groups": [{"params": []}, {"params": [0, 1]}], "state": state}
        return optimizer_weights.saved_names(names, shapes, saved, None)

    matrix, vector = {"exp_avg": torch.zeros(2, 2)}, {"exp_avg": torch.zeros(2)}
    assert find({}) == find({0: matrix, 1: vector}) == find({0: matrix}) == names
    assert find({0: vector, 1: matrix}) == find({0: vector}) == [[], ["b", "a"]]
    with pytest.raises(checkpoint.MismatchError, match="expected the names of its weights, found none"):
        find({0: {"step": torch.zeros(())}})
