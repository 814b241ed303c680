"""A text as token ids on disk: `zoo prepare`, and what the task token_lm makes of its folder."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train.conftest import Workspace
from tests.train.runs.commands import call, refused
from tests.train.runs.test_import_tokenizer import TEXT, book, write_tokenizer
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.commands import evaluate, prepare
from zoo.train.corpora.token_files import open_tokens
from zoo.train.tasks.lm import draw_held_out
from zoo.train.tasks.token_lm import TokenLanguageModelling

TRAINED = ("model=rmt", "size=nano", "task=token_lm", "data.corpus=tokens", "task.vocab_size=300", "steps=4")


def prepared(zoo: Workspace, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """`tokens`, with texts of test that `book` returns, start 1 and end 2; the tokenizer."""
    tokenizer = write_tokenizer(Path("tokenizer"))
    beside = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    Path("tokenizer/tokenizer_config.json").write_text(json.dumps(beside))
    book(Path("book"))
    ended = call(zoo, capsys, prepare.main, "data.corpus=book", "tokenizer=tokenizer", "to=tokens", *words)
    assert ended.code == 0, ended.err
    return tokenizer


def task_of(**changes: Any) -> TokenLanguageModelling:
    return TokenLanguageModelling(**{"corpus": "tokens", "root": "", "vocab_size": 300} | changes)


@pytest.mark.parametrize(("start", "end"), [(1, 2), (None, 2), (1, None), (None, None)])
def test_windows_are_those_of_the_tokenizer(
    zoo: Workspace, capsys: pytest.CaptureFixture[str], start: int | None, end: int | None
) -> None:
    words = [f"start={'none' if start is None else start}", f"end={'none' if end is None else end}"]
    tokenizer = prepared(zoo, capsys, *words)
    texts = book(Path("book"))
    task = task_of()
    dataset = task.split("test")
    assert np.load("tokens/test.npy", mmap_mode="r").dtype == np.uint16
    found = {}
    for document, length in enumerate(dataset.lengths.tolist()):
        text = dataset.text(document)
        tokens, targets = dataset.window(document, 0, length)
        for low, high in ((0, 5), (3, length), (length - 2, length), (2, 2)):
            for part, whole in zip(dataset.window(document, low, high), (tokens, targets), strict=True):
                assert part.tolist() == whole[low:high].tolist()
        found[text] = (tokens.tolist(), targets.tolist())
        assert dataset.byte_length(document, length) == len(text or b"")
    for text in texts:
        ids = tokenizer.encode(text.decode(), add_special_tokens=False).ids
        symbols = [*([] if start is None else [start]), *ids, *([] if end is None else [end])]
        first = 0 if start is not None else len(tokenizer.decode(ids[:1]).encode())
        assert found[text[first:]] == (symbols[:-1], symbols[1:])


def test_bytes_of_tokens_are_those_of_the_text(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(zoo, capsys)
    task = task_of()
    dataset = task.split("test")
    for document, length in enumerate(dataset.lengths.tolist()):
        _, targets = dataset.window(document, 0, length)
        whole = torch.tensor([*targets, IGNORE])
        assert int(task.byte_count(whole)) == len(dataset.text(document) or b"")
        for position in (0, 1, 7):
            counted = int(task.byte_count(torch.tensor(targets[:position])))
            assert counted == dataset.byte_length(document, position)
            assert dataset.text_until(document, position) == (dataset.text(document) or b"")[:counted]
    words = sum(len((dataset.text(document) or b"").split()) for document in range(len(dataset.lengths)))
    assert task.word_count(dataset) == (words, "word between white space")
    drawn = draw_held_out(task, dataset, 10)
    assert drawn.lengths.tolist() == [10]
    assert len(drawn.text(0) or b"") == drawn.byte_length(0, 10)


def test_a_model_is_trained_and_evaluated_on_tokens(
    zoo: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(zoo, capsys)
    Path("tokenizer/tokenizer.json").unlink()  # training needs neither it nor the package
    zoo.monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    ended = zoo.run(*TRAINED)
    assert ended.code == 0, ended.err
    metrics = json.loads(Path("run/metrics.json").read_text())
    text = Path("book/val/0.txt").read_bytes()
    assert metrics["val_bytes"] == len(text)
    nats = metrics["val/loss"] * (len(np.load("tokens/val.npy")) + 1)
    assert metrics["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    ended = call(zoo, capsys, evaluate.main, "run=run", "split=val")
    assert ended.code == 0, ended.err
    entry = json.loads(Path("run/evaluation.json").read_text())["evaluations"][0]
    kept = next(result for result in entry["results"] if result["axes"]["memory"] == "kept")
    assert kept["bits_per_byte"] == pytest.approx(metrics["val/bits_per_byte"], rel=1e-5)


def test_what_is_refused(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(zoo, capsys)
    words = ("data.corpus=book", "tokenizer=tokenizer")
    assert "nothing is overwritten" in refused(call(zoo, capsys, prepare.main, *words, "to=tokens"))
    message = refused(call(zoo, capsys, prepare.main, *words, "to=new", "end=300"))
    assert "end: expected a token from 0 to 299, found 300" in message
    Path("tokenizer/tokenizer.json").write_text("{}")
    message = refused(call(zoo, capsys, prepare.main, *words, "to=new"))
    assert "expected a tokenizer in tokenizer/tokenizer.json" in message
    assert not Path("new").exists()
    with pytest.raises(UserError, match=r"task.vocab_size: expected 300, the symbols of .*, found 50257"):
        task_of(vocab_size=50257)
    with pytest.raises(UserError, match="expected a folder that zoo prepare wrote, found book; zoo prepare"):
        task_of(corpus="book")
    with pytest.raises(UserError, match=r"task.end: 3, but tokens was prepared with 2"):
        task_of(end=3)
    Path("tokens/train.npy").unlink()
    with pytest.raises(UserError, match="no split 'train': found val, test"):
        task_of().split("train")


def test_damaged_folders(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(zoo, capsys)
    whole = Path("tokens/val.npy").read_bytes()
    for content in (whole[:-2], whole[:20], b""):
        Path("tokens/val.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"val.npy is damaged"):
            open_tokens("tokens").split("val")
    Path("tokens/val.npy").write_bytes(whole)
    Path("tokens/val.txt").write_text(TEXT[:-1])
    with pytest.raises(UserError, match=r"val.npy is damaged"):
        open_tokens("tokens").split("val")
    index = json.loads(Path("tokens/tokens.json").read_text())
    for changed, message in (
        (index | {"version": 2}, "expected version 1, found 2"),
        ({key: value for key, value in index.items() if key != "end"}, "expected end, found none"),
        ([], "expected an object"),
    ):
        Path("tokens/tokens.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            open_tokens("tokens")
