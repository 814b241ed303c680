"""How the kinds of xLSTM are held to their files."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tests.golden.cases import Case
from tests.golden.kinds.fast_weights import check_layer, cuts, ends
from tests.golden.kinds.rwkv import hold_model
from zoo.memory.fast_weights.mlstm_cell import MLSTMInputs, MLSTMState, mlstm, mlstm_loop
from zoo.memory.fast_weights.mlstm_mixer import MLSTMMixer
from zoo.models.blocks import Block
from zoo.models.published import xlstm

FORMS = [mlstm_loop, *(partial(mlstm, chunk_size=size) for size in (1, 4, 32))]
NAMES = ("q", "k", "v", "igate", "fgate", "state_C", "state_n", "state_m")


def cell_inputs(x: dict[str, Tensor]) -> MLSTMInputs:
    state = MLSTMState(x["state_C"], x["state_n"], x["state_m"][..., 0])
    return MLSTMInputs(x["q"], x["k"], x["v"], x["igate"][..., 0], x["fgate"][..., 0], state)


def check_core(case: Case) -> None:
    """`xlstm/mlstm_core`: loop and chunks, cut anywhere, from a given state and from none."""
    rows, time, heads, key_dim = case.tensors["in/q"].shape
    case.expect(batch=rows, heads=heads, key_dim=key_dim, value_dim=case.tensors["in/v"].shape[3])
    eps = case.config["eps"]
    for lengths in cuts(case, time):
        for form in FORMS:
            x = {name: case.read(f"in/{name}").clone().requires_grad_() for name in NAMES}
            inputs = cell_inputs(x)
            for name, state in (
                ("h_from_empty", MLSTMState(*map(torch.zeros_like, inputs.state))),
                ("h", inputs.state),
            ):
                outputs, done = [], 0
                for length in lengths:
                    timed = (part[:, done : done + length] for part in inputs[:5])
                    h, state = form(MLSTMInputs(*timed, state), eps=eps)
                    outputs.append(h)
                    done += length
                    if name == "h" and done in ends(case):
                        case.compare(f"state/after_seg{ends(case)[done]}/", xlstm.published_cell(state))
                case.compare("out/", {name: torch.cat(outputs, dim=1)})
            parts = {"h": torch.cat(outputs, dim=1), "C": state.C, "n": state.n}
            loss = torch.stack([(part * case.read(f"in/cot_{n}")).sum() for n, part in parts.items()]).sum()
            case.compare("out/", {"loss": loss})
            loss.backward()
            case.compare("grad/", {name: leaf.grad for name, leaf in x.items()})


def check_block(case: Case) -> None:
    """`xlstm/block` of type mlstm: norm and residual included."""
    width = case.tensors["in/x"].shape[-1]
    case.expect(embedding_dim=width)
    shape = xlstm.mixer_shape(case.config)
    block = Block(MLSTMMixer(width, **shape), None, width, "layer_without_bias")
    weights = xlstm.with_gains(case.weights)
    case.tensors = {
        name: weights.get(name.removeprefix("param/"), x) if name.startswith("param/") else x
        for name, x in case.tensors.items()
    }
    check_layer(case, block, xlstm.BLOCK, xlstm.published_layer)


KINDS: dict[str, Callable[[Case], None]] = {
    "xlstm/mlstm_core": check_core,
    "xlstm/block": check_block,
    "xlstm/large_model": partial(hold_model, loader=xlstm),
}
