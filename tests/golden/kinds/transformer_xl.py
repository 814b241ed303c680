"""How the kinds of Transformer-XL, and of RMT on it, are held to their files."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden.cases import Case
from tests.golden.kinds.recurrence import Reading, check_model, never
from zoo.memory.attention.relative import RelativeAttention, XLCache
from zoo.models.blocks import FeedForward, sinusoid
from zoo.models.published import rmt, transformer_xl
from zoo.models.published.weights import fill, gradients, same
from zoo.models.transformer_xl import XLLayer


def time_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def check_xl(case: Case, loader: Any) -> None:
    """`transformer_xl/model` and `rmt/xl_model`."""
    model = loader.load(case.weights, case.config)
    pieces, targets = (
        [
            time_first(case.read(f"in/seg{index}/{part}"))
            for index in range(len(case.matching(rf"in/seg\d+/{part}")))
        ]
        for part in ("input_ids", "target_ids")
    )

    lengths = [piece.shape[1] for piece in pieces]
    case.expect(batch=len(pieces[0]), n_seg=len(pieces), seg_lens=lengths)
    case.expect_flag("tied", case.config.get("tie_weight", True))
    assert max(lengths) <= model.segment_len, f"config field tgt_len: expected at least {max(lengths)}"
    if case.config.get("disjoint_tokens_per_segment"):
        tokens = [set(piece.flatten().tolist()) for piece in pieces]
        assert len(set[int]().union(*tokens)) == sum(map(len, tokens)), "segments have tokens in common"

    def losses(logits: list[Tensor]) -> dict[str, Tensor]:
        nll = [
            F.cross_entropy(segment_logits.mT, asked, reduction="none")
            for segment_logits, asked in zip(logits, targets, strict=True)
        ]
        per_segment = {f"seg{index}": each_nll.mean() for index, each_nll in enumerate(nll)}
        loss = torch.stack(list(per_segment.values())).mean()
        return (
            per_segment
            | {f"seg{index}/nll": time_first(each_nll) for index, each_nll in enumerate(nll)}
            | {f"{name}/loss": value for name, value in per_segment.items()}
            | {"loss": loss, "mean_loss": loss, "last_segment_loss": nll[-1].mean()}
        )

    check_model(case, model, pieces, losses, loader.published_state, loader.published_gradients, time_first)

    # the published code's last memory, which nothing reads: the last layer's outputs
    reading = Reading(model, pieces, model.init_state(len(pieces[0])), never)
    last, depth = f"layer{len(model.layers) - 1}_out", len(model.layers)
    outputs = torch.cat([parts[last] for parts in reading.parts], dim=1)
    for index in range(len(pieces)):
        until = sum(before[last].shape[1] for before in reading.parts[: index + 1])
        kept = outputs[:, max(0, until - model.memory_len) : until]
        case.compare(f"state/after_seg{index}/", {f"mems{depth}": time_first(kept)})


def check_layer(case: Case) -> None:
    """`transformer_xl/layer`: one layer from given inputs and memory; the whole model stops its gradient."""
    config = case.config
    heads, head_dim, memory_len = config["n_head"], config["d_head"], max(config["mem_len"], config["mlen"])
    biases = [nn.Parameter(torch.empty(heads, head_dim)) for _ in range(2)]
    width, prenorm, same_length = config["d_model"], config["pre_lnorm"], config["same_length"]
    dropout, attention_dropout = (
        config.get("dropout", 0.0),
        config.get("dropatt", 0.0),
    )  # in evaluation: unseen
    attention = RelativeAttention(
        width,
        heads,
        head_dim,
        memory_len,
        *biases,
        prenorm=prenorm,
        same_length=same_length,
        dropout=dropout,
        attention_dropout=attention_dropout,
    )
    layer = XLLayer(attention, FeedForward(width, config["d_inner"], "relu", True), width, prenorm).eval()
    table = transformer_xl.LAYER | {
        "r_w_bias": ("attention.content_bias", same),
        "r_r_bias": ("attention.position_bias", same),
    }
    fill(layer, case.weights, table)

    w, mems = (case.read(f"in/{name}").requires_grad_() for name in ("w", "mems"))
    (queries, rows), kept = w.shape[:2], len(mems)
    case.expect(batch=rows, qlen=queries, mlen=kept)
    hidden = F.pad(time_first(mems), (0, 0, memory_len - kept, 0))
    state = XLCache(hidden, torch.full((rows,), kept))
    distances = torch.arange(memory_len + queries - 1, -1, -1)
    if config["clamp_len"] > 0:
        distances = distances.clamp(max=config["clamp_len"])
    positions = sinusoid(distances, width, w)
    visible = attention.attention_mask(state, 1, queries)[0, 0, :, memory_len - kept :]
    case.compare("in/", {"r": positions[memory_len - kept :, None], "attn_mask": (~visible).to(torch.uint8)})

    hooked: dict[str, Tensor] = {}
    attention.out_proj.register_forward_hook(
        lambda _, read, out: hooked.update(attn_vec=time_first(read[0]), attn_out_proj=time_first(out))
    )
    attention.attention_dropout.register_forward_hook(
        lambda _, __, out: hooked.update(attn_prob=out[..., memory_len - kept :].permute(2, 3, 0, 1))
    )
    attention.register_forward_hook(lambda _, __, out: hooked.update(attn_block_out=time_first(out[0])))
    out = time_first(layer(time_first(w), state, positions, queries)[0])
    loss = (out * case.read("in/cotangent")).sum()
    case.compare("out/", {"layer_out": out, "loss": loss} | hooked)
    loss.backward()
    case.compare(
        "grad/",
        gradients(layer, table) | {"w": w.grad, "mems": mems.grad},
    )


KINDS: dict[str, Callable[[Case], None]] = {
    "transformer_xl/layer": check_layer,
    "transformer_xl/model": partial(check_xl, loader=transformer_xl),
    "rmt/xl_model": partial(check_xl, loader=rmt),
}
