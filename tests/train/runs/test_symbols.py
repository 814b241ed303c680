"""A model's symbols are its task's, or it is refused: 1,000 pieces of words are not 257 bytes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

import zoo as zoo_api
from tests.train.conftest import Workspace
from tests.train.runs.commands import assert_same, call, refused
from tests.train.runs.test_import_published import checkpoint, published
from zoo.errors import UserError
from zoo.models.published.imported import loaded
from zoo.train.commands import evaluate, export, generate, import_weights
from zoo.train.evaluation.evaluate import evaluate as evaluate_run
from zoo.train.evaluation.options import EvalOptions
from zoo.train.runs.load import load_trained

FORMAT = ("from=there", "format=transformer_xl", "run_dir=here")
WORDS = (*FORMAT, "task=lm", "size=nano", "data.corpus=text")


def checkpoint_of(symbols: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A published Transformer-XL with so many rows in its tables, in `there`."""
    weights, config = published("txl_model_postln_tied")
    rng = torch.Generator().manual_seed(5)
    table = torch.randn(symbols, 16, generator=rng, dtype=torch.float64)
    for name in ("word_emb.emb_layers.0.weight", "crit.out_layers.0.weight"):
        weights[name] = table.clone()
    weights["crit.out_layers.0.bias"] = torch.randn(symbols, generator=rng, dtype=torch.float64)
    config["n_token"] = symbols
    checkpoint(Path("there"), weights, config)
    return weights, config


def forget_symbols(task: str) -> None:
    """Gives the run in `here`, which has no task, the config of one that an earlier version let in."""
    config = OmegaConf.load("here/config.yaml")
    config.names.task = task
    config.task = {"_target_": "zoo.train.tasks.lm.LanguageModelling", "corpus": "text", "root": "."}
    config.task.vocab_size = 257
    OmegaConf.save(config, "here/config.yaml")


@pytest.mark.parametrize("rows", [258, 1000])
def test_other_symbols_are_refused(zoo: Workspace, capsys: pytest.CaptureFixture[str], rows: int) -> None:
    """At import, and in what an earlier version imported wherever it is scored or read as text."""
    checkpoint_of(rows)
    expected = f"expected a model of the 257 symbols of task lm, found one of {rows:,}; "
    line = refused(call(zoo, capsys, import_weights.main, *WORDS))
    assert line.startswith(f"error: import: {expected}symbols=padded if those from 257 on only fill up")
    assert not Path("here").exists()
    assert call(zoo, capsys, import_weights.main, *FORMAT).code == 0
    line = refused(call(zoo, capsys, evaluate.main, "run=here", "task=lm", "data.corpus=text"))
    assert f"expected a run on bytes for task lm, found one on {rows:,} other symbols" in line
    forget_symbols("lm")
    for main, command in ((evaluate.main, "evaluate"), (generate.main, "generate")):
        line = refused(call(zoo, capsys, main, "run=here"))
        assert line.startswith(f"error: {command}: {expected}import it again with symbols=padded")
    run = zoo_api.load_run("here")  # a model alone has no score
    assert run.model.vocab_size == rows
    with pytest.raises(UserError, match="expected a model of the 257 symbols"):
        zoo_api.evaluate_run(run)
    assert not Path("here/evaluation.json").exists()


def test_a_task_of_bytes_needs_a_run_on_bytes(zoo: Workspace) -> None:
    """A run on more symbols than there are bytes has none of them.  It reads fewer abstract symbols, and its
    scores say over how many they are."""
    zoo.train_whole("task=mqar", "task.vocab_size=300", "task.samples=20", "task.eval_samples=20", "steps=2")
    for task in ("lm", "passkey", "needle"):
        with pytest.raises(
            UserError, match=f"a run on bytes for task {task}, found one on 300 other symbols"
        ):
            zoo_api.evaluate_run("whole", f"task={task}", *(["data.corpus=text"] if task == "lm" else []))
    options = EvalOptions(task="induction", lengths=["16"], prompts=2)
    lines: list[str] = []
    evaluate_run(Path("whole"), options, lines.append)
    assert lines[0] == "scores are over all 300 symbols of the model; task induction has 16"


@pytest.mark.parametrize("rows", [264, 320])
def test_padded_bytes_are_let_in_by_a_word(
    zoo: Workspace, capsys: pytest.CaptureFixture[str], rows: int
) -> None:
    """Losses are over the task's symbols alone, and no later command asks again."""
    weights, config = checkpoint_of(rows)
    ended = call(zoo, capsys, import_weights.main, *WORDS, "symbols=padded")
    assert ended.code == 0, ended.err
    model = load_trained(Path("here"))[1]
    assert model.vocab_size == 257
    ended = call(zoo, capsys, evaluate.main, "run=here", "split=val")
    assert ended.code == 0, ended.err
    assert "scores are over" not in ended.err
    results = json.loads(Path("here/evaluation.json").read_text())["evaluations"][0]["results"]
    kept = next(result for result in results if result["axes"] == {"memory": "kept"})

    direct = loaded("transformer_xl", {name: x.float() for name, x in weights.items()}, config).eval()
    nats, over_all, size = 0.0, 0.0, 0
    for path in sorted(Path("text/val").iterdir()):
        text = path.read_bytes()
        symbols = torch.tensor([[256, *text, 256]])
        logits = direct(symbols[:, :-1])[0].detach().double()
        chosen = logits.gather(2, symbols[:, 1:, None]).sum()
        nats += float(logits[..., :257].logsumexp(-1).sum() - chosen)
        over_all += float(logits.logsumexp(-1).sum() - chosen)
        size += len(text)
    assert kept["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert over_all > 1.001 * nats

    assert call(zoo, capsys, generate.main, "run=here", "prompt=the", "tokens=9").code == 0
    assert call(zoo, capsys, export.main, "run=here", "to=out").code == 0
    assert call(zoo, capsys, import_weights.main, "from=out", "run_dir=back").code == 0
    assert_same(model, load_trained(Path("back"))[1])
    assert "symbols is settled by the run that was exported" in refused(
        call(zoo, capsys, import_weights.main, "from=out", "run_dir=again", "symbols=padded")
    )


@torch.no_grad()
def test_every_way_to_read_is_over_the_tasks_symbols(
    zoo: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, config = checkpoint_of(320)
    assert call(zoo, capsys, import_weights.main, *WORDS, "symbols=padded").code == 0
    model = load_trained(Path("here"))[1]
    direct = loaded("transformer_xl", {name: x.float() for name, x in weights.items()}, config).eval()
    text = torch.randint(257, (2, 2 * model.segment_len + 1))
    for read in ("fold", "forward"):
        assert torch.equal(getattr(model, read)(text)[0], getattr(direct, read)(text)[0][..., :257])
    first = text[:, : model.segment_len]
    assert model.segment(first, model.init_state(2))[0].shape[-1] == 257
    if model.decodes:
        assert model.decode(first, model.init_decode_cache(model.init_state(2)))[0].shape[-1] == 257


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        (257, ("symbols=padded", *WORDS), "symbols=padded has no effect: the model has exactly the 257"),
        (320, ("symbols=padded", *FORMAT), "symbols=padded has no effect: it needs a task, task="),
        (320, ("symbols=yes", *WORDS), "symbols: expected padded, found yes"),
        (200, ("symbols=padded", *WORDS), "model.vocab_size: expected at least the task's 257, found 200"),
    ],
)
def test_the_word_where_it_means_nothing(
    zoo: Workspace, capsys: pytest.CaptureFixture[str], rows: int, words: tuple[str, ...], message: str
) -> None:
    checkpoint_of(rows)
    assert message in refused(call(zoo, capsys, import_weights.main, *words))
    assert not Path("here").exists()
