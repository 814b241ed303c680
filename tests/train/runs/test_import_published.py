"""Import of published weights as runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models.published import originals, test_fla_rwkv
from tests.train.conftest import Workspace
from tests.train.runs import published_fla, published_retnet
from tests.train.runs.commands import assert_same, call, refused
from zoo.errors import UserError
from zoo.models.published.imported import Imported, formats, loaded, stand_ins
from zoo.train.commands import evaluate, export, generate, import_weights
from zoo.train.runs import weight_files
from zoo.train.runs.load import load_trained

FIXTURES = Path(__file__).parents[2] / "golden" / "fixtures"
CASES = {
    "armt_model": "armt",
    "fot/longllama_inference": "focused",
    "fla/delta_net": "deltanet",
    "fla/gla": "gla",
    "fla/hgrn2": "hgrn2",
    "fla/rwkv7": "fla_rwkv",
    "hybrids/griffin_3layer": "griffin",
    "hybrids/jamba_nomoe": "jamba",
    "hybrids/mamba2_attn_mlp": "mamba2_hybrid",
    "hybrids/samba_4layer": "samba",
    "infini/infini_model_delta_rope": "infini",
    "landmark/lm_cache_topk": "landmark",
    "landmark/llama_cache_topk": "landmark",
    "mamba1/model_2layer": "mamba",
    "mamba2/model_2layer": "mamba2",
    "megalodon/model_2layer": "megalodon",
    "rmt_cell": "rmt",
    "rmt_model_gpt2": "rmt",
    "rmt_xl_model": "rmt",
    "rwkv/model_v6": "rwkv",
    "rwkv/model_v7": "rwkv",
    "torchscale/retnet": "retnet",
    "transformers/gpt2": "transformer",
    "transformers/llama": "unlimiformer",
    "transformers/mistral": "sliding_window",
    "xlstm/large_model": "xlstm",
    "txl_model_postln_tied": "transformer_xl",
    "txl_model_preln_samelen_clamp_untied": "transformer_xl",
}


ORIGINALS = {
    "gpt2": originals.GPT2,
    "llama": originals.LLAMA,
    "mistral": originals.MISTRAL | {"sliding_window": 8},
}


def published(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if case == "fla/rwkv7":
        theirs = test_fla_rwkv.published(7)[1]
        return {name: x.contiguous() for name, x in theirs.items()}, test_fla_rwkv.CONFIGS[7]
    if case.startswith("fla/"):
        return published_fla.random_model(case.removeprefix("fla/"))
    if case == "torchscale/retnet":
        return published_retnet.random_model()
    if case.startswith("transformers/"):
        kind = case.removeprefix("transformers/")
        return originals.saved(kind, **ORIGINALS[kind])
    tensors = load_file(FIXTURES / f"{case}.safetensors")
    weights = {
        name.removeprefix("param/").removeprefix("w.").removeprefix("w/"): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(("param/", "w.", "w/"))
    }
    return weights, json.loads((FIXTURES / f"{case}.json").read_text())["config"]


def checkpoint(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_all_formats_have_a_case() -> None:
    assert set(CASES.values()) == set(formats())


@pytest.mark.parametrize("case", CASES)
def test_a_published_model_becomes_a_run(
    zoo: Workspace, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    weights, config = published(case)
    checkpoint(Path("there"), weights, config)
    words = ("from=there", "run_dir=here", f"format={CASES[case]}")
    ended = call(zoo, capsys, import_weights.main, *words)
    assert ended.code == 0, ended.err
    _, model, progress = load_trained(Path("here"))
    assert progress == {"step": 0, "tokens_seen": 0}
    direct = loaded(CASES[case], {name: x.float() for name, x in weights.items()}, config).eval()
    assert isinstance(model, Imported)
    assert_same(direct, model)
    ended = call(zoo, capsys, generate.main, "run=here", "prompt=1 2 3", "tokens=12", "temperature=0")
    assert ended.code == 0, ended.err
    assert len(ended.out.split()) == 15


def test_files_of_every_kind(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    weights, config = published("mamba1/model_2layer")
    folder = checkpoint(Path("there"), weights, config)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, subset in parts.items():
        save_file({name: weights[name] for name in subset}, folder / file)
    index = {"weight_map": {name: file for file, subset in parts.items() for name in subset}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    half = {name: x.bfloat16() for name, x in weights.items()}
    torch.save(weights, folder / "plain.bin")
    torch.save({"state_dict": weights, "epoch": 3}, folder / "wrapped.ckpt")
    torch.save(half, folder / "half.pt")
    sources = ("there", "there/plain.bin", "there/wrapped.ckpt", "there/half.pt")
    models = []
    for i, source in enumerate(sources):
        ended = call(zoo, capsys, import_weights.main, f"from={source}", f"run_dir=run{i}", "format=mamba")
        assert ended.code == 0, ended.err
        models.append(load_trained(Path(f"run{i}"))[1])
    for model in models[1:3]:
        assert_same(models[0], model)
    assert {weight.dtype for weight in models[3].parameters()} == {torch.float32}


def test_a_published_model_on_a_task(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """It can be evaluated and exported; config.KEY= changes the model."""
    weights, config = published("txl_model_postln_tied")
    config["n_token"] = 257
    wide = torch.randn(257, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name in ("word_emb.emb_layers.0.weight", "crit.out_layers.0.weight"):
        weights[name] = wide.clone()
    weights["crit.out_layers.0.bias"] = torch.zeros(257, dtype=torch.float64)
    checkpoint(Path("there"), weights, config)
    words = ("from=there", "format=transformer_xl", "task=lm", "size=nano", "data.corpus=text")
    ended = call(zoo, capsys, import_weights.main, *words, "run_dir=here", "config.tgt_len=7")
    assert ended.code == 0, ended.err
    cfg, model, _ = load_trained(Path("here"))
    assert model.segment_len == 7
    assert cfg.names.model == "transformer_xl"
    ended = call(zoo, capsys, evaluate.main, "run=here", "split=val")
    assert ended.code == 0, ended.err
    assert call(zoo, capsys, generate.main, "run=here", "prompt=the", "tokens=5").out.startswith("the")
    assert call(zoo, capsys, export.main, "run=here", "to=out").code == 0
    ended = call(zoo, capsys, import_weights.main, "from=out", "run_dir=back")
    assert ended.code == 0, ended.err
    assert_same(model, load_trained(Path("back"))[1])


def test_a_published_model_without_a_task(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(Path("there"), *published("mamba1/model_2layer"))
    assert call(zoo, capsys, import_weights.main, "from=there", "run_dir=here", "format=mamba").code == 0
    assert "name a task in its tokens" in refused(call(zoo, capsys, evaluate.main, "run=here"))
    words = ("from=there", "run_dir=bytes", "format=mamba", "task=lm")
    assert "model.vocab_size: expected at least the task's 257" in refused(
        call(zoo, capsys, import_weights.main, *words)
    )
    assert not Path("bytes").exists()


class TouchesFile:
    """A pickle that runs code."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("it-ran"),)


def unrelated(path: Path) -> None:
    torch.save({"weights": TouchesFile()}, path / "model.pt")


def spoil(name: str, by: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(by((folder / name).read_bytes()))

    return apply


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil_folder", "words", "message"),
    [
        (lambda f: None, ("format=gpt5",), "format: expected zoo or one of armt, .*, found gpt5"),
        (
            lambda f: (f / "config.json").write_text('{"hidden_size": 8}'),
            (),
            "format: expected zoo or one of .*, found none, and config.json has no model_type",
        ),
        (
            lambda f: None,
            ("format=zoo",),
            "expected a config.json of zoo export, version 1, found format None",
        ),
        (lambda f: None, ("format=jamba",), "config: expected hidden_size"),
        (lambda f: None, ("format=mamba", "config.n_layer=3"), "expected backbone.layers.2.* found none"),
        (lambda f: None, ("format=mamba", "config.n_layer=two"), "expected n_layer, .*, found 'two'"),
        (lambda f: None, ("format=mamba", "config.x=${oc.env:HOME}"), "expected plain values, found"),
        (lambda f: None, ("format=mamba", "task.length=3"), "setting of no task"),
        (
            lambda f: None,
            ("format=mamba", "config=elsewhere.json"),
            "config.json at elsewhere.json, found none",
        ),
        (
            spoil("model.safetensors", lambda b: b[:-8]),
            ("format=mamba",),
            "found a damaged or unrelated file",
        ),
        (
            spoil("model.safetensors", lambda b: b"\xff" * 40),
            ("format=mamba",),
            "damaged or unrelated file",
        ),
        (
            spoil("model.safetensors", lambda b: b""),
            ("format=mamba",),
            "found a damaged or unrelated file",
        ),
        (unrelated, ("format=mamba", "from=there/model.pt"), "holds more than tensors and plain Python data"),
        (remove_weights, ("format=mamba",), "expected one file of weights in there, found none"),
    ],
)
def test_spoilt_checkpoints(
    zoo: Workspace,
    capsys: pytest.CaptureFixture[str],
    spoil_folder: Callable[[Path], None],
    words: tuple[str, ...],
    message: str,
) -> None:
    spoil_folder(checkpoint(Path("there"), *published("mamba1/model_2layer")))
    keys = {word.partition("=")[0] for word in words}
    defaults = [word for word in ("from=there", "run_dir=here") if word.partition("=")[0] not in keys]
    assert re.search(message, refused(call(zoo, capsys, import_weights.main, *defaults, *words)))
    assert not Path("here").exists()
    assert not Path("it-ran").exists()


def test_weights_that_are_not_finite(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    weights, config = published("mamba1/model_2layer")
    weights["backbone.norm_f.weight"][0] = float("inf")
    checkpoint(Path("there"), weights, config)
    captured = refused(call(zoo, capsys, import_weights.main, "from=there", "run_dir=here", "format=mamba"))
    assert "not finite" in captured


def test_an_index_stays_in_its_folder(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    wrong: list[Any] = [{"a": "../other.safetensors"}, {"a": "/etc/passwd"}, {"a": 3}, {}, []]
    for weight_map in wrong:
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match="is not an index of weights"):
            weight_files.weight_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(UserError, match=r"names gone.safetensors, which isn't there"):
        weight_files.weight_files(tmp_path)


def test_stand_ins_are_equal_where_they_are_tied() -> None:
    tensors = stand_ins({"a": [2, 3], "b": [2, 3], "c": [2, 3], "d": [4], "e": []}, [["a", "c"]])
    assert torch.equal(tensors["a"], tensors["c"])
    assert not torch.equal(tensors["a"], tensors["b"])
    assert not tensors["d"].any()
    assert tensors["e"].shape == ()


def test_a_config_names_no_code(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(Path("there"), *published("mamba1/model_2layer"))
    assert call(zoo, capsys, import_weights.main, "from=there", "run_dir=here", "format=mamba").code == 0
    path = Path("here/config.yaml")
    path.write_text(path.read_text().replace("format: mamba", "format: os"))
    with pytest.raises(UserError, match="format: expected one of"):
        load_trained(Path("here"))
