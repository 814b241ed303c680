"""HGRN2's layer by its equations, token by token, and the lower bounds of a whole model."""

import pytest
import torch
from torch import Tensor

from zoo.memory.fast_weights.hgrn2_mixer import HGRN2Mixer, LowerBounds
from zoo.models.hgrn2 import HGRN2

WIDTH, HEADS, HEAD_DIM, TIME = 12, 3, 5, 9


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_a_layer_is_its_equations(layer: int) -> None:
    bounds = LowerBounds(4, HEADS * HEAD_DIM)
    mixer = HGRN2Mixer(WIDTH, HEADS, head_dim=HEAD_DIM, layer=layer, bounds=bounds).double()
    for seed, weight in enumerate(mixer.parameters()):
        weight.copy_(draw(*weight.shape, seed=seed))
    bounds.double()
    shares = bounds.logits.exp() / bounds.logits.exp().sum(0)
    beta = sum((shares[j] for j in range(1, layer + 1)), torch.zeros(HEADS * HEAD_DIM, dtype=torch.float64))
    x, inner = draw(2, TIME, WIDTH, seed=9), HEADS * HEAD_DIM
    W_q, W_f, W_i = mixer.in_proj.weight.split([inner, inner, WIDTH])
    S, outputs = torch.zeros(2, HEADS, HEAD_DIM, WIDTH // HEADS, dtype=torch.float64), []
    for x_t in x.unbind(1):
        f = (beta + (1 - beta) * (x_t @ W_f.T).sigmoid()).unflatten(-1, (HEADS, -1))
        q, v = x_t @ W_q.T, (x_t @ W_i.T).unflatten(-1, (HEADS, -1))
        q = (q * q.sigmoid()).unflatten(-1, (HEADS, -1)) / HEAD_DIM**0.5
        S = f[..., None] * S + (1 - f)[..., None] * v[..., None, :]
        o = (q[..., None] * S).sum(-2).flatten(1)
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
        outputs.append(o @ mixer.out_proj.weight.T)
    expected = torch.stack(outputs, dim=1)
    for lengths in ([TIME], [1] * TIME, [2, 6, 1]):
        state, pieces = mixer.init_state(2), []
        for piece in x.split(lengths, dim=1):
            y, state = mixer(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state.matrix, S, rtol=1e-9, atol=1e-9)


def test_a_new_model_s_bounds_rise_in_equal_steps_and_are_one_parameter() -> None:
    model = HGRN2(11, 8, depth=4, width=12, heads=3, mlp_width=7, head_dim=5)
    first, *others = (block.mixer for block in model.stack)
    assert first.bounds is None
    (bounds,) = {mixer.bounds for mixer in others}
    for layer in range(4):
        torch.testing.assert_close(bounds(layer), torch.full((15,), layer / 4))
    assert sum(weight.shape == (4, 15) for weight in model.parameters()) == 1


def test_a_gate_that_is_far_below_its_bound_is_the_bound() -> None:
    """In float32, where sigmoid and its logarithm underflow."""
    mixer = HGRN2Mixer(WIDTH, HEADS, head_dim=HEAD_DIM)
    f, bound = torch.tensor([-1000.0, -200.0, 1000.0], requires_grad=True), torch.tensor([0.25, 0.5, 0.75])
    g = mixer.log_forget(f.expand(1, 1, 3), bound)
    torch.testing.assert_close(g[0, 0].exp(), torch.tensor([0.25, 0.5, 1.0]))
    g.sum().backward()
    assert f.grad is not None
    assert f.grad.isfinite().all()
    forgets = mixer.log_forget(torch.full((1, 1, 3), -1e5), None)
    assert torch.equal(forgets, torch.full((1, 1, 3), -1e5))


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 12 is not a multiple of heads 5"):
        HGRN2Mixer(WIDTH, 5, head_dim=4)
