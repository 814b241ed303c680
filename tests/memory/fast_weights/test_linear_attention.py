"""Linear attention as an average with the weights that its papers state, and what its features are."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws import untyped
from zoo.memory.fast_weights.linear_attention import FeatureMap, Features, LinearAttention

WIDTH, HEADS, HEAD_DIM, VALUE_DIM, TIME = 12, 2, 4, 5, 9


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight_of(feature_map: FeatureMap, q: Tensor, k: Tensor, W: Tensor | None) -> Tensor:
    """The weight of one key for one query, from the papers' formulas."""
    score = (q * k).sum(-1) / math.sqrt(q.shape[-1])
    if feature_map == "taylor":
        return 1 + score + score.square() / 2
    if W is None:
        positive_q, positive_k = (torch.where(x > 0, x + 1, x.exp()) for x in (q, k))
        return (positive_q * positive_k).sum(-1)
    q, k = q / q.shape[-1] ** 0.25, k / k.shape[-1] ** 0.25
    exponents = (q + k) @ W.T - ((q.square() + k.square()).sum(-1) / 2)[..., None]
    return exponents.exp().mean(-1)


@pytest.mark.parametrize("feature_map", ["elu", "favor", "taylor"])
@torch.no_grad()
def test_an_output_is_the_weighted_mean_of_all_values_so_far(feature_map: FeatureMap) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"head_dim": HEAD_DIM, "value_dim": VALUE_DIM, "eps": 0.0}
    mixer = LinearAttention(WIDTH, HEADS, feature_map=feature_map, **shape).double()
    x, sizes = draw(2, TIME, WIDTH), [HEADS * size for size in (HEAD_DIM, HEAD_DIM, VALUE_DIM)]
    parts = mixer.in_proj.weight.split(sizes)
    q, k, v = ((x @ part.T).unflatten(-1, (HEADS, -1)) for part in parts)
    outputs = []
    for t in range(TIME):
        weights = torch.stack(
            [weight_of(feature_map, q[:, t], k[:, j], mixer.features.projection) for j in range(t + 1)], dim=1
        )
        mean = (weights[..., None] * v[:, : t + 1]).sum(1) / weights.sum(1)[..., None]
        outputs.append(mean.flatten(1) @ mixer.out_proj.weight.T)
    expected = torch.stack(outputs, dim=1)
    for lengths in ([TIME], [1] * TIME, [2, 6, 1]):
        state, pieces = mixer.init_state(2), []
        for piece in x.split(lengths, dim=1):
            y, state = mixer(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-9, atol=1e-9)
        assert state.matrix.shape == (2, HEADS, mixer.features.size, VALUE_DIM + 1)


@pytest.mark.parametrize("feature_map", ["elu", "favor", "taylor"])
@torch.no_grad()
def test_a_key_that_is_written_again_keeps_its_old_value(feature_map: FeatureMap) -> None:
    """The rule is additive: after 15 writes of one value and one of another the answer is their mean."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"head_dim": HEAD_DIM, "value_dim": VALUE_DIM, "eps": 0.0}
    mixer = LinearAttention(HEAD_DIM + VALUE_DIM, 1, feature_map=feature_map, **shape).double()
    mixer.in_proj.weight.zero_()
    mixer.in_proj.weight[: 2 * HEAD_DIM, :HEAD_DIM] = torch.eye(HEAD_DIM).repeat(2, 1)
    mixer.in_proj.weight[2 * HEAD_DIM :, HEAD_DIM:] = torch.eye(VALUE_DIM)
    mixer.out_proj.weight.zero_()
    mixer.out_proj.weight[:VALUE_DIM] = torch.eye(VALUE_DIM)
    key, (old, new) = draw(HEAD_DIM), draw(2, VALUE_DIM, seed=1)
    text = torch.stack([torch.cat([key, value]) for value in [old] * 15 + [new]])[None]
    y, _ = mixer(text, mixer.init_state(1))
    torch.testing.assert_close(y[0, -1, :VALUE_DIM], (15 * old + new) / 16)


def test_random_features_approximate_softmax_s_weights() -> None:
    """Their error falls as 1 / sqrt(features): of rows that aren't uniform it ends at 0.06."""
    torch.manual_seed(0)
    q, k = 0.3 * draw(200, 8, seed=1), 0.3 * draw(200, 8, seed=2)
    exact = ((q * k).sum(-1) / math.sqrt(8)).exp()
    errors = []
    for num_features in (16, 256, 4096):
        W = Features("favor", 8, num_features).projection
        assert W is not None
        errors.append(((weight_of("favor", q, k, W.double()) - exact) / exact).square().mean().sqrt().item())
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]
    assert errors[2] < 0.03


def test_rows_are_orthogonal_in_blocks_and_of_gaussian_length() -> None:
    torch.manual_seed(0)
    features = Features("favor", 16, 400)
    W = features.projection
    assert W is not None
    for block in W.split(16):
        products = block @ block.T
        lengths = products.diagonal()
        torch.testing.assert_close(products, lengths.diag(), rtol=0, atol=1e-4)
    squares = W.square().sum(1)  # chi-squared: mean 16, variance 32
    assert squares.mean().item() == pytest.approx(16, abs=1.2)
    assert squares.var().item() == pytest.approx(32, rel=0.4)
    before = W.clone()
    features.redraw()
    assert features.projection is W
    assert not torch.equal(W, before)
    assert "projection" in features.state_dict()


def test_the_number_of_features() -> None:
    assert Features("elu", 6).size == 6
    assert Features("taylor", 16).size == 273
    assert [Features("favor", head_dim).size for head_dim in (1, 16, 32, 64)] == [1, 44, 110, 266]
    assert Features("favor", 8, 5).size == 5


@torch.no_grad()
def test_very_long_queries_and_keys_give_finite_outputs() -> None:
    torch.manual_seed(0)
    for feature_map in ("elu", "favor", "taylor"):
        mixer = LinearAttention(WIDTH, HEADS, feature_map=feature_map, head_dim=4, value_dim=VALUE_DIM)
        y, state = mixer(1e3 * draw(1, TIME, WIDTH).float(), mixer.init_state(1))
        assert y.isfinite().all()
        assert state.matrix.isfinite().all()


def test_settings_that_conflict_are_refused() -> None:
    with untyped(), pytest.raises(ValueError, match="feature_map must be elu, favor, taylor, not relu"):
        Features("relu", 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="are for favor, not 8 for elu"):
        Features("elu", 4, 8)
    with pytest.raises(ValueError, match="at least 1 are for favor, not 0 for favor"):
        Features("favor", 4, 0)
