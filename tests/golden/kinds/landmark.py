"""How the kinds of Landmark attention are held to their files."""

import re
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


def expect_groups(case: Case, landmarks: int) -> None:
    """The published table has a group for each landmark that a query may see, and one for the rest; with
    fewer its weights are wrong."""
    groups = case.config.get("max_groups_for_softmax", landmarks + 1)
    if groups <= landmarks:
        case.wrong.append(
            f"config field max_groups_for_softmax: expected at least {landmarks + 1}, found {groups}"
        )


def expect_segments(case: Case, computed: list[dict[str, int]]) -> None:
    """`per_segment`, of which a file may have any part."""
    listed = case.config.get("per_segment", [])
    names = {name for segment in listed for name in segment}
    case.expect(per_segment=[{name: segment.get(name) for name in names} for segment in computed])


def check_softmax(case: Case) -> None:
    """`landmark/grouped_softmax`: any flags, also blocks that are empty."""
    scores, flags = case.read("in/scores").clone().requires_grad_(), case.read("in/is_landmark")
    rows, heads, queries, keys = scores.shape
    case.expect(B=rows, H=heads, T=queries, S=keys, prefix=keys - queries)
    case.expect(landmark_positions=[row.nonzero()[:, 0].tolist() for row in flags])
    expect_groups(case, int(flags.sum(1).max()))
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

    case.expect(B=len(windows))
    case.expect_flag("tied", True)
    expect_groups(case, max(window.count(marker) for window in windows))
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
    choices, segments, block = Choices(model), list[dict[str, int]](), freq + 1
    for segment, length in enumerate(lengths):
        rows = tokens[:, done : done + length]
        here = torch.full((len(rows),), done % freq)
        slots = length + (done % freq + length) // freq
        inserted, positions = model.insert_landmarks(rows, here, slots)
        flags = torch.ones(slots, dtype=torch.bool)
        flags[positions[0]] = False
        ids = torch.full((len(rows), slots), marker).scatter(1, positions, rows)
        expect_groups(case, (min(done // freq, config["cache_topk"]) if segment else 0) + slots - length)
        assert torch.equal(inserted, model.embed(ids))
        case.compare(f"in/seg{segment}/", {"with_landmarks": ids.int()})

        hidden, state = model.body(case.read(f"in/seg{segment}/inputs_embeds"), state)
        logits = model.head(hidden[:, ~flags])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, done + 1 : done + length + 1].flatten())
        case.compare(f"out/seg{segment}/", {"logits": logits, "loss": loss})
        case.compare(f"state/seg{segment}/", landmark.published_state(state, model))
        if segment:
            compare_choices(case, segment, choices)
        closed, end = done // freq, done + length
        segments.append(
            {
                "seg": segment,
                "n_tokens": length,
                "n_with_landmarks": slots,
                "start_index": min(closed, config["cache_topk"] + 1) * block + done % freq,
                "cache_iter": end // freq % config["mem_cache_size"],
                "cache_size": end // freq,
                "last_incomplete_len": end % freq,
            }
        )
        done = end
    expect_segments(case, segments)


def compare_cache(case: Case, tag: str, state: Any, before: int) -> None:
    """LLaMA's cache after a segment; `before` it, so many positions had been read.

    An offloaded cache has what stood in closed blocks `before` apart, block by block, and its landmarks
    again; the segment's tokens are behind the block that was open.
    """
    block = case.config["mem_freq"] + 1
    full = before // block * block if case.config.get("offload_cache_to_cpu", False) else 0
    for match in case.matching(rf"state/{tag}/layer(\d+)/(.*)"):
        stored, name = landmark.stored_positions(state[int(match[1])]), match[2]
        positions = stored[1 if re.search(r"(^|_)v(al\w*)?(_|$)", name) else 0]
        blocks = positions[:, :, :full].unflatten(2, (-1, block))
        if re.search("incomplete|^cache_(?!mem)", name):
            part = positions[:, :, full:]
        elif re.search("nopos|landmark", name):
            part = blocks[:, :, :, -1]
        elif re.search("mem|offload|block", name):
            part = blocks if case.tensors[match[0]].ndim == 5 else blocks.flatten(2, 3)
        else:
            continue
        case.compare("", {match[0]: part})


def check_llama(case: Case) -> None:
    """`landmark/llama_cache`: chunks of tokens and landmarks, logits at landmarks too."""
    config, model = case.config, loaded(case)
    raw, done, read, before = case.read("in/raw_tokens"), 0, 0, 0
    case.expect(B=len(raw), rope="half-split, base 10000")
    state, choices, block = model.init_state(len(raw)), Choices(model), config["mem_freq"] + 1
    chunks, segments = list[int](), list[dict[str, int]]()
    for i_index in range(len(config["chunks"])):
        x, ids = (case.read(f"in/seg{i_index}/{name}") for name in ("inputs_embeds", "with_landmarks"))
        real = ids[0][ids[0] != config["mem_id"]]
        assert torch.equal(real, raw[0, done : done + len(real)])
        hidden, state = model.body(x, state)
        case.compare(f"out/seg{i_index}/", {"logits": model.head(hidden)})
        compare_cache(case, f"seg{i_index}", state, read)
        if i_index:
            compare_choices(case, i_index, choices, base=read // block * block)
        chunks.append(len(real))
        segments.append({"seg": i_index, "first_position": read, "n_with_landmarks": x.shape[1]})
        done, before, read = done + len(real), read, read + x.shape[1]
    compare_cache(case, "final", state, before)
    case.expect(chunks=chunks)
    expect_segments(case, segments)


KINDS: dict[str, Callable[[Case], None]] = {
    "landmark/grouped_softmax": check_softmax,
    "landmark/lm_train": check_train,
    "landmark/lm_cache": check_cache,
    "landmark/llama_cache": check_llama,
}
