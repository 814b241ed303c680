"""How torch.compile reads models, in a process without the tests' checks of types, which it would trace too.

Prints a JSON object: for every model named on the command line its graph breaks, and with `parity` before the
names the largest difference between the compiled and the eager step's logits, state and gradients.
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor

from zoo.state import contents
from zoo.train.runs import build
from zoo.train.runs.config import compose


def build_double(name: str) -> tuple[Any, Tensor]:
    """A model at nano, and a window of two segments for it."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = build.model(compose([f"model={name}", "size=nano"])).double()
    return model, torch.randint(256, (2, 2 * model.segment_len))


def breaks(name: str) -> int:
    model, tokens = build_double(name)
    explanation = torch._dynamo.explain(model.forward)(tokens, model.init_state(2))
    return int(explanation.graph_break_count)


def difference(name: str) -> float:
    """Relative to the largest value of each tensor; graphs are run without code generation."""
    model, tokens = build_double(name)

    def step(forward: Any) -> list[Tensor]:
        model.zero_grad()
        with torch.no_grad():
            _, state = forward(tokens, model.init_state(2))
        logits, state = forward(tokens, state)
        logits.square().mean().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [tensor.detach().double() for tensor in (logits, *contents(state), *gradients)]

    expected = step(model.forward)
    actual = step(torch.compile(model.forward, backend="aot_eager"))
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for a, b in zip(actual, expected, strict=True)
        if b.numel()
    )


if __name__ == "__main__":
    measure, names = (difference, sys.argv[2:]) if sys.argv[1] == "parity" else (breaks, sys.argv[1:])
    print(json.dumps({name: measure(name) for name in names}))
