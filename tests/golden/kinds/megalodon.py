"""How the kinds of Megalodon are held to their files."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden.cases import Case
from tests.golden.kinds.hybrids import cuts, read_text
from zoo.memory.state_space.complex_ema import ComplexEMA, ema, ema_loop
from zoo.memory.state_space.megalodon_attention import GatedAttention
from zoo.memory.state_space.timestep_norm import TimestepNorm, TimestepState, timestep_norm_loop
from zoo.models.megalodon import MegalodonBlock, NormedFeedForward
from zoo.models.published import megalodon
from zoo.models.published.megalodon import BLOCK, EMA
from zoo.models.published.weights import affine, fill, gradients, same
from zoo.state import State

Read = Callable[[Tensor, State], tuple[Tensor, State]]


def hold(
    case: Case,
    read: Read,
    x: Tensor,
    begin: Callable[[], State],
    outputs: Callable[[Tensor], dict[str, Tensor]],
    record: Callable[[State], dict[str, Tensor]],
) -> None:
    """Outputs and states of `x` (rows, time, ...), however it is cut."""
    for lengths in cuts(case, x.shape[1], odd=3):
        state, parts, done = begin(), [], 0
        for piece in x.split(lengths, dim=1):
            y, state = read(piece, state)
            parts.append(y)
            done += piece.shape[1]
            case.compare(f"state@{done}.", record(state))
        case.compare("", outputs(torch.cat(parts, dim=1)))


def real(x: Tensor | None) -> Tensor:
    assert x is not None
    return torch.view_as_real(x)


def check_cema(case: Case) -> None:
    """`megalodon/cema`: the average alone, channels first in the file."""
    config = case.config
    layer = ComplexEMA(config["embed_dim"], config["ndim"])
    fill(layer, case.weights, EMA)
    case.expect(B=case.tensors["in.x"].shape[0], L=case.tensors["in.x"].shape[2])
    x, h0 = case.read("in.x").mT.contiguous(), torch.view_as_complex(case.read("in.h0"))
    coefficients, fresh = layer.coefficients(), layer.init_state(len(x))
    powers = coefficients.powers(x.shape[1], torch.float64)
    case.compare("coef.", {"p": coefficients.p, "q": real(powers[..., 1]), "gamma": real(coefficients.gamma)})
    kernel = (coefficients.gamma[..., None] * coefficients.p[..., None] * powers[..., :-1]).real.sum(1)
    case.compare("out.", {"kernel": kernel})

    hold(case, layer, x, lambda: fresh, lambda y: {"out.y": y.mT}, lambda h: {"h": real(h)})
    for form in (ema_loop, ema):
        layer.zero_grad()
        inputs = [part.clone().requires_grad_() for part in (x, h0)]
        coefficients = layer.coefficients()
        y, h = form(x, coefficients, fresh)
        case.compare("out.", {"y": y.mT, "h": real(h)})
        y, h = form(inputs[0], coefficients, inputs[1])
        loss = (y.mT * case.read("cot.y")).sum() + (real(h) * case.read("cot.h")).sum()
        case.compare("out0.", {"y": y.mT, "h": real(h), "loss": loss})
        loss.backward()
        assert inputs[0].grad is not None
        case.compare("grad.in.", {"x": inputs[0].grad.mT, "h0": real(inputs[1].grad)})
        case.compare("grad.w.", gradients(layer, EMA))


def check_timestepnorm(case: Case) -> None:
    """`megalodon/timestepnorm`: the norm alone."""
    config, weights = case.config, case.weights
    count = config.get("prior_count", 0)
    assert int(weights.pop("prior_count", count)) == count
    norm = TimestepNorm(
        config["num_features"], config["num_groups"], eps=config.get("eps", 1e-5), prior_count=count
    )
    table = affine(norm="norm")
    table = {
        name.removeprefix("norm."): (ours.removeprefix("norm."), view) for name, (ours, view) in table.items()
    }
    if count:
        table |= {name: (name, same) for name in ("prior_mean", "prior_logv")}
    else:  # buffers that say what a fresh state is
        begins = norm.double().init_state(1)
        assert torch.equal(weights.pop("prior_mean", begins.mean[0]), begins.mean[0])
        assert torch.equal(weights.pop("prior_logv", begins.var[0].log()), begins.var[0].log())
    fill(norm, weights, table)

    def stats(state: TimestepState) -> dict[str, Tensor]:
        return {"count": state.tokens, "mean": state.mean, "var": state.var}

    def loop(x: Tensor, state: TimestepState, padded: Tensor | None = None) -> tuple[Tensor, TimestepState]:
        y, state = timestep_norm_loop(x, state, norm.eps, padded)
        y = y * (1 + norm.weight) + norm.bias
        return (y if padded is None else y.masked_fill(padded[..., None], 0)), state

    x = read_text(case, "in.x")
    fresh = norm.init_state(len(x))
    hold(case, norm, x, lambda: fresh, lambda y: {"out.y": y}, stats)
    for read in (norm.forward, loop):
        norm.zero_grad()
        y, state = read(x, norm.init_state(len(x)))
        case.compare("out.", stats(state) | {"y": y})
        if "in.pad" in case:
            y, state = read(x, norm.init_state(len(x)), case.read("in.pad"))
            case.compare("outp.", stats(state) | {"y": y})
        names = ("in.x", "in.prev_mean", "in.prev_var")
        inputs = {name: case.read(name).clone().requires_grad_() for name in names}
        begin = TimestepState(case.read("in.prev_count"), inputs["in.prev_mean"], inputs["in.prev_var"])
        y, state = read(inputs["in.x"], begin)
        loss = torch.stack(
            [
                (part * case.read(f"cot.{name}")).sum()
                for name, part in (("y", y), ("mean", state.mean), ("var", state.var))
            ]
        ).sum()
        case.compare("outs.", stats(state) | {"y": y, "loss": loss})
        loss.backward()
        case.compare("grad.", {name: part.grad for name, part in inputs.items()})
        case.compare("grad.w.", gradients(norm, table))


def block_of(config: dict[str, Any]) -> MegalodonBlock:
    affine, eps = config.get("norm_affine", True), config.get("norm_eps", 1e-5)
    attention = GatedAttention(
        config["model_dim"],
        config["num_heads"],
        key_width=config["z_dim"],
        value_width=config["value_dim"],
        chunk_size=config["chunk_size"],
        state_size=config["cema_ndim"],
        norm_groups=config["norm_num_groups"],
        norm_affine=affine,
        eps=eps,
        rope_base=10000.0 if config.get("rope_base") is None else float(config["rope_base"]),
    )
    mlp = NormedFeedForward(
        config["model_dim"],
        config["ffn_hidden_dim"],
        swiglu=config.get("swiglu", False),
        norm_affine=affine,
        scale=0.1 if config.get("rescale_nffn", False) else None,
        eps=eps,
    )
    return MegalodonBlock(attention, mlp)


def check_layer(case: Case) -> None:
    """`megalodon/layer`: one block from given inputs."""
    block = block_of(case.config)
    fill(block, megalodon.learned(case.weights), BLOCK)
    case.ignore("num_layers", "vocab_size", "scale_emb", "share_emb")  # of the model around the block
    x = read_text(case, "in.x")
    record, mids = megalodon.published_layer, dict[str, Tensor]()
    hooks = listen(block.attention, mids)
    block(x, block.init_state(len(x)))
    case.compare("mid.", mids)
    for hook in hooks:
        hook.remove()

    hold(case, block, x, lambda: block.init_state(len(x)), lambda y: {"out.y": y}, record)
    for lengths in cuts(case, x.shape[1], odd=3):  # the gradient runs through all that is carried
        block.zero_grad()
        tensors, state, parts = x.clone().requires_grad_(), block.init_state(len(x)), []
        for piece in tensors.split(lengths, dim=1):
            y, state = block(piece, state)
            parts.append(y)
        (torch.cat(parts, dim=1) * case.read("cot.y")).sum().backward()
        case.compare("grad.in.", {"x": tensors.grad})
        case.compare("grad.w.", gradients(block, BLOCK))


def listen(attention: GatedAttention, mids: dict[str, Tensor]) -> list[Any]:
    """Hooks that put a block's parts under the file's names."""

    def outputs(
        name: str, change: Callable[[Tensor], Tensor], _module: nn.Module, _read: Any, out: Any
    ) -> None:
        mids[name] = change(out[0] if isinstance(out, tuple) else out)

    def read(name: str, _module: nn.Module, tensors: tuple[Tensor, ...]) -> None:
        mids[name] = tensors[0]

    def ungated(_module: nn.Module, tensors: tuple[Tensor, ...]) -> None:
        mids["attn"] = tensors[0] / mids["r"]

    parts: list[tuple[str, nn.Module, Callable[[Tensor], Tensor]]] = [
        ("timenorm", attention.timestep_norm, lambda y: y),
        ("cema", attention.average, lambda y: y),
        ("z_raw", attention.shared, lambda y: y),
        ("v", attention.value, F.silu),
        ("r", attention.gate, F.silu),
        ("mega_out", attention, lambda y: y),
    ]
    hooks = [part.register_forward_hook(partial(outputs, name, change)) for name, part, change in parts]
    hooks.append(attention.shared.register_forward_pre_hook(partial(read, "mx")))
    hooks.append(attention.mixed.register_forward_pre_hook(ungated))
    return hooks


def check_model(case: Case) -> None:
    """`megalodon/model`: tokens to logits, loss and every gradient."""
    model = megalodon.load(case.weights, case.config).eval()
    tokens, targets = read_text(case, "in.tokens"), case.read("in.targets")
    hold(
        case,
        model,
        tokens,
        lambda: model.init_state(len(tokens)),
        lambda logits: {"out.logits": logits},
        megalodon.published_state,
    )
    for lengths in cuts(case, tokens.shape[1], odd=3):
        model.zero_grad()
        state, parts = model.init_state(len(tokens)), []
        for piece in tokens.split(lengths, dim=1):
            logits, state = model(piece, state)
            parts.append(logits)
        loss = F.cross_entropy(torch.cat(parts, dim=1).flatten(0, 1), targets.flatten())
        case.compare("out.", {"loss": loss})
        loss.backward()
        grads = megalodon.published_gradients(model)
        case.compare("grad.w.", {"output.output.weight": grads["embed.weight"]} | grads)  # if tied


KINDS: dict[str, Callable[[Case], None]] = {
    "megalodon/cema": check_cema,
    "megalodon/layer": check_layer,
    "megalodon/model": check_model,
    "megalodon/timestepnorm": check_timestepnorm,
}
