"""How the kinds of rotary positions, and of distances at test time, are held to their files."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from tests.golden.cases import Case
from zoo.memory.attention.core import Attention
from zoo.memory.attention.position_options import PositionOptions, position_options
from zoo.memory.attention.positions import Rope
from zoo.memory.attention.rotary_forms import ClexRope, XPos
from zoo.memory.attention.rotary_scaling import Frequencies, frequencies, plain_rates
from zoo.memory.attention.shifted_sparse import shifted_attention
from zoo.memory.attention.sliding_window import WindowAttention
from zoo.models.decoder import Decoder

SCALING_FIELDS = {
    "original": "trained",
    "long_factor": "long",
    "short_factor": "short",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "power": "exponent",
}


def options_of(method: Mapping[str, Any]) -> PositionOptions:
    keys = {SCALING_FIELDS.get(name, name): method[name] for name in method if name != "length"}
    return position_options(keys)


def check_scaled(case: Case) -> None:
    """`rope/scaled`: rates, temperature, rotation and its gradient by every method."""
    c, positions, cotangent = case.config, case.read("in/positions"), case.read("in/cotangent")
    rows, heads, time, width = case.read("in/x").shape
    case.expect(batch=rows, heads=heads, time=time, head_width=width)
    case.expect(pairing="half-split (i, i+d/2) of the first `rotated` features")
    for name in c["methods"]:
        method = c["methods"][name]
        context = method.get("length", method.get("original", 64))
        options = options_of(method).resolve(context)
        scaled = frequencies(width, options, context)
        x = case.read("in/x").clone().requires_grad_()
        rotated = Rope(options.base, frequencies=scaled).rotate(x, positions)
        (rotated * cotangent).sum().backward()
        scaled = scaled or Frequencies(tuple(plain_rates(width, options.base)))
        rates, factor = (torch.tensor(part, dtype=torch.float64) for part in scaled)
        case.compare(f"out/{name}/", {"rates": rates, "attention_factor": factor, "turned": rotated})
        case.compare(f"grad/{name}/", {"x": x.grad})


def check_clex(case: Case) -> None:
    """`rope/clex`: rates at several times, the network's gradients, angles of evaluation."""
    c, names = case.config, {"ode_up_proj": "up", "ode_down_proj": "down"}
    case.expect(activation="silu")
    d, length = c["head_width"], c["length"]
    clex = ClexRope(
        d,
        base=c["base"],
        trained=c["trained"],
        context=length,
        max_factor=c["max_factor"],
        expand=c["expand"],
        step_size=c["step"],
    ).double()
    clex.load_state_dict({names[name]: weight for name, weight in case.weights.items()})
    rates = torch.stack([clex.rates(float(t)) for t in c["times"]])
    (rates.log() * case.read("in/cotangent")).sum().backward()
    case.compare("out/", {"rates": rates})
    case.compare("grad/", {name: getattr(clex, ours).grad for name, ours in names.items()})
    one, zero = torch.ones(length, d // 2).double(), torch.zeros(length, d // 2).double()
    turned = clex.eval().rotate(torch.cat([one, zero], dim=-1), torch.arange(length))
    cos, sin = turned.chunk(2, dim=-1)
    case.compare("out/", {"cos": cos.repeat(1, 2), "sin": sin.repeat(1, 2)})


def check_xpos(case: Case) -> None:
    """`rope/xpos`: decay, scores and attention."""
    c = case.config
    q, k, v = (case.read(f"in/{name}").clone().requires_grad_() for name in "qkv")
    rows, heads, time, width = q.shape
    case.expect(batch=rows, heads=heads, time=time, head_width=width, pairing="interleaved (2i, 2i+1)")
    case.expect(scale="1/sqrt(head_width), inside out/scores")
    xpos, positions = XPos(c["base"], float(c["scale_base"])), torch.arange(time)
    mask = positions <= positions[:, None]
    y = xpos.attend(q, k, v, positions, positions, mask)
    (y * case.read("in/cotangent")).sum().backward()
    decay = xpos.decay(torch.tensor([c["scale_base"]]), q[..., :1, :])[0, ::2]
    scores = xpos.scores(q, k, positions, positions, mask).masked_fill(~mask, 0)
    case.compare("out/", {"decay": decay, "scores": scores, "y": y})
    case.compare("grad/", {"q": q.grad, "k": k.grad, "v": v.grad})


# -- one layer of attention


def load_layer(layer: Attention, case: Case, key: str = "k_proj") -> None:
    w = case.weights
    layer.double().load_state_dict(
        {
            "qkv.weight": torch.cat([w[f"{name}.weight"] for name in ("q_proj", key, "v_proj")]),
            "out_proj.weight": w["o_proj.weight"],
        },
        strict=False,
    )


def shape(case: Case) -> dict[str, Any]:
    """Arguments of the layer that the file's fields are."""
    c, (rows, time, width) = case.config, case.tensors["in/x"].shape
    case.expect(batch=rows, time=time, width=width, scale="1/sqrt(head_width)", pairing="half-split")
    return {"heads": c["heads"], "kv_heads": c["kv_heads"], "head_dim": c["head_width"], "context": time}


def compare_layer(
    case: Case, layer: Attention, read: Callable[[Tensor], Tensor], key: str = "k_proj"
) -> None:
    """Output and all gradients of a layer."""
    x = case.read("in/x").clone().requires_grad_()
    y = read(x)
    (y * case.read("in/cotangent")).sum().backward()
    case.compare("out/", {"y": y})
    grad = layer.qkv.weight.grad
    assert grad is not None
    q, k, v = grad.split([layer.heads * layer.head_dim, *[layer.kv_heads * layer.head_dim] * 2])
    grads = {"q_proj.weight": q, f"{key}.weight": k, "v_proj.weight": v}
    case.compare("grad/", {"x": x.grad, **grads, "o_proj.weight": layer.out_proj.weight.grad})


def check_attention(case: Case, position: Mapping[str, Any], key: str = "k_proj") -> None:
    """A layer with these positions, at once and from its cache token by token."""
    keys = {"base": case.config["base"], **position}
    layer = Attention(case.tensors["in/x"].shape[2], position=keys, **shape(case)).eval()
    load_layer(layer, case, key)
    compare_layer(case, layer, lambda x: layer(x, ())[0], key)
    x, cache = case.read("in/x"), ()
    for token in range(x.shape[1]):
        y, cache = layer.decode(x[:, token : token + 1], cache)
        torch.testing.assert_close(y, case.tensors["out/y"][:, token : token + 1], rtol=1e-9, atol=1e-9)


def check_self_extend(case: Case) -> None:
    """`attention/self_extend`: grouped distances beyond the neighbours."""
    c = case.config
    case.expect(shift="neighbours - neighbours // group", scale_base=None)
    check_attention(case, {"far": "grouped", "near": c["neighbours"], "group": c["group"]})


def check_rerope(case: Case) -> None:
    """`attention/rerope`: capped and leaky distances, with log-n."""
    c = case.config
    far = {"far": "capped"} if c["factor"] is None else {"far": "leaky", "group": c["factor"]}
    check_attention(case, {**far, "near": c["window"], "log_n": True, "trained": c["trained"]})


def check_lm_infinite(case: Case) -> None:
    """`attention/lm_infinite`: a window with sinks at one distance, or capped distances."""
    c = case.config
    case.expect(limit=c["local"])
    position = {"far": "capped", "near": c["local"]}
    if not c["mask"]:
        case.ignore("global")
        check_attention(case, position)
        return
    window, sinks = c["local"], c["global"]
    keys = {"base": c["base"], **position}
    layer = WindowAttention(c["width"], window=window, sinks=sinks, position=keys, **shape(case)).eval()
    load_layer(layer, case)
    for piece in (1, 5, case.tensors["in/x"].shape[1]):
        layer.zero_grad()
        compare_layer(case, layer, lambda x, piece=piece: in_pieces(layer, x, piece)[0])


def check_streaming(case: Case) -> None:
    """`attention/streaming`: sinks and a window, and what they have stored."""
    c = case.config
    window, sinks = c["recent"] + 1, c["sinks"]
    layer = WindowAttention(
        c["width"], window=window, sinks=sinks, position={"base": c["base"]}, **shape(case)
    ).eval()
    load_layer(layer, case)
    for piece in (1, 4, case.tensors["in/x"].shape[1]):
        layer.zero_grad()
        compare_layer(case, layer, lambda x, piece=piece: in_pieces(layer, x, piece)[0])
    for read in c["states"]:
        state, recent = in_pieces(layer, case.read("in/x")[:, :read], 3)[1], min(read - sinks, c["recent"])
        for name, parts in (
            ("keys", (state.sink_keys, state.keys[:, :, -recent:])),
            ("values", (state.sink_values, state.values[:, :, -recent:])),
        ):
            case.compare(f"state/after_{read}/", {name: torch.cat(parts, dim=2)})


def in_pieces(layer: WindowAttention, x: Tensor, piece: int) -> tuple[Tensor, Any]:
    state, outputs = layer.init_state(len(x)), []
    for part in x.split(piece, dim=1):
        y, state = layer(part, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def check_shifted_sparse(case: Case) -> None:
    """`attention/shifted_sparse`: the heads' groups, and the layer in training."""
    c = case.config
    arguments = shape(case)
    groups = arguments["context"] // c["group"]
    layer = Attention(c["width"], position={"base": c["base"]}, shifted=groups, **arguments).train()
    load_layer(layer, case)
    compare_layer(case, layer, lambda x: layer(x, ())[0])
    q, k, v = layer.project(case.read("in/x"))
    q, k = (layer.positions.rotate(part, range(q.shape[2])) for part in (q, k))
    y = rearrange(shifted_attention(q, k, v, c["group"]), "b h t k -> b t (h k)")
    torch.testing.assert_close(layer.out_proj(y), case.tensors["out/y"], rtol=1e-9, atol=1e-9)


def check_coca(case: Case) -> None:
    """`attention/coca`: keys that are collinear with the query."""
    case.expect(scaling=None)
    check_attention(case, {"kind": "coca"}, key="t_proj")


def check_llama(case: Case) -> None:
    """`positions/llama`: a whole LLaMA with scaled positions, with all its gradients."""
    c, rope = case.config, case.config["rope_parameters"]
    case.expect(tie_word_embeddings=True, rms_norm_eps=1e-6)
    names = {"rope_type": "scaling", "rope_theta": "base", "original_max_position_embeddings": "trained"}
    position = {names.get(name, name): rope[name] for name in rope}
    depth, tokens = c["num_hidden_layers"], case.read("in/input_ids")
    case.expect(batch=len(tokens), time=tokens.shape[1])
    mixers = [
        Attention(
            c["hidden_size"],
            c["num_attention_heads"],
            kv_heads=c["num_key_value_heads"],
            head_dim=c["head_dim"],
            position=position,
            context=c["max_position_embeddings"],
        )
        for _ in range(depth)
    ]
    model = Decoder(
        c["vocab_size"],
        c["max_position_embeddings"],
        c["hidden_size"],
        mixers,
        mlp_width=c["intermediate_size"],
    ).double()
    rows, weights = rows_of_ours(model, depth), case.weights
    ours = {name: torch.cat([weights[part] for part in parts]) for name, parts in rows.items()}
    model.load_state_dict(ours, strict=False)
    assert ours.keys() == dict(model.named_parameters()).keys()
    logits, _ = model(tokens)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    (scaled,) = {mixer.positions.frequencies for mixer in mixers if isinstance(mixer.positions, Rope)}
    assert scaled is not None
    rates, factor = (torch.tensor(part, dtype=torch.float64) for part in scaled)
    case.compare("out/", {"logits": logits, "loss": loss, "rates": rates, "attention_factor": factor})
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        sizes = [len(weights[part]) for part in rows[name]]
        case.compare("grad/", dict(zip(rows[name], weight.grad.split(sizes), strict=True)))


LLAMA = {
    "self_attn": {"mixer.qkv": ("q_proj", "k_proj", "v_proj"), "mixer.out_proj": ("o_proj",)},
    "mlp": {"mlp.in_proj": ("gate_proj", "up_proj"), "mlp.out_proj": ("down_proj",)},
}
"""Our weights of a block, and those of LLaMA's that are their rows."""


def rows_of_ours(model: Decoder, depth: int) -> dict[str, list[str]]:
    """{our weight: LLaMA's, whose rows it has one after another}."""
    names = {"embed.weight": ["model.embed_tokens.weight"], "norm.weight": ["model.norm.weight"]}
    blocks = [name.removesuffix(".mixer.qkv.weight") for name, _ in model.named_parameters() if "qkv" in name]
    for layer, block in zip(range(depth), blocks, strict=True):
        theirs = f"model.layers.{layer}"
        for part, ours in LLAMA.items():
            for name, projections in ours.items():
                names[f"{block}.{name}.weight"] = [f"{theirs}.{part}.{p}.weight" for p in projections]
        norms = [name for name, _ in model.named_parameters() if name.startswith(block) and "norm" in name]
        for name, norm in zip(norms, ("input_layernorm", "post_attention_layernorm"), strict=True):
            names[name] = [f"{theirs}.{norm}.weight"]
    return names


KINDS: dict[str, Callable[[Case], None]] = {
    "rope/scaled": check_scaled,
    "rope/clex": check_clex,
    "rope/xpos": check_xpos,
    "attention/self_extend": check_self_extend,
    "attention/rerope": check_rerope,
    "attention/lm_infinite": check_lm_infinite,
    "attention/streaming": check_streaming,
    "attention/shifted_sparse": check_shifted_sparse,
    "attention/coca": check_coca,
    "positions/llama": check_llama,
}
