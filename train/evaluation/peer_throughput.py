"""Training steps of published packages beside ours, each measured in a separate process."""

import statistics
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from rich.table import Column, Table
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zoo.optim import AdamW
from zoo.train.evaluation.peer_table import Peer
from zoo.train.evaluation.peers import PeerState, Read, Shape
from zoo.train.evaluation.throughput import (
    BenchCase,
    Measurement,
    measure_training,
    random_window,
    select_device,
    start_measuring,
    time_training,
)
from zoo.train.evaluation.throughput_report import Results, machine, measured
from zoo.train.plotting.terminal import new_table
from zoo.train.runs.precision import ForwardContext, make_precision

COLUMNS = (
    *("tokens", "parameters ours", "peer", "train tok/s ours", "peer"),
    *("ours / peer", "peak MiB ours", "peer"),
)


class Pair(NamedTuple):
    """The cases of our model and of the peer beside it."""

    ours: BenchCase
    peer: BenchCase


def shape_of(cfg: DictConfig) -> Shape:
    size = cfg.size
    return Shape(
        vocab_size=cfg.task.vocab_size,
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        segment_len=size.segment_len,
        window=cfg.data.seq_len,
        rows=cfg.data.batch_size,
    )


def measure_peer(peer: Peer | None, cfg: DictConfig) -> Measurement:
    """Speed and peak memory of a training step of a peer in the shape of `cfg`; of our model for None."""
    if peer is None:
        model, *_, measurement = measure_training(cfg)
        return measurement | {"parameters": count_parameters(model)}
    device = select_device(cfg)
    peak = start_measuring(cfg.seed, device)
    module, read = peer.build(shape_of(cfg))
    module.to(device).train()
    tokens, targets = random_window(cfg, device)
    optim = cfg.optim
    optimizer = AdamW(  # torch's fused kernel on CUDA, as for ours
        module.parameters(), lr=optim.lr, betas=tuple(optim.betas), weight_decay=optim.weight_decay
    )
    context = make_precision(cfg.trainer.precision, device).forward_context
    step = train_step(module, read, tokens, targets, optimizer, optim.clip, context)
    return time_training(step, tokens, peak, count_parameters(module))


def count_parameters(module: nn.Module) -> int:
    """With embeddings and the output projection, since which weights of a peer's are these isn't known."""
    return sum(weight.numel() for weight in module.parameters())


def train_step(
    module: nn.Module,
    read: Read,
    tokens: Tensor,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    clip: float,
    context: ForwardContext,
) -> Callable[[], None]:
    """A training step as ours: forward with what is carried, loss, backward, clipping, update."""
    state: PeerState = None

    def step() -> None:
        nonlocal state
        with context():
            logits, state = read(tokens, state)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, state)

    return step


def table(pairs: Iterable[Pair], results: Results, rounds: int) -> Table:
    """Medians over the rounds; for the ratio of speeds, of the rounds' ratios, also their range."""
    columns = [Column(title, justify="right") for title in COLUMNS]
    output = new_table("peer", "ours", *columns, title=f"{machine(results)}, medians of {rounds} rounds")
    succeeded = measured(results)
    for pair in pairs:
        ours, peer = (_medians(succeeded[case]) for case in pair)
        cells = [pair.peer[0], pair.ours[0], f"{pair.ours[1]:,}"]
        for key, unit in (("parameters", 1), ("train", 1), ("peak", 2**20)):
            if key == "peak":
                cells.append(_ratio(results, pair))
            cells += [f"{side[key] / unit:,.0f}" if side else "failed" for side in (ours, peer)]
        output.add_row(*cells)
    return output


def _medians(entries: list[Measurement]) -> Measurement:
    return {key: statistics.median(entry[key] for entry in entries) for key in entries[0]} if entries else {}


def _ratio(results: Results, pair: Pair) -> str:
    """Of our speed to the peer's; "" unless a round measured both."""
    ratios = speed_ratios(results, pair)
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def speed_ratios(results: Results, pair: Pair) -> list[float]:
    """Our speed over the peer's, of every round that measured both."""
    rounds = zip(results[pair.ours], results[pair.peer], strict=True)
    return [
        ours["train"] / peer["train"]
        for ours, peer in rounds
        if not isinstance(ours, str) and not isinstance(peer, str)
    ]
