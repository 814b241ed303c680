"""How the layers of RetNet and Lightning Attention are held to their files."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.golden.cases import Case
from tests.golden.kinds.fast_weights import check_layer
from zoo.memory.fast_weights.retention_mixer import LightningMixer, RetentionMixer, RetentionState
from zoo.models.published import retnet


def check_retention(case: Case) -> None:
    """`retnet/layer`; the file's state has keys at their positions from the text's start."""
    case.expect(embed_dim=case.tensors["in/x"].shape[-1])
    mixer = RetentionMixer(**retnet.retention_shape(case.config))
    time = 0

    def count_tokens(_: object, arguments: tuple[Tensor, RetentionState]) -> None:
        nonlocal time
        x, state = arguments
        time = x.shape[1] + (time if state.matrix.any() else 0)

    def states(state: RetentionState) -> dict[str, Tensor]:
        return {"S": mixer.rotate(state.matrix.mT, range(time, time + 1)).mT}

    mixer.register_forward_pre_hook(count_tokens)
    check_layer(case, mixer, retnet.retention_table(mixer), states)


def check_lightning(case: Case) -> None:
    """`retnet/lightning_layer`."""
    case.expect(embed_dim=case.tensors["in/x"].shape[-1])
    mixer = LightningMixer(**retnet.lightning_shape(case.config))
    check_layer(case, mixer, retnet.lightning_table(mixer), lambda state: {"S": state.matrix})
    case.compare("out/mid/", {"slopes": -mixer.log_decays(torch.zeros((), dtype=torch.float64))})


KINDS: dict[str, Callable[[Case], None]] = {
    "retnet/layer": check_retention,
    "retnet/lightning_layer": check_lightning,
}
