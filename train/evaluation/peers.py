"""Builders of published packages' models, to the same shape as ours.

A peer has the width, depth, heads, vocabulary, segment and window of a configuration, without the package's
additions where an option turns them off (RMT's hyper-connections, say).  What a package can't carry in
training is not carried: mambapy and transformers begin every window with an empty state.
block-recurrent-transformer-pytorch has no counterpart among our models and is left out.
"""

import atexit
import importlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM, STATES = 64, 64  # of Mamba-2
MEMORY_TOKENS = 16
CAPACITY, NEIGHBOURS = 8192, 32  # of the kNN memories
PeerState = Any
"""What a peer carries to the next segment or window; None before the first."""
Read = Callable[[Tensor, PeerState], tuple[Tensor, PeerState]]
"""Tokens (rows, time) and what is carried -> logits (rows, time, vocabulary) and what is carried on."""


class Shape(NamedTuple):
    """What a peer and our model have in common; `window` are the tokens per row and step."""

    vocab_size: int
    width: int
    depth: int
    heads: int
    segment_len: int
    window: int
    rows: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def gated_width(self) -> int:
        """Of a gated feed-forward with as many parameters as one of four times the width without a gate."""
        return int(self.width * 4 * 2 / 3)


# -- reading


def by_segments(read_segment: Read, shape: Shape) -> Read:
    """Reads a window segment by segment, with what is carried handed on."""

    def read(tokens: Tensor, state: PeerState) -> tuple[Tensor, PeerState]:
        logits = []
        for segment in tokens.split(shape.segment_len, dim=1):
            output, state = read_segment(segment, state)
            logits.append(output)
        return torch.cat(logits, dim=1), state

    return read


def segments_as_batch(forward: Callable[[Tensor], Tensor], shape: Shape) -> Read:
    """Reads every segment alone, all of them at once, as our transformer without a window does."""

    def read(tokens: Tensor, state: PeerState) -> tuple[Tensor, PeerState]:
        logits = forward(tokens.reshape(-1, shape.segment_len))
        return logits.reshape(*tokens.shape, -1), None

    return read


# -- builders


def rmt(shape: Shape) -> tuple[nn.Module, Read]:
    package: Any = importlib.import_module("recurrent_memory_transformer_pytorch")
    model = package.RecurrentMemoryTransformer(
        shape.width,
        num_tokens=shape.vocab_size,
        depth=shape.depth,
        num_memory_tokens=MEMORY_TOKENS,
        seq_len=shape.segment_len,
        dim_head=shape.head_dim,
        heads=shape.heads,
        use_flash_attn=True,
        abs_pos_emb=False,
        rotary_pos_emb=True,
        use_xl_memories=False,
        num_residual_streams=1,
    )

    def read_segment(tokens: Tensor, state: PeerState) -> tuple[Tensor, PeerState]:
        logits, memory, _ = model(tokens, state)
        return logits, memory

    return model, by_segments(read_segment, shape)


def infini(shape: Shape) -> tuple[nn.Module, Read]:
    package: Any = importlib.import_module("infini_transformer_pytorch")
    model = package.InfiniTransformer(
        num_tokens=shape.vocab_size,
        dim=shape.width,
        depth=shape.depth,
        dim_head=shape.head_dim,
        heads=shape.heads,
        use_mem_delta_rule=True,
    )

    def read_segment(tokens: Tensor, state: PeerState) -> tuple[Tensor, PeerState]:
        logits, _, memories = model(tokens, past_memories=state, return_new_memories=True)
        return logits, memories

    return model, by_segments(read_segment, shape)


def memorizing(shape: Shape) -> tuple[nn.Module, Read]:
    """Its memories are files, in a folder that is removed when the process ends."""
    package: Any = importlib.import_module("memorizing_transformers_pytorch")
    folder = tempfile.TemporaryDirectory(prefix="zoo-bench-")
    atexit.register(folder.cleanup)
    model = package.MemorizingTransformer(
        num_tokens=shape.vocab_size,
        dim=shape.width,
        depth=shape.depth,
        dim_head=shape.head_dim,
        heads=shape.heads,
        memorizing_layers=(memory_layer(shape) + 1,),  # counted from 1
        max_knn_memories=CAPACITY,
        num_retrieved_memories=NEIGHBOURS,
        knn_memories_directory=folder.name,
    )
    memories = model.create_knn_memories(batch_size=shape.rows)

    def read_segment(tokens: Tensor, state: PeerState) -> tuple[Tensor, PeerState]:
        return model(tokens, knn_memories=memories), None

    return model, by_segments(read_segment, shape)


def memory_layer(shape: Shape) -> int:
    return max(0, shape.depth // 2 - 1)


def _x_transformers(shape: Shape, attention: dict[str, Any], **options: Any) -> nn.Module:
    package: Any = importlib.import_module("x_transformers")
    decoder = package.Decoder(
        dim=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        attn_dim_head=shape.head_dim,
        **attention,
    )
    model: nn.Module = package.TransformerWrapper(
        num_tokens=shape.vocab_size,
        max_seq_len=shape.segment_len,
        attn_layers=decoder,
        use_abs_pos_emb=False,
        tie_embedding=True,
        **options,
    )
    return model


def x_transformer(shape: Shape) -> tuple[nn.Module, Read]:
    model = _x_transformers(shape, {"rotary_pos_emb": True, "attn_flash": True})
    return model, segments_as_batch(model, shape)


def x_transformer_xl(shape: Shape) -> tuple[nn.Module, Read]:
    model = _x_transformers(shape, {"rel_pos_bias": True}, max_mem_len=shape.segment_len)

    def read_segment(tokens: Tensor, state: PeerState) -> tuple[Tensor, PeerState]:
        logits, memories = model(tokens, mems=state, return_mems=True)
        return logits, memories

    return model, by_segments(read_segment, shape)


def mamba2(shape: Shape) -> tuple[nn.Module, Read]:
    package: Any = importlib.import_module("transformers")
    config = package.Mamba2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_heads=mamba2_heads(shape),
        head_dim=HEAD_DIM,
        state_size=STATES,
        n_groups=1,
        chunk_size=mamba2_chunk(shape),
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = package.Mamba2ForCausalLM(config)

    def read(tokens: Tensor, state: PeerState) -> tuple[Tensor, PeerState]:
        return model(tokens).logits, None

    return model, read


def mamba2_heads(shape: Shape) -> int:
    """Twice the width in channels, as in the paper."""
    return max(1, 2 * shape.width // HEAD_DIM)


def mamba2_chunk(shape: Shape) -> int:
    return max(1, shape.segment_len // 4)


class MambaDecoder(nn.Module):
    """mambapy's layers between an embedding and its projection; the package's own wrapper needs mamba-ssm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        package: Any = importlib.import_module("mambapy.mamba")
        self.embed = nn.Embedding(shape.vocab_size, shape.width)
        self.layers = package.Mamba(package.MambaConfig(d_model=shape.width, n_layers=shape.depth))
        self.norm = nn.RMSNorm(shape.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.norm(self.layers(self.embed(tokens))), self.embed.weight)


def mamba(shape: Shape) -> tuple[nn.Module, Read]:
    model = MambaDecoder(shape)

    def read(tokens: Tensor, state: PeerState) -> tuple[Tensor, PeerState]:
        return model(tokens), None

    return model, read


class TorchDecoder(nn.Module):
    """torch's encoder layers under a causal mask, with learned positions and a tied output projection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            shape.width,
            shape.heads,
            4 * shape.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, shape.depth, nn.LayerNorm(shape.width), enable_nested_tensor=False
        )
        self.embed = nn.Embedding(shape.vocab_size, shape.width)
        self.positions = nn.Embedding(shape.segment_len, shape.width)
        mask = nn.Transformer.generate_square_subsequent_mask(shape.segment_len)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions.weight
        x = self.layers(x, mask=self.mask, is_causal=True)
        return F.linear(x, self.embed.weight)


def torch_layers(shape: Shape) -> tuple[nn.Module, Read]:
    model = TorchDecoder(shape)
    return model, segments_as_batch(model, shape)
