"""Language modelling of bytes: targets, byte and word counts, baselines."""

import inspect
import lzma
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import zoo.configs
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.corpora.documents import Documents
from zoo.train.data.loaders import EvalLoader, TrainLoader
from zoo.train.data.module import DataModule
from zoo.train.tasks.lm import (
    END,
    ByteDataset,
    LanguageModelling,
    compression_baselines,
    draw_documents,
    words_and_lines,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bytes")


def byte_dataset(folder, contents):
    """A byte dataset of these documents, without a corpus."""
    path = folder / "data.bin"
    path.write_bytes(b"".join(contents))
    lengths = np.array([len(content) for content in contents], np.int64)
    return ByteDataset(Documents(path, np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)))


contents = st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(contents, st.data())
def test_a_window_is_a_slice_of_the_document_between_its_ends(folder, documents, data):
    dataset = byte_dataset(folder, documents)
    assert dataset.lengths.tolist() == [len(document) + 1 for document in documents]
    for index, document in enumerate(documents):
        line = [END, *document, END]
        start = data.draw(st.integers(0, len(document)))
        stop = data.draw(st.integers(start + 1, len(document) + 1))
        tokens, targets = dataset.window(index, start, stop)
        assert tokens.tolist() == line[start:stop]
        assert targets.tolist() == line[start + 1 : stop + 1]
        assert dataset.text(index) == document
        for beyond in ((0, len(document) + 2), (-1, 1)):
            with pytest.raises(IndexError):
                dataset.window(index, *beyond)


@settings(max_examples=40, deadline=None)
@given(contents, st.integers(1, 3), st.integers(1, 8))
def test_documents_can_be_put_together_from_batches(folder, documents, batch_size, seq_len):
    dataset = byte_dataset(folder, documents)
    targets_read, current = [], {}
    for batch in EvalLoader(dataset, batch_size, seq_len):
        for row in range(len(batch.fresh)):
            targets = batch.targets[row][batch.targets[row] != IGNORE].tolist()
            if batch.fresh[row] and targets:
                assert batch.tokens[row, 0] == END
                current[row] = []
                targets_read.append(current[row])
            if targets:
                current[row] += targets
    assert Counter(map(bytes, (targets[:-1] for targets in targets_read))) == Counter(documents)
    assert all(targets[-1] == END for targets in targets_read)


def test_another_document_changes_no_other_target(folder):
    documents = [bytes([65 + i]) * (20 + 7 * i) for i in range(5)]
    before = list(TrainLoader(byte_dataset(folder, documents), 3, 8, seed=1))
    owners = list(TrainLoader(DocumentNumbers(byte_dataset(folder, documents)), 3, 8, seed=1))
    documents[2] = bytes([122]) * len(documents[2])
    after = list(TrainLoader(byte_dataset(folder, documents), 3, 8, seed=1))
    num_changed = 0
    for old, new, owner in zip(before, after, owners, strict=True):
        assert torch.equal(old.fresh, new.fresh)
        changed = (old.tokens != new.tokens) | (old.targets != new.targets)
        assert (owner.targets[changed] == 2).all()
        num_changed += int(changed.sum())
    assert num_changed


class DocumentNumbers(ByteDataset):
    """The same documents, every target the index of its document."""

    def __init__(self, dataset):
        super().__init__(dataset.documents)

    def window(self, document, start, stop):
        line = np.full(stop - start, document, np.int64)
        return line, line


@settings(max_examples=60, deadline=None)
@given(contents, st.integers(1, 200), st.integers(0, 5))
def test_drawn_documents_are_whole_and_hold_just_the_bytes_they_should(folder, documents, limit, seed):
    """Without the last one they hold too few; a document is cut only where it is too long by itself."""
    drawn = draw_documents(byte_dataset(folder, documents), limit, seed)
    texts = [drawn.text(i) for i in range(len(drawn.lengths))]
    targets = [drawn.window(i, 0, int(length))[1].tolist() for i, length in enumerate(drawn.lengths)]
    is_cut = [len(text) == limit and text not in documents for text in texts]
    assert targets == [[*text] if cut else [*text, END] for text, cut in zip(texts, is_cut, strict=True)]
    total = sum(map(len, texts))
    if sum(map(len, documents)) <= limit:
        assert texts == documents
    else:
        assert total >= limit > total - len(texts[-1])
        cut = [document[:limit] for document in documents]
        assert not Counter(texts) - Counter(cut)


def test_documents_are_drawn_evenly_and_by_their_seed_alone(folder):
    documents = [bytes([i]) * 10 for i in range(8)]
    dataset, counts = byte_dataset(folder, documents), np.zeros(8)
    for seed in range(800):
        drawn = draw_documents(dataset, 20, seed)
        texts = [drawn.text(i) for i in range(len(drawn.lengths))]
        assert len(set(texts)) == 2
        again = draw_documents(dataset, 30, seed)  # a larger limit only adds documents
        assert [again.text(i) for i in range(3)][:2] == texts
        counts[[text[0] for text in texts]] += 1
    assert ((counts - 200) ** 2 / 150).sum() * 7 / 8 < 24.3  # chi squared, p = 0.001, 7 degrees


def test_drawing_nothing_is_refused(folder):
    with pytest.raises(UserError, match="at least 1 byte"):
        draw_documents(byte_dataset(folder, [b"a"]), 0, 0)


def test_a_negative_seed_is_refused(task):
    with pytest.raises(UserError, match=r"task\.seed: expected at least 0, found -1"):
        LanguageModelling(task.corpus, task.root, seed=-1)


def test_compression_baselines():
    assert compression_baselines(b"ab" * 500)["order-0"] == pytest.approx(1.0)
    assert compression_baselines(bytes(range(256)) * 4)["order-0"] == pytest.approx(8.0)
    assert compression_baselines(b"a")["order-0"] == 0.0
    text = Path(__file__).read_bytes()
    shares = [count / len(text) for count in Counter(text).values()]
    baselines = compression_baselines(text)
    assert baselines["order-0"] == pytest.approx(-sum(share * math.log2(share) for share in shares))
    assert baselines["xz -9"] == 8 * len(lzma.compress(text, lzma.FORMAT_XZ, preset=9)) / len(text)
    with pytest.raises(UserError, match="0 bytes"):
        compression_baselines(b"")


@pytest.fixture
def task(tmp_path):
    folder = tmp_path / "corpus"
    for split, count in (("train", 4), ("val", 3), ("test", 1)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            (folder / split / f"{i}.txt").write_bytes(bytes([97 + i]) * (50 + i))
    return LanguageModelling(str(folder), tmp_path)


def test_end_symbols_are_not_counted_as_bytes(task):
    targets = torch.tensor([[1, END, IGNORE], [0, 255, IGNORE]])
    assert task.byte_count(targets) == 3
    bytes_, ends = 0, 0
    for batch in DataModule(task, 2, 16, 8, seed=0).val_dataloader():
        bytes_ += int(task.byte_count(batch.targets))
        ends += int((batch.targets == END).sum())
    assert (bytes_, ends) == (50 + 51 + 52, 3)


def test_validation_reads_exactly_val_text(task):
    data = DataModule(task, 2, 16, 8, seed=0, val_bytes=70)
    assert 70 <= len(data.val_text) < 70 + 52
    targets = torch.cat([batch.targets[batch.targets < END] for batch in data.val_dataloader()])
    assert Counter(bytes(targets[targets != IGNORE].tolist())) == Counter(data.val_text)
    assert task.baselines(data.val_dataset()) == compression_baselines(data.val_text)
    other_seeds = [replace(task, seed=seed) for seed in range(1, 9)]
    texts = [DataModule(of_seed, 2, 16, 8, seed=0, val_bytes=50).val_text for of_seed in other_seeds]
    assert set(texts) == {b"a" * 50, b"b" * 50, b"c" * 50}
    assert len(DataModule(task, 2, 16, 8, seed=0, val_bytes=10**9).val_text) == 153
    assert len(DataModule(task, 2, 16, 8, seed=0).val_text) == 153
    assert sum(int(task.byte_count(batch.targets)) for batch in data.test_dataloader()) == 50


def test_fewer_positions_than_a_step_reads_are_a_warning(task, caplog):
    positions = int(task.split("train").lengths.sum())
    for batch_size, messages in (
        (1, []),
        (2, [f"training has {positions} positions, less than the {2 * positions} a step reads"]),
    ):
        DataModule(task, batch_size, positions, positions, seed=0).train_dataloader()
        assert caplog.messages == messages


def test_impossible_settings_are_refused(task, tmp_path):
    with pytest.raises(UserError, match="multiple of segment_len=64, found 100; use 64 or 128"):
        DataModule(task, 2, 100, 64, seed=0)
    with pytest.raises(UserError, match=r"multiple of segment_len=64, found 10; use 64$"):
        DataModule(task, 2, 10, 64, seed=0)
    with pytest.raises(UserError, match="at least 1, found 0 and 64"):
        DataModule(task, 0, 64, 64, seed=0)
    with pytest.raises(UserError, match=r"expected vocab_size 257 .*, found 256"):
        LanguageModelling("stdlib", tmp_path, vocab_size=256)


def test_the_config_is_of_this_task():
    cfg = OmegaConf.load(Path(zoo.configs.__file__).parent / "task" / "lm.yaml").task
    assert cfg["_target_"] == f"{LanguageModelling.__module__}.{LanguageModelling.__name__}"
    assert cfg.vocab_size == inspect.signature(LanguageModelling).parameters["vocab_size"].default
    assert OmegaConf.to_container(cfg, resolve=False)["corpus"] == "${data.corpus}"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("ab \t\n\r\x0b\x0c", min_size=1, max_size=40), min_size=1, max_size=4), st.integers(1, 9)
)
def test_words_are_those_of_bytes_split_at_any_chunk_size(folder, documents, chunk):
    raw = [document.encode() for document in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.train.tasks.lm.CHUNK", chunk)
        words, lines = words_and_lines(byte_dataset(folder, raw))
    assert words == sum(len(document.split()) for document in raw)
    assert lines == sum(document.count(b"\n") for document in raw)


def test_the_unit_of_words_depends_on_the_corpus(task):
    assert task.word_count(task.split("val")) == (3, "word between white space")
    assert task.word_count(draw_documents(task.split("val"), 50, 0))[0] == 1
    task.documents.name = "wikitext-103"
    count, unit = task.word_count(task.split("val"))
    assert count == 3
    assert "<eos>" in unit
