"""Retention by the paper's sum over pairs of tokens, with complex rotations, and the decays as numbers."""

import math

import pytest
import torch
from torch import Tensor

from zoo.memory.fast_weights.retention_mixer import LightningMixer, RetentionMixer
from zoo.memory.mixer import Mixer

WIDTH, HEADS, TIME = 12, 3, 11


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(mixer: Mixer) -> Mixer:
    mixer.double()
    with torch.no_grad():
        for seed, weight in enumerate(mixer.parameters()):
            weight.copy_(draw(*weight.shape, seed=seed))
    return mixer


def in_pieces(mixer: Mixer, x: Tensor, lengths: list[int]) -> Tensor:
    state, outputs = mixer.init_state(len(x)), []
    for piece in x.split(lengths, dim=1):
        y, state = mixer(piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


CUTS = ([TIME], [1] * TIME, [4, 1, 6])


@pytest.mark.parametrize("head_dim", [2, 6])
@torch.no_grad()
def test_retention_is_the_sum_over_pairs(head_dim: int) -> None:
    mixer = built(RetentionMixer(WIDTH, HEADS, head_dim=head_dim, value_dim=5))
    x, weights = draw(2, TIME, WIDTH, seed=9), dict(mixer.named_parameters())
    sizes = [HEADS * head_dim, HEADS * head_dim, HEADS * 5, HEADS * 5]
    q, k, v, gate = (
        (x @ part.T).unflatten(-1, (HEADS, -1)) for part in weights["in_proj.weight"].split(sizes)
    )
    q, k = (torch.complex(part[..., ::2], part[..., 1::2]) for part in (q, k))
    spread = max(head_dim // 2 - 1, 1)
    rates = torch.tensor([10000.0 ** (-i / spread) for i in range(head_dim // 2)], dtype=torch.float64)
    o = torch.zeros_like(v)
    for t in range(TIME):
        for j in range(t + 1):
            turned = torch.polar(torch.ones_like(rates), (t - j) * rates)
            scores = (q[:, t] * turned * k[:, j].conj()).real.sum(-1) / math.sqrt(head_dim)
            decays = draw(HEADS).new_tensor([(1 - 2.0 ** (-5 - h)) ** (t - j) for h in range(HEADS)])
            o[:, t] += (scores * decays)[..., None] * v[:, j]
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    y = (gate * gate.sigmoid() * o).flatten(2) @ weights["out_proj.weight"].T
    for lengths in CUTS:
        torch.testing.assert_close(in_pieces(mixer, x, lengths), y, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_retention_depends_on_distances_alone() -> None:
    """Far into a text, where positions from its start would be large: no position is carried."""
    mixer = built(RetentionMixer(WIDTH, HEADS, head_dim=6, value_dim=5))
    x = draw(1, TIME, WIDTH)
    state = mixer.init_state(1)
    for _ in range(40):
        _, state = mixer(torch.zeros(1, 97, WIDTH, dtype=torch.float64), state)
    torch.testing.assert_close(mixer(x, state)[0], in_pieces(mixer, x, [TIME]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [(4, [2**-2, 2**-4, 2**-6, 2**-8]), (3, [2**-4, 2**-8, 2**-2]), (1, [2**-8])],
)
def test_lightning_s_slopes(heads: int, slopes: list[float]) -> None:
    for layer, scale in ((0, 1 + 1e-5), (1, 0.5 + 1e-5), (2, 1e-5)):
        mixer = LightningMixer(WIDTH, heads, head_dim=4, layer=layer, depth=3)
        g = mixer.log_decays(torch.zeros((), dtype=torch.float64))
        assert g.tolist() == pytest.approx([-slope * scale for slope in slopes], rel=1e-12)
    alone = LightningMixer(WIDTH, heads, head_dim=4, layer=0, depth=1)
    g = alone.log_decays(torch.zeros((), dtype=torch.float64))
    assert g.tolist() == pytest.approx([-slope * (1 + 1e-5) for slope in slopes], rel=1e-12)


@torch.no_grad()
def test_lightning_is_the_sum_over_pairs() -> None:
    mixer = built(LightningMixer(WIDTH, 2, head_dim=4, layer=1, depth=4))
    x, weights = draw(2, TIME, WIDTH, seed=9), dict(mixer.named_parameters())
    z = x @ weights["in_proj.weight"].T
    qkv, gate = z[..., :24] * z[..., :24].sigmoid(), z[..., 24:]
    q, k, v = (part.unflatten(-1, (2, 4)) for part in qkv.split(8, dim=-1))
    slopes = torch.tensor([2.0**-4, 2.0**-8], dtype=torch.float64) * (1 - 1 / 3 + 1e-5)
    o = torch.zeros_like(v)
    for t in range(TIME):
        for j in range(t + 1):
            scores = (q[:, t] * k[:, j]).sum(-1) * torch.exp(-slopes * (t - j))
            o[:, t] += scores[..., None] * v[:, j]
    o = o.flatten(2)
    o = (o - o.mean(-1, keepdim=True)) / (o.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    o = o * weights["norm.weight"] + weights["norm.bias"]
    y = (o * (gate @ weights["gate_proj.weight"].T).sigmoid()) @ weights["out_proj.weight"].T
    for lengths in CUTS:
        torch.testing.assert_close(in_pieces(mixer, x, lengths), y, rtol=1e-9, atol=1e-9)


def test_an_odd_head_is_refused() -> None:
    with pytest.raises(ValueError, match="an even head_dim, not 5"):
        RetentionMixer(WIDTH, HEADS, head_dim=5, value_dim=4)
