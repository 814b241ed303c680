"""The meeting of a run's ranks before its first step: where they wait, and what ends the wait."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import lightning as L
from torch.distributed import DistNetworkError, DistStoreError

from zoo.errors import UserError, first_line
from zoo.train.loop.signal_watch import WATCH

log = logging.getLogger(__name__)


@contextlib.contextmanager
def ranks_meet(trainer: L.Trainer, run_dir: Path) -> Iterator[None]:
    """Around `trainer.fit`: prints where the ranks of other nodes are waited for, and has a signal end that.

    Raises UserError if they haven't come when torch's timeout has passed.
    """
    children = getattr(trainer.strategy.launcher, "procs", ())
    WATCH.meet(f"interrupted; continue with resume={os.path.relpath(run_dir)}", children)
    where = ""
    if trainer.num_nodes > 1:
        where = meeting_point(trainer)
        log.info("waiting for the ranks of %d nodes %s", trainer.num_nodes, where)
    try:
        yield
    except (DistNetworkError, DistStoreError) as error:
        if not WATCH.meets:
            raise
        raise UserError(f"the ranks didn't meet{where and f' {where}'}: {first_line(error)}") from error
    finally:
        WATCH.met()


def meeting_point(trainer: L.Trainer) -> str:
    """Address, port and rank in words; how the other nodes get there, where no cluster tells them."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None:
        return ""
    address, port, node = environment.main_address, environment.main_port, environment.node_rank()
    devices = trainer.num_devices
    rank = node * devices + environment.local_rank()
    words = f"at {address}:{port}; this is rank {rank} of {trainer.num_nodes * devices}"
    if environment.creates_processes_externally or node:
        return words
    return (
        f"{words}, and on the others the command is the same after "
        f"MASTER_ADDR={address} MASTER_PORT={port} NODE_RANK=1 (2, …)"
    )
