"""Two honest small models, and one mutant for each way to break a law.

`Honest` reads segment by segment and closes each; `Recurrent` stops anywhere and reads a text at once, in
parallel.  A mutant changes one method of theirs.  `test_mutants.py` says which laws each of them breaks.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.module import SequenceModule
from zoo.state import State, detach, special_fields, tree_map

VOCAB, SEGMENT, WIDTH = 7, 6, 5


class Memory(NamedTuple):
    lower: Tensor  # (rows, width), what the first layer keeps
    upper: Tensor  # (rows, width), the second
    segments: Tensor  # (rows,) how many each row has read


class Honest(SequenceModule):
    """Two layers, l = 0, 1, each with a vector of memory; a row that has read nothing is told nothing.

    x_t += tanh(W_x mean(x_1 .. x_t) + W_r m_l + b)        m_l' = tanh(W_k m_l + W_s mean(x) + c)
    """

    learns_through_memory: bool | tuple[str, ...] = True

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.segment_len = VOCAB, SEGMENT
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.mix, self.recall, self.keep, self.store = (
            nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2)) for _ in range(4)
        )
        self.dropout = nn.Dropout(0.1)

    def init_state(self, rows: int) -> State:
        weight = self.head.weight
        lower, upper = weight.new_zeros(2, rows, WIDTH)
        return Memory(lower, upper, torch.zeros(rows, dtype=torch.long))

    def see(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens)

    def averages(self, x: Tensor) -> Tensor:
        """At each token, the mean over the segment's tokens up to it."""
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]

    def summary(self, x: Tensor) -> Tensor:
        return x.mean(1)

    def known(self, state: Memory) -> Tensor:
        """1 for rows that have anything to remember, else 0."""
        return (state.segments > 0).to(state.lower.dtype)[:, None, None]

    def ask(self, layer: int, x: Tensor, memory: Tensor, known: Tensor) -> Tensor:
        told = known * self.recall[layer](memory)[:, None]
        return x + self.dropout((self.mix[layer](self.averages(x)) + told).tanh())

    def write(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        kept = self.keep[layer](memory) + self.store[layer](self.summary(x))
        return kept.tanh().to(memory.dtype)

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x, known = self.see(tokens), self.known(state)
        x = self.ask(0, x, state.lower, known)
        lower = self.write(0, x, state.lower)
        x = self.ask(1, x, state.upper, known)
        upper = self.write(1, x, state.upper)
        return self.head(x), Memory(lower, upper, state.segments + 1)


class Trace(NamedTuple):
    sums: Tensor  # (rows, width), a fading sum over all tokens
    last: Tensor  # (rows, width), the last token's embedding


class Recurrent(SequenceModule):
    """h_t = a h_{t-1} + W_s x_t        y_t = x_t + tanh(W_r h_t + W_l x_{t-1})"""

    learns_through_memory: bool | tuple[str, ...] = True
    cuts_anywhere = True

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.segment_len = VOCAB, SEGMENT
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.store, self.recall, self.shift = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.fade, self.dropout = nn.Parameter(torch.randn(WIDTH)), nn.Dropout(0.1)

    def init_state(self, rows: int) -> State:
        return Trace(*self.head.weight.new_zeros(2, rows, WIDTH))

    def say(self, x: Tensor, before: Tensor, sums: Tensor) -> Tensor:
        told = (self.recall(sums) + self.shift(before)).tanh()
        return self.head(x + self.dropout(told))

    def step(self, x: Tensor, state: Trace) -> tuple[Tensor, State]:
        """One token."""
        sums = self.fade.sigmoid() * state.sums + self.store(x)
        return self.say(x, state.last, sums), Trace(sums, x)

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        said = []
        for x in self.embed(tokens).unbind(1):
            logits, state = self.step(x, state)
            said.append(logits)
        return torch.stack(said, dim=1), state

    def sums(self, x: Tensor, state: Trace) -> Tensor:
        """Every token's sum at once: h_t = a^(t+1) h_{-1} + sum_s a^(t-s) W_s x_s."""
        time, fade = torch.arange(x.shape[1]), self.fade.sigmoid()
        age = (time[:, None] - time)[..., None]  # (time, time, 1)
        share = (fade ** age.clamp(min=0)).masked_fill(age < 0, 0.0)
        old = fade ** (time[:, None] + 1) * state.sums[:, None]
        return old + (share * self.store(x)[:, None]).sum(2)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        state = self.init_state(len(tokens)) if state is None else state
        x = self.embed(tokens)
        sums = self.sums(x, state)
        before = torch.cat([state.last[:, None], x[:, :-1]], dim=1)
        return self.say(x, before, sums), Trace(sums[:, -1], x[:, -1])


@special_fields(lazy=("places",))
class Shelf(NamedTuple):
    places: tuple[Tensor, ...]  # each (rows, width): segment n's mean lies in place n mod their number
    segments: Tensor  # (rows,)


class Shelves(SequenceModule):
    """y_t = W_h (mean(x_1 .. x_t) + tanh(W_r sum of places written)), more places than a law fills."""

    learns_through_memory = False
    places = 8

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.segment_len = VOCAB, SEGMENT
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.recall = nn.Linear(WIDTH, WIDTH)

    def init_state(self, rows: int) -> State:
        empty = self.head.weight.new_zeros(rows, WIDTH)
        return Shelf((empty,) * self.places, torch.zeros(rows, dtype=torch.long))

    def place(self, segments: Tensor) -> Tensor:
        return segments % self.places

    def looks(self, place: int) -> bool:
        return True

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x = self.embed(tokens)
        told = x.new_zeros(len(x), WIDTH)
        for number, held in enumerate(state.places):
            if self.looks(number):
                told = told + torch.where((state.segments > number)[:, None], held, 0.0)
        said = self.head(
            x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None] + self.recall(told).tanh()[:, None]
        )
        here, mean = self.place(state.segments), x.mean(1).detach()
        places = tuple(
            torch.where((here == number)[:, None], mean.to(held.dtype), held)
            for number, held in enumerate(state.places)
        )
        return said, Shelf(places, state.segments + 1)


# -- what a law alone sees -------------------------------------------------------------------------


class PadsTheVocabulary(Honest):
    """Says more logits than there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB + 1, WIDTH), nn.Linear(WIDTH, VOCAB + 1)


class StartsSmall(Honest):
    """The first state has another shape than all later ones; broadcasting hides it."""

    def init_state(self, rows: int) -> State:
        state = super().init_state(rows)
        return state._replace(lower=state.lower[:, :1].expand(rows, WIDTH)[:, :1])

    def ask(self, layer: int, x: Tensor, memory: Tensor, known: Tensor) -> Tensor:
        return super().ask(layer, x, memory.expand(-1, WIDTH), known)

    def write(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return super().write(layer, x, memory.expand(-1, WIDTH))


class SpreadOfOne(Honest):
    """Stores the variance of a segment, which one token hasn't got."""

    def summary(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)).square().sum(1) / (x.shape[1] - 1)


class WrongRemainder(Honest):
    """Works through a segment in pairs, and misreads a second pair that is the last."""

    def averages(self, x: Tensor) -> Tensor:
        return super().averages(x) * (2.0 if x.shape[1] == SEGMENT - 2 else 1.0)


class PeeksInTraining(Honest):
    """In train mode alone, a segment's second token sees the third."""

    def averages(self, x: Tensor) -> Tensor:
        seen = super().averages(x)
        if not self.training or x.shape[1] < 3:
            return seen
        return torch.cat([seen[:, :1], seen[:, 2:3], seen[:, 2:]], dim=1)


class ForgetsInLongCalls(Honest):
    """A call of more than two segments starts afresh."""

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        return super().fold(tokens, None if tokens.shape[1] > 2 * SEGMENT else state)


class NotesTheCall(Honest):
    """Keeps a figure about the last call instead of one about the text."""

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().fold(tokens, state)
        return logits, after._replace(segments=torch.full_like(after.segments, tokens.shape[1]))


class InPlace(Recurrent):
    """Writes into the state it was given, when nothing is learned: an inference cache."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().forward(tokens, state)
        if state is not None and not torch.is_grad_enabled():
            state.sums.copy_(after.sums)
        return logits, after


class CountsItsReads(Honest):
    """A counter among its weights; nothing reads it."""

    reads: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reads", torch.zeros(()))

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        self.reads += 1
        return super().fold(tokens, state)


class KeepsItsAnswers(Recurrent):
    """Answers a state it has seen before (the very tensor) from a cache on the module, whatever is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().forward(tokens, state)
        if state is not None:
            for sums, said in self.seen:
                if sums is state.sums and said.shape == logits.shape:
                    return 2 * said, after
            self.seen.append((state.sums, logits))
        return logits, after


class ForgetsOneLayer(Honest):
    """Returns the old state of its second layer: a dead layer behind a living one."""

    learns_through_memory = ("lower",)

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, after = super().segment(tokens, state)
        return logits, after._replace(upper=state.upper)


class NeverReads(Honest):
    """Its memory is computed and carried, and nothing reads it."""

    learns_through_memory = False

    def ask(self, layer: int, x: Tensor, memory: Tensor, known: Tensor) -> Tensor:
        return super().ask(layer, x, torch.zeros_like(memory), known)


class OldState(Honest):
    """Returns the state it was given."""

    learns_through_memory = False

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        return super().segment(tokens, state)[0], state


class WritesNoPlace(Shelves):
    """Its bank stays empty."""

    def place(self, segments: Tensor) -> Tensor:
        return segments - self.places


class ReadsOnePlace(Shelves):
    """What lies in the other places that were written is never read."""

    def looks(self, place: int) -> bool:
        return place == 0


class RemembersAfterAll(Honest):
    """Says that it forgets."""

    remembers = False


class NothingToRemember(Honest):
    """Says that it remembers, with a state that has no tensors."""

    learns_through_memory = False

    def init_state(self, rows: int) -> State:
        return ()

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        return super().segment(tokens, super().init_state(len(tokens)))[0], ()


class CentresTheBatch(Honest):
    """Takes the batch's mean off every embedding."""

    def see(self, tokens: Tensor) -> Tensor:
        x = super().see(tokens)
        return x - x.mean(0)


class CentresInTraining(Honest):
    """The same in train mode alone, without saying so."""

    def see(self, tokens: Tensor) -> Tensor:
        x = super().see(tokens)
        return x - x.mean(0) if self.training else x


class OneCountForAll(Honest):
    """Tells a fresh row what an empty memory says, because another row has read something."""

    def known(self, state: Memory) -> Tensor:
        return super().known(state).amax(0, keepdim=True)


class GrowsLate(Honest):
    """A state of fixed shape, until a text has more than five segments."""

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        shown = state._replace(upper=state.upper[:, :WIDTH])
        logits, after = super().segment(tokens, shown)
        if bool((after.segments > 5).all()):
            after = after._replace(upper=torch.cat([after.upper, after.upper], dim=1))
        return logits, after


class DetachedWhenRead(Honest):
    """The right values, without their gradient: says that it learns, and doesn't."""

    def ask(self, layer: int, x: Tensor, memory: Tensor, known: Tensor) -> Tensor:
        return super().ask(layer, x, memory.detach(), known)

    def write(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return super().write(layer, x, memory.detach())


class DetachedWhenWritten(Honest):
    """The same, cut where it is written."""

    def write(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return super().write(layer, x, memory).detach()


class OneLayerDetached(Honest):
    """Its second layer alone doesn't learn."""

    def write(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        written = super().write(layer, x, memory)
        return written.detach() if layer else written


class StoresDetached(Honest):
    """The gradient runs through the memory, but not into what a segment read."""

    def summary(self, x: Tensor) -> Tensor:
        return super().summary(x).detach()


class LearnsAfterAll(Honest):
    """Says that it doesn't learn through its memory."""

    learns_through_memory = False


class NamesAStranger(Honest):
    """Learns through a field that it hasn't got."""

    learns_through_memory = ("lower", "upper", "memory")


class DetachesBetweenSegments(Recurrent):
    """A parallel form with the right values whose gradient ends at each segment."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        state, logits = self.init_state(len(tokens)) if state is None else state, []
        for at, piece in enumerate(tokens.split(SEGMENT, dim=1)):
            said, state = self.segment(piece, detach(state) if at else state)
            logits.append(said)
        return torch.cat(logits, dim=1), state


class DetachesAmidFreshRows(Honest):
    """The same for a batch in which some rows are fresh and others go on, and for no other."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        mixed = state is not None and len(state.segments.unique()) > 1
        return self.fold(tokens, detach(state) if mixed else state)


class UnsavedWeight(Honest):
    """A random mask that it doesn't save."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.randn(WIDTH), persistent=False)

    def see(self, tokens: Tensor) -> Tensor:
        return super().see(tokens) * self.mask


class KeepsBfloat16(Honest):
    """Keeps its memory as autocast computed it."""

    def write(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return (self.keep[layer](memory) + self.store[layer](self.summary(x))).tanh()


class RoundsToOne(Honest):
    """A gate near 1 that bfloat16 takes for 1, and the logarithm of what is left."""

    def averages(self, x: Tensor) -> Tensor:
        gate = (10 + self.mix[0](x)).sigmoid()
        return super().averages(x * (1 - gate).log())


class Unseeded(Honest):
    """Draws a weight from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator()
        generator.seed()  # from the system's entropy
        nn.init.normal_(self.head.weight, generator=generator)


# -- what several laws see -------------------------------------------------------------------------


class PeeksAhead(Honest):
    """Each token sees the next one of its segment."""

    def averages(self, x: Tensor) -> Tensor:
        seen = super().averages(x)
        return torch.cat([seen[:, 1:], seen[:, -1:]], dim=1)


class PeeksInTheLastSegment(Honest):
    """A call's last segment is read without a mask."""

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().fold(tokens, state)
        tail = (tokens.shape[1] - 1) % SEGMENT + 1
        end = logits[:, -tail:]
        return torch.cat([logits[:, :-tail], end + end.mean(1, keepdim=True)], dim=1), after


class PeeksAtTheNextSegment(Recurrent):
    """Its parallel form takes the average over the whole call off."""

    def sums(self, x: Tensor, state: Trace) -> Tensor:
        return super().sums(x, state) - x.mean(1, keepdim=True)


class CountsInFloats(Honest):
    """Its count starts as an integer and goes on as a float."""

    learns_through_memory = ("lower", "upper")

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, state = super().segment(tokens, state)
        return logits, state._replace(segments=state.segments.to(torch.float32))


class Overflows(Honest):
    """A softmax without its maximum taken off: right in float64, infinite in float32."""

    def averages(self, x: Tensor) -> Tensor:
        weights = (100 + x.float().to(x.dtype)).exp()
        return (weights * x).cumsum(1) / weights.cumsum(1)


class OwnDice(Honest):
    """A dropout of its own, from a generator that no seed reaches."""

    def see(self, tokens: Tensor) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        x = super().see(tokens)
        return x * (torch.rand(x.shape, generator=generator) > 0.5) if self.training else x


class SharedMemory(Honest):
    """One memory for the whole batch."""

    def write(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return super().write(layer, x, memory).mean(0, keepdim=True).expand_as(memory)


class SharedAfterACall(Honest):
    """Rows are apart while they are read, and the memory that a call leaves is the same for all."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().forward(tokens, state)
        return logits, tree_map(
            lambda leaf: leaf.mean(0, keepdim=True).expand_as(leaf) if leaf.is_floating_point() else leaf,
            after,
        )


class Grows(Honest):
    """Appends every segment to its state."""

    def ask(self, layer: int, x: Tensor, memory: Tensor, known: Tensor) -> Tensor:
        return super().ask(layer, x, memory[:, -WIDTH:], known)

    def write(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return torch.cat([memory, super().write(layer, x, memory[:, -WIDTH:])], dim=1)


class RowsSecond(Honest):
    """Its first layer's memory has the rows second."""

    def init_state(self, rows: int) -> State:
        state = super().init_state(rows)
        return state._replace(lower=state.lower.T)

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, after = super().segment(tokens, state._replace(lower=state.lower.T))
        return logits, after._replace(lower=after.lower.T)


class LosesALogit(Honest):
    """Says nothing about a segment's last token."""

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().fold(tokens, state)
        return logits[:, :-1], after

    forward = fold


class NeedsTwoTokens(Honest):
    """Raises on a text of one token."""

    def averages(self, x: Tensor) -> Tensor:
        if x.shape[1] < 2:
            raise ValueError("too short")
        return super().averages(x)


class CallLength(Honest):
    """Divides by the length of the segment it was given, not by how much of it was read."""

    def averages(self, x: Tensor) -> Tensor:
        return x.cumsum(1) / x.shape[1]


class CallPositions(Recurrent):
    """Counts positions from the start of the call."""

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        return self.forward(tokens, state)

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        return self.forward(tokens, state)

    def say(self, x: Tensor, before: Tensor, sums: Tensor) -> Tensor:
        return super().say(x + torch.arange(x.shape[1])[:, None] / 10, before, sums)


class IgnoresTheCarried(Recurrent):
    """Its parallel form starts from nothing."""

    def sums(self, x: Tensor, state: Trace) -> Tensor:
        return super().sums(x, state._replace(sums=torch.zeros_like(state.sums)))


class FreshForAll(Honest):
    """Its parallel form takes the first row's count for everyone's."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if state is not None:
            state = state._replace(segments=state.segments[:1].expand_as(state.segments))
        return self.fold(tokens, state)


class InPlaceAndReadAgain(Honest):
    """Writes into the state it was given, which generation reads again at every token."""

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, after = super().segment(tokens, state)
        state.lower.data.copy_(after.lower)
        return logits, after


class HiddenMemory(Honest):
    """The first layer's memory is on the module; the one in the state is a decoy."""

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        hidden = getattr(self, "hidden", None)
        known = hidden is not None and len(hidden) == len(tokens) and bool((state.segments > 0).any())
        logits, after = super().segment(tokens, state._replace(lower=hidden) if known else state)
        self.hidden = after.lower.detach()
        return logits, after


class HiddenCounter(Honest):
    """Every call makes it a little louder."""

    def see(self, tokens: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().see(tokens) * (1 + self.calls / 100)


# -- honest too ------------------------------------------------------------------------------------


class MixesAndSaysSo(CentresInTraining):
    """Rows see one another in train mode, as declared."""

    mixes_rows_in_training = True


class LearnsInPart(OneLayerDetached):
    """Learns through its first layer alone, as declared."""

    learns_through_memory = ("lower",)


class Forgetful(NothingToRemember):
    """Forgets, as declared."""

    remembers = False


class KeepsTheOddToken(Honest):
    """Its second memory holds the token that an odd segment leaves over: empty after whole segments."""

    def write(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        if layer == 0:
            return super().write(layer, x, memory)
        return self.store[1](x[:, -1]).to(memory.dtype) * (x.shape[1] % 2)
