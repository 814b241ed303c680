"""Laws on how a text is read: its logits, whatever its length, the cuts and the way."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.generation import greedy, stream_tokens
from zoo.interface import StatefulLM
from zoo.law_tools import (
    BATCH_SIZE,
    assert_close,
    assert_finite,
    assert_same_dtypes,
    continued_states,
    different_text,
    fast_forms,
    random_text,
    read_with_gradients,
    streaming_cuts,
)
from zoo.state import contents, named_leaves


def shapes(model: StatefulLM) -> None:
    """Logits for every token; every state tensor has the rows first and keeps its shape and dtype."""
    text, initial = random_text(model), model.init_state(BATCH_SIZE)
    logits, state = model(text)
    expected = (*text.shape, model.vocab_size)
    assert logits.shape == expected, f"logits: expected shape {expected}, found {tuple(logits.shape)}"
    for (name, leaf), (_, start) in zip(named_leaves(state), named_leaves(initial), strict=True):
        shape, start_shape = tuple(leaf.shape), tuple(start.shape)
        for source, actual in (("init_state's ", start_shape), ("", shape)):
            assert actual[:1] == (BATCH_SIZE,), (
                f"{source}state `{name}`: expected {BATCH_SIZE} rows first, found shape {actual}"
            )
        assert shape == start_shape, f"state `{name}`: expected shape {start_shape}, found {shape}"
    assert_same_dtypes(state, initial)


def odd_lengths(model: StatefulLM) -> None:
    """A text of one token, or with a short last segment, is a text like any other, and can be continued."""
    text = random_text(model)
    logits = model(text)[0]
    for length in (1, model.segment_len + 1, text.shape[1] - 1):
        prefix_logits, state = model(text[:, :length])
        assert_close(prefix_logits, logits[:, :length], f"logits of the first {length} tokens alone")
        continued = model(text[:, : model.segment_len], state)[0]
        assert_finite(continued, f"logits of a text that continues one of {length} tokens")


def causality(model: StatefulLM) -> None:
    """Later tokens never change earlier logits."""
    text = random_text(model)
    logits = model(text)[0]
    for cut in (1, model.segment_len, model.segment_len + 2, text.shape[1] - 1):
        changed = torch.cat([text[:, :cut], different_text(model, text[:, cut:])], dim=1)
        label = f"logits before token {cut} of a text changed from there on"
        assert_close(model(changed)[0][:, :cut], logits[:, :cut], label)


def streaming(model: StatefulLM) -> None:
    """Cutting a text in two at any segment boundary (anywhere if the model declares it) changes nothing."""
    text = random_text(model)
    logits, end = model(text)
    for cut in streaming_cuts(model, text.shape[1]):
        first, state = model(text[:, :cut])
        second, state = model(text[:, cut:], state)
        assert_close(torch.cat([first, second], dim=1), logits, f"logits of a text cut at token {cut}")
        assert_close(contents(state), contents(end), f"the state after a text cut at token {cut}")


def parallel_equals_fold(model: StatefulLM) -> None:
    """`forward` has the logits, the state and the gradients of the fold of `segment`, from an initial
    state, from that after a text, and from the same with a row reset.  So has `logits` of `hidden_segment`,
    if the model separates its projection."""
    text, size = random_text(model), model.segment_len
    after_text, partly_reset = continued_states(model)
    ragged = text[:, : 3 * size - min(3, size - 1)]
    cases = (ragged, partly_reset), (ragged, after_text), (text, None)
    is_fold = type(model).forward is StatefulLM.forward and model.parallel == "none"
    for tokens, state in cases[:1] if is_fold else cases:
        expected = read_with_gradients(model, model.fold, tokens, state)
        for form, read in fast_forms(model).items():
            actual = read_with_gradients(model, read, tokens, state)
            for part in expected:
                assert_close(actual[part], expected[part], f"{part} of {form}")


def generation_is_teacher_forcing(model: StatefulLM) -> None:
    """Token by token, the logits are those of the finished text read at once."""
    text, size = random_text(model, segments=3), model.segment_len  # 3 tokens where a segment has one
    for prompt_len, count in ((1, size + 3), (size, 3), (size + 2, size)):
        prompt = text[:, :prompt_len]
        logits: list[Tensor] = []

        def record(next_logits: Tensor, logits: list[Tensor] = logits) -> Tensor:
            logits.append(next_logits)
            return greedy(next_logits)

        generated = list(itertools.islice(stream_tokens(model, prompt, record), count))
        tokens = torch.cat([prompt, torch.stack(generated, dim=1)], dim=1)
        expected = model(tokens)[0][:, prompt_len - 1 : -1]
        assert_close(torch.stack(logits, dim=1), expected, "logits of generated tokens")


def bf16_is_finite(model: StatefulLM) -> None:
    """Under bf16 autocast logits, loss and gradients are finite, and the state keeps its dtypes."""
    model.float()
    text = random_text(model, segments=2)
    with torch.enable_grad():
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = model(text)
            logits, state = model(text, state)
            loss = F.cross_entropy(logits.float().flatten(0, 1), text.flatten())
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert_finite(logits, "logits")
    for (name, _), grad in zip(model.named_parameters(), grads, strict=True):
        if grad is not None:
            assert_finite(grad, f"the gradient of `{name}`")
    assert_same_dtypes(state, model.init_state(BATCH_SIZE))
    for name, leaf in named_leaves(state):
        assert_finite(leaf, f"state `{name}`")
