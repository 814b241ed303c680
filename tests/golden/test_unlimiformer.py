"""Unlimiformer once more, as loops over rows, heads and tokens that share no code with the zoo: held to the
published case, and our attention and our model to it in many more configs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.kinds import unlimiformer
from tests.golden.cases import Case, read_case
from zoo.models.unlimiformer import Unlimiformer

FIXTURE = Path(__file__).parent / "fixtures" / "unlimiformer" / "core_retrieval_attention.json"
Tensors = dict[str, Tensor]
Config = dict[str, Any]


def draw(seed: object, *shape: int) -> Tensor:
    random = torch.Generator().manual_seed(sum(map(ord, repr(seed))))
    return torch.randn(shape, generator=random, dtype=torch.float64)


def mixture(scores: list[Tensor], values: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    largest = max(score.item() for score in scores)
    raised = [(score - largest).exp() for score in scores]
    weights = [one / sum(raised) for one in raised]
    return weights, torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0)


def nearest(z: Tensor, past: list[Tensor], k: int) -> list[int]:
    return sorted(range(len(past)), key=lambda j: -(z * past[j]).sum().item())[:k]


def core(c: Config, given: Tensors) -> Tensors:
    """The tensors of a file of `unlimiformer/core_retrieval_attention`."""
    p = {name: given.get(f"w/{name}.bias", torch.zeros(c["dim"]).double()) for name in ("q_proj", "k_proj")}
    p |= {
        name: given.get(f"w/{name}.bias", torch.zeros(c["dim"]).double()) for name in ("v_proj", "out_proj")
    }
    w, width = {name: given[f"w/{name}.weight"] for name in p}, c["dim"] // c["heads"]
    found: dict[str, list[Any]] = {}
    for beam, asked in enumerate(given["in/h_dec"].view(-1, c["dim"])):
        past = list(given["in/h_enc"][beam // c["beam"]])
        said = []
        for head in range(c["heads"]):
            own = slice(head * width, (head + 1) * width)
            q = w["q_proj"][own] @ asked + p["q_proj"][own]
            z = q @ w["k_proj"][own]
            ids = nearest(z, past, c["k"])
            keys = [w["k_proj"][own] @ past[j] + p["k_proj"][own] for j in range(len(past))]
            values = [w["v_proj"][own] @ past[j] + p["v_proj"][own] for j in ids]
            direct = [q @ key for key in keys]
            weights, mixed = mixture([direct[j] / math.sqrt(width) for j in ids], values)
            said.append(mixed)
            for name, part in {
                "idx/retrieved": torch.tensor(ids, dtype=torch.int32),
                "mid/datastore_query": z,
                "mid/direct_scores_q_dot_k": torch.stack(direct),
                "mid/query": q,
                "mid/retrieved_keys": torch.stack([keys[j] for j in ids]),
                "mid/retrieved_values": torch.stack(values),
                "mid/search_scores": torch.stack([z @ past[j] for j in ids]),
                "out/attn_weights": torch.stack(weights),
            }.items():
                found.setdefault(name, []).append(part)
        out = w["out_proj"] @ torch.cat(said) + p["out_proj"]
        found.setdefault("out/attn_output", []).append(out)
    split = (c["B"], c["beam"], c["heads"])
    together = {"mid/datastore_query", "mid/query"}  # beams and heads in one axis
    return {
        name: torch.stack(parts).view(
            given["in/h_dec"].shape
            if name == "out/attn_output"
            else (c["B"], -1, *parts[0].shape)
            if name in together
            else (*split, *parts[0].shape)
        )
        for name, parts in found.items()
    }


def test_the_reference_agrees_with_the_published_case() -> None:
    case = read_case(FIXTURE)
    given = {name: case.read(name) for name in list(case.tensors) if name.startswith(("in/", "w/"))}
    case.compare("", core(case.config, given))
    case.close()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"B": 1, "beam": 3},
        {"heads": 1, "dim": 5},
        {"heads": 3, "dim": 12, "k": 1},
        {"k": 9},
        {"n_hidden": 40, "k": 17, "beam": 2},
        {"n_hidden": 1, "k": 1},
    ],
    ids=repr,
)
def test_our_attention_agrees_with_the_reference(config: Config, bias: bool) -> None:
    c: Config = {"B": 2, "beam": 1, "heads": 2, "dim": 8, "n_hidden": 9, "k": 4} | config
    given = {"in/h_dec": draw("dec", c["B"] * c["beam"], 1, c["dim"])}
    given["in/h_enc"] = draw("enc", c["B"], c["n_hidden"], c["dim"])
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        given[f"w/{name}.weight"] = 0.6 * draw(name, c["dim"], c["dim"])
        if bias:
            given[f"w/{name}.bias"] = draw([name], c["dim"])
    case = Case("unlimiformer/core_retrieval_attention", c, given | core(c, given))
    unlimiformer.check_core(case)
    case.close()


class Reference:
    """One row's text, token by token; `trained` as with `retrieval_training`, else as in evaluation."""

    def __init__(self, c: Config, p: Tensors, trained: bool) -> None:
        self.c, self.p, self.trained = c, p, trained
        self.past: list[list[Tensor]] = [[] for _ in range(c["depth"])]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return self.p[f"{name}.weight"] @ x + self.p.get(f"{name}.bias", 0.0)

    def norm(self, x: Tensor, name: str) -> Tensor:
        layer = self.c.get("norm") == "layer"
        x = x - x.mean() if layer else x
        y = x / ((x * x).mean() + (1e-5 if layer else 1e-6)).sqrt() * self.p[f"{name}.weight"]
        return y + self.p.get(f"{name}.bias", 0.0)

    def turned(self, x: Tensor, place: int) -> Tensor:
        if self.c.get("position", "rope") != "rope":
            return x
        half, base = len(x) // 2, self.c.get("rope_base", 10000.0)
        turns = [(math.cos(a), math.sin(a)) for i in range(half) for a in [place * base ** (-i / half)]]
        left = [x[i] * cos - x[i + half] * sin for i, (cos, sin) in enumerate(turns)]
        right = [x[i + half] * cos + x[i] * sin for i, (cos, sin) in enumerate(turns)]
        return torch.stack(left + right)

    def attention(self, inputs: list[Tensor], layer: int) -> list[Tensor]:
        c, name = self.c, f"stack.{layer}.mixer."
        heads, shared = c["heads"], c.get("kv_heads", c["heads"])
        width = c["width"] // heads
        weight, said = self.p[f"{name}qkv.weight"], []
        bias = self.p.get(f"{name}qkv.bias", torch.zeros(len(weight)).double())

        def part(x: Tensor, number: int) -> Tensor:
            own = slice(number * width, (number + 1) * width)
            return weight[own] @ x + bias[own]

        for i, x in enumerate(inputs):
            mixed = []
            for head in range(heads):
                key = heads + head // (heads // shared)
                value, q = key + shared, part(x, head)
                ids = nearest(q @ weight[key * width : (key + 1) * width], self.past[layer], c["neighbours"])
                found = [self.past[layer][j] for j in ids]
                slope = 2.0 ** (-8 * (head + 1) / heads) if c.get("position") == "alibi" else 0.0
                scores = [
                    self.turned(q, i) @ self.turned(part(y, key), j) / math.sqrt(width) - slope * (i - j)
                    for j, y in enumerate(inputs[: i + 1])
                ]
                scores += [q @ part(y, key) / math.sqrt(width) for y in found]
                mixed.append(mixture(scores, [part(y, value) for y in [*inputs[: i + 1], *found]])[1])
            said.append(self.linear(torch.cat(mixed), f"{name}out"))
        if layer >= c.get("layer_begin", c["depth"] // 2):
            kept = [x if self.trained else x.detach() for x in inputs]
            self.past[layer] = (self.past[layer] + kept)[-c["capacity"] :]
        return said

    def mlp(self, x: Tensor, layer: int) -> Tensor:
        entered = self.linear(x, f"stack.{layer}.mlp.enter")
        if self.c.get("activation") == "relu":
            return self.linear(entered.clamp(min=0), f"stack.{layer}.mlp.out")
        gate, up = entered.chunk(2)
        return self.linear(gate * gate.sigmoid() * up, f"stack.{layer}.mlp.out")

    def read(self, tokens: list[int]) -> Tensor:
        logits = []
        for start in range(0, len(tokens), self.c["segment_len"]):
            xs = [self.p["embed.weight"][t] for t in tokens[start : start + self.c["segment_len"]]]
            if "positions" in self.p:
                xs = [x + self.p["positions"][i] for i, x in enumerate(xs)]
            for layer in range(self.c["depth"]):
                mixed = self.attention([self.norm(x, f"stack.{layer}.mixer_norm") for x in xs], layer)
                xs = [x + y for x, y in zip(xs, mixed, strict=True)]
                xs = [x + self.mlp(self.norm(x, f"stack.{layer}.mlp_norm"), layer) for x in xs]
            logits += [self.p["head.weight"] @ self.norm(x, "norm") for x in xs]
        return torch.stack(logits)


NANO: Config = {"vocab_size": 7, "segment_len": 4, "depth": 2, "width": 8, "heads": 2, "mlp_width": 5}
NANO |= {"capacity": 8, "neighbours": 3}


@pytest.mark.parametrize("trained", [False, True], ids=["evaluation", "retrieval training"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"capacity": 12, "block": 4, "neighbours": 5, "bias": True},
        {"capacity": 5, "neighbours": 2, "rope_base": 50.0},
        {"capacity": 3, "neighbours": 9},
        {"capacity": 40, "neighbours": 1, "heads": 4, "kv_heads": 2, "bias": True},
        {"position": "alibi", "heads": 4, "kv_heads": 1, "activation": "relu"},
        {"position": "learned", "norm": "layer", "bias": True, "tied": False},
        {"position": "none", "layer_begin": 1, "depth": 3},
        {"layer_begin": 0, "capacity": 6, "segment_len": 3},
        {"depth": 1, "heads": 1, "segment_len": 1},
    ],
    ids=repr,
)
def test_our_model_agrees_with_the_reference(config: Config, trained: bool) -> None:
    c = NANO | config
    torch.manual_seed(0)
    model = Unlimiformer(**c, retrieval_training=trained).double().train(trained)
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(0.3 * draw(number, *weight.shape))
    p: Tensors = dict(model.named_parameters(remove_duplicate=False))
    text = torch.randint(c["vocab_size"], (2, 3 * c["segment_len"] + 1))
    cotangent = draw("cotangent", *text.shape, c["vocab_size"])
    logits, state = model(text)
    ours = torch.autograd.grad((logits * cotangent).sum(), list(model.parameters()))
    readers = [Reference(c, p, trained) for _ in text]
    expected = torch.stack([reader.read(row) for reader, row in zip(readers, text.tolist(), strict=True)])
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    theirs = torch.autograd.grad((expected * cotangent).sum(), list(model.parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for layer, bank in enumerate(state):
        if not bank:
            assert layer < c.get("layer_begin", c["depth"] // 2)
            continue
        slots = torch.cat(bank.keys, dim=2)[:, 0]
        for row, reader in enumerate(readers):
            assert bank.length[row] == text.shape[1]
            for age, kept in enumerate(reversed(reader.past[layer]), 1):
                slot = (text.shape[1] - age) % c["capacity"]
                torch.testing.assert_close(slots[row, slot], kept, rtol=1e-9, atol=1e-9)
