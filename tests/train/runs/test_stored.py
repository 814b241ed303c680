"""Files of earlier versions are read under the current names; a command line isn't."""

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from zoo.errors import UserError
from zoo.train.commands.cli import suggestion
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.runs.construct import import_class
from zoo.train.runs.stored import MOVED, RENAMED, load_stored, update_names


def test_every_moved_class_can_be_imported() -> None:
    for path in MOVED.values():
        import_class(path, object, "class")


def test_every_new_key_is_in_some_configuration() -> None:
    words = (["model=mamba2"], ["model=mamba"], ["model=rmt"], ["model=megalodon"], ["task=passkey"])
    keys_of_configs = {
        f"{group}.{key}"
        for word in words
        for group, keys in compose(word).items()
        if hasattr(keys, "keys")
        for key in keys
    }
    keys_of_configs |= {"model.dt_rank"}  # of Mamba's constructor; no yaml sets it
    assert set(RENAMED.values()) <= keys_of_configs
    assert not set(RENAMED) & keys_of_configs


def test_an_old_file(tmp_path: Path) -> None:
    old = {
        "model": {"_target_": "zoo.models.rmt.RMT", "free": "hidden", "hidden": 48, "slots": 2},
        "task": {"_target_": "zoo.train.passkey.Passkey", "held_out": 5, "length": 9},
        "data": {"rows": 4, "window": 64, "root": "${oc.env:ZOO_DATA,data}"},
        "size": {"rows": 4, "window": 64, "hidden": None, "width": 32},
        "steps": 7,
    }
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(old))
    assert OmegaConf.to_container(load_stored(tmp_path / "config.yaml"), resolve=False) == {
        "model": {"_target_": "zoo.models.rmt.RMT", "free": "mlp_width", "mlp_width": 48, "memory_tokens": 2},
        "task": {"_target_": "zoo.train.tasks.passkey.Passkey", "eval_samples": 5, "length": 9},
        "data": {"batch_size": 4, "seq_len": 64, "root": "${oc.env:ZOO_DATA,data}"},
        "size": {"batch_size": 4, "seq_len": 64, "mlp_width": None, "width": 32},
        "steps": 7,
    }


def test_current_names_and_a_users_class_are_unchanged() -> None:
    current: dict[str, Any] = {
        "model": {"_target_": "zoo.models.rmt.RMT", "mlp_width": 3},
        "data": {"batch_size": 4},
    }
    foreign: dict[str, Any] = {"model": {"_target_": "mine.Model", "hidden": 3, "free": "hidden", "slots": 1}}
    assert update_names(current) == current
    assert update_names(foreign) == foreign


@pytest.mark.parametrize("old", [key for key in RENAMED if key.startswith(("data.", "size.", "model.slots"))])
def test_an_old_key_on_the_command_line_is_answered_with_the_new_one(old: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["zoo"])
    with pytest.raises(Exception, match="Could not override") as caught:
        compose(["model=rmt", f"{old}=3"])
    assert suggestion(str(caught.value)) == f"; {old} is called {RENAMED[old]} now"


def test_an_old_interpolation_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / "configs" / "model" / "mine.yaml").write_text(
        "_target_: zoo.models.rmt.RMT\nwidth: ${data.window}\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=r"data\.window") as caught:
        OmegaConf.to_container(compose(["model=mine"]), resolve=True)
    assert suggestion(str(caught.value)) == "; data.window is called data.seq_len now"


def test_an_old_argument_of_a_constructor_too() -> None:
    with pytest.raises(UserError, match=r"^model\.slots is called model\.memory_tokens now$"):
        build.model(compose(["model=rmt", "size=nano", "+model.slots=4"]))
