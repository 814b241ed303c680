"""What docs/scale.md says: two CPU ranks of torchrun, submitit's local executor, Optuna, FSDP, bf16."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.conftest import Completed, Workspace

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/scale.md").read_text()
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
DDP = ("data.batch_size=2", "trainer.devices=2", "trainer.strategy=ddp", "steps=4", "val_every=2")


def call(zoo: Workspace, command: list[str], **env: str) -> Completed:
    ended = subprocess.run(
        command, cwd=zoo.folder, env=zoo.env | env, capture_output=True, text=True, timeout=300, check=False
    )
    return Completed(ended.returncode, ended.stdout, ended.stderr)


def torchrun(zoo: Workspace, *words: str) -> Completed:
    return call(zoo, [*TORCHRUN, "zoo.train", *zoo.with_settings(words)])


@pytest.mark.slow
def test_two_ranks_of_torchrun_in_bf16(zoo: Workspace) -> None:
    """Rank 0 alone prints, and nothing lies beside the run's folder."""
    before = set(os.listdir(zoo.folder))
    bf16 = (*DDP, "trainer.precision=bf16-mixed", "model.dropout=0.1")
    whole = torchrun(zoo, *bf16, "run_dir=whole")
    assert whole.code == 0, whole.err
    lines = [line for line in whole.out.splitlines() if line.strip()]
    assert len(lines) == len(set(lines))
    assert sum("parameters" in line for line in lines) == 1
    assert set(os.listdir(zoo.folder)) - before == {"whole", "cache"}
    assert len(zoo.checkpoint("whole")["zoo"]["ranks"]) == 2
    assert "precision bf16-mixed" in whole.out


@pytest.mark.slow
def test_a_run_in_bf16_resumes(zoo: Workspace, same_checkpoints) -> None:  # type: ignore[no-untyped-def]
    words = ("trainer.precision=bf16-mixed", "model.dropout=0.1")
    assert zoo.run(*words, "run_dir=whole").code == 0
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill_at("on_train_batch_end", 5)]).code == "killed"
    assert zoo.run("resume=cut").code == 0
    assert same_checkpoints(zoo.checkpoint("whole"), zoo.checkpoint("cut")) == []


@pytest.mark.slow
def test_ranks_of_torchrun_are_those_that_the_command_starts(zoo: Workspace, same_checkpoints) -> None:  # type: ignore[no-untyped-def]
    assert torchrun(zoo, *DDP, "run_dir=by_torchrun").code == 0
    assert zoo.run_process(*DDP, "run_dir=by_itself").code == 0
    assert same_checkpoints(zoo.checkpoint("by_torchrun"), zoo.checkpoint("by_itself")) == []


@pytest.mark.slow
def test_fsdp_without_a_gpu_is_one_line(zoo: Workspace) -> None:
    ended = zoo.run_process("trainer.strategy=fsdp")
    assert ended.code == 2
    assert re.fullmatch(r"error: trainer: .*fsdp.*\n", ended.err)
    assert not (zoo.folder / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rmt", "transformer_xl"])
def test_torchs_fsdp_has_the_gradients_of_the_whole_model(zoo: Workspace, model: str) -> None:
    ended = call(zoo, [*TORCHRUN, "tests.train.loop.sharded", model])
    assert ended.code == 0, ended.err[-3000:]
    assert "gradients are the same" in ended.out


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """submitit and Optuna beside the environment."""
    folder = tmp_path_factory.mktemp("scale")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "submitit", "optuna"]
    ended = subprocess.run(
        [*pip, "-c", str(ROOT / "constraints/cpu.txt")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return folder


def script(name: str, changes: dict[str, str]) -> str:
    """The page's program, at another size and, of submitit's, on this machine."""
    (program,) = [text for text in re.findall(r"```python\n(.*?)```", PAGE, re.S) if f"# {name}" in text]
    for old, new in changes.items():
        assert old in program
        program = program.replace(old, new)
    return program


@pytest.mark.slow
def test_submitits_local_executor(zoo: Workspace, packages: Path) -> None:
    words = [word for word in zoo.with_settings(["steps=2"]) if not word.startswith("run_dir")]
    changes = {
        'cluster="slurm"': 'cluster="local"',
        "gpus_per_node=1, ": "",
        "range(8)": "range(2)",
        '"model=rmt", "size=tiny"': ", ".join(map(repr, words)),
    }
    (zoo.folder / "submit.py").write_text(script("submit.py", changes))
    path = os.pathsep.join([zoo.env["PYTHONPATH"], str(packages)])
    ended = call(zoo, [sys.executable, "submit.py"], PYTHONPATH=path)
    assert ended.code == 0, ended.err[-3000:]
    assert [zoo.metrics(f"runs/rmt/s{seed}")["seed"] for seed in range(2)] == [0, 1]
    assert ended.out.count("run: runs/rmt/s") == 2


@pytest.mark.slow
def test_optuna(zoo: Workspace, packages: Path) -> None:
    words = [word for word in zoo.with_settings(["steps=2"]) if not word.startswith("run_dir")]
    changes = {
        '"model=rmt", "size=micro", "steps=500"': ", ".join(map(repr, words)),
        "n_trials=20": "n_trials=2",
    }
    (zoo.folder / "search.py").write_text(script("search.py", changes))
    path = os.pathsep.join([zoo.env["PYTHONPATH"], str(packages)])
    ended = call(zoo, [sys.executable, "search.py"], PYTHONPATH=path)
    assert ended.code == 0, ended.err[-3000:]
    losses = [zoo.metrics(f"runs/search/{trial}")["val/loss"] for trial in range(2)]
    assert losses[0] != losses[1]
    assert str(min(losses)) in ended.out.splitlines()[-1]
