"""How long a trained Mamba's states remember, beside the lengths at which it still answers induction heads.

    python benchmarks/time_constants.py run=runs/induction [rows=64] [distance=248]

A state decays over a token of noise by exp(-dt |A|), so its time constant, in tokens, is 1 / (mean of dt
over noise x |A|). Which states carry the answer is measured: two texts that differ in the token after the
special one alone are read up to the special token's return, and a state's weight is |C_n dh_n|, the
difference that it makes to the output of its channel there. Printed for every layer: the time constants
below which 10, 50 and 90 % of that weight lie, that of the slowest state of all, and the difference that is
left after the distance, as a share of that after 8 tokens.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.memory.state_space import mamba_mixer
from zoo.memory.state_space.selective_scan import ScanInputs, selective_scan

OPTIONS = {"run": "runs/induction", "rows": "64", "distance": "248"}


def texts(rows: int, distance: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Two texts each of noise, the special token, an answer, `distance` tokens of noise and the special token
    again; they differ in the answer alone."""
    special = vocab_size - 1
    a = torch.randint(special, (rows, 8 + 2 + distance + 1))
    a[:, 8] = a[:, -1] = special
    b = a.clone()
    b[:, 9] = (a[:, 9] + 1) % special
    return a, b


def scans(model: Any, tokens: Tensor) -> list[tuple[ScanInputs, Tensor]]:
    """The inputs and the last state of every layer's scan."""
    seen = []

    def watched(inputs: ScanInputs, **options: Any) -> tuple[Tensor, Tensor]:
        y, last = selective_scan(inputs, **options)
        seen.append((inputs, last))
        return y, last

    mamba_mixer.selective_scan = watched
    try:
        model(tokens)
    finally:
        mamba_mixer.selective_scan = selective_scan
    return seen


def quantile(values: Tensor, weights: Tensor, share: float) -> float:
    """The value below which this share of the weight lies; nan without any weight."""
    if not weights.any():
        return float("nan")
    order = values.argsort()
    total = weights[order].cumsum(0) / weights.sum()
    return float(values[order][int((total >= share).nonzero()[0])])


def time_constants(inputs: ScanInputs) -> Tensor:
    """(channels, states), in tokens of noise: all but the first 16 and the last."""
    assert inputs.dt_bias is not None
    dt = F.softplus(inputs.dt + inputs.dt_bias)[:, 16:-1].mean((0, 1))
    return 1 / (dt[:, None] * inputs.A.abs())


def difference(pair: list[tuple[ScanInputs, Tensor]]) -> Tensor:
    """|C_n dh_n| at the last token, mean over rows: (channels, states)."""
    (inputs, last), (_, other) = pair
    return (inputs.C[:, -1] * (last - other)).abs().mean(0)


@torch.inference_mode()
def main(args: list[str]) -> None:
    options = OPTIONS | dict(arg.split("=", 1) for arg in args)
    model = zoo.load_run(options["run"]).model.eval()
    vocab_size, rows, distance = model.vocab_size, int(options["rows"]), int(options["distance"])
    torch.manual_seed(0)
    far, near = (
        list(zip(*(scans(model, text) for text in texts(rows, length, vocab_size)), strict=True))
        for length in (distance, 8)
    )
    print("layer  time constants: 10 %   50 %   90 % of the weight   slowest   left after", distance)
    for layer, (pair, early) in enumerate(zip(far, near, strict=True)):
        constants, weights = time_constants(pair[0][0]), difference(list(pair))
        values = [quantile(constants.flatten(), weights.flatten(), share) for share in (0.1, 0.5, 0.9)]
        left = float(weights.sum() / difference(list(early)).sum())
        shown = "  ".join(f"{value:,.0f}" for value in (*values, float(constants.max())))
        print(f"{layer}  {shown}  {left:.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
