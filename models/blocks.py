"""The parts of architectures: norms, feed-forwards, blocks, stacks and their initial weights.

A mixer (zoo/memory/mixer.py) mixes positions and may carry a state; a feed-forward is a module x -> y.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.memory.attention.core import Attention
from zoo.memory.mixer import Mixer, decode_step, new_decode_cache
from zoo.state import State

Norm = Literal["rms", "layer", "layer_without_bias"]
Activation = Literal["swiglu", "geglu_tanh", "gelu", "gelu_tanh", "relu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
GATED = ("swiglu", "geglu_tanh")


def make_norm(kind: Norm, width: int) -> nn.Module:
    """LayerNorm (biased variance, eps 1e-5) or RMSNorm (eps 1e-6), with learned scale."""
    if kind == "rms":
        return nn.RMSNorm(width, eps=1e-6)
    return nn.LayerNorm(width, eps=1e-5, bias=kind == "layer")


def sinusoid(distances: Int[Tensor, " time"], width: int, reference: Tensor) -> Float[Tensor, "time width"]:
    """[sin(t w_0) .. sin(t w_{D/2-1}), cos(t w_0) ..] with w_n = 10000^(-2n/D): sines, then cosines, on the
    device and in the type of `reference`."""
    dtype = torch.promote_types(reference.dtype, torch.float32)  # bf16 has no whole numbers beyond 256
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=reference.device, dtype=dtype) / width)
    angles = distances.to(dtype)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(reference.dtype)


class OutputProjection(nn.Linear):
    """From the width to logits.

    On a GPU the product has a multiple of 64 columns: tensor cores want their number even and more, and 257
    isn't.  Rows of zeros fill up the matrix for the product alone, and their logits are cut off, so that
    weights, checkpoints and logits know nothing of them.
    """

    alignment: ClassVar[int] = 64
    aligned_devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows vocab"]:
        padding = -self.out_features % self.alignment
        if not padding or x.device.type not in self.aligned_devices:
            return super().forward(x)
        bias = None if self.bias is None else F.pad(self.bias, (0, padding))
        return F.linear(x, F.pad(self.weight, (0, 0, 0, padding)), bias)[..., : self.out_features]


def output_projection(embed: nn.Embedding, tied: bool, bias: bool = False) -> OutputProjection:
    """An output projection for the vocabulary of `embed`; `tied` shares its matrix."""
    head = OutputProjection(embed.embedding_dim, embed.num_embeddings, bias=bias)
    if tied:
        head.weight = embed.weight
    return head


class FeedForward(nn.Module):
    """W_2 act(W_1 x); gated: W_2 (act(W_g x) * W_1 x), for SwiGLU and GeGLU (Shazeer 2020,
    arXiv:2002.05202)."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        activation: Activation = "swiglu",
        bias: bool = False,
        dropout: float = 0.0,
        inner_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gated, self.activation = activation in GATED, ACTIVATIONS[activation]
        self.in_proj = nn.Linear(width, 2 * mlp_width if self.gated else mlp_width, bias=bias)
        self.out_proj = nn.Linear(mlp_width, width, bias=bias)
        self.inner_dropout, self.dropout = nn.Dropout(inner_dropout), nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        if self.gated:
            gate, up = self.in_proj(x).chunk(2, dim=-1)
            x = self.activation(gate) * up
        else:
            x = self.activation(self.in_proj(x))
        return self.dropout(self.out_proj(self.inner_dropout(x)))


class Block(Mixer):
    """Pre-norm residual block: x += mixer(norm(x)), then x += mlp(norm(x)) if it has an mlp."""

    def __init__(
        self, mixer: Mixer, mlp: nn.Module | None, width: int, norm: Norm = "rms", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.mixer, self.mixer_norm = mixer, make_norm(norm, width)
        self.mlp = mlp
        self.mlp_norm = make_norm(norm, width) if mlp else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def init_state(self, rows: int) -> State:
        return self.mixer.init_state(rows)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: State, *first_values: Tensor
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        """`first_values`: the first layer's values, passed on to a mixer with value residual
        (value_residual.py); empty otherwise."""
        y, state = self.mixer(self.mixer_norm(x), state, *first_values)
        return self._add(x, y), state

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(y)
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))

    def init_decode_cache(self, state: State) -> Any:
        return new_decode_cache(self.mixer, state)

    def decode(
        self, x: Float[Tensor, "rows time width"], cache: Any, *first_values: Tensor
    ) -> tuple[Float[Tensor, "rows time width"], Any]:
        y, cache = decode_step(self.mixer, self.mixer_norm(x), cache, *first_values)
        return self._add(x, y), cache


def layers_with_memory(depth: int, requested: object) -> list[int]:
    """The layers with a kNN memory: the requested ones, by default one at three quarters of the depth, as the
    9th of 12 in the Memorizing Transformer.  Raises ValueError unless `requested` is a non-empty list of
    layers 0 .. depth - 1."""
    if requested is None:
        return [(3 * depth - 1) // 4]
    layers = list(requested) if isinstance(requested, Sequence) else []
    if not layers or not all(type(layer) is int and 0 <= layer < depth for layer in layers):
        raise ValueError(f"memory_layers must be some of 0 .. {depth - 1}, not {requested}")
    return layers


class Stack(nn.ModuleList):
    """Blocks applied one after another; the state is the tuple of their states.

    With `shares_values` the values of the first block's attention go to all later ones.
    """

    shares_values: bool = False

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Mixer]: ...  # type: ignore[override]  # a ModuleList knows only modules

    def init_state(self, rows: int) -> State:
        return tuple(block.init_state(rows) for block in self)

    def forward(
        self, x: Float[Tensor, "rows time width"], states: State
    ) -> tuple[Float[Tensor, "rows time width"], State]:
        after = []
        shared = self.first_values(x)
        for index, (block, state) in enumerate(zip(self, states, strict=True)):
            x, state = block(x, state, *(shared if index else ()))
            after.append(state)
        return x, tuple(after)

    def first_values(
        self, x: Float[Tensor, "rows time width"]
    ) -> tuple[Float[Tensor, "rows kv_heads time head_dim"], ...]:
        """Those that are shared, computed apart: the first block is like all others.  () without."""
        if not self.shares_values:
            return ()
        block = self[0]
        assert isinstance(block, Block)
        assert isinstance(block.mixer, Attention)
        return (block.mixer.values(block.mixer_norm(x)),)

    def init_decode_cache(self, states: State) -> tuple[Any, ...]:
        """The blocks' caches for `decode` (see Mixer)."""
        return tuple(new_decode_cache(block, state) for block, state in zip(self, states, strict=True))

    def decode(
        self, x: Float[Tensor, "rows time width"], caches: tuple[Any, ...]
    ) -> tuple[Float[Tensor, "rows time width"], tuple[Any, ...]]:
        after = []
        shared = self.first_values(x)
        for index, (block, cache) in enumerate(zip(self, caches, strict=True)):
            x, cache = decode_step(block, x, cache, *(shared if index else ()))
            after.append(cache)
        return x, tuple(after)


def check_output_options(soft_cap: float | None, z_loss: float) -> None:
    """Raises ValueError for a cap of logits or a weight of the softmax's denominator that is out of range."""
    if soft_cap is not None and soft_cap <= 0:
        raise ValueError(f"soft_cap must be above 0, not {soft_cap}")
    if z_loss < 0:
        raise ValueError(f"z_loss must be at least 0, not {z_loss}")


def soft_capped(logits: Float[Tensor, "*rows vocab"], cap: float | None) -> Float[Tensor, "*rows vocab"]:
    """c tanh(logits / c); the logits themselves without a cap."""
    return logits if cap is None else cap * (logits / cap).tanh()


@torch.no_grad()
def init_weights(model: nn.Module, depth: int) -> None:
    """Initial weights, the same distribution for all architectures.

    Embeddings have variance 1/D; every matrix 1/width_in, 1/(2 depth width_in) at the end of a residual
    branch (`out_proj`), so that the residual stream doesn't grow with depth; biases are 0, norms 1.
    """
    for name, part in model.named_modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=part.embedding_dim**-0.5)
        elif isinstance(part, nn.Linear):
            branches = 2 * depth if name.endswith(".out_proj") else 1
            nn.init.normal_(part.weight, std=(part.in_features * branches) ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
