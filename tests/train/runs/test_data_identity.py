"""A resumed run trains on the texts that it began with, wherever they lie now."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.commands.test_train import check_refused
from zoo.train.corpora import catalog
from zoo.train.tasks.lm import LanguageModelling
from zoo.train.tasks.needle import Needle
from zoo.train.tasks.passkey import Passkey


def stopped(zoo: Any, *words: str) -> None:
    assert zoo.run(*words, callbacks=[zoo.kill_at("on_train_batch_end", 5)]).code == "killed"


def reversed_text(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


@pytest.mark.parametrize("name", ["train/1.txt", "val/0.txt"])
def test_texts_of_the_same_lengths_that_changed_are_noticed(zoo: Any, name: str) -> None:
    stopped(zoo)
    reversed_text(zoo.folder / "text" / name)
    before = (zoo.folder / "run/config.yaml").read_bytes()
    ended = zoo.run("resume=run")
    check_refused(ended, "data.corpus is fixed .* texts of text have changed .*: expected content .*, found")
    assert (zoo.folder / "run/config.yaml").read_bytes() == before
    reversed_text(zoo.folder / "text" / name)
    assert zoo.run("resume=run").code == 0


def test_a_finished_run_is_not_made_longer_on_other_texts(zoo: Any) -> None:
    zoo.train_whole()
    reversed_text(zoo.folder / "text/train/0.txt")
    check_refused(zoo.run("resume=whole", "steps=9"), "texts of text have changed")


def test_the_same_texts_in_another_place(zoo: Any, same_checkpoints: Any) -> None:
    zoo.train_whole()
    stopped(zoo)
    shutil.move(zoo.folder / "text", zoo.folder / "elsewhere")
    ended = zoo.run("resume=run")
    check_refused(ended, "no corpus 'text'.*relative to the folder where it was started: data.corpus=… names")
    shutil.copytree(zoo.folder / "elsewhere", zoo.folder / "other")
    reversed_text(zoo.folder / "other/train/1.txt")
    check_refused(zoo.run("resume=run", "data.corpus=other"), "texts of other have changed or are others")
    ended = zoo.run("resume=run", "data.corpus=elsewhere")
    assert ended.code == 0, ended.err
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("run")) == []
    config = (zoo.folder / "run/config.yaml").read_text()
    assert config.count("corpus: elsewhere") == 2  # of data and of the task


def test_a_standard_library_of_another_python(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = catalog.files_below(zoo.folder / "text")
    monkeypatch.setattr(catalog, "stdlib_sources", lambda: files)
    stopped(zoo, "data.corpus=stdlib")
    reversed_text(zoo.folder / "text/train/0.txt")
    with monkeypatch.context() as patch:
        patch.setattr("platform.python_version", lambda: "3.99.0")
        check_refused(zoo.run("resume=run"), r"\(that was Python 3\.\d+\.\d+, this is 3\.99\.0\)")


def test_checkpoints_of_earlier_versions(zoo: Any) -> None:
    """They know nothing of their texts; metrics.json of a finished run has samples of them."""
    zoo.train_whole()
    checkpoint = zoo.checkpoint("whole")
    del checkpoint["zoo"]["data"]
    torch.save(checkpoint, zoo.folder / "whole/checkpoints/last.ckpt")
    shutil.copytree(zoo.folder / "text", zoo.folder / "other")
    ended = zoo.run("resume=whole", "data.corpus=other", "steps=9")
    check_refused(ended, "can't tell whether the texts of other")
    reversed_text(zoo.folder / "text/train/0.txt")
    check_refused(zoo.run("resume=whole", "steps=9"), "expected fingerprint .*, found")
    reversed_text(zoo.folder / "text/train/0.txt")
    assert zoo.run("resume=whole", "steps=9").code == 0


PASSKEY = ("task=passkey", "task.form=compact", "task.length=32", "task.samples=40", "task.eval_samples=4")


def change_checkpoint(zoo: Any, run: str, data: dict[str, str] | None) -> None:
    """Gives the run's last checkpoint other hashes of its data; None as before there were any."""
    checkpoint = zoo.checkpoint(run)
    checkpoint["zoo"].pop("data", None)
    if data is not None:
        checkpoint["zoo"]["data"] = data
    torch.save(checkpoint, zoo.folder / run / "checkpoints/last.ckpt")


def test_a_run_keeps_its_task_s_version(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(zoo, *PASSKEY)
    before = (zoo.folder / "run/config.yaml").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Passkey, "VERSION", Passkey.VERSION + 1)
        ended = zoo.run("resume=run")
    check_refused(ended, "the version of task passkey is fixed by the run.*: expected version 3, found 2")
    assert (zoo.folder / "run/config.yaml").read_bytes() == before
    assert not (zoo.folder / "run/metrics.json").exists()
    assert zoo.run("resume=run").code == 0


def test_versions_of_tasks_of_checkpoints_that_do_not_state_them(
    zoo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a finished run metrics.json does; of others equal samples tell, or that there is one version."""
    monkeypatch.setattr(Passkey, "VERSION", 1)
    stopped(zoo, *PASSKEY)
    data = zoo.checkpoint("run")["zoo"]["data"]
    change_checkpoint(zoo, "run", None)
    shutil.copytree(zoo.folder / "run", zoo.folder / "first")
    monkeypatch.setattr(Passkey, "VERSION", 2)
    check_refused(zoo.run("resume=run"), "expected version 2, found one of a checkpoint that doesn't state")
    monkeypatch.setattr(Passkey, "VERSION", 1)
    assert zoo.run("resume=first").code == 0
    change_checkpoint(zoo, "first", None)
    monkeypatch.setattr(Passkey, "VERSION", 2)
    check_refused(zoo.run("resume=first", "steps=9"), "expected version 2, found 1")
    change_checkpoint(zoo, "run", {key: value for key, value in data.items() if key != "task_version"})
    assert zoo.run("resume=run").code == 0  # the samples haven't changed


def test_tasks_know_the_corpus_that_they_read(zoo: Any) -> None:
    digest = LanguageModelling("text", "data").content_digest()
    assert Needle(corpus="text").content_digest() == digest
    assert Passkey(corpus="text", filler="books").content_digest() == digest
    assert Passkey(corpus="text", filler="random").content_digest() == ""
    reversed_text(zoo.folder / "text/val/1.txt")
    assert LanguageModelling("text", "data").content_digest() != digest
    assert len(digest) == 16
