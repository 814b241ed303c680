"""Values that are mixed with those of the first layer: the formula, decoding, and where it is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.models.transformer import Transformer
from zoo.train.runs.build import model as build_model
from zoo.train.runs.config import compose

SHAPE: dict[str, Any] = {
    "vocab_size": 11,
    "segment_len": 7,
    "depth": 3,
    "width": 8,
    "heads": 4,
    "kv_heads": 2,
    "mlp_width": 12,
    "position": "none",
    "bias": True,
}


def make(**changed: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(**(SHAPE | {"value_residual": True} | changed)).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("value_weights.weights", "bias")):
                weight.copy_(torch.randn_like(weight))
    return model


def written_out(model: Transformer, tokens: Tensor, reach: int) -> Tensor:
    """The logits, query by query; a query sees `reach` keys."""
    x, first = model.embed(tokens), None
    blocks: Any = model.stack
    for block in blocks:
        mixer = block.mixer
        features = mixer.qkv(block.mixer_norm(x)).unflatten(
            -1, (8, 2)
        )  # 4 heads of queries, 2 of keys, values
        q, k, v = features.split([4, 2, 2], dim=2)
        if first is None:
            first = v
        else:
            v = mixer.value_weights.weights[0] * first + mixer.value_weights.weights[1] * v
        heads = []
        for i in range(x.shape[1]):
            seen = slice(max(0, i + 1 - reach), i + 1)
            for head in range(4):
                scores = (k[:, seen, head // 2] * q[:, i : i + 1, head]).sum(-1) / 2**0.5
                heads.append((scores.softmax(-1)[..., None] * v[:, seen, head // 2]).sum(1))
        y = torch.stack(heads, dim=1).unflatten(1, (-1, 4)).flatten(2)
        x = x + mixer.out_proj(y)
        x = x + block.mlp(block.mlp_norm(x))
    return model.logits(model.norm(x))


@pytest.mark.parametrize(("options", "reach"), [({}, 99), ({"window": 3}, 3)])
def test_values_are_mixed_with_the_first_layer_s(options: dict[str, Any], reach: int) -> None:
    model = make(**options)
    tokens = torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(1))
    logits, expected = model(tokens)[0], written_out(model, tokens, reach)
    torch.testing.assert_close(logits, expected)
    weights = list(model.parameters())
    probe = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for grad, of_formula in zip(
        torch.autograd.grad((logits * probe).sum(), weights),
        torch.autograd.grad((expected * probe).sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(grad, of_formula)


@torch.no_grad()
def test_without_the_first_layer_s_values_it_is_a_plain_transformer() -> None:
    model, plain = make(), make(value_residual=False)
    assert [name for name in model.state_dict() if name not in plain.state_dict()] == [
        f"stack.{layer}.mixer.value_weights.weights" for layer in (1, 2)
    ]
    plain.load_state_dict(model.state_dict(), strict=False)
    tokens = torch.arange(7)[None]
    assert not torch.allclose(model(tokens)[0], plain(tokens)[0])
    for layer in (1, 2):
        model.get_parameter(f"stack.{layer}.mixer.value_weights.weights").copy_(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(model(tokens)[0], plain(tokens)[0])


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"window": 3, "sinks": 1, "position": "rope", "bias": False}])
def test_token_by_token_it_is_the_same(options: dict[str, Any]) -> None:
    model = make(**options)
    tokens = torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(1))
    cache, logits = model.init_decode_cache(model.init_state(2)), []
    for part in tokens.split(2, dim=1):
        y, cache = model.decode(part, cache)
        logits.append(y)
    torch.testing.assert_close(torch.cat(logits, dim=1), model(tokens)[0])


def test_a_new_token_is_projected_alone() -> None:
    model, projected = make(), []
    for block in model.stack:
        block.mixer.qkv.register_forward_hook(lambda _layer, x, _y: projected.append(x[0].shape[1]))
    cache = model.init_decode_cache(model.init_state(1))
    for _ in range(3):
        _, cache = model.decode(torch.tensor([[4]]), cache)
    assert projected == [1] * 9


def test_it_starts_with_the_mean() -> None:
    model = Transformer(**(SHAPE | {"value_residual": True}))
    assert [w.tolist() for name, w in model.named_parameters() if "value_weights" in name] == [[0.5, 0.5]] * 2


def test_it_needs_a_later_layer() -> None:
    with pytest.raises(ValueError, match="value_residual: expected at least 2 layers, found 1"):
        Transformer(**(SHAPE | {"depth": 1, "value_residual": True}))


@pytest.mark.parametrize("model", ["rmt", "unlimiformer", "landmark", "griffin", "infini", "transformer_xl"])
def test_other_models_refuse_it_by_name(model: str) -> None:
    with pytest.raises(UserError, match="value_residual"):
        build_model(compose([f"model={model}", "size=nano", "+model.value_residual=true"]))


@pytest.mark.parametrize("model", ["transformer", "sliding_window"])
def test_it_is_a_setting_of(model: str) -> None:
    built = build_model(compose([f"model={model}", "size=nano", "model.value_residual=true"]))
    assert sum("value_weights" in name for name, _ in built.named_parameters()) == 1
