"""The landmark transformer: what it costs, its two modes, rows at different places, its laws in more shapes,
and what the loader of published weights refuses."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from tests.laws import law_cases
from zoo.errors import UserError
from zoo.law_tools import perturbed
from zoo.models.landmark import Landmark
from zoo.models.published import landmark
from zoo.module import Batch
from zoo.state import State, leaves, nbytes, replace_rows, take_rows, tree_map
from zoo.train.runs import build
from zoo.train.runs.config import compose

FIXTURES = Path(__file__).parents[1] / "golden" / "fixtures" / "landmark"
SHAPE: dict[str, Any] = {
    "vocab_size": 23,
    "segment_len": 12,
    "depth": 2,
    "width": 16,
    "heads": 2,
    "mlp_width": 20,
}
SMALL = partial(Landmark, **SHAPE, mem_freq=4, capacity=40, topk=2)  # 4 leaves a block open in the laws
GPT2: dict[str, Any] = {"norm": "layer", "activation": "gelu", "bias": True, "interleaved": True}
VARIANTS: dict[str, Callable[[], Landmark]] = {
    "landmark_gpt2": partial(SMALL, **GPT2, dropout=0.1),
    "landmark_by_head": partial(SMALL, selection="head"),
    "landmark_of_one_token": partial(Landmark, **SHAPE, mem_freq=1, capacity=9, topk=3),
    "landmark_of_a_segment": partial(Landmark, **SHAPE, mem_freq=12, capacity=40, topk=1),
    "landmark_small_bank": partial(Landmark, **SHAPE, mem_freq=4, capacity=8, topk=5, selection="token"),
    "landmark_large_bank": partial(Landmark, **SHAPE, mem_freq=2, capacity=500, topk=40),
}
LOOKS_AHEAD = {"causality", "bf16_is_causal", "odd_lengths", "generation_is_teacher_forcing"}  # in eval mode
EXCEPTIONS = {
    "landmark_by_head": dict.fromkeys(LOOKS_AHEAD, "sees the segment's later queries"),
    "landmark_of_one_token": {
        "memory_is_alive": "blocks of one token are never open",
        "reach_is_true": "its bank has forgotten the first tokens of the law's text",
    },
    "landmark_small_bank": {"reach_is_true": "its bank has forgotten the first tokens of the law's text"},
}
BUDGETS = {"micro": (200_000, 0.03), "tiny": (1_500_000, 0.01), "small": (25_000_000, 0.01)}
BUDGETS |= {"base": (125_000_000, 0.01)}


@pytest.mark.parametrize("check", law_cases(VARIANTS, EXCEPTIONS))
def test_law(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("size", ["nano", "micro", "tiny", "small", "base"])
def test_the_budget_is_met_and_the_bank_is_as_long_as_the_size_says(size: str) -> None:
    cfg = compose(["model=landmark", f"size={size}"])
    with torch.device("meta"):
        model = build.model(cfg)
    assert isinstance(model, Landmark)
    if size in BUDGETS:
        budget, share = BUDGETS[size]
        assert abs(model.count_parameters() - budget) < share * budget
    first, *rest = model.init_state(1)
    assert first.closed_keys == ()
    for state in rest:
        assert state.keys.shape[2] * model.mem_freq == cfg.size.capacity
        assert state.keys.shape[3] == model.mem_freq + 1


def text(model: Landmark, segments: float, rows: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.vocab_size, (rows, int(segments * model.segment_len)), generator=generator)


@torch.no_grad()
def test_in_train_mode_each_segment_is_a_text_of_its_own() -> None:
    model = perturbed(SMALL).eval()
    tokens = text(model, 2.5)
    _, state = model(text(model, 3.25, seed=1))
    before = tree_map(Tensor.clone, state)
    in_eval, _ = model(tokens, state)
    model.train()
    logits, after = model(tokens, state)
    assert all(new is old for new, old in zip(after, state, strict=True))
    torch.testing.assert_close(leaves(state), leaves(before), rtol=0, atol=0)
    assert torch.equal(logits, model(tokens)[0])
    model.eval()
    alone = [model(piece)[0] for piece in tokens.split(model.segment_len, dim=1)]
    torch.testing.assert_close(logits, torch.cat(alone, dim=1))
    assert not torch.allclose(logits[:, : model.segment_len], in_eval[:, : model.segment_len])


def test_nothing_is_carried_in_training_and_the_bank_in_validation() -> None:
    model = SMALL()
    tokens = text(model, 2)
    batch = Batch(tokens, tokens.roll(-1, 1), torch.tensor([False, True]))
    outputs, state = model.train().compute_loss(batch, None)
    assert state is None
    outputs["loss"].backward()
    assert model.landmark.grad is not None
    assert model.landmark.grad.any(), "the landmark's embedding learns"
    with torch.no_grad():
        _, state = model.eval().compute_loss(batch, None)
        assert [layer.length.tolist() for layer in state] == [[30, 30]] * 2
        _, state = model.compute_loss(batch, state)
        assert [layer.length.tolist() for layer in state] == [[60, 30]] * 2


@torch.no_grad()
def test_logits_are_capped_in_generation_too() -> None:
    """Token by token, behind a bank, as in a whole segment."""
    torch.manual_seed(0)
    model = SMALL(soft_cap=0.5).eval()
    read, segment = text(model, 3), text(model, 1, seed=1)
    state = model.fold(read)[1]
    expected, _ = model.segment(segment, state)
    cache, logits = model.init_decode_cache(state), []
    for token in segment.split(1, dim=1):
        decoded, cache = model.decode(token, cache)
        logits.append(decoded)
    assert_close(torch.cat(logits, dim=1), expected)
    model.soft_cap = None
    assert (model.segment(segment, state)[0] - expected).abs().max() > 0.1


@torch.no_grad()
def test_landmarks_stand_after_every_mem_freq_tokens_of_a_row() -> None:
    model = SMALL()
    tokens, offset = text(model, 1, rows=3), torch.tensor([0, 1, 3])
    x, positions = model.insert_landmarks(tokens, offset, 15)
    assert x.shape == (3, 15, model.width)
    for row, start in enumerate(offset.tolist()):
        expected, spots, count = [], [], start
        for token in tokens[row]:
            spots.append(len(expected))
            expected.append(model.embed.weight[token])
            count += 1
            if count % model.mem_freq == 0:
                expected.append(model.landmark)
        assert torch.equal(x[row], torch.stack(expected))
        assert positions[row].tolist() == spots


@torch.no_grad()
def test_more_landmarks_in_some_rows_of_a_short_segment() -> None:
    model = perturbed(SMALL).eval()
    begun: list[State] = [model.init_state(1)]
    for length in (13, 26, 1, 2):
        begun.append(model(text(model, 3, rows=1, seed=length)[:, :length])[1])
    together = tree_map(lambda *leaf: torch.cat(leaf), begun[0], *begun[1:])
    for length in (1, 2, 3, 11, 12, 29):
        tokens = text(model, 3, rows=len(begun), seed=length)[:, :length]
        logits, after = model(tokens, together)
        for row, state in enumerate(begun):
            alone, after_alone = model(tokens[row : row + 1], state)
            torch.testing.assert_close(logits[row : row + 1], alone)
            state_of_row = take_rows(after, torch.tensor([row]))
            torch.testing.assert_close(leaves(state_of_row), leaves(after_alone))
    fresh = torch.tensor([True, False, False, True, True])
    logits, _ = model(tokens, replace_rows(together, model.init_state(5), fresh))
    torch.testing.assert_close(logits[fresh], model(tokens[fresh])[0])


@torch.no_grad()
def test_a_fact_is_found_however_far_it_lies_and_forgotten_behind_the_bank() -> None:
    """What is said depends on a block as long as it is in the bank, and no longer: one layer retrieves."""
    model = perturbed(partial(Landmark, **SHAPE, mem_freq=3, capacity=36, topk=12)).eval()
    tokens = text(model, 5, rows=1)
    changed = tokens.clone()
    changed[:, :3] = (changed[:, :3] + 1) % model.vocab_size
    original, altered = (model(some)[0].unflatten(1, (5, 12)) for some in (tokens, changed))
    difference = (original - altered).abs().amax((0, 2, 3))
    assert (difference[:4] > 1e-6).all()  # the bank holds three segments
    assert difference[4] < 1e-12


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mem_freq": 5}, "segment_len 12 is not a multiple of mem_freq 5"),
        ({"mem_freq": 0}, "not a multiple of mem_freq 0"),
        ({"capacity": 2}, "capacity 2 holds no block of mem_freq 3 tokens"),
        ({"topk": 0}, "topk must be at least 1, not 0"),
        ({"retrieve_from_layer": 2}, r"one of the layers 0 \.\. 1, not 2"),
    ],
)
def test_shapes_that_are_refused(change: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Landmark(**SHAPE | {"mem_freq": 3, "capacity": 30, "topk": 2} | change)


CASES = ["lm_train_forward", "lm_cache_topk", "llama_cache_topk"]


def read(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = load_file(FIXTURES / f"{case}.safetensors")
    weights = {name.removeprefix("w/"): x for name, x in tensors.items() if name.startswith("w/")}
    return weights, json.loads((FIXTURES / f"{case}.json").read_text())["config"]


@pytest.mark.parametrize("case", CASES)
def test_published_weights_that_are_missing_strange_or_misshapen(case: str) -> None:
    weights, config = read(case)
    for name, weight in weights.items():
        if name.endswith("freqs"):
            continue
        with pytest.raises(UserError, match="found none"):
            landmark.load({key: x for key, x in weights.items() if key != name}, config)
        with pytest.raises(UserError, match=r"expected .* \[.*\], found \["):
            landmark.load(weights | {name: torch.cat([weight, weight])}, config)
    with pytest.raises(UserError, match=r"none of layers\.9\.x"):
        landmark.load(weights | {"layers.9.x": torch.zeros(1, dtype=torch.float64)}, config)


@pytest.mark.parametrize("case", CASES)
def test_published_models_read_tokens(case: str) -> None:
    """Its weights in bfloat16 too, and with the buffers and tied copies that checkpoints hold."""
    weights, config = read(case)
    if "lm_head.weight" not in weights:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    model = landmark.load(weights, config).eval()
    assert model.segment_len % model.mem_freq == 0
    tokens = text(model, 3.3)
    with torch.no_grad():
        logits, state = model(tokens)
        assert logits.shape == (*tokens.shape, model.vocab_size)
        half = landmark.load({name: x.bfloat16() for name, x in weights.items()}, config).eval()
        assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
        logits, after = half(tokens)
        assert logits.isfinite().all()
    assert nbytes(after) < nbytes(state)


@pytest.mark.parametrize(
    ("case", "change", "complaint"),
    [
        ("lm_cache_topk", {"cache_selection_method": "best"}, "expected cache_selection_method, one of per"),
        ("lm_cache_topk", {"cache_topk": 0}, "expected cache_topk, a whole number from 1 on, found 0"),
        ("lm_cache_topk", {"landmark_id": 41}, "landmark 41 is none of 41 tokens"),
        ("lm_cache_topk", {"n_head": 3}, "width 16 is not a multiple of heads 3"),
        ("lm_cache_topk", {"bias": 1}, "expected bias, true or false, found 1"),
        ("llama_cache_topk", {"offload_cache_to_cpu": None}, "expected offload_cache_to_cpu, true or false"),
        ("llama_cache_topk", {"layers": 0}, "expected layers, a whole number from 1 on, found 0"),
    ],
)
def test_published_configs_that_are_refused(case: str, change: dict[str, Any], complaint: str) -> None:
    weights, config = read(case)
    with pytest.raises(UserError, match=complaint):
        landmark.load(weights, config | change)


def test_hugging_faces_names_of_a_llama_and_the_codes_own_segment() -> None:
    weights, config = read("llama_cache_topk")
    names = {"hidden": "hidden_size", "heads": "num_attention_heads", "layers": "num_hidden_layers"}
    names |= {"intermediate": "intermediate_size", "vocab": "vocab_size"}
    renamed = {names.get(name, name): value for name, value in config.items() if name != "chunks"}
    model = landmark.load(weights, renamed)
    slots = 512 - 512 % 5 - 3 * 5
    assert model.segment_len == slots // 5 * 4
    assert model.stack.init_state(1)[0].keys.shape[2] == 32_768 // 4


def test_a_window_whose_landmarks_are_elsewhere_is_refused() -> None:
    weights, config = read("lm_train_forward")
    model = landmark.load(weights, config)
    with pytest.raises(UserError, match="expected landmark 40 after every 5 tokens"):
        model.read_window(torch.tensor([[1, 40, 2, 3, 40, 1, 2]]))


def test_rows_of_different_lengths_have_no_published_state() -> None:
    weights, config = read("lm_cache_topk")
    model = landmark.load(weights, config)
    state = tree_map(lambda *rows: torch.cat(rows), model.init_state(1), model.init_state(1))
    uneven = tuple(layer._replace(length=torch.tensor([6, 7])) for layer in state)
    with pytest.raises(UserError, match=r"rows of one length, found \[6, 7\]"):
        landmark.published_state(uneven, model)
