"""No word of a command line is accepted and ignored, and a refused one leaves nothing behind."""

import os
import re
import sys
from typing import Any

import pytest

from tests.train.commands.test_train import check_refused
from tests.train.conftest import Completed
from tests.train.runs.test_import_published import checkpoint, published
from zoo.__main__ import call

UNREAD = [
    ("+foo=3", "foo: unknown; expected one of model, .*resume, logger, callbacks, stop_when_solved$"),
    ("++foo=3", "foo: unknown"),
    ("+step=3", "step: unknown; .*did you mean steps"),
    (
        "+trainer.detect_anomaly=true",
        "trainer.detect_anomaly: unknown; trainer takes accelerator, .*log_every",
    ),
    ("+trainer.accumulat=2", "trainer.accumulat: .*did you mean trainer.accumulate"),
    ("+optim.momentum=0.9", "optim.momentum: unknown; optim takes lr"),
    ("+data.shuffle=true", "data.shuffle: unknown; data takes corpus"),
    ("+size.layers=3", "size.layers: unknown; size takes depth"),
    ("+names.run=mine", "names.run: unknown; names takes model"),
    ("+data={corpus: text, shuffle: true}", "data"),
    ("+foo.bar=3", "foo: unknown"),
    ("+model.wdth=3", "model.wdth: unknown; RMT takes .*width"),
    ("+task.wdth=3", "task.wdth: unknown; LanguageModelling takes corpus"),
    ("size.capacity=64", "size.capacity has no effect: model=rmt doesn't read it"),
    ("hydra.run.dir=elsewhere", "hydra.run.dir can't be set here; run_dir="),
]
DEFAULT_FOLDER = [  # errors found after a run's folder was named by the clock
    ("model.heads=5", "width 32 is not a multiple of heads 5"),
    ("data.corpus=nowhere", "no corpus 'nowhere'"),
    ("trainer.precision=half", "trainer: .*half"),
]


def words_without_folder(zoo: Any, *words: str) -> list[str]:
    return [word for word in zoo.with_settings(words) if not word.startswith("run_dir=")]


@pytest.mark.parametrize(("word", "message"), UNREAD + DEFAULT_FOLDER, ids=lambda value: value[:30])
def test_a_refused_word_leaves_no_folder(zoo: Any, word: str, message: str) -> None:
    entries = {"text"} if (word, message) in UNREAD else {"text", "cache"}
    check_refused(zoo.run(*words_without_folder(zoo, word), as_given=True), message)
    assert {*os.listdir(zoo.folder)} <= entries


@pytest.mark.parametrize("repeated", ["steps=9", "++steps=8"])
def test_a_key_given_twice(zoo: Any, repeated: str) -> None:
    check_refused(zoo.run(*zoo.with_settings([]), repeated, as_given=True), "steps is given twice")
    assert os.listdir(zoo.folder) == ["text"]


def test_folders_that_were_there_before_stay(zoo: Any) -> None:
    (zoo.folder / "runs/lm").mkdir(parents=True)
    (zoo.folder / "mine").mkdir()
    for words in (
        words_without_folder(zoo, "model.heads=5"),
        zoo.with_settings(["model.heads=5", "run_dir=mine"]),
    ):
        assert zoo.run(*words, as_given=True).code == 2
    assert os.listdir(zoo.folder / "runs") == ["lm"]
    assert os.listdir(zoo.folder / "runs/lm") == os.listdir(zoo.folder / "mine") == []


def test_no_job_of_a_multirun_begins(zoo: Any) -> None:
    ended = zoo.run("-m", *zoo.with_settings(["seed=0,1", "+trainer.detect_anomaly=true"]), as_given=True)
    check_refused(ended, "trainer.detect_anomaly: unknown")
    for tasks in ("recall", "recall,passkey"):
        ended = zoo.run("-m", "model=rmt", "size=nano", f"task={tasks}", "data.corpus=text", as_given=True)
        check_refused(ended, "data.corpus has no effect: no job's task or model reads it")
    assert os.listdir(zoo.folder) == ["text"]


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("sweep", ["model=rmt", "size=nano", "+foo=3"], "foo: unknown"),
        (
            "sweep",
            ["model=rmt", "size=nano", "+trainer.detect_anomaly=true"],
            "trainer.detect_anomaly: unknown",
        ),
        ("sweep", ["model=rmt", "size=nano", "+model.wdth=3"], "model.wdth: unknown"),
        ("bench", ["model=rmt", "size=nano", "+foo=3"], "foo: unknown"),
        ("sweep", ["model=rmt", "size=nano", "++run_dir=there"], "run_dir can't be set here; use runs="),
        ("sweep", ["model=rmt", "size=nano", "++seed=3"], "seed can't be set here; use seeds="),
        ("sweep", ["model=rmt", "~resume"], "resume can't be set here; zoo sweep resumes"),
        ("sweep", ["model=rmt", "++size=nano"], r"expected size=…, found \+\+size=nano"),
        ("bench", ["model=rmt", "size=nano", "++steps=3"], "steps can't be set here; lengths="),
        ("bench", ["++model=rmt", "size=nano"], r"expected model=…, found \+\+model=rmt"),
        ("bench", ["model=rmt", "size=nano", "trainer.accumulate=4"], "no effect on what is measured"),
        ("bench", ["model=rmt", "size=nano", "data.corpus=text"], "no effect on what is measured"),
        ("check", ["model=rmt", "+foo=3"], "foo: unknown"),
        ("check", ["model=rmt", "optim.lr=1"], "optim.lr has no effect on the laws"),
        ("check", ["model=rmt", "steps=1"], "steps has no effect on the laws"),
        ("check", ["zoo.models.rmt.RMT", "wdth=3"], "model.wdth: unknown"),
        ("list", ["models", "+foo=3"], "foo: unknown"),
        ("list", ["models", "steps=3"], "steps has no effect on these tables"),
        ("evaluate", ["run=whole", "+foo=3"], r"unknown key '\+foo'"),
        ("evaluate", ["run=whole", "+trainer.detect_anomaly=true"], "unknown key"),
        ("evaluate", ["run=whole", "trainer.precision=64-true"], "unknown key"),
        ("evaluate", ["run=whole", "data.seq_len=64"], "unknown key data.seq_len"),
        ("evaluate", ["run=whole", "task.wdth=3"], "task lm has no such setting"),
        ("evaluate", ["run=whole", "model._target_=zoo.models.mamba.Mamba"], "expected zoo.models.rmt.RMT"),
        ("generate", ["run=whole", "model._target_of=x"], "unknown key 'model._target_of'"),
        ("generate", ["run=whole", "task._target_=os.system"], "expected zoo.train.tasks.lm"),
        ("export", ["run=whole", "to=out", "model._target_=os.system"], "expected zoo.models.rmt.RMT"),
        ("export", ["run=whole", "to=out", "+foo=3"], "unknown key"),
        ("import", ["from=exported", "run_dir=back", "size=tiny"], "size is settled by the run"),
        ("import", ["from=exported", "run_dir=back", "task=lm"], "task is settled by the run"),
        ("compare", ["whole", "+foo=3"], "unknown key"),
        ("new", ["mine", "+foo=3"], ""),
        ("doctor", ["+foo=3"], ""),
    ],
    ids=str,
)
def test_every_command_refuses_words_without_effect(
    zoo: Any, capsys: pytest.CaptureFixture[str], command: str, words: list[str], message: str
) -> None:
    if command not in ("sweep", "bench", "check", "list", "new", "doctor"):
        zoo.train_whole()
    if command == "import":
        zoo.monkeypatch.setattr(sys, "argv", [])
        with pytest.raises(SystemExit):
            call("export", ["run=whole", "to=exported"])
    entries = {*os.listdir(zoo.folder)}
    zoo.monkeypatch.setattr(sys, "argv", [])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        call(command, words)
    printed = capsys.readouterr()
    check_refused(Completed(exit_.value.code, printed.out, printed.err), message)
    assert {*os.listdir(zoo.folder)} == entries


NAMES = ["1", "1.5", "true", "1e3", "0x10", "{a: 1}", "nan"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", ["sweep", "bench", "check", "list", "evaluate", "import"])
def test_a_name_that_yaml_takes_for_something_else(
    zoo: Any, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    """It gets the line that a misspelt name gets."""
    words = {"evaluate": ["run=whole"], "import": ["from=there", "run_dir=here", "format=mamba"]}
    group = "task" if command == "import" else "model"
    if command == "evaluate":
        zoo.train_whole()
    if command == "import":
        checkpoint(zoo.folder / "there", *published("mamba1/model_2layer"))
    zoo.monkeypatch.setattr(sys, "argv", [])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        call(command, [*words.get(command, []), f"{group}={name}"])
    printed = capsys.readouterr()
    expected = f"Could not find '{group}/{re.escape(name)}' Available options in '{group}': .*(rmt|lm)"
    check_refused(Completed(exit_.value.code, printed.out, printed.err), expected)


@pytest.mark.parametrize("name", NAMES)
def test_such_a_name_in_training(zoo: Any, name: str) -> None:
    check_refused(zoo.run(f"size={name}"), f"Could not find 'size/{re.escape(name)}' Available .* nano ")
    assert os.listdir(zoo.folder) == ["text"]


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("check", ["zoo.models.rmt.RMT", "width=[1"], r"width: expected a value as yaml has it, found '\[1'"),
        ("evaluate", ["run=whole", "task.vocab_size={"], "vocab_size: expected a value as yaml has it"),
        ("evaluate", ["run=whole", "data.corpus=[a"], r"no corpus '\[a'"),
        ("evaluate", ["run=whole", "data.corpus=1"], "no corpus '1'"),
        ("evaluate", ["run=whole", "data.corpus="], "no corpus ''"),
        ("evaluate", ["run=whole", "data.corpus= "], "no corpus ' '"),
        ("evaluate", ["run=whole", "data.corpus=texts #2"], "no corpus 'texts #2'"),
        ("sweep", ["model=null"], "must be a string"),
    ],
    ids=str,
)
def test_values_that_yaml_cannot_read_or_reads_otherwise(
    zoo: Any, capsys: pytest.CaptureFixture[str], command: str, words: list[str], message: str
) -> None:
    if command == "evaluate":
        zoo.train_whole()
    zoo.monkeypatch.setattr(sys, "argv", [])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        call(command, words)
    printed = capsys.readouterr()
    check_refused(Completed(exit_.value.code, printed.out, printed.err), message)


def test_words_that_a_run_was_started_with_may_be_repeated(zoo: Any) -> None:
    further = ["optim=adamw", "++task.vocab_size=257", "trainer=auto", "model.width=${size.width}"]
    words = zoo.with_settings(further)
    assert zoo.run(*words, as_given=True).code == 0
    for repeated in (words, words[:3], ["model.dropout=0.0"], ["model.mlp_width=null"], ["size.budget=null"]):
        ended = zoo.run("resume=run", *repeated, "steps=9")
        assert ended.code == (0 if repeated is words else 2), ended.err
        assert ended.code == 0 or "has done 9 of 9 steps" in ended.err
    assert zoo.metrics("run")["steps"] == 9


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.lr=0.1", "optim.lr is fixed by the run in whole: 0.003 there, found 0.1"),
        ("model=mamba", "model is fixed by the run in whole: rmt there, found mamba"),
        ("~model.dropout", "model.dropout is fixed by the run in whole: 0.0 there"),
        ("optim.betas=[0.9,0.99]", "optim.betas is fixed .* found .0.9, 0.99."),
        (
            "experiment=induction_mamba",
            "experiment is fixed .*: its model._target_ is zoo.models.rmt.RMT, found",
        ),
        ("+model.sinks=3", "model.sinks is fixed by the run in whole: absent there, found 3"),
        ("+trainer.detect_anomaly=true", "trainer.detect_anomaly: unknown"),
        ("+foo=3", "foo is fixed by the run in whole: absent there, found 3"),
        ("optim.lr=${nowhere}", "nowhere"),
        ("optim.lr=fast", "fast"),
        ("seed=1,2", ".*"),
    ],
)
def test_other_words_than_the_run_was_started_with(zoo: Any, word: str, message: str) -> None:
    zoo.train_whole()
    check_refused(zoo.run("resume=whole", "steps=9", word), message)
