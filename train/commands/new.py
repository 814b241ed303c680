"""`zoo new my_model`: write a package with a model that trains and keeps the laws.

    my_model/
        pyproject.toml                          names its configs to the zoo
        my_model/model.py                       the memory and the model: change these
        my_model/configs/model/my_model.yaml    what `model=my_model` is
        tests/test_my_model.py                  the laws, and a training step

Existing files are not overwritten.
"""

import importlib.util
import keyword
import re
import shutil
from pathlib import Path

from zoo import plugins
from zoo.errors import UserError
from zoo.train.commands.cli import command

NAME, CLASS = "my_model", "MyModel"  # in the files below, which are a working package of that name

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "my_model"
version = "0.1.0"
requires-python = ">=3.11"  # and the zoo, installed from its own checkout

[project.entry-points."zoo.configs"]
my_model = "my_model.configs"

[tool.setuptools]
packages = ["my_model", "my_model.configs"]
[tool.setuptools.package-data]
"my_model.configs" = ["**/*.yaml"]

[tool.pytest.ini_options]
pythonpath = ["."]
"""

MODEL = '''\
"""MyModel: a gated recurrence; name the authors and the paper of yours here.

    h_t = a_t h_{t-1} + (1 - a_t) W x_t        a_t = sigmoid(W_a x_t)

Carried: h.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from zoo.memory import Mixer
from zoo.models import Decoder


class MyModelState(NamedTuple):
    """The whole memory: tensors of fixed shapes, rows first, never changed in place."""

    hidden: Float[Tensor, "rows width"]


class MyModelMemory(Mixer):
    """Mixes positions, and carries a state from one call to the next."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.in_proj, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def init_state(self, rows: int) -> MyModelState:
        return MyModelState(self.out_proj.weight.new_zeros(rows, self.width))

    def forward(
        self, x: Float[Tensor, "rows time width"], state: MyModelState
    ) -> tuple[Float[Tensor, "rows time width"], MyModelState]:
        hidden, outputs = state.hidden, []
        inputs, decays = self.in_proj(x).to(hidden), self.gate(x).to(hidden).sigmoid()
        for u, a in zip(inputs.unbind(1), decays.unbind(1), strict=True):
            hidden = a * hidden + (1 - a) * u
            outputs.append(hidden)
        return self.out_proj(torch.stack(outputs, dim=1)), MyModelState(hidden)


class MyModel(Decoder):
    """A stack of blocks, each with such a memory and a feed-forward."""

    learns_through_memory = True
    cuts_anywhere = True
    parallel = "any_length"  # a call of `segment` takes a text of any length

    def __init__(self, vocab_size: int, segment_len: int, depth: int, width: int, mlp_width: int) -> None:
        mixers = (MyModelMemory(width) for _ in range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width)
'''

YAML = """\
# Authors, paper, expectations.
_target_: my_model.model.MyModel
free: mlp_width  # this width is solved from the size's budget of parameters
vocab_size: ${task.vocab_size}
segment_len: ${size.segment_len}
depth: ${size.depth}
width: ${size.width}
mlp_width: ${size.mlp_width}
"""

TESTS = '''\
"""MyModel holds the zoo's laws, and learns."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from zoo import laws

from my_model.model import MyModel


def small() -> MyModel:
    return MyModel(vocab_size=20, segment_len=8, depth=2, width=16, mlp_width=24)


@pytest.mark.parametrize(("name", "check"), list(laws(small)))
def test_law(name: str, check: Callable[[], None]) -> None:
    check()


def test_a_text_is_learned() -> None:
    torch.manual_seed(0)
    model, text = small(), torch.arange(33)[None] % 7
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        logits, _ = model(text[:, :-1])
        loss = F.cross_entropy(logits[0], text[0, 1:])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 4
'''

FILES = {
    "pyproject.toml": PYPROJECT,
    "my_model/__init__.py": '"""MyModel, a model for the zoo."""\n',
    "my_model/model.py": MODEL,
    "my_model/configs/__init__.py": '"""Found by the zoo through the entry point in pyproject.toml."""\n',
    "my_model/configs/model/my_model.yaml": YAML,
    "tests/test_my_model.py": TESTS,
}

NEXT = """\
wrote {name}/: {files}

  cd {name}
  python -m zoo check {name}.model.{made} depth=2 width=32 mlp_width=48    the laws, a line each
  python -m pip install -e .                                             so that model={name} is known
  pip install pytest && python -m pytest
  python -m zoo.train model={name}

Then change {name}/model.py."""

IMPORTED = ("Decoder", "Float", "Mixer", "NamedTuple", "Tensor")  # by MODEL


@command
def main(args: list[str]) -> None:
    if len(args) > 1:
        raise UserError(f"new: expected one name, found {' '.join(args)!r}")
    name = args[0]
    check(name)
    write(name, Path())
    files = ", ".join(renamed(name, file) for file in FILES if not file.endswith("__init__.py"))
    print(NEXT.format(name=name, files=files, made=class_name(name)))


def check(name: str) -> None:
    """Raises UserError unless a package and a model can have this name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        near = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|\W+", "_", name).strip("_").lower()
        hint = f"; did you mean {near}?" if re.fullmatch(r"[a-z][a-z0-9_]*", near) and near != name else ""
        raise UserError(f"new: expected a name of small letters, digits and _, found {name!r}{hint}")
    taken = {choice.name: choice.owner for choice in plugins.choices("model")}
    if name in taken:
        raise UserError(f"new: {name} is a model of {taken[name]} already; take another name")
    if Path(name).exists():
        raise UserError(f"new: {name} is there already; nothing was written")
    if class_name(name) in IMPORTED:
        raise UserError(f"new: the class {class_name(name)} would hide the zoo's; take another name")
    if name in ("zoo", "tests") or importlib.util.find_spec(name):
        raise UserError(f"new: {name} is another package's name, which it would hide; take another")


def write(name: str, folder: Path) -> None:
    """All files, or none: written beside and renamed."""
    beside = folder / f".{name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    for file, text in FILES.items():
        path = beside / renamed(name, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(renamed(name, text), "utf-8")
    beside.rename(folder / name)


def renamed(name: str, text: str) -> str:
    return text.replace(NAME, name).replace(CLASS, class_name(name))


def class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
