"""What a trained run's memory does with one text: what it is worth, how long it lasts, what is read from it.

All but the last is measured of any model, through the interface alone:

    loss, reset    nats of a segment's targets with the memory of all before it, and with an empty one
    retention      |f(s) - f(s0)| / |s - s0| of the segment that takes state s to f(s), s0 the empty state:
                   the part of what was remembered before it that is left after it
    contribution   nats that the question's targets cost more if the segment isn't read
    reads          for models that store keys and values: the attention of the question's tokens to each of
                   the tokens before their segment, the mean over heads

The question is the targets of a sample, or those of a text's last segment.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from zoo.errors import UserError
from zoo.module import IGNORE, SequenceModule
from zoo.reads import Read, watched_reads
from zoo.state import State, contents, lazy_field_names, named_leaves
from zoo.train.evaluation.codec import Codec, run_codec
from zoo.train.evaluation.evaluate import load
from zoo.train.evaluation.options import EvalOptions, other_split_named
from zoo.train.runs.load import load_trained, silence_lightning
from zoo.train.runs.precision import ForwardContext, make_precision, precision_name
from zoo.train.runs.symbols import check_run_symbols
from zoo.train.tasks.base import Split

MAX_SEGMENTS = 256  # each is left out once, and all after it are read again


class InspectOptions(NamedTuple):
    run: Path
    checkpoint: str = "last"
    prompt: bytes | None = None
    """A text of the run's symbols, instead of a sample."""
    sample: int = 0
    split: Split = "test"
    task: str | None = None
    overrides: tuple[str, ...] = ()


class SegmentView(NamedTuple):
    start: int
    tokens: int
    loss: float | None
    """Nats per target; None without targets."""
    reset: float | None
    retention: float | None
    """None of the first segment, and of memories that store tokens, whose places in the state differ."""
    contribution: float | None
    """Nats per target of the question; None of segments that it stands in."""
    norms: dict[str, float]
    """The root mean square of each layer's state after the segment."""


class Text(NamedTuple):
    title: str
    tokens: Int[Tensor, " time"]
    targets: Int[Tensor, " time"]
    """IGNORE where there is none."""
    codec: Codec
    ask_last_segment: bool
    """The question is the targets of the last segment; otherwise all after the first segment."""


class Subject(NamedTuple):
    """A trained run and the text that it reads."""

    name: str
    model: SequenceModule
    tokens_seen: int
    forward_context: ForwardContext
    text: Text


class Inspection(NamedTuple):
    text: Text
    question: list[int]
    """Positions of the question's targets, that of token t being t - 1."""
    segments: list[SegmentView]
    reads: dict[str, Float[Tensor, "question time"]]
    """By layer; empty for models that don't store tokens."""
    diagnostics: dict[str, float]
    """The model's, of its memory after the text."""
    model: str = ""
    tokens_seen: int = 0
    """In training."""


def inspect_run(options: InspectOptions) -> Inspection:
    """Raises UserError for a run that can't be loaded, and for a text that it can't read or that is as short
    as a segment."""
    silence_lightning()
    subject = load_sample(options) if options.prompt is None else load_prompt(options)
    with subject.forward_context():
        inspection = inspect(subject.model, subject.text)
    return inspection._replace(model=subject.name, tokens_seen=subject.tokens_seen)


def load_sample(options: InspectOptions) -> Subject:
    chosen = EvalOptions(
        task=options.task, overrides=options.overrides, checkpoint=options.checkpoint, split=options.split
    )
    evaluation = load(options.run, chosen)
    model = evaluation.model
    with other_split_named():
        dataset = evaluation.task.split(options.split)
    if options.sample >= len(dataset.lengths):
        raise UserError(f"inspect: sample: expected 0 to {len(dataset.lengths) - 1}, found {options.sample}")
    length = int(dataset.lengths[options.sample])
    if evaluation.is_text:
        length = min(length, MAX_SEGMENTS * model.segment_len)
    tokens, targets = map(torch.from_numpy, dataset.window(options.sample, 0, length))
    title = f"{evaluation.task_name}, sample {options.sample} of the {options.split} split"
    codec = run_codec(evaluation.config, options.run, "inspect")
    return Subject(
        str(evaluation.config.names.model),
        model,
        evaluation.progress["tokens_seen"],
        evaluation.precision.forward_context,
        Text(title, tokens, targets, codec, evaluation.is_text),
    )


def load_prompt(options: InspectOptions) -> Subject:
    cfg, model, progress = load_trained(options.run, options.checkpoint, options.overrides)
    check_run_symbols(cfg, model, "inspect")
    codec = run_codec(cfg, options.run, "inspect")
    tokens = torch.tensor(codec.encode(options.prompt or b""))
    targets = F.pad(tokens[1:], (0, 1), value=IGNORE)
    return Subject(
        str(cfg.names.model),
        model,
        progress["tokens_seen"],
        make_precision(precision_name(cfg), model.device).forward_context,
        Text("a prompt", tokens, targets, codec, ask_last_segment=True),
    )


@torch.no_grad()
def inspect(model: SequenceModule, text: Text) -> Inspection:
    """Of a model in eval mode."""
    tokens, targets = text.tokens.to(model.device), text.targets.to(model.device)
    pieces = list(zip(tokens.split(model.segment_len), targets.split(model.segment_len), strict=True))
    if not 2 <= len(pieces) <= MAX_SEGMENTS:
        raise UserError(
            f"inspect: expected a text of 2 to {MAX_SEGMENTS} segments of {model.segment_len} tokens, found "
            f"{len(tokens)} tokens"
        )
    question = question_positions(targets, model.segment_len, text.ask_last_segment)
    states, losses, reads = [model.init_state(1)], [], []
    with watched_reads() as recorded:
        for piece, target in pieces:
            nats, state = read_segment(model, piece, target, states[-1])
            states.append(state)
            losses.append(nats)
            reads += recorded
            recorded.clear()
    segments = [_segment_view(model, pieces, states, losses, question, index) for index in range(len(pieces))]
    names = {module: name for name, module in model.named_modules()}
    maps = attention(reads, names, question, len(tokens))
    return Inspection(text, question, segments, maps, model.diagnostics(states[-1]))


def _segment_view(
    model: SequenceModule,
    pieces: list[tuple[Tensor, Tensor]],
    states: list[State],
    losses: list[Tensor],
    question: list[int],
    index: int,
) -> SegmentView:
    """Of the segment `index`; the text was read with `losses`, and `states` are those between its segments,
    the empty one first."""
    empty, before, after = states[0], states[index], states[index + 1]
    tokens, targets = pieces[index]
    reset_nats, alone = read_segment(model, tokens, targets, empty)
    contribution = None
    if index < question[0] // model.segment_len:
        without = loss_without(model, pieces[index + 1 :], before, index + 1, question)
        contribution = without - question_loss(torch.cat(losses), question)
    return SegmentView(
        start=index * model.segment_len,
        tokens=len(tokens),
        loss=mean_nats(losses[index]),
        reset=mean_nats(reset_nats),
        retention=state_retention(before, empty, after, alone) if index else None,
        contribution=contribution,
        norms=norms(after),
    )


def question_positions(targets: Tensor, segment_len: int, last_segment: bool) -> list[int]:
    positions = (targets != IGNORE).nonzero().flatten().tolist()
    if not positions or positions[-1] < segment_len:
        raise UserError(f"inspect: no target stands after the first segment of {segment_len} tokens")
    start = positions[-1] // segment_len * segment_len if last_segment else segment_len
    return [position for position in positions if position >= start]


def read_segment(
    model: SequenceModule, tokens: Tensor, targets: Tensor, state: State
) -> tuple[Tensor, State]:
    """Nats of the targets of one segment, NaN where there is none, and the state after it."""
    logits, state = model.segment(tokens[None], state)
    nats = F.cross_entropy(logits[0].float(), targets, ignore_index=IGNORE, reduction="none")
    return nats.masked_fill(targets == IGNORE, math.nan), state


def mean_nats(nats: Tensor) -> float | None:
    mean = float(nats.nanmean())
    return None if math.isnan(mean) else mean


def question_loss(nats: Tensor, question: list[int]) -> float:
    return float(nats[question].mean())


def loss_without(
    model: SequenceModule, pieces: list[tuple[Tensor, Tensor]], state: State, index: int, question: list[int]
) -> float:
    """The question's mean nats if the pieces, from the segment `index` on, are read from this state."""
    nats = []
    for piece, target in pieces:
        of_piece, state = read_segment(model, piece, target, state)
        nats.append(of_piece)
    return question_loss(torch.cat(nats), [position - index * model.segment_len for position in question])


def state_retention(before: State, empty: State, after: State, alone: State) -> float | None:
    if any(lazy_field_names(before)) or not contents(before):
        return None
    held = distance(before, empty)
    return distance(after, alone) / held if held > 0 else None


def distance(state: State, other: State) -> float:
    """The norm of the difference of all fields that are no counts."""
    pairs = zip(contents(state), contents(other), strict=True)
    return math.sqrt(sum(float((a - b).double().square().sum()) for a, b in pairs if a.is_floating_point()))


def norms(state: State) -> dict[str, float]:
    """The root mean square of the state by the first part of its tensors' names: a layer, where it has
    layers."""
    squares: dict[str, list[Tensor]] = {}
    for name, leaf in named_leaves(state):
        if leaf.is_floating_point() and leaf.numel():
            squares.setdefault(name.partition(".")[0], []).append(leaf.double().square().flatten())
    return {name: math.sqrt(float(torch.cat(parts).mean())) for name, parts in squares.items()}


def attention(
    reads: list[Read], names: dict[torch.nn.Module, str], question: list[int], time: int
) -> dict[str, Tensor]:
    """What the question's tokens read of each token, the mean over heads."""
    row_of = {position: row for row, position in enumerate(question)}
    maps: dict[str, Tensor] = {}
    for read in reads:
        mass = maps.setdefault(layer_name(names[read.layer]), torch.zeros(len(question), time))
        for column, query in enumerate(read.queries[0].tolist()):
            if query in row_of:
                tokens, of_query = read.tokens[0, :, column].cpu(), read.mass[0, :, column].float().cpu()
                stored = tokens >= 0
                share = of_query[stored] / len(tokens)
                mass[row_of[query]].index_add_(0, tokens[stored], share)
    return maps


def layer_name(module: str) -> str:
    """`layer 1` of `stack.1.mixer.knn`."""
    number = next((part for part in module.split(".") if part.isdecimal()), None)
    return module if number is None else f"layer {number}"
