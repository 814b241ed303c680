"""How the kinds of position biases and of drawn positions are held to their files."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.golden.cases import Case
from zoo.memory.attention.biases import Alibi, Fire, Kerple, Sandwich, T5Bias, t5_buckets
from zoo.memory.attention.contextual_biases import Cope, Dape
from zoo.memory.attention.position_draws import two_chunks
from zoo.memory.attention.positions import Positions


def causal(time: int) -> Tensor:
    return torch.ones(time, time, dtype=torch.bool).tril()


def check_scores(
    case: Case, positions: Positions, bias: Callable[[Tensor], Tensor] | None = None, **inputs: Tensor
) -> dict[str, Tensor]:
    """Scores, weights and all gradients of causal attention with the bias, from the file's scores.

    `bias` takes masked scores; by default it is that of the positions.
    """
    scores, cotangent = case.read("in/scores").clone().requires_grad_(), case.read("in/cotangent")
    rows, heads, time, _ = scores.shape
    case.expect(batch=rows, heads=heads, time=time)
    indices, mask = torch.arange(time), causal(time)
    masked = scores.masked_fill(~mask, -torch.inf)
    query = inputs.get("query", scores)
    added = positions.bias(query, indices, indices, masked) if bias is None else bias(masked)
    assert added is not None
    biased = masked + added
    weights = biased.softmax(-1)
    learned = {"scores": scores, **inputs, **dict(positions.named_parameters())}
    total = (weights * cotangent).sum()
    grads = torch.autograd.grad(total, list(learned.values()), allow_unused=True)
    case.compare("out/", {"scores": biased.masked_fill(~mask, 0), "probs": weights})
    by_name = dict(zip(learned, grads, strict=True))
    case.compare("grad/", {name.removeprefix("inner."): grad for name, grad in by_name.items()})
    return by_name


def load(positions: Positions, case: Case, **names: str) -> None:
    """The file's weights, under our names; those of a length of 1 are scalars of ours."""
    ours = {**{name: name for name in case.weights}, **names}
    state = {ours[name]: weight for name, weight in case.weights.items()}
    shapes = {name: weight.shape for name, weight in positions.named_parameters()}
    positions.double().load_state_dict({n: w.reshape(shapes[n]) for n, w in state.items()}, strict=False)
    assert shapes.keys() == state.keys()


def check_alibi(case: Case) -> None:
    """`bias/alibi`: the slopes, and scores of causal attention with the bias."""
    alibi = Alibi(case.config["heads"]).double()
    check_scores(case, alibi)
    case.compare("out/", {"slopes": 2.0**alibi.log2_slopes})


def check_t5(case: Case) -> None:
    """`bias/t5`: the bucket of every distance, and the learned table."""
    c, name = case.config, "relative_attention_bias.weight"
    table = T5Bias(c["heads"], c["buckets"], c["max_distance"])
    load(table, case, **{name: "table"})
    grads = check_scores(case, table)
    case.compare("grad/", {name: grads["table"]})
    buckets = t5_buckets(c["buckets"], c["max_distance"])
    case.compare("out/", {"buckets": buckets[torch.arange(c["time"]).clamp(max=len(buckets) - 1)]})


def check_kerple(case: Case) -> None:
    """`bias/kerple`: both kernels."""
    kerple = Kerple(case.config["heads"], case.config["kernel"])
    load(kerple, case)
    check_scores(case, kerple)


def check_sandwich(case: Case) -> None:
    """`bias/sandwich`: the table of the equation, and scores."""
    c = case.config
    sandwich, indices = Sandwich(c["heads"], c["width"], c["time"]), torch.arange(c["time"])
    check_scores(case, sandwich)
    scores = case.tensors["in/scores"]
    bias = sandwich.bias(scores, indices, indices)
    case.compare("out/", {"bias": bias})


def fire(case: Case, activation: torch.nn.Module | None = None) -> Fire:
    c = case.config
    case.expect(c=float(case.tensors["param/c"]), L_multiplier=float(case.tensors["param/L_multiplier"]))
    return Fire(c["heads"], float(c["L"]), None, c["hidden"], activation)


def check_fire(case: Case) -> None:
    """`bias/fire`: the network of relative distances."""
    positions = fire(case)
    load(positions, case)
    check_scores(case, positions)


def check_dape(case: Case) -> None:
    """`bias/dape`: scores and a bias mixed over heads, and by convolutions over keys."""
    c = case.config
    inner = fire(case, torch.nn.LeakyReLU()) if c["bias"] == "fire" else Kerple(c["heads"])
    case.expect(bias="fire" if isinstance(inner, Fire) else "kerple")
    dape = Dape(c["heads"], inner, c["hidden"], c.get("kernel", 1))
    names = {name: name if name.startswith("mlp2.") else f"inner.{name}" for name in case.weights}
    load(dape, case, **names)
    indices = torch.arange(c["time"])

    def ends_here(masked: Tensor) -> Tensor:
        """The published convolutions, which see that no key follows the last one."""
        return dape.combine(masked, inner.bias(masked, indices, indices), going_on=False)

    check_scores(case, dape, ends_here)


def check_cope(case: Case) -> None:
    """`bias/cope`: counts of gates, clipped at the last position."""
    c, query = case.config, case.read("in/query").clone().requires_grad_()
    case.expect(head_width=query.shape[-1])
    cope = Cope(query.shape[-1], c["positions"])
    load(cope, case)
    check_scores(case, cope, query=query)


def check_pose(case: Case) -> None:
    """`positions/pose`: positions and tokens from the draws, which lie within our bounds."""
    c = case.config
    trained, target = c["trained"], c["target"]
    for row, (draws, length) in enumerate(zip(c["draws"], c["text_lengths"], strict=True)):
        text = min(length, 5 * trained)
        taken = min(text, trained)
        bounds = {
            "first_chunk": (1, (taken + 1) // 2),
            "text_end": (taken, text),
            "skip": (0, target - taken),
        }
        for name, (lowest, highest) in bounds.items():
            assert draws[name][:2] == [lowest, highest], name
        first, end, skip = (draws[name][2] for name in bounds)
        tokens = torch.cat([torch.arange(first), torch.arange(end - (taken - first), end)])
        positions = two_chunks(taken, torch.tensor([[first]]), torch.tensor([[skip]]))[0]
        case.compare(f"out/row{row}/", {"positions": positions, "tokens": 100 * row + tokens})


KINDS: dict[str, Callable[[Case], None]] = {
    "bias/alibi": check_alibi,
    "bias/t5": check_t5,
    "bias/kerple": check_kerple,
    "bias/sandwich": check_sandwich,
    "bias/fire": check_fire,
    "bias/dape": check_dape,
    "bias/cope": check_cope,
    "positions/pose": check_pose,
}
