"""The laws on what can reach a position."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.interface import StatefulLM
from zoo.law_tools import TOLERANCE, different_text, random_text
from zoo.state import lazy_field_names

BF16_TOLERANCE = 1e-2  # between logits of the same kernels on the same values, which are mostly equal bits


def last_token_is_remembered(model: StatefulLM) -> None:
    """If the model remembers, the last token of a segment changes logits of the next one, in one of four
    texts, at their beginning and after 22 segments."""
    if not model.remembers:
        return
    size, text = model.segment_len, random_text(model, segments=24, rows=4)
    _, late = model(text[:, : 22 * size])
    for state, segments in ((model.init_state(4), 0), (late, 22)):
        tokens = text[:, segments * size : (segments + 2) * size]
        changed = tokens.clone()
        changed[:, size - 1] = different_text(model, tokens[:, size - 1])
        difference = (model(tokens, state)[0] - model(changed, state)[0])[:, size:].abs().max()
        assert difference > TOLERANCE, (
            f"logits of segment {segments + 1}: expected others after another token before it, found a"
            f" difference of {difference:.1e}"
        )


def reach_is_true(model: StatefulLM) -> None:
    """A changed token changes logits up to `reach` - 1 positions later and none after these.  With `reach`
    None a token of the first segment changes logits of the last, and all of these depend on the text before.

    The tokens of two segments are changed one by one.  With None the text has six segments, three if the
    state has lazy fields: a bank may be full after two.  With "unknown" nothing is promised.
    """
    reach, size = model.reach, model.segment_len
    if reach == "unknown":
        return
    if reach is None:
        _carries_further(model)
        return
    assert reach >= 1, f"reach: expected at least 1, the position itself, found {reach}"
    segments = 2 + -(-reach // size)  # so many that `reach` positions follow each changed token
    positions = torch.arange(0, 2 * size, max(1, size // 16))
    changes = changed_logits(model, random_text(model, segments, rows=1), positions)
    last = changes.shape[1] - 1 - changes.flip(1).int().argmax(1)
    measured = 1 + int((torch.where(changes.any(1), last, positions - 1) - positions).max())
    assert measured == reach, (
        f"reach: expected {measured}, since a changed token changes logits up to {measured - 1} positions"
        f" later, found {reach}"
    )


def _carries_further(model: StatefulLM) -> None:
    size, has_bank = model.segment_len, any(lazy_field_names(model.init_state(1)))
    text = random_text(model, segments=3 if has_bank else 6, rows=1)
    changes = changed_logits(model, text, torch.arange(size))[:, -size:]
    assert changes.any(), (
        f"reach=None: expected one of the first {size} tokens to change logits of the last {size} of"
        f" {text.shape[1]} positions, found none that does"
    )
    before, last = text[:, :-size], text[:, -size:]
    logits, others = model(torch.cat([text, torch.cat([different_text(model, before), last], dim=1)]))[0]
    same = ((logits - others)[-size:].abs().amax(-1) <= TOLERANCE).nonzero().flatten().tolist()
    assert not same, (
        f"reach=None: expected all logits of a segment to depend on the text before it, found the same at its"
        f" positions {', '.join(map(str, same))} after different texts"
    )


def bf16_is_causal(model: StatefulLM) -> None:
    """Under bf16 autocast, too, later tokens never change earlier logits, and rows don't depend on the rest
    of the batch.  What isn't finite is left to bf16_is_finite."""
    model.float()
    text, size = random_text(model, segments=2), model.segment_len
    logits = _read_in_bf16(model, text)
    for cut in (1, size, size + 2):
        changed = torch.cat([text[:, :cut], different_text(model, text[:, cut:])], dim=1)
        difference = (_read_in_bf16(model, changed) - logits)[:, :cut].abs().max()
        assert not difference > BF16_TOLERANCE, (
            f"logits in bf16 before token {cut} of a text changed from there on: expected the same, found a"
            f" difference of {difference:.1e}"
        )
    if model.training and model.mixes_rows_in_training:
        return
    others_changed = torch.cat([text[:1], different_text(model, text[1:])])
    difference = (_read_in_bf16(model, others_changed) - logits)[:1].abs().max()
    assert not difference > BF16_TOLERANCE, (
        f"logits in bf16 of a row beside different rows: expected the same, found a difference of"
        f" {difference:.1e}"
    )


def _read_in_bf16(model: StatefulLM, text: Int[Tensor, "rows time"]) -> Float[Tensor, "rows outputs vocab"]:
    with torch.autocast("cpu", torch.bfloat16):
        return model(text)[0].float()


def changed_logits(
    model: StatefulLM, text: Int[Tensor, "one time"], positions: Int[Tensor, " changed"]
) -> Bool[Tensor, "changed time"]:
    """For each position, where the logits change with the token there."""
    copies = text.repeat(1 + len(positions), 1)
    rows = 1 + torch.arange(len(positions))
    copies[rows, positions] = different_text(model, copies[rows, positions])
    logits = model(copies)[0]
    return (logits[1:] - logits[:1]).abs().amax(-1) > TOLERANCE
