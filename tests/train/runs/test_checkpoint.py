"""Weights of checkpoints: modules with their former names, and weights that don't fit the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.plugins import choices
from zoo.train.runs import build
from zoo.train.runs.checkpoint import (
    FORMAT_VERSION,
    RENAMED_MODULES,
    REQUIRED_KEYS,
    AtomicCheckpointIO,
    check_weights,
    migrate_weight_names,
    migrate_weights,
)
from zoo.train.runs.config import compose

FORMER = {new: old for old, new in RENAMED_MODULES.items()}


def with_former_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        ".".join(FORMER.get(part, part) for part in name.split(".")): weight
        for name, weight in weights.items()
    }


@pytest.mark.parametrize("name", [choice.name for choice in choices("model") if choice.owner == "zoo"])
def test_a_checkpoint_with_the_former_names_is_loaded(name: str) -> None:
    model = build.model(compose([f"model={name}", "size=nano"]))
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    former = with_former_names(expected)
    assert former.keys() != expected.keys()
    weights = check_weights(model, former, Path("last.ckpt"))
    for weight in model.parameters():
        nn.init.zeros_(weight)
    model.load_state_dict(weights)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_a_resumed_run_reads_the_former_names(tmp_path: Path) -> None:
    weights = {"stack.0.mixer.out_proj.weight": torch.ones(2), "embed.weight": torch.zeros(3)}
    checkpoint: dict[str, Any] = dict.fromkeys(REQUIRED_KEYS, ())
    checkpoint |= {"global_step": 1, "metrics": {"tokens_seen": 8}, "zoo": {"version": FORMAT_VERSION}}
    checkpoint["state_dict"] = with_former_names(weights)
    files = AtomicCheckpointIO(
        lambda saved: saved.update(state_dict=migrate_weight_names(saved["state_dict"], weights.keys()))
    )
    files.save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    loaded = files.load_checkpoint(tmp_path / "last.ckpt")["state_dict"]
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


class Own(SequenceModule):
    """A user's model whose modules have the zoo's former names."""

    vocab_size, segment_len, learns_through_memory = 1, 1, False

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(1, 1), nn.Linear(1, 2)

    def init_state(self, rows: int) -> Any:
        return ()

    def segment(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.out(self.enter(tokens[..., None].float())), state


def test_a_users_own_modules_keep_their_names() -> None:
    weights = Own().state_dict()
    assert migrate_weight_names(weights, weights.keys()) == weights
    renamed = {name.replace("out", "outer"): weight for name, weight in weights.items()}
    with pytest.raises(UserError, match=r"weight out\.bias expected \(2,\), found absent"):
        check_weights(Own(), renamed, Path("last.ckpt"))


def test_nothing_is_renamed_onto_a_weight_that_exists() -> None:
    weights = {"out.weight": torch.zeros(1), "out_proj.weight": torch.ones(1)}
    assert migrate_weight_names(weights, ["out_proj.weight"]) == weights


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(2).to_sparse(), "expected as a dense tensor, found torch.sparse_coo"),
        (torch.zeros(2, dtype=torch.long), "expected as torch.float32, found torch.int64"),
    ],
)
def test_a_weight_of_another_layout_or_type(weight: Tensor, message: str) -> None:
    weights = {**Own().state_dict(), "out.bias": weight}
    with pytest.raises(UserError, match=f"weight out.bias {message}"):
        check_weights(Own(), weights, Path("last.ckpt"))


def test_checkpoints_without_alibis_slopes_are_read_with_those_of_their_training() -> None:
    """2^(-8h/H) in earlier versions, which published slopes aren't unless the heads are a power of two."""
    cfg = compose(
        ["model=transformer", "size=nano", "model.position=alibi", "model.heads=6", "model.width=24"]
    )
    model = build.model(cfg)
    stored = {name: weight.clone() for name, weight in model.state_dict().items()}
    slopes = [name for name in stored if name.endswith("positions.log2_slopes")]
    assert len(slopes) == cfg.model.depth
    assert check_weights(model, stored, Path("last.ckpt")).keys() == stored.keys()

    model.load_state_dict(migrate_weights(stored, model))
    assert torch.equal(model.state_dict()[slopes[0]], torch.tensor([-2.0, -4, -6, -8, -1, -3]))
    former = {name: weight for name, weight in stored.items() if name not in slopes}
    model.load_state_dict(check_weights(model, former, Path("last.ckpt")))
    for name in slopes:
        assert torch.equal(model.state_dict()[name], torch.tensor([-8 * h / 6 for h in range(1, 7)]))

    others = build.model(compose(["model=transformer", "size=nano"]))
    assert migrate_weights(others.state_dict(), others).keys() == others.state_dict().keys()
