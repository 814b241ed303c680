"""How whole language models of linear recurrences are held to their files."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from tests.golden.cases import Case
from tests.golden.kinds.fast_weights import cuts, ends
from zoo.models.published import rwkv


def check_model(case: Case) -> None:
    """`rwkv/model`: tokens to logits, loss, states and every gradient, however the text is cut."""
    hold_model(case, rwkv)
    case.expect(ctx_len=case.tensors["in/input_ids"].shape[1])


def hold_model(case: Case, loader: Any) -> None:
    """A language model that may be cut anywhere."""
    model = loader.load(case.weights, case.config).eval()
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    tokens, targets = case.read("in/input_ids"), case.read("in/target_ids")
    case.expect(batch=len(tokens))
    for lengths in cuts(case, tokens.shape[1]):
        for read in (model.segment, model.forward):
            model.zero_grad()
            state, outputs, done = model.init_state(len(tokens)), [], 0
            for piece in tokens.split(lengths, dim=1):
                logits, state = read(piece, state)
                outputs.append(logits)
                done += piece.shape[1]
                if done in ends(case):
                    case.compare(f"state/after_seg{ends(case)[done]}/", loader.published_state(state))
            logits = torch.cat(outputs, dim=1)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            case.compare("out/", {"logits": logits, "loss": loss})
            loss.backward()
            case.compare("grad/", loader.published_gradients(model))


KINDS: dict[str, Callable[[Case], None]] = {"rwkv/model": check_model}
