"""Runs that begin in the same second: each in a folder that no other has."""

import fcntl
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from zoo.errors import UserError
from zoo.train.runs.files import LOCK, lock_folder, new_folder
from zoo.train.runs.run_folder import run_folder

NOW = "20260101-120000"


def without_folder(zoo: Any, *words: str) -> list[str]:
    words = ("steps=1", "val_every=1", *words)
    return [word for word in zoo.with_settings(words) if not word.startswith("run_dir=")]


def test_folders_made_at_once_are_different(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(new_folder, [tmp_path / "a/b/run"] * 64))
    names = ["run", *(f"run-{number}" for number in range(2, 65))]
    assert sorted(folders) == sorted(tmp_path / "a/b" / name for name in names)
    assert all(folder.is_dir() for folder in folders)


def test_a_run_and_two_of_a_multirun(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *arguments: NOW)
    words = without_folder(zoo)
    assert zoo.run(*words, as_given=True).code == 0
    assert zoo.run("-m", *words, "optim.lr=1e-3,2e-3", as_given=True).code == 0
    parent = zoo.folder / "runs/lm/rmt"
    rates = {}
    for folder in parent.iterdir():
        assert (folder / "train.log").read_text().count("run: runs/lm/rmt/") == 1
        assert (folder / "metrics.json").exists()
        rates[folder.name] = yaml.safe_load((folder / "config.yaml").read_text())["optim"]["lr"]
    assert rates == {
        f"nano-s0-{NOW}": 0.003,
        f"nano-s0-{NOW}-2": 0.001,
        f"nano-s0-{NOW}-3": 0.002,
    }


def test_a_folder_that_was_named_is_not_another(zoo: Any) -> None:
    words = zoo.with_settings(["steps=1", "val_every=1", "run_dir=mine"])
    assert zoo.run(*words, as_given=True).code == 0
    ended = zoo.run(*words, as_given=True)
    assert (ended.code, "holds a run already" in ended.err) == (2, True)
    assert sorted(path.name for path in zoo.folder.iterdir()) == ["cache", "mine", "text"]


def test_ranks_of_one_run_share_its_folder(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by torchrun or srun they agree on the name alone; started by rank 0 it tells them."""
    monkeypatch.setattr(time, "strftime", lambda *arguments: NOW)
    names = {"model": "rmt", "task": "lm", "size": "nano"}
    cfg = OmegaConf.create(
        {"names": names, "seed": 0, "run_dir": None, "resume": None, "trainer": {"num_nodes": 1}}
    )

    def folder_name() -> str:
        with run_folder(cfg, zoo.folder, "train.log") as folder:
            (folder / "config.yaml").touch()
            return folder.name

    assert [folder_name(), folder_name()] == [f"nano-s0-{NOW}", f"nano-s0-{NOW}-2"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert folder_name() == f"nano-s0-{NOW}-2"
    monkeypatch.delenv("LOCAL_RANK")
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "2")
            assert folder_name() == f"nano-s0-{NOW}"
    monkeypatch.setenv("SLURM_PROCID", "0")  # of every task of an array
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert folder_name() == f"nano-s0-{NOW}-3"


@pytest.mark.slow
def test_ten_at_once(zoo: Any) -> None:
    """Ten equal processes; a run ends with the numbers of every other."""
    words = without_folder(zoo, "size=nano")
    zoo.monkeypatch.setattr(zoo, "with_settings", list)
    processes = [zoo.start_process(*words) for _ in range(10)]
    for process in processes:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    folders = sorted((zoo.folder / "runs/lm/rmt").iterdir())
    assert len(folders) == 10
    losses = {json.loads((folder / "metrics.json").read_text())["val/loss"] for folder in folders}
    assert len(losses) == 1


def test_a_refused_run_leaves_the_lock_of_the_one_that_begins(tmp_path: Path) -> None:
    """Before config.yaml is there, only a lock and a log say that another run begins in the folder."""
    cfg = OmegaConf.create({"resume": None, "run_dir": "run"})
    with run_folder(cfg, tmp_path, "train.log") as folder, lock_folder(folder):
        with (
            pytest.raises(UserError, match="in use by another run"),
            run_folder(cfg, tmp_path, "train.log"),
            lock_folder(folder),
        ):
            pass
        assert sorted(path.name for path in folder.iterdir()) == [LOCK, "train.log"]
        with pytest.raises(UserError, match="in use by another run"), lock_folder(folder):
            pass
    assert not folder.exists()


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, its last holder removes it."""
    flock, calls = fcntl.flock, []

    def flock_late(lock: Any, operation: int) -> None:
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(operation)
        flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    with lock_folder(tmp_path):
        assert len(calls) == 2
        with pytest.raises(UserError, match="in use by another run"), lock_folder(tmp_path):
            pass
