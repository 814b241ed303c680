"""Published packages beside our models, and the settings that make the two alike."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from zoo.train.evaluation import peers
from zoo.train.evaluation.peers import Read, Shape


class Peer(NamedTuple):
    """A package's model beside one of ours.

    `modules` are what it imports, `pip` are the arguments of `pip install`; `settings` are overrides of our
    model's configuration that make it as large as the peer.
    """

    name: str
    pip: str
    modules: tuple[str, ...]
    model: str
    settings: Callable[[Shape], list[str]]
    build: Callable[[Shape], tuple[nn.Module, Read]]


def is_installed(peer: Peer) -> bool:
    return all(importlib.util.find_spec(module) for module in peer.modules)


def _gated(*settings: str) -> Callable[[Shape], list[str]]:
    return lambda shape: [f"model.mlp_width={shape.gated_width}", *settings]


def _memorizing_settings(shape: Shape) -> list[str]:
    bank = [f"model.capacity={peers.CAPACITY}", f"model.neighbours={peers.NEIGHBOURS}"]
    return [*_gated()(shape), *bank, f"model.memory_layers=[{peers.memory_layer(shape)}]"]


def _mamba2_settings(shape: Shape) -> list[str]:
    heads = f"model.all_heads={shape.depth * peers.mamba2_heads(shape)}"
    chunk = f"model.chunk_size={peers.mamba2_chunk(shape)}"
    return [heads, f"model.head_dim={peers.HEAD_DIM}", f"model.state_size={peers.STATES}", chunk]


PEERS = (
    Peer(
        "recurrent-memory-transformer-pytorch",
        "recurrent-memory-transformer-pytorch",
        ("recurrent_memory_transformer_pytorch", "hyper_connections"),
        "rmt",
        _gated(f"model.memory_tokens={peers.MEMORY_TOKENS}"),
        peers.rmt,
    ),
    Peer(
        "infini-transformer-pytorch",
        "infini-transformer-pytorch",
        ("infini_transformer_pytorch", "rotary_embedding_torch"),
        "infini",
        _gated("model.rule=delta"),
        peers.infini,
    ),
    Peer(
        "memorizing-transformers-pytorch",
        "--no-deps memorizing-transformers-pytorch einops-exts faiss-cpu joblib cloudpickle loky filelock",
        ("memorizing_transformers_pytorch", "einops_exts", "faiss", "joblib", "filelock"),
        "memorizing",
        _memorizing_settings,
        peers.memorizing,
    ),
    Peer(
        "x-transformers", "x-transformers", ("x_transformers",), "transformer", _gated(), peers.x_transformer
    ),
    Peer(
        "x-transformers-xl",
        "x-transformers",
        ("x_transformers",),
        "transformer_xl",
        lambda shape: [f"model.mlp_width={4 * shape.width}", f"model.memory_len={shape.segment_len}"],
        peers.x_transformer_xl,
    ),
    Peer("transformers-mamba2", "transformers", ("transformers",), "mamba2", _mamba2_settings, peers.mamba2),
    Peer(
        "mambapy",
        "mambapy",
        ("mambapy",),
        "mamba",
        lambda shape: [f"model.channels={2 * shape.width}"],
        peers.mamba,
    ),
    Peer("torch", "torch", ("torch",), "transformer", _gated(), peers.torch_layers),
)
