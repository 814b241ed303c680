"""Diagonal batching: all layers of a stack at once, each on another segment.

Sivtsov et al. 2025, arXiv:2506.05229.  Where every layer carries a state and hands nothing but its output to
other layers,

    x[l, s], state[l, s] = block_l(x[l-1, s], state[l, s-1])

so that all (l, s) with l + s = t need only those with l + s = t - 1: L layers read S segments in S + L - 1
calls of a block instead of S L.  A call has the rows of all its layers in one batch, the layers one after
another; their weights are stacked once per window, and a linear map is a product of L pairs of matrices.
Differs from the paper: nothing; what it groups in kernels are batched products here.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.attention.positions import Positions
from zoo.memory.mixer import Mixer
from zoo.models.blocks import Stack
from zoo.state import State, leaves, tree_map

MAX_ELEMENTS = 2**16
"""Rows x time x width of a segment up to which diagonals are faster on a CPU: beyond, the products of one
layer keep a core busy (results/README.md)."""
MAX_WEIGHTS = 2**19
"""Weights of a layer up to which they are: beyond, stacking them costs more than it saves."""
MAPS = (nn.Linear, nn.RMSNorm, nn.LayerNorm)


class LayerMaps(nn.Module):
    """One linear map or norm of several layers; each maps the rows of its layer."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.kind = layers[0]
        self.weights = [dict(layer.named_parameters()) for layer in layers]

    def activate(self, layers: slice) -> None:
        """Stack the weights of the layers whose rows `forward` gets from now on.

        Views of one stack would have gradients as large as the stack.
        """
        active = self.weights[layers]
        self.stacked = {name: torch.stack([weight[name] for weight in active]) for name in active[0]}

    def forward(
        self, x: Float[Tensor, "layers_and_rows *time features"]
    ) -> Float[Tensor, "layers_and_rows *time mapped"]:
        weight, bias = self.stacked["weight"], self.stacked.get("bias")
        y = x.reshape(len(weight), -1, x.shape[-1])
        if isinstance(self.kind, nn.Linear):
            y = y @ weight.mT if bias is None else torch.baddbmm(bias[:, None], y, weight.mT)
        else:
            y = normalise(self.kind, y) * weight[:, None]
            y = y if bias is None else y + bias[:, None]
        return y.view(*x.shape[:-1], -1)


def normalise(norm: nn.Module, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """A norm without its gain and bias."""
    if isinstance(norm, nn.RMSNorm):
        return F.rms_norm(x, norm.normalized_shape, eps=norm.eps)
    assert isinstance(norm, nn.LayerNorm)
    return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)


def are_stackable(blocks: Sequence[nn.Module]) -> bool:
    """True if the blocks differ in the weights of linear maps and norms alone, so that one of them with
    stacked weights reads the rows of all.

    Not with hooks, which expect the rows of one layer, nor with positions that are drawn for each row or have
    weights, whose maps needn't have rows; nor with dropout in training, which would draw other masks than in
    the fold.
    """
    parts = [list(block.modules()) for block in blocks]
    if any(list(map(type, other)) != list(map(type, parts[0])) for other in parts):
        return False
    for same in zip(*parts, strict=True):
        if any(part._forward_hooks or part._forward_pre_hooks for part in same):
            return False
        if any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in same):
            return False
        if isinstance(same[0], Positions) and (same[0].draw is not None or list(same[0].parameters())):
            return False
        weights = [[(w.shape, w.dtype) for w in part.parameters(recurse=False)] for part in same]
        if any(other != weights[0] for other in weights) or (weights[0] and type(same[0]) not in MAPS):
            return False
    return True


def read_diagonally(
    blocks: Sequence[Mixer], segments: Sequence[Float[Tensor, "rows time width"]], states: State
) -> tuple[list[Float[Tensor, "rows time width"]], State]:
    """The outputs of stackable blocks at every segment, and their states after the last one."""
    maps = {
        id(same[0]): LayerMaps(same)
        for same in zip(*(block.modules() for block in blocks), strict=True)
        if type(same[0]) in MAPS
    }
    block = copy.deepcopy(blocks[0], dict(maps))  # a copy has these in place of its maps
    rows, depth = len(segments[0]), len(blocks)
    x, state = segments[0][:0], tree_map(lambda leaf: leaf[:0], states[0])
    outputs, after = [], []
    for t in range(len(segments) + depth - 1):
        if t < depth or t >= len(segments):  # otherwise the same layers as before
            for part in maps.values():
                part.activate(slice(max(0, t - len(segments) + 1), t + 1))
        if t < len(segments):
            x = torch.cat([segments[t], x])
        if t < depth:  # layer t begins
            state = tree_map(lambda *leaves: torch.cat(leaves), state, states[t])
        x, state = block(x, state)
        if t >= depth - 1:
            outputs.append(x[-rows:])
            x = x[:-rows]
        if t >= len(segments) - 1:  # the first of these layers has read all segments
            after.append(tree_map(lambda leaf: leaf[:rows], state))
            state = tree_map(lambda leaf: leaf[rows:], state)
    return outputs, tuple(after)


class DiagonalStack(Stack):
    """A stack that also reads several segments of each row, along diagonals."""

    def forward(
        self, x: Float[Tensor, "rows_and_segments time width"], states: State
    ) -> tuple[Float[Tensor, "rows_and_segments time width"], State]:
        """x has a row's segments one after another, equally many for each row of the states."""
        rows = len(leaves(states)[0])
        if len(x) == rows:
            return super().forward(x, states)
        segments = x.unflatten(0, (rows, -1)).unbind(1)
        outputs, states = read_diagonally(list(self), segments, states)
        return torch.stack(outputs, dim=1).flatten(0, 1), states

    def reads_diagonally(self, segments: int, elements: int) -> bool:
        """True if reading that many segments of that many elements at once is exact, and faster on a CPU (see
        MAX_ELEMENTS): of 2 segments, a diagonal has 2 layers at most.

        Not in a graph of torch.compile, in which no module can be made.
        """
        weights = sum(weight.numel() for weight in self[0].parameters())
        is_small = 0 < elements <= MAX_ELEMENTS and weights <= MAX_WEIGHTS
        is_faster = is_small and segments > 2 and len(self) > 1
        return is_faster and not torch.compiler.is_compiling() and are_stackable(list(self))
