"""`model.base=<run_dir>`: a model that starts from the weights of another model's run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from zoo.errors import UserError
from zoo.module import SequenceModule
from zoo.train.runs import build
from zoo.train.runs.config import compose

WORDS = ("model=unlimiformer", "size=nano", "model.base=whole")


@pytest.fixture
def base(zoo: Any) -> Path:
    """A transformer trained for a few steps, in `whole`."""
    zoo.train_whole("model=transformer", "steps=4", "val_every=4")
    return zoo.folder / "whole"


def weights(zoo: Any, run: str) -> dict[str, torch.Tensor]:
    return zoo.checkpoint(run)["state_dict"]


def built(run: Path) -> SequenceModule:
    """The model of a run's config.yaml, before its weights."""
    cfg = OmegaConf.load(run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    return build.model(cfg)


@torch.no_grad()
def test_the_first_segment_equals_its_bases(zoo: Any, base: Path) -> None:
    transformer, model = built(base).eval(), build.model(compose([*WORDS])).eval()
    transformer.load_state_dict(weights(zoo, "whole"))
    text = torch.randint(model.vocab_size, (2, 2 * model.segment_len))
    logits, expected = (net(text)[0].split(model.segment_len, dim=1) for net in (model, transformer))
    torch.testing.assert_close(logits[0], expected[0])
    assert not torch.allclose(logits[1], expected[1])
    assert torch.equal(model.train()(text)[0], transformer(text)[0])


def test_training_starts_from_the_base(zoo: Any, base: Path) -> None:
    """The new run needs its base no more, neither to be loaded nor to resume."""
    words = ("model=unlimiformer", "model.base=whole", "optim.lr=1e-9")
    assert zoo.run(*words, "steps=1").code == 0
    for name, weight in weights(zoo, "run").items():
        torch.testing.assert_close(weight, weights(zoo, "whole")[name], rtol=0, atol=1e-6)
    assert json.loads((zoo.folder / "run" / "metrics.json").read_text())["model"] == "unlimiformer"
    base.rename(zoo.folder / "elsewhere")
    assert built(zoo.folder / "run").segment_len == 16
    assert zoo.run("resume=run", "steps=3").code == 0
    assert zoo.checkpoint("run")["global_step"] == 3


def test_a_run_killed_before_its_first_checkpoint_starts_from_its_base(zoo: Any, base: Path) -> None:
    kill = zoo.kill_at("on_train_batch_start", 0)
    assert (
        zoo.run("model=unlimiformer", "model.base=whole", "optim.lr=1e-9", callbacks=[kill]).code == "killed"
    )
    assert zoo.run("resume=run", "steps=1").code == 0
    for name, weight in weights(zoo, "run").items():
        torch.testing.assert_close(weight, weights(zoo, "whole")[name], rtol=0, atol=1e-6)


def test_retrieval_training_from_a_base(zoo: Any, base: Path) -> None:
    words = ("model=unlimiformer", "model.base=whole", "model.retrieval_training=true", "steps=2")
    assert zoo.run(*words).code == 0
    assert not torch.equal(weights(zoo, "run")["embed.weight"], weights(zoo, "whole")["embed.weight"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model.base=nowhere"],
            "model.base: expected a run's folder with a config.yaml, found none in 'nowhere'",
        ),
        (["size.heads=2"], "model.base: expected a run with heads 2, found 4 in whole/config.yaml"),
        (["size.mlp_width=40"], "model.base: expected a run with mlp_width 40, found 48 in"),
        (["size.depth=3"], "model.base: expected a run with depth 3, found 2 in"),
        (["model.bias=true"], "model.base: expected a run with bias True, found False in"),
        (["model.position=alibi"], "model.base: expected a run with position alibi, found rope in"),
        (["+model.tied=false"], "model.base: expected a run with tied False, found True in"),
        (["size.segment_len=8"], "model.base: expected a run with segment_len 8, found 16 in"),
    ],
)
def test_a_base_of_another_shape(zoo: Any, base: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        build.model(compose([*WORDS, *words]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_base_that_is_no_transformer(zoo: Any) -> None:
    zoo.train_whole("model=rmt", "steps=2", "val_every=2")
    ended = zoo.run("model=unlimiformer", "model.base=whole")
    assert ended.code == 2
    assert (
        "model.base: Unlimiformer starts from a run of zoo.models.transformer.Transformer, "
        "found one of zoo.models.rmt.RMT" in ended.err
    )


def test_a_base_with_a_window(zoo: Any) -> None:
    """It has the same weights, but was trained with another attention."""
    zoo.train_whole("model=transformer", "model.window=8", "steps=2", "val_every=2")
    with pytest.raises(UserError, match=r"model.base: expected a run with window None, found 8 in"):
        build.model(compose([*WORDS]))


def test_a_damaged_base(zoo: Any, base: Path) -> None:
    last = base / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged or unrelated"):
        build.model(compose([*WORDS]))
    last.unlink()
    with pytest.raises(UserError, match="expected a checkpoint at"):
        build.model(compose([*WORDS]))
    for text in ("model: 3", "{", "task: {}"):
        (base / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"whole/config.yaml is not the config of a run"):
            build.model(compose([*WORDS]))
