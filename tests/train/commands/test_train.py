"""The command line: a user error is one line on stderr, exit code 2, and nothing is overwritten."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from zoo.__main__ import COMMANDS, call

SLIPS = [
    ("model=rtm", "Could not find 'model/rtm'.* rmt "),
    ("task=ml", "Could not find 'task/ml'.* lm"),
    ("size=huge", "Could not find 'size/huge'.* nano "),
    ("optim=sgd", "Could not find 'optim/sgd'.* adamw"),
    ("trainer=tpu", "Could not find 'trainer/tpu'.* auto"),
    ("experiment=mine", "Could not find 'experiment/mine'"),
    ("modle=rmt", "'modle'.*did you mean model"),
    ("corpus=x", r"'Config'; did you mean data\.corpus\?$"),
    ("seq_len=8", r"did you mean data\.seq_len\?$"),
    ("root=x", r"did you mean data\.root\?$"),
    ("lr=1", r"did you mean optim\.lr\?$"),
    ("segment_len=8", r"did you mean size\.segment_len\?$"),
    ("task.corpsu=x", r"task takes vocab_size, seed; did you mean data\.corpus\?$"),
    ("task.corpus=text", r"task\.corpus: task lm reads the corpus that data\.corpus=… names$"),
    ("++task.corpus=text", "task lm reads the corpus that data.corpus=… names"),
    ("model.wdth=3", "'model.wdth'.*did you mean model.width"),
    ("optim.lrate=3", "'optim.lrate'.*did you mean optim.lr"),
    ("+model.wdth=3", "model.wdth: unknown; RMT takes .*width"),
    ("rmt", "expected key=value, found 'rmt'; did you mean model=rmt"),
    ("modle", "expected key=value, found 'modle'$"),
    ("run_dir=runs/日本", "run_dir: expected quotes .*: \"run_dir='runs/日本'\"$"),
    ("run_dir=a=b", "run_dir: expected quotes within quotes .* a=b: \"run_dir='a=b'\"$"),
    ("trainer.accelerator=tpu", "trainer: .*torch_xla"),
    ("model.foo=3", "model takes free, vocab_size, .*memory_tokens"),
    ("=3", "must be a string"),
    ("model=null", "must be a string"),
    ("~model", "model"),
    ("model=mine", "'model/mine'.*unlimiformer xlstm_7b$"),
    ("hydra.searchpath=[file://nowhere]", "path=nowhere is not available"),
    ("~steps", "steps: expected at least 1, found None"),
    ("~optim.lr", "optim.lr .*does not support deletion"),
    ("~seed", "seed: expected at least 0 and less than .*, found None"),
    ("~val_every", "val_every: expected at least 1, found None"),
    ("model=rmt,transformer", "--multirun"),
    ("model.width=abc", "model.width: expected int, found 'abc'"),
    (
        "model.width=null",
        "model.width: expected int, found None .*; `free: width` in the yaml has the budget",
    ),
    ("model.width=32.0", "model.width: expected int, found 32.0"),
    ("model.bias=3", "model.bias: expected bool, found 3"),
    ("model.norm=batch", "model.norm: expected .*rms.*, found 'batch'"),
    ("steps=abc", "steps=abc.*'abc'.*Integer"),
    ("steps=1.5", "steps=1.5"),
    ("data.batch_size=x", "data.batch_size=x.*'x'.*Integer"),
    ("optim.lr=fast", "optim.lr=fast.*'fast'.*Float"),
    ("optim.betas=0.9", "optim.betas"),
    ("data.seq_len=60", "data.seq_len: expected a multiple of segment_len=16, found 60; use 48 or 64"),
    ("data.seq_len=8", "data.seq_len: .*found 8; use 16"),
    ("data.corpus=nowhere", "'nowhere': expected a folder, a file or one of stdlib"),
    ("data.corpus=stdlb", "did you mean stdlib"),
    ("data.corpus=enwik8", "enwik8 not found: expected enwik8 .*under data"),
    ("data.corpus=empty", "no files in the folder empty"),
    ("data.corpus=nothing", "no text in nothing.*1 empty file"),
    ("data.corpus=binary", "no text in binary.*1 binary file"),
    ("task.vocab_size=100", "expected vocab_size 257 .*found 100"),
    ("model.vocab_size=256", "model.vocab_size: expected at least the task's 257, found 256"),
    ("run_dir=text/train/0.txt/run", "can't use .*0.txt/run: Not a directory"),
    ("run_dir=text/train/0.txt", "can't use .*0.txt: File exists"),
    ("run_dir=blocked", "can't use .*train.log"),
    ("model.heads=5", "width 32 is not a multiple of heads 5"),
    ("model.heads=0", "model.heads: expected at least 1, found 0"),
    ("model.heads=-4", "model.heads: expected at least 1, found -4"),
    ("model.width=0", "model.width: expected at least 1, found 0"),
    ("model.depth=-1", "model.depth: expected at least 1, found -1"),
    ("size.depth=0", "model.depth: expected at least 1, found 0"),
    ("model.mlp_width=0", "model.mlp_width: expected at least 1, found 0"),
    ("model.mlp_width=null", "model.mlp_width: expected a number, as this size has no budget"),
    ("model.free=[nan]", r"model.free: expected the name of one of the model's widths, found \[nan\]"),
    ("model.free=0", "model.free: expected the name of one of the model's widths, found 0"),
    ("model.free=none", "model.none: expected a number, as this size has no budget"),
    ("model.segment_len=-16", "model.segment_len: expected at least 1, found -16"),
    ("model.memory_tokens=0", "memory_tokens"),
    ("model.memory_tokens=-1", "memory_tokens"),
    ("model.dropout=2.0", "dropout.*2"),
    ("model.dropout=nan", "model.dropout: expected float, found nan"),
    ("model.dropout=-0.1", "dropout.*-0.1"),
    ("model._target_=os.system", "model: expected a SequenceModule, found os.system"),
    ("model._target_=torch.nn.Linear", "model: expected a SequenceModule, found torch.nn.Linear"),
    ("model._target_=nowhere.Model", "model: can't import nowhere.Model: No module named 'nowhere'"),
    ("model._target_=zoo.models.rmt.RTM", "model: can't import .*RTM.*no attribute 'RTM'"),
    ("steps=0", "steps: expected at least 1, found 0"),
    ("steps=-3", "steps: expected at least 1, found -3"),
    ("val_every=0", "val_every: expected at least 1, found 0"),
    ("checkpoint_every=-1", "checkpoint_every: expected at least 1, found -1"),
    ("seed=-1", "seed: expected at least 0 and less than .*, found -1"),
    ("seed=4294967296", "seed: expected at least 0 and less than"),
    ("data.batch_size=0", "data.batch_size: expected at least 1, found 0"),
    ("data.seq_len=-32", "data.seq_len: expected at least 1, found -32"),
    ("data.val_bytes=0", "data.val_bytes: expected at least 1, found 0"),
    ("optim.lr=nan", "optim.lr: expected a number above 0.*, found nan"),
    ("optim.lr=inf", "optim.lr: expected a number above 0.*, found inf"),
    ("optim.lr=0", "optim.lr: expected a number above 0.*, found 0"),
    ("optim.clip=-1", "optim.clip: expected a number above 0.*, found -1"),
    ("optim.betas=[2,3]", "optim.betas: expected two numbers from 0 to below 1"),
    ("optim.betas=[0.9]", "optim.betas: expected two numbers"),
    ("optim.betas=[0.9,nan]", "optim.betas: expected two numbers"),
    ("optim.floor=-1", "optim.floor: expected a share from 0 to 1, found -1"),
    ("optim.floor=nan", "optim.floor: expected a share from 0 to 1, found nan"),
    ("optim.weight_decay=nan", "optim.weight_decay: expected a number from 0 up, found nan"),
    ("optim.weight_decay=-1", "optim.weight_decay: expected a number from 0 up, found -1"),
    ("optim.warmup=-1", "optim.warmup: expected at least 0, found -1"),
    ("trainer.accelerator=abacus", "trainer: .*abacus"),
    ("trainer.precision=8", "trainer: .*8"),
    ("trainer.precision=half", "trainer: .*half"),
    ("trainer.strategy=none", "trainer: .*none"),
    ("trainer.devices=0", "trainer.devices: expected at least 1, found 0"),
    ("trainer.devices=all", "trainer.devices=all"),
    ("trainer.num_nodes=0", "trainer.num_nodes: expected at least 1, found 0"),
    ("trainer.accumulate=0", "trainer.accumulate: expected at least 1, found 0"),
    ("trainer.log_every=0", "trainer.log_every: expected at least 1, found 0"),
    ("resume=", "resume: expected a run's folder with a config.yaml, found none in ''"),
    ("resume=nowhere", "resume: expected a run's folder with a config.yaml, found none in 'nowhere'"),
    ("resume=text", "resume: expected a run's folder with a config.yaml, found none in 'text'"),
    ("resume=null", "resume: expected a run's folder"),
]


def check_refused(ended: Any, says: str) -> None:
    assert ended.code == 2
    assert re.fullmatch(r"(.+ on .+ at size=.+, seed .+\n|resuming .*\n)?", ended.out)
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    assert re.search(says, ended.err), ended.err


@pytest.mark.parametrize(("word", "says"), SLIPS, ids=[word for word, _ in SLIPS])
def test_a_slip_is_one_line(zoo: Any, word: str, says: str) -> None:
    for folder in ("empty", "nothing", "binary", "blocked/train.log"):
        (zoo.folder / folder).mkdir(parents=True)
    (zoo.folder / "nothing/a.txt").write_text("")
    (zoo.folder / "binary/a.bin").write_bytes(b"\0\1\2")
    check_refused(zoo.run(word), says)


def test_a_gpu_asked_for_and_absent(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    check_refused(zoo.run("trainer.accelerator=gpu"), "trainer: .*gpu")


def snapshot(folder: Any) -> dict[Path, bytes]:
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "train.log"
    }


def test_a_run_is_never_overwritten(zoo: Any) -> None:
    zoo.train_whole()
    before = snapshot(zoo.folder / "whole")
    check_refused(zoo.run("run_dir=whole"), "holds a run already; resume=.*whole continues it")
    assert snapshot(zoo.folder / "whole") == before
    assert "holds a run already" in (zoo.folder / "whole/train.log").read_text()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("model=transformer_xl", "resume: model is fixed by the run"),
        ("model.width=64", "resume: model.width is fixed by the run"),
        ("size=tiny", "resume: size is fixed by the run"),
        ("optim.lr=0.1", "resume: optim.lr is fixed by the run.*only steps, val_every"),
        ("seed=3", "resume: seed is fixed by the run"),
        ("trainer.accumulate=2", "resume: trainer.accumulate is fixed by the run.*trainer.. without accum"),
        ("data.batch_size=8", "resume: data.batch_size is fixed by the run"),
        ("data.corpus=stdlib", "resume: data.corpus is fixed by the run"),
        ("run_dir=other", "resume: run_dir is fixed by the run"),
        ("+data.corpus=stdlib", "data.corpus"),
        ("++seed=3", "seed is fixed by the run"),
        ("steps=4", "has done 8 of 4 steps"),
        ("steps=0", "steps: expected at least 1, found 0"),
        ("resume=whole", "resume is given twice"),
    ],
)
def test_the_past_of_a_run_is_settled(zoo: Any, word: str, says: str) -> None:
    zoo.train_whole()
    before = snapshot(zoo.folder / "whole")
    check_refused(zoo.run("resume=whole", word), says)
    assert snapshot(zoo.folder / "whole") == before
    assert not (zoo.folder / "other").exists()


@pytest.mark.parametrize(
    ("run", "says"), [("nowhere", "found none in 'nowhere'"), ("whole", "has done 8 of 8")]
)
def test_nothing_is_left_to_resume(zoo: Any, run: str, says: str) -> None:
    zoo.train_whole()
    check_refused(zoo.run(f"resume={run}"), says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "config.yaml is not the config of a run"),
        (b"\xff\xfe\0\1", "config.yaml is not the config of a run"),
        (b"- 1\n- 2\n", "config.yaml is not the config of a run"),
        (b"steps: [", "config.yaml is not the config of a run"),
        (b"steps: many", "config.yaml is not the config of a run.*many"),
        (b"zebra: 1", "config.yaml is not the config of a run.*zebra"),
        (b"model: {_target_: zoo.M}\ntask: {_target_: zoo.T}\nseed: 0", "data.corpus, .* steps, .*missing"),
        ({"model": 3}, "config.yaml is not the config of a run"),
        ({"task": None}, "config.yaml is not the config of a run"),
        ({"steps": None}, "config.yaml is not the config of a run"),
        (
            {"model": {"_target_": "antigravity.Model"}},
            "names a class of no installed plug-in: antigravity.Model",
        ),
        ({"task": {"_target_": "os.system"}}, "names a class of no installed plug-in: os.system"),
        (
            {"model": {"_target_": "zoolander.Model"}},
            "names a class of no installed plug-in: zoolander.Model",
        ),
        ({"model": {"_target_": "zoo.models.gone.Model"}}, "can't import zoo.models.gone.Model"),
    ],
    ids=str,
)
def test_a_damaged_or_foreign_config(zoo: Any, content: Any, says: str) -> None:
    zoo.train_whole()
    path = zoo.folder / "whole/config.yaml"
    if isinstance(content, dict):
        content = yaml.safe_dump(yaml.safe_load(path.read_bytes()) | content).encode()
    path.write_bytes(content)
    before = snapshot(zoo.folder / "whole")
    check_refused(zoo.run("resume=whole", "steps=9"), says)
    assert snapshot(zoo.folder / "whole") == before


def test_a_sweep_goes_on_without_the_job_that_fails(zoo: Any) -> None:
    words = zoo.with_settings(["steps=1", "val_every=1", "run_dir=sweep/${model.heads}", "model.heads=5,2,4"])
    ended = zoo.run("-m", *words, as_given=True)
    assert ended.code == 2
    lines = ended.err.splitlines()
    assert lines[0] == lines[-1] == "error: model: width 32 is not a multiple of heads 5"
    assert "model.heads=5" in lines[-2]  # which job it was
    assert "Traceback" not in ended.err
    assert [(zoo.folder / f"sweep/{heads}/metrics.json").exists() for heads in (5, 2, 4)] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("words", [["--help"], ["model=rmt", "size=tiny", "--cfg", "job"]])
def test_help_loads_neither_torch_nor_lightning(zoo: Any, words: Any) -> None:
    asks = (
        "import sys; from zoo.train.commands.train import main\n"
        "try: main()\nfinally: print(sorted(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", asks, *words],
        cwd=zoo.folder,
        env=zoo.env,
        capture_output=True,
        text=True,
        check=True,
    )
    *said, modules = found.stdout.splitlines()
    assert "'hydra'" in modules
    assert "'torch" not in modules
    assert "'lightning" not in modules
    assert any("rmt" in line for line in said)
    assert os.listdir(zoo.folder) == ["text"]


def test_help_names_every_choice(zoo: Any) -> None:
    said = zoo.run("--help", as_given=True).out
    for name in ("armt", "rmt", "rmt_xl", "transformer_xl", "sliding_window", "micro", "base", "resume="):
        assert name in said


@pytest.mark.parametrize("words", [[], ["--help"], ["tarin"], ["train", "--help"]])
def test_the_console_script(zoo: Any, words: Any) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "zoo", *words], cwd=zoo.folder, env=zoo.env, capture_output=True, text=True
    )
    assert found.returncode == (2 if words == ["tarin"] else 0)
    assert ("unknown command 'tarin'; expected one of train" in found.stderr) == (words == ["tarin"])
    assert "train" in found.stdout


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"train", "list", "doctor"}))
def test_help_is_a_slip_only_where_nothing_was_said(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [])  # put back after `call`
    for words, code in (([], 2), (["--help"], 0), (["-h"], 0)):
        with pytest.raises(SystemExit) as left:
            call(name, words)
        said = capsys.readouterr()
        assert left.value.code == code
        assert (said.err if code else said.out).startswith(f"`zoo {name} ")
        assert (said.out if code else said.err) == ""
