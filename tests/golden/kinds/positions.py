"""How the kinds of position encodings are held to their files."""

from collections.abc import Callable

import torch

from tests.golden.cases import Case
from zoo.memory.attention.positions import Alibi


def check_alibi(case: Case) -> None:
    """`bias/alibi`: the slopes, and scores of causal attention with the bias."""
    scores, cotangent = case.read("in/scores").clone().requires_grad_(), case.read("in/cotangent")
    rows, heads, time, _ = scores.shape
    case.expect(batch=rows, heads=heads, time=time)
    alibi, positions = Alibi(heads).double(), torch.arange(time)
    causal = positions <= positions[:, None]
    biased = scores + alibi.bias(scores, positions, positions)
    weights = biased.masked_fill(~causal, -torch.inf).softmax(-1)
    (weights * cotangent).sum().backward()
    slopes = 2.0**alibi.log2_slopes
    case.compare("out/", {"slopes": slopes, "scores": biased.masked_fill(~causal, 0), "probs": weights})
    case.compare("grad/", {"scores": scores.grad})


KINDS: dict[str, Callable[[Case], None]] = {"bias/alibi": check_alibi}
