"""Models from outside: from a folder named on the command line, or from an installed package."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zoo import plugins, trust
from zoo.train.commands import evaluate as command
from zoo.train.commands.sweep import parse_args
from zoo.train.evaluation import evaluate
from zoo.train.runs import load
from zoo.train.sweep.plan import SweepOptions, plan

MODULE = '''
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.module import SequenceModule


class Last(NamedTuple):
    """The cell's last output."""

    hidden: Float[Tensor, "rows width"]


class Counter(SequenceModule):
    """A recurrent cell, one token after another."""

    learns_through_memory = True
    cuts_anywhere = True

    def __init__(self, vocab_size: int, segment_len: int, width: int, forgets: bool = False) -> None:
        super().__init__()
        self.vocab_size, self.segment_len, self.forgets = vocab_size, segment_len, forgets
        self.embed = nn.Embedding(vocab_size, width)
        self.cell = nn.GRUCell(width, width)
        self.head = nn.Linear(width, vocab_size)

    def init_state(self, rows: int) -> Last:
        return Last(self.embed.weight.new_zeros(rows, self.embed.embedding_dim))

    def segment(self, tokens: Tensor, state: Last) -> tuple[Tensor, Last]:
        hidden, outputs = state.hidden, []
        for token in self.embed(tokens).unbind(1):
            hidden = self.cell(token, hidden)
            outputs.append(hidden)
        return self.head(torch.stack(outputs, 1)), state if self.forgets else Last(hidden)
'''
YAML = """_target_: {package}.counter.Counter
vocab_size: ${{task.vocab_size}}
segment_len: ${{size.segment_len}}
width: 8
"""


@pytest.fixture
def package(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A plug-in's package outside of the zoo; its name is new each time, as modules are imported once."""
    name = f"plugged_{zoo.folder.name.replace('-', '_')}"
    folder = zoo.folder / "site" / name
    for part, text in {
        "__init__.py": "",
        "counter.py": MODULE,
        "configs/__init__.py": "",
        "configs/model/__init__.py": "",
        "configs/model/counter.yaml": YAML.format(package=name),
        "configs/model/rmt.yaml": YAML.format(package=name),
    }.items():
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_text(text)
    monkeypatch.syspath_prepend(str(zoo.folder / "site"))
    zoo.env["PYTHONPATH"] += f":{zoo.folder / 'site'}"
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


@pytest.fixture
def installed(zoo: Any, package: str) -> str:
    """The package as pip installs it, with its metadata."""
    info = zoo.folder / "site" / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[zoo.configs]\n{package} = {package}.configs\n")
    (info / "RECORD").write_text("")
    importlib.invalidate_caches()
    return package


def train_and_kill(zoo: Any, *words: str) -> None:
    words = words if "model=counter" in words else ("model=counter", *words)
    ended = zoo.run(*words, "run_dir=whole")
    assert ended.code == 0, ended.err
    assert "laws aren't checked by training: zoo check model=counter\n" in ended.out + ended.err
    assert zoo.metrics("whole")["model"] == "counter"
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill_at("on_train_batch_end", 5)]).code == "killed"


def test_a_folder_that_nobody_installed(zoo: Any, same_checkpoints: Any, package: str) -> None:
    search = f"hydra.searchpath=[file://{zoo.folder}/site/{package}/configs]"
    train_and_kill(zoo, search)
    refused = zoo.run("resume=cut")  # a stored file doesn't decide what is imported
    assert refused.code == 2
    assert f"names a class of no installed plug-in: {package}.counter.Counter" in refused.err
    trusted = f"model._target_={package}.counter.Counter"
    assert trusted in refused.err
    assert zoo.run("resume=cut", "model._target_=zoo.models.rmt.RMT").code == 2
    resumed = zoo.run("resume=cut", trusted)
    assert resumed.code == 0, resumed.err
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []


def test_words_of_a_plug_in_may_be_repeated(zoo: Any, same_checkpoints: Any, package: str) -> None:
    """Its search path, its model, keys that only its class knows, and that its class is trusted."""
    search = f"hydra.searchpath=[file://{zoo.folder}/site/{package}/configs]"
    words = (search, "model=counter", "model.width=4", "+model.forgets=false")
    train_and_kill(zoo, *words)
    trusted = f"model._target_={package}.counter.Counter"
    assert zoo.run("resume=cut", *words, trusted, "model.width=8").code == 2
    assert zoo.run("resume=cut", *words[1:], trusted, "+model.forgets=true").code == 2
    resumed = zoo.run("resume=cut", *words, trusted)
    assert resumed.code == 0, resumed.err
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []


def test_an_installed_package(zoo: Any, same_checkpoints: Any, installed: str) -> None:
    train_and_kill(zoo)
    resumed = zoo.run("resume=cut")
    assert resumed.code == 0, resumed.err
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []
    assert "counter" in zoo.run("--help", as_given=True).out


def test_nothing_of_ours_can_be_shadowed(zoo: Any, installed: str) -> None:
    for words in ([], [f"hydra.searchpath=[pkg://{installed}.configs]"]):
        ended = zoo.run("model=rmt", *words, "--cfg", "job")
        assert "_target_: zoo.models.rmt.RMT" in ended.out, ended
        assert installed not in ended.out


def test_a_package_that_is_gone(zoo: Any, installed: str) -> None:
    (zoo.folder / "site" / installed / "counter.py").unlink()
    importlib.invalidate_caches()
    ended = zoo.run("model=counter")
    assert ended.code == 2
    assert f"model: can't import {installed}.counter.Counter: No module named" in ended.err
    assert ended.err.count("\n") == 1


def test_a_plugin_without_its_configs(zoo: Any, installed: str) -> None:
    """One broken plug-in doesn't take the others, nor the zoo, down."""
    info = zoo.folder / "site" / f"{installed}-1.0.dist-info"
    (info / "entry_points.txt").write_text(f"[zoo.configs]\n{installed} = {installed}.nowhere\n")
    assert zoo.run("model=rmt", "steps=1").code == 0
    assert zoo.run("model=counter").code == 2


@pytest.mark.slow
def test_the_folder_one_works_in(zoo: Any, package: str) -> None:
    """PYTHONPATH isn't needed where the module lies in the folder from which `python -m` is called."""
    (zoo.folder / "site" / package).rename(zoo.folder / package)
    search = f"hydra.searchpath=[file://{zoo.folder}/{package}/configs]"
    ended = zoo.run_process("model=counter", search)
    assert ended.code == 0, ended.err
    assert zoo.run_process("resume=run", "steps=9", f"model._target_={package}.counter.Counter").code == 0


TASK = """
import numpy as np
import torch

from zoo.train.tasks.base import Dataset, Task


class Count(Task):
    name, VERSION, metric = "count", 1, "accuracy"

    def __init__(self, vocab_size: int = 300) -> None:
        self.vocab_size = vocab_size

    def split(self, name):
        return Numbers()

    def byte_count(self, targets):
        return torch.zeros((), dtype=torch.long, device=targets.device)

    def baselines(self, dataset):
        return {"chance": 0.1}


class Numbers(Dataset):
    lengths = np.full(6, 40, np.int64)

    def window(self, document, start, stop):
        line = np.arange(start, stop + 1) % 10
        return line[:-1], line[1:]
"""


@pytest.fixture
def local_configs(zoo: Any, package: str) -> str:
    """The working directory, nothing installed: modules, and yaml files in its configs."""
    (zoo.folder / "site" / package / "counting.py").write_text(TASK)
    for file, text in {
        "model/counter.yaml": YAML.format(package=package),
        "model/rmt.yaml": YAML.format(package=package),
        "task/count.yaml": f"_target_: {package}.counting.Count\nvocab_size: 300\n",
        "size/pico.yaml": "defaults: [nano, _self_]\nwidth: 16\n",
    }.items():
        (zoo.folder / "configs" / file).parent.mkdir(parents=True, exist_ok=True)
        (zoo.folder / "configs" / file).write_text(text)
    return package


def test_the_configs_of_the_folder_one_works_in(zoo: Any, same_checkpoints: Any, local_configs: str) -> None:
    words = ("task=count", "size=pico", "data.seq_len=16")
    train_and_kill(zoo, *words)
    resumed = zoo.run("resume=cut")
    assert resumed.code == 0, resumed.err
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []
    metrics = zoo.metrics("whole")
    assert (metrics["model"], metrics["task"], metrics["size"]) == ("counter", "count", "pico")
    help_text = zoo.run("--help", as_given=True).out
    assert all(name in help_text for name in ("counter", "count", "pico"))


def test_a_run_of_local_code_is_evaluated(zoo: Any, local_configs: str) -> None:
    assert zoo.run("model=counter", "steps=1").code == 0
    entry = evaluate.evaluate(*command.parse_args(["run=run", "split=val"]), lambda *message: None)
    assert entry
    cfg, _, far = load.load_trained(Path("run"))
    assert (cfg.model["_target_"], far["step"]) == (f"{local_configs}.counter.Counter", 1)


def test_code_edited_while_it_trains_is_fingerprinted_as_it_was(zoo: Any, local_configs: str) -> None:
    file = zoo.folder / "site" / local_configs / "counter.py"
    file.write_text(
        file.read_text() + "\n\nclass Restless(Counter):\n    def training_step(self, *words):\n"
        "        open(__file__, 'a').write('# edited')\n        return super().training_step(*words)\n"
    )
    (zoo.folder / "configs/model/restless.yaml").write_text(
        YAML.format(package=local_configs).replace("Counter", "Restless")
    )
    importlib.invalidate_caches()
    before = plan([["model=restless"]], SweepOptions())[0].code["model_code"]
    assert zoo.run("model=restless", "steps=1").code == 0
    assert zoo.metrics("run")["model_code"] == before
    assert plan([["model=restless"]], SweepOptions())[0].code["model_code"] != before


def test_a_model_of_local_code_is_swept(zoo: Any, local_configs: str) -> None:
    options, matrix = parse_args(["model=counter,rmt", "task=count", "size=pico", "data.seq_len=16"])
    jobs = plan(matrix, options)
    assert [job.name for job in jobs] == ["count/counter/pico-s0", "count/rmt/pico-s0"]
    assert jobs[1].config["model._target_"] == "zoo.models.rmt.RMT"
    assert jobs[1].code["model_code"] == ""
    assert all(len(jobs[0].code[key]) == len(jobs[1].code["task_code"]) == 16 for key in jobs[0].code)


def test_the_folder_shadows_nothing_and_trusts_only_what_it_names(zoo: Any, local_configs: str) -> None:
    ended = zoo.run("model=rmt", "--cfg", "job")
    assert "_target_: zoo.models.rmt.RMT" in ended.out, ended
    owners = [choice.owner for choice in plugins.choices("model") if choice.name == "rmt"]
    assert owners == ["zoo", "configs"]
    assert trust.is_trusted(f"{local_configs}.counter.Counter")
    assert not trust.is_trusted(f"{local_configs}.counter.Last")
    assert not trust.is_trusted("os.system")


def test_folders_named_configs_that_are_no_plug_in(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The zoo's, and one without choices."""
    (zoo.folder / "configs").mkdir()
    (zoo.folder / "configs/app.yaml").write_text("_target_: antigravity.Model\n")
    assert plugins.local_configs() is None
    assert not trust.is_trusted("antigravity.Model")
    monkeypatch.chdir(Path(__file__).parents[3])
    assert plugins.local_configs() is None


@pytest.mark.parametrize("breaks", ["raise RuntimeError('no licence')", "1 +", "import nowhere"])
def test_a_plugin_that_cannot_be_imported(zoo: Any, installed: str, breaks: str) -> None:
    for module in [module for module in sys.modules if module.startswith(installed)]:
        del sys.modules[module]
    (zoo.folder / "site" / installed / "__init__.py").write_text(breaks)
    importlib.invalidate_caches()
    points = plugins.entry_points(group=plugins.ENTRY_POINTS)
    (point,) = [point for point in points if point.name == installed]
    assert plugins.import_problem(point)
    assert "\n" not in plugins.import_problem(point)
    assert zoo.run("model=rmt", "--cfg", "job").code == 0
    assert zoo.run("model=counter").code == 2
    assert installed not in [choice.owner for choice in plugins.choices("model")]


def test_a_callback_that_no_yaml_here_names_has_to_be_trusted(zoo: Any) -> None:
    """A stored file decides no more about callbacks and loggers than about models."""
    assert zoo.run("steps=1").code == 0
    config = zoo.folder / "run/config.yaml"
    config.write_text(config.read_text() + "callbacks:\n  mine:\n    _target_: elsewhere.Mine\n")
    refused = zoo.run("resume=run", "steps=2")
    assert refused.code == 2
    assert "names a class of no installed plug-in: elsewhere.Mine" in refused.err
    assert "add +callbacks.mine._target_=elsewhere.Mine" in refused.err
    trusted = zoo.run("resume=run", "steps=2", "+callbacks.mine._target_=elsewhere.Mine")
    assert "callbacks.mine: can't import elsewhere.Mine" in trusted.err
