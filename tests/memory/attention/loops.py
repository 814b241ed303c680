"""The definitions that tests of attention compare with, one vector or one pair at a time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zoo.memory.attention.biases import Alibi
from zoo.memory.attention.core import Attention
from zoo.memory.attention.positions import Rope


def complex_rotation(x: Tensor, position: float, base: float) -> Tensor:
    """The complex numbers x_i + i x_(i+K/2), times exp(i position base^(-2i/K))."""
    half = len(x) // 2
    z = torch.complex(x[:half], x[half:])
    angles = torch.tensor([position * base ** (-2 * i / len(x)) for i in range(half)], dtype=x.dtype)
    z = z * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag])


def alibi_slope(head: int, heads: int) -> float:
    """Published: of 2P slopes every second, of P all, for P up to the heads; the latter first."""
    power = max(2**i for i in range(heads) if 2**i <= heads)
    if head < power:
        return 2.0 ** (-8 * (head + 1) / power)
    return 2.0 ** (-8 * (2 * (head - power) + 1) / (2 * power))


def attention_loop(layer: Attention, x: Tensor, attends: Callable[[int, int], bool]) -> Tensor:
    """Attention from the layer's weights, one pair at a time; `attends(query, key)` is the mask."""
    heads, kv_heads, width = layer.heads, layer.kv_heads, layer.head_dim
    bias = torch.zeros(len(layer.qkv.weight)) if layer.qkv.bias is None else layer.qkv.bias
    rows, time, rows_out = x.shape[0], x.shape[1], []
    for row in range(rows):
        outputs = []
        for query in range(time):
            parts = []
            for head in range(heads):
                kv_head = head // (heads // kv_heads)

                def project(t: int, index: int, row: int = row) -> Tensor:
                    features = slice(index * width, (index + 1) * width)
                    return layer.qkv.weight[features] @ x[row, t] + bias[features]

                q, scores, values = project(query, head), [], []
                for key in range(time):
                    if not attends(query, key):
                        continue
                    k, distance = project(key, heads + kv_head), query - key
                    values.append(project(key, heads + kv_heads + kv_head))
                    if isinstance(layer.positions, Rope):
                        k = complex_rotation(k, -distance, layer.positions.base)
                    score = q @ k / math.sqrt(width)
                    if isinstance(layer.positions, Alibi):
                        score = score - alibi_slope(head, heads) * distance
                    scores.append(score)
                weights = torch.stack(scores).softmax(0)
                parts.append((weights[:, None] * torch.stack(values)).sum(0))
            outputs.append(layer.out_proj(torch.cat(parts)))
        rows_out.append(torch.stack(outputs))
    return torch.stack(rows_out)
