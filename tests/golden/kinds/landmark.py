"""How the kinds of Landmark attention are held to their files."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.cases import Case
from zoo.memory.retrieval.landmark_attention import BankState, grouped_softmax_loop
from zoo.models.published import landmark
from zoo.models.published.landmark import LandmarkInTable


def loaded(case: Case) -> LandmarkInTable:
    weights = {name: case.read(name) for name in list(case.tensors) if name.startswith("w/")}
    model = landmark.load({name[2:]: x for name, x in weights.items()}, case.config)
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    return model.eval()


def check_softmax(case: Case) -> None:
    """`landmark/grouped_softmax`: any flags, also blocks that are empty."""
    scores, flags = case.read("in/scores").clone().requires_grad_(), case.read("in/is_landmark")
    flags = flags[:, None]
    weights, p = grouped_softmax_loop(scores, flags)
    (weights * case.read("in/cotangent")).sum().backward()
    gates = p.new_zeros(*p.shape[:-1], case.config["max_groups_for_softmax"])
    for row, flagged in enumerate(flags[:, 0]):
        for group, position in enumerate(flagged.nonzero()[:, 0].tolist()):
            gates[row, ..., group] = p[row, ..., position]
        gates[row, ..., -1] = p[row][..., ~flagged].sum(-1)
    case.compare("out/", {"probs": weights, "row_sum": weights.sum(-1), "group_prob": gates})
    case.compare("grad/", {"scores": scores.grad})
    for results in case.matching("mid/.*"):  # the published table of groups, which we haven't
        case.read(results[0])


def with_landmarks(raw: list[int], freq: int, marker: int) -> list[int]:
    stream = []
    for position, token in enumerate(raw, 1):
        stream += [token, marker] if position % freq == 0 else [token]
    return stream


def check_train(case: Case) -> None:
    """`landmark/lm_train`: the stream and the targets made from the raw text, then the whole model."""
    config, model = case.config, loaded(case)
    marker, length = config["landmark_id"], config["sequence_length"]
    stream = with_landmarks(case.read("in/raw_tokens").tolist(), config["mem_freq"], marker)
    windows, asked = [], []
    for start in config["window_starts"]:
        window = stream[start : start + length + 2]
        after = [window[t + 1] if window[t + 1] != marker else window[t + 2] for t in range(length)]
        windows.append(window[:length])
        asked.append([-1 if window[t] in (marker, 50256) else after[t] for t in range(length)])
    made = {"stream_with_landmarks": stream, "tokens": windows, "targets": asked}
    case.compare("in/", {name: torch.tensor(indices, dtype=torch.int32) for name, indices in made.items()})

    tokens, targets = torch.tensor(windows), torch.tensor(asked)
    heard: list[Tensor] = []
    for block in model.stack:
        block.mixer.dropout.register_forward_hook(
            lambda _module, _read, outputs: heard.append(outputs.flatten(-2))
        )
    logits = model.read_window(tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    loss.backward()
    case.compare("out/", {"logits": logits, "loss": loss})
    missing = [max(config["mem_freq"] - [*window, marker].index(marker), 0) for window in windows]
    for layer, weights in enumerate(heard):  # over whole blocks: without what is missing before and behind
        rows = [row[..., begin : begin + length] for row, begin in zip(weights, missing, strict=True)]
        case.compare("out/", {f"attn_probs.{layer}": torch.stack(rows)})
    case.compare("grad/", landmark.published_gradients(model))


class Choices:
    """What every layer retrieved from the bank, segment after segment."""

    def __init__(self, model: LandmarkInTable) -> None:
        self.mixers: list[Any] = [block.mixer for block in model.stack]
        self.recorded: dict[int, Tensor] = {}
        self.closed = 0  # blocks before this segment
        for layer, mixer in enumerate(self.mixers):
            mixer.choose_blocks = partial(self.hear, layer, mixer.choose_blocks)

    def hear(self, layer: int, choose: Callable[..., Tensor], q: Tensor, state: BankState) -> Tensor:
        (self.closed,) = {read // self.mixers[layer].block_len for read in state.length.tolist()}
        self.recorded[layer] = choose(q, state)
        return self.recorded[layer]

    def named(self, layer: int, base: int | None = None) -> dict[str, Tensor]:
        """Under the files' names; `base` is where the open block stands, if not behind `topk + 1` blocks."""
        mixer, ids = self.mixers[layer], self.recorded[layer]
        block, size = mixer.block_len, mixer.num_blocks
        stored = min(self.closed, size)
        topk = min(mixer.topk, stored)
        assert (ids >= 0).sum(-1).eq(topk).all()
        ids = ids[..., mixer.topk - topk :]  # oldest first, behind those that aren't there
        rank = (ids - (size - topk) + 1).clamp(min=0)
        shift = 0 if base is None else base - (topk + 1) * block
        starts = (torch.arange(topk) + (rank > 0)) * block
        keys = starts[..., None] + torch.arange(block)
        ranks = (torch.arange(stored) - (stored - topk) + 1).clamp(min=0)
        block_ids = self.closed - size + ids
        named = {
            "block_id": block_ids,
            "slot": block_ids % size,
            "pos_rank": rank,
            "key_positions": keys.flatten(-2) + shift,
            "landmark_positions": ranks * block + block - 1 + shift,
        }
        return {name: indices.int() for name, indices in named.items()}


def compare_choices(case: Case, segment: int, choices: Choices, base: int | None = None) -> None:
    for layer in choices.recorded:
        for name, results in choices.named(layer, base).items():
            where = f"idx/seg{segment}/layer{layer}/{name}"
            if where in case and results.ndim > 1 and case.tensors[where].shape[2] == 1:
                results = results[:, :, :1]  # one choice for all queries
            case.compare("", {where: results})


def check_cache(case: Case) -> None:
    """`landmark/lm_cache`: segments of raw tokens, from embeddings with landmarks among them."""
    config, model = case.config, loaded(case)
    lengths, marker, freq = config["segments"], config["landmark_id"], config["mem_cache_freq"]
    tokens, state, done = case.read("in/tokens").long(), model.init_state(config["batch_size"]), 0
    choices = Choices(model)
    for segment, length in enumerate(lengths):
        rows = tokens[:, done : done + length]
        here = torch.full((len(rows),), done % freq)
        slots = length + (done % freq + length) // freq
        inserted, positions = model.insert_landmarks(rows, here, slots)
        flags = torch.ones(slots, dtype=torch.bool)
        flags[positions[0]] = False
        ids = torch.full((len(rows), slots), marker).scatter(1, positions, rows)
        assert torch.equal(inserted, model.embed(ids))
        case.compare(f"in/seg{segment}/", {"with_landmarks": ids.int()})

        hidden, state = model.body(case.read(f"in/seg{segment}/inputs_embeds"), state)
        logits = model.head(hidden[:, ~flags])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, done + 1 : done + length + 1].flatten())
        case.compare(f"out/seg{segment}/", {"logits": logits, "loss": loss})
        case.compare(f"state/seg{segment}/", landmark.published_state(state, model))
        if segment:
            compare_choices(case, segment, choices)
        done += length


def check_llama(case: Case) -> None:
    """`landmark/llama_cache`: chunks of tokens and landmarks, logits at landmarks too."""
    config, model = case.config, loaded(case)
    raw, done, read = case.read("in/raw_tokens"), 0, 0
    state, choices, block = model.init_state(len(raw)), Choices(model), config["mem_freq"] + 1
    for i_index in range(len(config["chunks"])):
        x, ids = (case.read(f"in/seg{i_index}/{name}") for name in ("inputs_embeds", "with_landmarks"))
        real = ids[0][ids[0] != config["mem_id"]]
        assert torch.equal(real, raw[0, done : done + len(real)])
        hidden, state = model.body(x, state)
        case.compare(f"out/seg{i_index}/", {"logits": model.head(hidden)})
        case.compare(f"state/seg{i_index}/", landmark.published_state(state, model))
        if i_index:
            compare_choices(case, i_index, choices, base=read // block * block)
        done, read = done + len(real), read + x.shape[1]
    case.compare("state/final/", landmark.published_state(state, model))


KINDS: dict[str, Callable[[Case], None]] = {
    "landmark/grouped_softmax": check_softmax,
    "landmark/lm_train": check_train,
    "landmark/lm_cache": check_cache,
    "landmark/llama_cache": check_llama,
}
