"""Checkpoints that transformers wrote, imported as their folder is: nothing said but where it lies."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.models.published.originals import COMMON, GPT2, LLAMA, MAMBA2, logits_of, model_of, text
from tests.train.conftest import Workspace
from tests.train.runs.commands import call, refused
from zoo.train.commands import generate, import_weights
from zoo.train.runs.load import load_trained


def apart(run: str, kind: str, **fields: Any) -> float:
    """The largest difference between the run's logits and the original's, which are about 1."""
    tokens = text()
    with torch.no_grad():
        logits, _ = load_trained(Path(run))[1](tokens)
    return float((logits - logits_of(kind, tokens, **fields)).abs().max())


def test_a_sharded_model_of_tied_weights(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    fields = LLAMA | {"tie_word_embeddings": True}
    model_of("llama", **fields).save_pretrained("there", max_shard_size="40KB")
    assert len(list(Path("there").glob("*.safetensors"))) > 1
    ended = call(zoo, capsys, import_weights.main, "from=there", "run_dir=here")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("format transformer, ")
    assert apart("here", "llama", **fields) < 1e-4
    assert load_trained(Path("here"))[0].names.model == "transformer"
    ended = call(zoo, capsys, generate.main, "run=here", "prompt=1 2 3", "tokens=5", "temperature=0")
    assert len(ended.out.split()) == 8


def test_weights_of_bf16_and_an_infinity(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers writes Mamba-2's limit as an object; weights are rounded once, by who saved them."""
    import transformers

    model_of("mamba2", **MAMBA2).save_pretrained("there")
    assert "__float__" in Path("there/config.json").read_text()
    rounded = {name: weight.bfloat16() for name, weight in load_file("there/model.safetensors").items()}
    torch.save(rounded, "there/pytorch_model.bin")
    Path("there/model.safetensors").unlink()
    ended = call(zoo, capsys, import_weights.main, "from=there", "run_dir=here")
    assert ended.code == 0, ended.err
    theirs = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**MAMBA2)).eval()
    theirs.load_state_dict({name: weight.float() for name, weight in rounded.items()}, strict=False)
    theirs.tie_weights()
    tokens = text()
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
        logits, _ = load_trained(Path("here"))[1](tokens)
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)


def test_a_lightning_checkpoint(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    fields = COMMON | {"state_size": 8}
    model = model_of("mamba", **fields)
    Path("there").mkdir()
    model.config.save_pretrained("there")
    names = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    torch.save({"state_dict": names, "epoch": 1, "global_step": 9}, "there/last.ckpt")
    ended = call(zoo, capsys, import_weights.main, "from=there", "run_dir=here")
    assert ended.code == 0, ended.err
    assert apart("here", "mamba", **fields) < 1e-4


def test_new_weights_are_named(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    model_of("gpt2", **GPT2).save_pretrained("there")
    words = ("from=there", "run_dir=here", "config.num_mem_tokens=4", "config.segment_len=16")
    ended = call(zoo, capsys, import_weights.main, *words)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[0].startswith("format rmt, ")
    assert "; not in the checkpoint, and new: memory; no tokenizer.json: " in ended.out


def test_a_model_of_no_format(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    model_of("llama", **LLAMA).save_pretrained("there")
    config = json.loads(Path("there/config.json").read_text())
    Path("there/config.json").write_text(json.dumps(config | {"model_type": "bamba"}))
    capsys.readouterr()  # transformers' progress
    message = refused(call(zoo, capsys, import_weights.main, "from=there", "run_dir=here"))
    assert "found 'bamba', which no format reads" in message
    Path("there/config.json").write_text('{"model_type": "mamba2", "x": {"__float__": "much"}}')
    message = refused(call(zoo, capsys, import_weights.main, "from=there", "run_dir=here"))
    assert "expected json in there/config.json" in message
    assert not Path("here").exists()
