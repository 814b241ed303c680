"""SIGKILL at any moment: nothing that was saved is lost, and the run resumes as if nothing had happened."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zoo.errors import UserError
from zoo.train.runs.checkpoint import read_checkpoint
from zoo.train.runs.files import LOCK, lock_folder

WORDS = {
    "rmt": ("model=rmt", "model.dropout=0.1", "steps=24", "val_every=5", "checkpoint_every=1"),
    "transformer_xl": ("model=transformer_xl", "model.dropout=0.1", "steps=24", "val_every=5"),
}


def differing(zoo: Any, differences: Any, whole: str, cut: str) -> list[str]:
    """In what two finished runs differ, whatever a clock says left out.

    best.ckpt, which no run goes on from, is written right after a resume with Lightning's counts of batches,
    one of which is a step behind.
    """
    found = differences(zoo.checkpoint(whole), zoo.checkpoint(cut))
    best = differences(zoo.checkpoint(whole, "best.ckpt"), zoo.checkpoint(cut, "best.ckpt"))
    found += [one for one in best if "batch_progress" not in one]
    if zoo.scalars(whole) != zoo.scalars(cut):
        found.append("what TensorBoard shows")
    found += [f"{tag} twice" for tag, points in zoo.scalars(cut).items() if len(points) > len(dict(points))]
    ours, theirs = zoo.metrics(whole), zoo.metrics(cut)
    return found + [key for key in ours if key not in zoo.VOLATILE and ours[key] != theirs[key]]


def readable(folder: Path) -> list[str]:
    """Every checkpoint under its name is a whole one; the names of those that a kill left half written."""
    for path in folder.glob("*.ckpt"):
        read_checkpoint(path)
    return [path.name for path in folder.glob(".*.ckpt.*")]


def until_saving(folder: Path, after: float) -> Any:
    """True once a file is being written in the folder, from so many seconds after the run's beginning."""

    def look(seconds: float) -> bool:
        if seconds < after or not folder.is_dir():
            return False
        return any(name.startswith(".") for name in os.listdir(folder))

    return look


def kill_and_go_on(
    runs: Any, zoo: Any, differences: Any, model: str, kills: int, seed: int
) -> dict[str, int]:
    """Kill so many runs, each time go on to the end, and compare; what was hit."""
    words, dice = WORDS[model], random.Random(f"{model} {seed}")
    whole = runs.run(*words, "run_dir=whole")
    assert whole.code == 0, whole.out
    hit = {"killed": 0, "saving": 0, "twice": 0, "before it began": 0}
    number = -1
    while hit["killed"] < kills:  # a run may end before its moment has come
        number += 1
        cut, after = f"cut{number}", dice.uniform(0, whole.seconds)
        checkpoints = zoo.folder / cut / "checkpoints"
        saving = number % 2 == 1
        until = until_saving(checkpoints, after * 0.8) if saving else (lambda seconds, at=after: seconds > at)
        ran = runs.run(*words, f"run_dir={cut}", until=until)
        hit["killed"] += ran.code == -9
        hit["saving"] += bool(readable(checkpoints))
        if number % 5 == 4 and (zoo.folder / cut / "config.yaml").exists():  # and once more on its way
            again = dice.uniform(0, whole.seconds)
            second = runs.run(f"resume={cut}", until=lambda seconds, at=again: seconds > at)
            hit["twice"] += second.code == -9
            readable(checkpoints)
        if not (zoo.folder / cut / "metrics.json").exists():
            begun = (zoo.folder / cut / "config.yaml").exists()
            hit["before it began"] += not begun
            resumed = runs.run(*((f"resume={cut}",) if begun else (*words, f"run_dir={cut}")))
            assert (resumed.code, "Traceback" in resumed.out) == (0, False), resumed.out
        assert differing(zoo, differences, "whole", cut) == [], (number, after)
        assert readable(checkpoints) == []
    return hit


def test_three_kills(runs: Any, zoo: Any, same_checkpoints: Any) -> None:
    assert kill_and_go_on(runs, zoo, same_checkpoints, "rmt", kills=3, seed=1)["killed"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("model", WORDS)
def test_fifty_kills(runs: Any, zoo: Any, same_checkpoints: Any, model: str, record_property: Any) -> None:
    """25 per architecture: half at a random moment, half while a checkpoint is being written."""
    hit = kill_and_go_on(runs, zoo, same_checkpoints, model, kills=25, seed=0)
    print(model, hit)
    record_property("hit", str(hit))
    assert hit["killed"] == 25
    assert hit["saving"] >= 5


def test_killed_in_its_last_validation(zoo: Any, same_checkpoints: Any) -> None:
    """best.ckpt, written by the resumed run, carries the memory as well."""
    zoo.train_whole()
    for _ in range(2):
        resumed = ("resume=cut",) if (zoo.folder / "cut").exists() else ("run_dir=cut",)
        assert zoo.run(*resumed, callbacks=[zoo.kill_at("on_validation_batch_end", 8)]).code == "killed"
    assert zoo.run("resume=cut").code == 0
    assert differing(zoo, same_checkpoints, "whole", "cut") == []
    assert zoo.checkpoint("cut", "best.ckpt")["zoo"]["ranks"][0]["carried"] is not None


# -- two runs in one folder ----------------------------------------------------------------------------------

HOLD = "import sys; from pathlib import Path; from zoo.train.runs.files import lock_folder\n"
HOLD += "with lock_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def holder(zoo: Any, folder: str) -> subprocess.Popen[str]:
    """Another process that has the folder."""
    (zoo.folder / folder).mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        cwd=zoo.folder,
        env=zoo.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_in_use_is_refused_until_its_process_dies(zoo: Any) -> None:
    zoo.train_whole()
    other = holder(zoo, "whole")
    for words in (("resume=whole", "steps=9"), ("run_dir=whole",)):
        ended = zoo.run(*words)
        assert ended.code == 2
        assert ended.err.startswith("error: ")
        assert ended.err.endswith("whole is in use by another run; wait for it, or stop it first\n")
        assert ended.err.count("\n") == 1
    other.kill()
    other.wait()
    assert zoo.run("resume=whole", "steps=9").code == 0


@pytest.mark.slow
def test_two_runs_that_start_at_once(zoo: Any) -> None:
    """One of them trains; the other says so and leaves everything as it is."""
    words = ("steps=200", "val_every=100", "checkpoint_every=50")
    both = [zoo.start_process(*words) for _ in range(2)]
    ended = [(process.communicate(timeout=300), process.returncode) for process in both]
    assert sorted(code for _, code in ended) == [0, 2]
    for (_, err), code in ended:
        if code:
            assert "in use by another run" in err or "holds a run already" in err
            assert err.count("\n") == 1
    assert zoo.metrics("run")["steps"] == 200


def test_a_lock_that_was_handed_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As zoo sweep does: the parent has it, the child knows."""
    with lock_folder(tmp_path), (tmp_path / LOCK).open("w") as own:
        with pytest.raises(UserError, match="in use by another run"), lock_folder(tmp_path):
            pass
        monkeypatch.setenv("ZOO_LOCK", str(own.fileno()))
        with lock_folder(tmp_path):
            pass
        (tmp_path / "other").mkdir()
        with lock_folder(tmp_path / "other"):  # not the folder that was handed down
            monkeypatch.setenv("ZOO_LOCK", "9999999999999999999999")
            with pytest.raises(UserError, match="in use"), lock_folder(tmp_path / "other"):
                pass


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_the_first_rank_holds_it_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "0")
    with lock_folder(tmp_path):
        monkeypatch.setenv(name, "1")
        with lock_folder(tmp_path):
            pass
