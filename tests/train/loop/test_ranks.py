"""Signals while the process is inside C++, and ranks that wait for one another."""

import hashlib
import os
import re
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightning as L
import pytest
from torch.distributed import DistNetworkError

from tests.train.conftest import Workspace
from zoo.errors import UserError
from zoo.train.loop.ranks import ranks_meet
from zoo.train.loop.signal_watch import WATCH, SignalWatch


def busy_in_c(seconds: float) -> None:
    """A single call of C code, during which no handler of Python's runs."""
    start = time.perf_counter()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
    speed = 100_000 / (time.perf_counter() - start)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(seconds * speed))


@pytest.mark.parametrize(
    ("meets", "signals", "blocked", "codes"),
    [
        (True, 1, True, [138]),  # ranks that wait have nothing to save
        (False, 1, True, []),  # a long step is finished and saved
        (False, 2, True, [138]),
        (True, 1, False, []),  # the handler runs
        (False, 2, False, []),
    ],
)
def test_a_signal_ends_what_no_handler_can(
    meets: bool, signals: int, blocked: bool, codes: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    handled: list[int] = []
    watch = SignalWatch(grace_s=0.3, end=ended.append)

    def handle(number: int, frame: Any) -> None:
        handled.append(number)
        watch.handled()

    previous = signal.signal(signal.SIGUSR1, handle)

    def send() -> None:
        for _ in range(signals):
            time.sleep(0.25)
            os.kill(os.getpid(), signal.SIGUSR1)

    sender = threading.Thread(target=send)
    try:
        with watch.running():
            if meets:
                watch.meet("stopped while it waited")
            sender.start()
            if blocked:
                busy_in_c(2.5)
                during = list(ended)
            else:
                time.sleep(1.5)
                during = list(ended)
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert during == codes
    assert len(handled) >= 1
    assert signal.set_wakeup_fd(-1) == -1  # as before
    assert capfd.readouterr().err.count("\n") == len(codes)


def test_ranks_that_do_not_come_are_an_error_in_one_line() -> None:
    """An error of the network after they have met is another one."""
    environment = SimpleNamespace(
        main_address="10.0.0.1",
        main_port=29500,
        node_rank=lambda: 1,
        local_rank=lambda: 1,
        creates_processes_externally=False,
    )
    strategy = SimpleNamespace(launcher=None, cluster_environment=environment)
    trainer = mock.Mock(spec=L.Trainer, num_nodes=3, num_devices=4, strategy=strategy)
    message = r"the ranks didn't meet at 10.0.0.1:29500; this is rank 5 of 12: timed out$"
    with pytest.raises(UserError, match=message), ranks_meet(trainer, Path("run")):
        raise DistNetworkError("timed out\nin C++")
    with pytest.raises(DistNetworkError, match="lost"), ranks_meet(trainer, Path("run")):
        lose_a_rank()
    assert not WATCH.meets


def lose_a_rank() -> None:
    WATCH.met()
    raise DistNetworkError("lost")


NODES = ("trainer.num_nodes=2", "run_dir=run")


def first_node(zoo: Workspace, *words: str) -> tuple[Any, dict[str, str]]:
    """The process of node 0 when it waits, and the variables that its line names."""
    process = zoo.start_process(*NODES, *words)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("waiting for the ranks of 2 nodes at"):
            assert "this is rank 0 of 2" in line
            return process, dict(re.findall(r"(MASTER_\w+|NODE_RANK)=(\S+)", line))
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_node_that_waits(zoo: Workspace, signum: signal.Signals) -> None:
    process, _ = first_node(zoo)
    time.sleep(2)
    process.send_signal(signum)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signum
    assert err == "interrupted; continue with resume=run\n"


@pytest.mark.slow
def test_two_nodes_meet_and_a_second_signal_ends_one_that_lost_the_other(zoo: Workspace) -> None:
    first, env = first_node(zoo, "steps=2000", "val_every=2000", "checkpoint_every=5")
    assert env.keys() == {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"}
    zoo.env.update(env)
    second = zoo.start_process(*NODES, "steps=2000", "val_every=2000", "checkpoint_every=5")
    try:
        assert any(line.startswith("step ") for line in first.stdout)
        second.send_signal(signal.SIGSTOP)
        time.sleep(3)
        for _ in range(2):
            first.send_signal(signal.SIGTERM)
            time.sleep(1)
        _, err = first.communicate(timeout=20)
        assert first.returncode == 143
        assert err == "interrupted; continue with resume=run\n"
        assert zoo.checkpoint("run")["global_step"] >= 5
    finally:
        second.kill()
        second.communicate()
