"""How the layers of GLA and HGRN2 are held to their files."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.golden.cases import Case
from tests.golden.kinds.fast_weights import check_fla_layer, check_layer
from zoo.memory.fast_weights.gla_mixer import GLAMixer, GLAState
from zoo.memory.fast_weights.hgrn2_mixer import HGRN2Mixer, LowerBounds
from zoo.models.published import gla, hgrn2
from zoo.models.published.weights import same


class GivenBound(LowerBounds):
    """A bound that is a weight itself, not a sum of shares."""

    def __init__(self, channels: int) -> None:
        nn.Module.__init__(self)
        self.bound = nn.Parameter(torch.empty(channels))

    def forward(self, layer: int) -> Tensor:
        return self.bound


def check_hgrn2_layer(case: Case) -> None:
    """`gla/layer` with rule hgrn2; the lower bound, an input of the file, is a weight here."""
    shape, width = hgrn2.mixer_shape(case.config), case.config["hidden_size"]
    case.expect(hidden_size=case.tensors["in/x"].shape[-1])
    bounded = "in/lower_bound" in case
    bounds = GivenBound(shape["heads"] * shape["head_dim"]) if bounded else None
    mixer = HGRN2Mixer(width, layer=int(bounded), bounds=bounds, **shape)
    table = hgrn2.mixer_table(mixer)
    if bounded:
        case.tensors["param/lower_bound"] = case.read("in/lower_bound")
        table["lower_bound"] = "bounds.bound", same

    def states(state: GLAState) -> dict[str, Tensor]:
        convs = state.conv.mT.split(mixer.parts, dim=1) if mixer.conv is not None else ()
        return {"S": state.matrix, **dict(zip(("conv_q", "conv_f", "conv_i"), convs, strict=False))}

    check_layer(case, mixer, table, states)


def check(case: Case) -> None:
    """`gla/layer`, whose `rule` says which layer it is."""
    if case.config["rule"] == "hgrn2":
        check_hgrn2_layer(case)
    else:
        case.expect(rule="gla")
        check_fla_layer(case, GLAMixer, gla)


KINDS: dict[str, Callable[[Case], None]] = {"gla/layer": check}
