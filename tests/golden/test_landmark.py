"""Landmark attention against the slow reference, in more configurations than the published cases."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden.cases import Case, read_case
from tests.golden.kinds import landmark
from tests.golden.reference.landmark import Config, Tensors, computed, stream_of

FIXTURES = Path(__file__).parent / "fixtures" / "landmark"


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_the_reference_agrees_with_the_published_cases(path: Path) -> None:
    case = read_case(path)
    inputs = {name: x for name, x in case.tensors.items() if name.startswith(("in/", "w/"))}
    case.compare("", computed(case.kind, case.config, inputs))
    case.open -= inputs.keys() | {name for name in case.tensors if name.startswith("mid/")}
    case.close(config=False)


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Matrices of variance 1/width_in, scales around 1, biases around 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        scale = len(shape) == 1 and name.endswith("weight")
        weights[f"w/{name}"] = 1 + 0.2 * x if scale else x * (shape[-1] ** -0.5 if len(shape) > 1 else 0.2)
    return weights


def gpt_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    width = c["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (c["vocab_size"], width)}

    def add(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        if c["bias"]:
            shapes[f"{name}.bias"] = shape[:1]

    for layer in range(c["n_layer"]):
        name = f"transformer.h.{layer}."
        add(f"{name}ln_1", width)
        add(f"{name}attn.c_attn", 3 * width, width)
        add(f"{name}attn.c_proj", width, width)
        add(f"{name}ln_2", width)
        add(f"{name}mlp.c_fc", 4 * width, width)
        add(f"{name}mlp.c_proj", width, 4 * width)
    add("transformer.ln_f", width)
    return shapes


def llama_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    width, inner = c["hidden"], c["intermediate"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab"], width)}
    for layer in range(c["layers"]):
        name = f"model.layers.{layer}."
        for norm_name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{name}{norm_name}.weight"] = (width,)
        for part in "qkvo":
            shapes[f"{name}self_attn.{part}_proj.weight"] = (width, width)
        for part, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            shapes[f"{name}mlp.{part}_proj.weight"] = shape
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (c["vocab"], width)}


def random_tokens(vocab: int, marker: int, *shape: int) -> Tensor:
    tokens = torch.randint(vocab - 1, shape, generator=torch.Generator().manual_seed(5))
    return (tokens + (tokens >= marker)).int()


def embedded(ids: Tensor, table: Tensor, seed: int) -> Tensor:
    """Noise as in the published cases, so that no two landmarks are alike."""
    generator = torch.Generator().manual_seed(seed)
    return table[ids.long()] + 0.5 * torch.randn(*ids.shape, table.shape[1], generator=generator).double()


GPT: Config = {"n_embd": 8, "n_head": 2, "n_layer": 2, "bias": False, "vocab_size": 11, "landmark_id": 10}
TRAIN = GPT | {"mem_freq": 3, "sequence_length": 13, "window_starts": [0, 5], "dropout": 0.0, "ln_eps": 1e-5}
CACHE = GPT | {"mem_cache_freq": 2, "mem_cache_size": 9, "cache_topk": 2, "batch_size": 2}
CACHE |= {"cache_selection_method": "per_token_and_head", "segments": [6, 6, 5, 2, 6]}
LLAMA: Config = {
    "hidden": 8,
    "heads": 2,
    "layers": 2,
    "intermediate": 5,
    "vocab": 11,
    "mem_id": 10,
    "mem_freq": 2,
}
LLAMA |= {"cache_top_k": 2, "chunks": [6, 6, 5, 1, 6], "offload_cache_to_cpu": False, "rms_norm_eps": 1e-6}
BY_HEAD, BY_TOKEN = ({"cache_selection_method": f"max_over_{part}"} for part in ("tokens", "heads"))
VARIANTS: dict[str, tuple[str, Config]] = {
    "softmax": ("landmark/grouped_softmax", {"landmark_positions": [[2, 5], [0, 3, 4]]}),
    "softmax, prefix": ("landmark/grouped_softmax", {"landmark_positions": [[1, 2, 3, 8], []], "T": 4}),
    "softmax, one query": (
        "landmark/grouped_softmax",
        {"landmark_positions": [[7], [8], [0]], "T": 1, "H": 3},
    ),
    "softmax, all landmarks": (
        "landmark/grouped_softmax",
        {"landmark_positions": [[*range(9)], [*range(8)]]},
    ),
    "train": ("landmark/lm_train", TRAIN),
    "train, biased": ("landmark/lm_train", TRAIN | {"bias": True, "ln_eps": 1e-2}),
    "train, landmark first": ("landmark/lm_train", TRAIN | {"window_starts": [3, 11, 4]}),
    "train, landmarks of one token": ("landmark/lm_train", TRAIN | {"mem_freq": 1}),
    "train, no landmark": ("landmark/lm_train", TRAIN | {"mem_freq": 6, "sequence_length": 5}),
    "train, landmark amid": ("landmark/lm_train", TRAIN | {"landmark_id": 4, "n_head": 4, "n_layer": 1}),
    "train, one head": ("landmark/lm_train", TRAIN | {"n_head": 1, "n_layer": 1, "mem_freq": 5}),
    "cache": ("landmark/lm_cache", CACHE),
    "cache, one block retrieved": ("landmark/lm_cache", CACHE | {"cache_topk": 1}),
    "cache, fewer than topk at first": ("landmark/lm_cache", CACHE | {"cache_topk": 5}),
    "cache, just topk at first": ("landmark/lm_cache", CACHE | {"cache_topk": 3}),
    "cache, none at first": ("landmark/lm_cache", CACHE | {"segments": [1, 4, 3, 6], "cache_topk": 3}),
    "cache, never full": ("landmark/lm_cache", CACHE | {"mem_cache_size": 40, "cache_topk": 4}),
    "cache, wraps": ("landmark/lm_cache", CACHE | {"mem_cache_size": 5}),
    "cache, smaller than a segment": ("landmark/lm_cache", CACHE | {"mem_cache_size": 2}),
    "cache, of one block": ("landmark/lm_cache", CACHE | {"mem_cache_size": 1, "cache_topk": 1}),
    "cache, topk all": ("landmark/lm_cache", CACHE | {"mem_cache_size": 3, "cache_topk": 3}),
    "cache, by head": ("landmark/lm_cache", CACHE | BY_HEAD),
    "cache, by head, fewer than topk": ("landmark/lm_cache", CACHE | BY_HEAD | {"cache_topk": 4}),
    "cache, by token": ("landmark/lm_cache", CACHE | BY_TOKEN),
    "cache, by token, wraps": ("landmark/lm_cache", CACHE | BY_TOKEN | {"mem_cache_size": 4}),
    "cache, longer blocks": (
        "landmark/lm_cache",
        CACHE | {"mem_cache_freq": 5, "segments": [10, 7, 6, 9, 1]},
    ),
    "cache, blocks of one token": ("landmark/lm_cache", CACHE | {"mem_cache_freq": 1, "segments": [3, 4, 2]}),
    "cache, segments of one token": ("landmark/lm_cache", CACHE | {"segments": [5, 1, 1, 1, 1, 1]}),
    "cache, one row, biased": ("landmark/lm_cache", CACHE | {"batch_size": 1, "bias": True, "n_layer": 3}),
    "cache, landmark amid": ("landmark/lm_cache", CACHE | {"landmark_id": 0, "n_head": 4, "batch_size": 3}),
    "llama": ("landmark/llama_cache", LLAMA),
    "llama, offloaded": ("landmark/llama_cache", LLAMA | {"offload_cache_to_cpu": True}),
    "llama, offloaded, an open block before the last chunk": (
        "landmark/llama_cache",
        LLAMA | {"offload_cache_to_cpu": True, "mem_freq": 4, "chunks": [12, 12, 10, 1, 1]},
    ),
    "llama, offloaded, one chunk": (
        "landmark/llama_cache",
        LLAMA | {"offload_cache_to_cpu": True, "chunks": [5]},
    ),
    "llama, offloaded, rows": (
        "landmark/llama_cache",
        LLAMA | {"offload_cache_to_cpu": True, "B": 2, "cache_top_k": 3, "chunks": [6, 4, 4, 2]},
    ),
    "llama, fewer than topk": ("landmark/llama_cache", LLAMA | {"cache_top_k": 5}),
    "llama, more than there ever are": ("landmark/llama_cache", LLAMA | {"cache_top_k": 50}),
    "llama, one layer": (
        "landmark/llama_cache",
        LLAMA | {"layers": 1, "rms_norm_eps": 1e-2, "cache_top_k": 1},
    ),
    "llama, rows": ("landmark/llama_cache", LLAMA | {"B": 3, "mem_freq": 4, "chunks": [12, 3, 1, 4, 1, 1]}),
    "llama, landmark amid": ("landmark/llama_cache", LLAMA | {"mem_id": 3, "heads": 4, "chunks": [4, 4, 4]}),
}


def inputs(kind: str, c: Config) -> Tensors:
    if kind == "landmark/grouped_softmax":
        c |= {
            "B": len(c["landmark_positions"]),
            "H": c.get("H", 2),
            "S": 9,
            "T": c.get("T", 9),
            "max_groups_for_softmax": 12,
        }
        generator = torch.Generator().manual_seed(3)
        shape = (c["B"], c["H"], c["T"], c["S"])
        scores, cotangent = (torch.randn(shape, generator=generator).double() for _ in range(2))
        flags = torch.tensor([[key in some for key in range(c["S"])] for some in c["landmark_positions"]])
        return {"in/scores": 3 * scores, "in/cotangent": cotangent, "in/is_landmark": flags}
    if kind == "landmark/lm_train":
        return random_tensors(gpt_shapes(c)) | {
            "in/raw_tokens": random_tokens(c["vocab_size"], c["landmark_id"], 60)
        }
    gpt = kind == "landmark/lm_cache"
    rows, pieces = c.get("batch_size", c.get("B", 1)), c["segments" if gpt else "chunks"]
    vocab, marker = (c["vocab_size"], c["landmark_id"]) if gpt else (c["vocab"], c["mem_id"])
    freq = c["mem_cache_freq" if gpt else "mem_freq"]
    random_inputs = random_tensors(gpt_shapes(c) if gpt else llama_shapes(c))
    table = random_inputs["w/transformer.wte.weight" if gpt else "w/model.embed_tokens.weight"]
    tokens = random_tokens(vocab, marker, rows, sum(pieces) + gpt)
    random_inputs["in/tokens" if gpt else "in/raw_tokens"] = tokens
    streams = [stream_of(row[: sum(pieces)], freq, marker) for row in tokens.tolist()]
    done, begin = 0, 0
    for seg, length in enumerate(pieces):
        done += length
        end = done + done // freq
        ids = torch.tensor([stream[begin:end] for stream in streams]).int()
        random_inputs[f"in/seg{seg}/inputs_embeds"] = embedded(ids, table, seg)
        random_inputs[f"in/seg{seg}/with_landmarks"] = ids
        begin = end
    return random_inputs


@pytest.mark.parametrize(("kind", "config"), VARIANTS.values(), ids=VARIANTS)
def test_other_configs(kind: str, config: Config) -> None:
    config = dict(config)
    random_inputs = inputs(kind, config)
    tensors = random_inputs | computed(kind, config, random_inputs)
    case = Case(kind, config, tensors)
    landmark.KINDS[kind](case)
    case.close()
