"""A checkpoint with its tokenizer: text in, text out, and the loss that transformers has on it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.models.published.originals import LLAMA, model_of
from tests.train.conftest import Workspace
from tests.train.runs.commands import assert_same, call, refused
from zoo.train.commands import evaluate, export, generate, import_weights, inspect
from zoo.train.corpora.tokenizer import Tokenizer
from zoo.train.runs.load import load_trained

TEXT = "The keeper of the zoo writes: »älter, größer« — 12 bears,  3 owls.\n\nOnce upon a time she counts.\n"
FIELDS = LLAMA | {"vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2}


def write_tokenizer(folder: Path, kind: str = "byte-level") -> Any:
    """A tokenizer of 300 symbols, trained on the text; <s> is 1 and </s> is 2."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=kind != "byte-level"))
    alphabet = []
    if kind == "byte-level":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.normalizer = normalizers.Sequence(  # type: ignore[assignment]
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = []
    special = ["<unk>", "<s>", "</s>"]
    if kind != "byte-level":
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT], trainer)
    if kind != "byte-level":  # bytes are pieces of the model, and no special symbols
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = content["added_tokens"][:3]
        content["model"]["unk_token"] = "<unk>"
        tokenizer = Tokenizer.from_str(json.dumps(content))
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def book(folder: Path) -> list[bytes]:
    """A corpus with two texts to test with; their bytes."""
    texts = [TEXT * 2, "Once upon — a time 𝄞 owls: " + TEXT[::-1]]
    for split, parts in {"train": [TEXT], "val": [TEXT], "test": texts}.items():
        for i, part in enumerate(parts):
            (folder / split).mkdir(parents=True, exist_ok=True)
            (folder / split / f"{i}.txt").write_text(part)
    return [text.encode() for text in texts]


@torch.no_grad()
def nats_of(model: Any, tokenizer: Any, text: bytes) -> float:
    """What transformers says of <s>, the text's tokens, </s>."""
    ids = tokenizer.encode(text.decode(), add_special_tokens=False).ids
    logits = model(torch.tensor([[1, *ids]]), use_cache=False).logits
    return float(F.cross_entropy(logits[0], torch.tensor([*ids, 2]), reduction="sum"))


def imported(zoo: Workspace, capsys: pytest.CaptureFixture[str], kind: str, *words: str) -> tuple[Any, Any]:
    model = model_of("llama", **FIELDS | {"max_position_embeddings": 512}).float()
    model.save_pretrained("there")
    tokenizer = write_tokenizer(Path("there"), kind)
    capsys.readouterr()
    ended = call(zoo, capsys, import_weights.main, "from=there", "run_dir=here", *words)
    assert ended.code == 0, ended.err
    assert "tokenizer.json taken along (300 tokens)" in ended.out
    return model, tokenizer


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_losses_are_those_of_transformers(
    zoo: Workspace, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    model, tokenizer = imported(zoo, capsys, kind)
    texts = book(Path("book"))
    nats = [nats_of(model, tokenizer, text) for text in texts]
    ended = call(zoo, capsys, evaluate.main, "run=here", "data.corpus=book", "seq_len=512")
    assert ended.code == 0, ended.err
    entry = json.loads(Path("here/evaluation.json").read_text())["evaluations"][0]
    assert entry["task"] == "token_lm"
    assert "/" not in json.dumps(entry["settings"])
    result = next(result for result in entry["results"] if result["axes"]["memory"] == "kept")
    sizes = [len(text) for text in texts]
    by_size = dict(zip(result["documents"]["bytes"], result["documents"]["nats"], strict=True))
    assert by_size == pytest.approx(dict(zip(sizes, nats, strict=True)), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / sum(sizes), rel=1e-5)
    words = sum(len(text.split()) for text in texts)
    assert result["word_perplexity"] == pytest.approx(math.exp(min(sum(nats) / words, 700)), rel=1e-3)
    assert result["reference"].keys() == {"xz -9", "order-0"}
    assert result["by_position"][0]["from"] == 0
    limited = call(zoo, capsys, evaluate.main, "run=here", "data.corpus=book", "tokens=20")
    assert limited.code == 0, limited.err
    entry = json.loads(Path("here/evaluation.json").read_text())["evaluations"][0]
    drawn = next(result for result in entry["results"] if result["axes"].get("drawn") == 20)
    assert drawn["tokens"] == 20
    assert 20 <= drawn["bytes"] < min(sizes)


def test_it_writes_words(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of transformers, where that draws no symbols either that the tokenizer doesn't have."""
    model, tokenizer = imported(zoo, capsys, "byte-level")
    prompt = "Once upon"
    ids = [1, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor([ids]),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
            suppress_tokens=[*range(300, 320)],
        )
    new = [token for token in theirs[0, len(ids) :].tolist() if token != 2]
    ended = call(zoo, capsys, generate.main, "run=here", f"prompt={prompt}", "tokens=12", "temperature=0")
    assert ended.code == 0, ended.err
    assert len(new) > 3
    written = tokenizer.decode(new, skip_special_tokens=False)
    assert ended.out.rstrip("\n") in (prompt + written.rstrip("\ufffd\n"), prompt + written)
    Path("prompts.txt").write_text(f"{prompt}\n{prompt}\n")
    several = ("prompts=prompts.txt", "out=texts.jsonl", "temperature=0", "tokens=12")
    ended = call(zoo, capsys, generate.main, "run=here", *several)
    assert ended.code == 0, ended.err
    texts = [json.loads(line) for line in Path("texts.jsonl").read_text().splitlines()]
    assert [(text["prompt"], text["text"]) for text in texts] == [(prompt, written)] * 2
    first = written[0]
    words = ("temperature=0", "tokens=12", "echo=false", f"stop={json.dumps([first])}")
    ended = call(zoo, capsys, generate.main, "run=here", f"prompt={prompt}", *words)
    assert ended.out == "\n"
    ended = call(zoo, capsys, inspect.main, "run=here", f"prompt={'Once upon a time ' * 80}")
    assert ended.code == 0, ended.err
    assert "Once upon a time" in ended.out


def test_an_export_keeps_the_tokenizer(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    imported(zoo, capsys, "byte-level")
    assert call(zoo, capsys, export.main, "run=here", "to=out").code == 0
    ended = call(zoo, capsys, import_weights.main, "from=out", "run_dir=back")
    assert ended.code == 0, ended.err
    assert Path("back/tokenizer.json").read_bytes() == Path("there/tokenizer.json").read_bytes()
    assert_same(load_trained(Path("here"))[1], load_trained(Path("back"))[1])
    Path("out/tokenizer.json").unlink()
    message = refused(call(zoo, capsys, import_weights.main, "from=out", "run_dir=again"))
    assert "expected the tokenizer.json of the run" in message


def test_what_a_tokenizer_is_refused_for(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    model_of("llama", **FIELDS | {"vocab_size": 200}).save_pretrained("there")
    write_tokenizer(Path("there"))
    capsys.readouterr()
    words = ("from=there", "run_dir=here")
    message = refused(call(zoo, capsys, import_weights.main, *words))
    assert "expected a tokenizer of at most the model's 200 symbols, found 300" in message
    message = refused(call(zoo, capsys, import_weights.main, *words, "tokenizer=elsewhere"))
    assert "expected a tokenizer.json or a folder with one, found none at elsewhere" in message
    message = refused(call(zoo, capsys, import_weights.main, *words, "tokenizer=there", "task=lm"))
    assert "tokenizer=there has no effect on the symbols of task=lm" in message
    ended = call(zoo, capsys, import_weights.main, *words, "tokenizer=none")
    assert ended.code == 0, ended.err
    assert "its tokens are numbers" in ended.out
    assert not Path("here/tokenizer.json").exists()
    message = refused(call(zoo, capsys, generate.main, "run=here", "prompt=Once"))
    assert "expected numbers of tokens" in message


def test_a_run_without_a_text_or_the_package(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    imported(zoo, capsys, "byte-level")
    message = refused(call(zoo, capsys, evaluate.main, "run=here"))
    assert "expected a text for this run's tokenizer, found none: data.corpus=…" in message
    book(Path("book"))
    zoo.monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    for main, word in ((generate.main, "prompt=Once"), (evaluate.main, "data.corpus=book")):
        message = refused(call(zoo, capsys, main, "run=here", word))
        assert "expected the package tokenizers" in message
        assert "pip install tokenizers" in message


def test_long_texts_are_encoded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ("the keeper reads  a long\ttext and\n writes what remains, 12 times. " * 40).encode()
    for kind, is_cut in (("byte-level", True), ("byte-fallback", False)):
        write_tokenizer(tmp_path / kind, kind)
        whole = Tokenizer(tmp_path / kind / "tokenizer.json")
        expected = whole.encode(text)
        monkeypatch.setattr("zoo.train.corpora.tokenizer.PIECE", 50)
        parts = Tokenizer(tmp_path / kind / "tokenizer.json")
        assert parts.cuts_before_words == is_cut
        assert len(list(parts._pieces(text.decode()))) > 1 if is_cut else True
        assert parts.encode(text).tolist() == expected.tolist()
        monkeypatch.undo()
