"""Models from outside: named on the command line from a folder, or brought by an installed package."""

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

MODULE = '''
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.module import SequenceModule


class Last(NamedTuple):
    """What was read last."""

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
        hidden, said = state.hidden, []
        for token in self.embed(tokens).unbind(1):
            hidden = self.cell(token, hidden)
            said.append(hidden)
        return self.head(torch.stack(said, 1)), state if self.forgets else Last(hidden)
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
    """The same, installed: what pip writes beside the package."""
    info = zoo.folder / "site" / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[zoo.configs]\n{package} = {package}.configs\n")
    (info / "RECORD").write_text("")
    importlib.invalidate_caches()
    return package


def train_and_kill(zoo: Any, *words: str) -> None:
    words = ("model=counter", *words)
    ended = zoo.run(*words, "run_dir=whole")
    assert ended.code == 0, ended.err
    assert zoo.metrics("whole")["model"] == "counter"
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill("on_train_batch_end", 5)]).code == "killed"


def test_a_folder_that_nobody_installed(zoo: Any, same_checkpoints: Any, package: str) -> None:
    search = f"hydra.searchpath=[file://{zoo.folder}/site/{package}/configs]"
    train_and_kill(zoo, search)
    refused = zoo.run("resume=cut")  # a file doesn't say what is imported
    assert refused.code == 2
    assert f"names a class of no installed plug-in: {package}.counter.Counter" in refused.err
    trusted = f"model._target_={package}.counter.Counter"
    assert trusted in refused.err
    assert zoo.run("resume=cut", "model._target_=zoo.models.rmt.RMT").code == 2
    resumed = zoo.run("resume=cut", trusted)
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
    ended = zoo.finish("model=counter", search)
    assert ended.code == 0, ended.err
    assert zoo.finish("resume=run", "steps=9", f"model._target_={package}.counter.Counter").code == 0
