"""Five small models that keep every law, and one mutant for each way to break a law.

`Honest` reads segment by segment and closes each; `Recurrent` stops anywhere and reads a text at once, in
parallel; `Slots` has a bank; `DeltaRule` has fast weights; `SeesThreeTokens` has a window.  A mutant
overrides one of their methods.  `test_mutants.py` lists the laws that each mutant breaks.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zoo.gradients import stop_gradient
from zoo.interface import Reach
from zoo.module import SequenceModule
from zoo.state import State, detach, special_fields, tree_map

VOCAB, SEGMENT, WIDTH = 7, 6, 5


class Memory(NamedTuple):
    lower: Tensor  # (rows, width), of the first layer
    upper: Tensor  # (rows, width), of the second
    segments: Tensor  # (rows,) how many each row has read


class Honest(SequenceModule):
    """Two layers, l = 0, 1, each with a vector of memory, which a row that has read nothing doesn't read.

    x_t += tanh(W_x mean(x_1 .. x_t) + W_r m_l + b)        m_l' = tanh(W_k m_l + W_s mean(x) + c)
    """

    learns_through_memory: bool | tuple[str, ...] = True
    reach: Reach = None

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.segment_len = VOCAB, SEGMENT
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.mix, self.recall, self.retain, self.store = (
            nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2)) for _ in range(4)
        )
        self.dropout = nn.Dropout(0.1)

    def init_state(self, rows: int) -> State:
        weight = self.head.weight
        lower, upper = weight.new_zeros(2, rows, WIDTH)
        return Memory(lower, upper, torch.zeros(rows, dtype=torch.long))

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens)

    def running_mean(self, x: Tensor) -> Tensor:
        """At each token, the mean over the segment's tokens up to it."""
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]

    def summary(self, x: Tensor) -> Tensor:
        return x.mean(1)

    def has_read(self, state: Memory) -> Tensor:
        """1 for rows with something in memory, else 0."""
        return (state.segments > 0).to(state.lower.dtype)[:, None, None]

    def read_memory(self, layer: int, x: Tensor, memory: Tensor, has_read: Tensor) -> Tensor:
        recalled = has_read * self.recall[layer](memory)[:, None]
        return x + self.dropout((self.mix[layer](self.running_mean(x)) + recalled).tanh())

    def write_memory(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        updated = self.retain[layer](memory) + self.store[layer](self.summary(x))
        return updated.tanh().to(memory.dtype)

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x, has_read = self.embed_tokens(tokens), self.has_read(state)
        x = self.read_memory(0, x, state.lower, has_read)
        lower = self.write_memory(0, x, state.lower)
        x = self.read_memory(1, x, state.upper, has_read)
        upper = self.write_memory(1, x, state.upper)
        return self.head(x), Memory(lower, upper, state.segments + 1)


class Trace(NamedTuple):
    sums: Tensor  # (rows, width), a decaying sum over all tokens
    last: Tensor  # (rows, width), the last token's embedding


class Recurrent(SequenceModule):
    """h_t = a h_{t-1} + W_s x_t        y_t = x_t + tanh(W_r h_t + W_l x_{t-1})"""

    learns_through_memory: bool | tuple[str, ...] = True
    reach = None
    cuts_anywhere = True

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.segment_len = VOCAB, SEGMENT
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.store, self.recall, self.shift = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.decay, self.dropout = nn.Parameter(torch.randn(WIDTH)), nn.Dropout(0.1)

    def init_state(self, rows: int) -> State:
        return Trace(*self.head.weight.new_zeros(2, rows, WIDTH))

    def predict(self, x: Tensor, previous: Tensor, sums: Tensor) -> Tensor:
        recalled = (self.recall(sums) + self.shift(previous)).tanh()
        return self.head(x + self.dropout(recalled))

    def step(self, x: Tensor, state: Trace) -> tuple[Tensor, State]:
        """One token."""
        sums = self.decay.sigmoid() * state.sums + self.store(x)
        return self.predict(x, state.last, sums), Trace(sums, x)

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        outputs = []
        for x in self.embed(tokens).unbind(1):
            logits, state = self.step(x, state)
            outputs.append(logits)
        return torch.stack(outputs, dim=1), state

    def sums(self, x: Tensor, state: Trace) -> Tensor:
        """Every token's sum at once: h_t = a^(t+1) h_{-1} + sum_s a^(t-s) W_s x_s."""
        time, decay = torch.arange(x.shape[1]), self.decay.sigmoid()
        age = (time[:, None] - time)[..., None]  # (time, time, 1)
        weights = (decay ** age.clamp(min=0)).masked_fill(age < 0, 0.0)
        initial = decay ** (time[:, None] + 1) * state.sums[:, None]
        return initial + (weights * self.store(x)[:, None]).sum(2)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        state = self.init_state(len(tokens)) if state is None else state
        x = self.embed(tokens)
        sums = self.sums(x, state)
        previous = torch.cat([state.last[:, None], x[:, :-1]], dim=1)
        return self.predict(x, previous, sums), Trace(sums[:, -1], x[:, -1])


@special_fields(lazy=("slots",))
class Bank(NamedTuple):
    slots: tuple[Tensor, ...]  # each (rows, width): the mean of segment n lies in slot n mod their number
    segments: Tensor  # (rows,)


class Slots(SequenceModule):
    """y_t = W_h (mean(x_1 .. x_t) + tanh(W_r sum of written slots)), with more slots than the laws fill."""

    learns_through_memory = False
    reach = None
    num_slots = 8

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.segment_len = VOCAB, SEGMENT
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.recall = nn.Linear(WIDTH, WIDTH)

    def init_state(self, rows: int) -> State:
        empty = self.head.weight.new_zeros(rows, WIDTH)
        return Bank((empty,) * self.num_slots, torch.zeros(rows, dtype=torch.long))

    def slot_index(self, segments: Tensor) -> Tensor:
        return segments % self.num_slots

    def reads_slot(self, index: int) -> bool:
        return True

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x = self.embed(tokens)
        total = x.new_zeros(len(x), WIDTH)
        for i, slot in enumerate(state.slots):
            if self.reads_slot(i):
                total = total + torch.where((state.segments > i)[:, None], slot, 0.0)
        means = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        logits = self.head(means + self.recall(total).tanh()[:, None])
        index, summary = self.slot_index(state.segments), x.mean(1).detach()
        slots = tuple(
            torch.where((index == i)[:, None], summary.to(slot.dtype), slot)
            for i, slot in enumerate(state.slots)
        )
        return logits, Bank(slots, state.segments + 1)


class FastWeights(NamedTuple):
    matrix: Tensor  # (rows, width, width), from keys to values


class DeltaRule(SequenceModule):
    """M <- M + b k^T (v - k M)        y = x + tanh(q M)        q, k, v = W x, |k| = 1, b = sigmoid(w x)"""

    learns_through_memory: bool | tuple[str, ...] = True
    reach = None
    cuts_anywhere = True

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.segment_len = VOCAB, SEGMENT
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.project, self.strength = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 1)

    def init_state(self, rows: int) -> State:
        return FastWeights(self.head.weight.new_zeros(rows, WIDTH, WIDTH))

    def retained(self, matrix: Tensor) -> Tensor:
        """The first M of the right side, to which each token adds."""
        return matrix

    def write_strength(self, x: Tensor) -> Tensor:
        return self.strength(x).sigmoid()

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x, (matrix,) = self.embed(tokens), state
        q, k, v = self.project(x).chunk(3, dim=-1)
        k, outputs = k / k.norm(dim=-1, keepdim=True), []
        for t in range(x.shape[1]):
            old = torch.einsum("bk,bkv->bv", k[:, t].to(matrix), matrix)
            new = self.write_strength(x[:, t]) * (v[:, t] - old)
            matrix = self.retained(matrix) + torch.einsum("bk,bv->bkv", k[:, t].to(matrix), new.to(matrix))
            outputs.append(x[:, t] + torch.einsum("bk,bkv->bv", q[:, t].to(matrix), matrix).tanh())
        return self.head(torch.stack(outputs, dim=1)), FastWeights(matrix)


class LastTokens(NamedTuple):
    embeddings: Tensor  # (rows, 2, width), of the last two tokens


class SeesThreeTokens(SequenceModule):
    """y_t = W_0 x_t + tanh(W_1 x_{t-1}) + tanh(W_2 x_{t-2})"""

    learns_through_memory = True
    reach: Reach = 3
    cuts_anywhere = True

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.segment_len = VOCAB, SEGMENT
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, VOCAB) for _ in range(3))

    def init_state(self, rows: int) -> State:
        return LastTokens(self.embed.weight.new_zeros(rows, 2, WIDTH))

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x = torch.cat([state.embeddings, self.embed(tokens)], dim=1)
        now, before, earlier = (head(x) for head in self.heads)
        logits = now[:, 2:] + before[:, 1:-1].tanh() + earlier[:, :-2].tanh()
        return logits, LastTokens(x[:, -2:])


# -- caught by one law alone -------------------------------------------------------------------------


class PadsTheVocabulary(Honest):
    """Returns more logits than the vocabulary has tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB + 1, WIDTH), nn.Linear(WIDTH, VOCAB + 1)


class StartsSmall(Honest):
    """The first state has another shape than all later ones; broadcasting hides it."""

    def init_state(self, rows: int) -> State:
        state = super().init_state(rows)
        return state._replace(lower=state.lower[:, :1].expand(rows, WIDTH)[:, :1])

    def read_memory(self, layer: int, x: Tensor, memory: Tensor, has_read: Tensor) -> Tensor:
        return super().read_memory(layer, x, memory.expand(-1, WIDTH), has_read)

    def write_memory(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return super().write_memory(layer, x, memory.expand(-1, WIDTH))


class VarianceOfOneToken(Honest):
    """Stores the variance of a segment, which is undefined for one token."""

    def summary(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)).square().sum(1) / (x.shape[1] - 1)


class WrongRemainder(Honest):
    """Reads a segment in pairs, and the second pair wrongly if it is the last."""

    def running_mean(self, x: Tensor) -> Tensor:
        return super().running_mean(x) * (2.0 if x.shape[1] == SEGMENT - 2 else 1.0)


class PeeksInTraining(Honest):
    """In train mode alone, a segment's second token sees the third."""

    def running_mean(self, x: Tensor) -> Tensor:
        means = super().running_mean(x)
        if not self.training or x.shape[1] < 3:
            return means
        return torch.cat([means[:, :1], means[:, 2:3], means[:, 2:]], dim=1)


class PeeksInDoublePrecision(PeeksInTraining):
    """The same in float64 alone."""

    def running_mean(self, x: Tensor) -> Tensor:
        return super().running_mean(x) if x.dtype == torch.float64 else Honest.running_mean(self, x)


class ForgetsInLongCalls(Honest):
    """Drops the state in a call of more than two segments."""

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        return super().fold(tokens, None if tokens.shape[1] > 2 * SEGMENT else state)


class RecordsTheCallLength(Honest):
    """Carries the length of the last call instead of the number of segments."""

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().fold(tokens, state)
        return logits, after._replace(segments=torch.full_like(after.segments, tokens.shape[1]))


class InPlace(Recurrent):
    """Writes into the input state when gradients are off, as an inference cache does."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().forward(tokens, state)
        if state is not None and not torch.is_grad_enabled():
            state.sums.copy_(after.sums)
        return logits, after


class CountsItsReads(Honest):
    """Counts calls in a buffer that nothing reads."""

    reads: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reads", torch.zeros(()))

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        self.reads += 1
        return super().fold(tokens, state)


class CachesItsLogits(Recurrent):
    """Returns twice the cached logits for a state tensor that it has read before."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: list[tuple[Tensor, Tensor]] = []

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().forward(tokens, state)
        if state is not None:
            for sums, cached in self.cache:
                if sums is state.sums and cached.shape == logits.shape:
                    return 2 * cached, after
            self.cache.append((state.sums, logits))
        return logits, after


class ForgetsOneLayer(Honest):
    """Returns the old state of its second layer, while the first remembers."""

    learns_through_memory = ("lower",)

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, after = super().segment(tokens, state)
        return logits, after._replace(upper=state.upper)


class NeverReads(Honest):
    """Writes its memory and never reads it."""

    learns_through_memory = False
    reach = SEGMENT

    def read_memory(self, layer: int, x: Tensor, memory: Tensor, has_read: Tensor) -> Tensor:
        return super().read_memory(layer, x, torch.zeros_like(memory), has_read)


class ReturnsTheOldState(Honest):
    """Returns the input state."""

    learns_through_memory = False
    reach = SEGMENT

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        return super().segment(tokens, state)[0], state


class WritesNoSlot(Slots):
    """Its bank stays empty."""

    reach = SEGMENT

    def slot_index(self, segments: Tensor) -> Tensor:
        return segments - self.num_slots


class ReadsOneSlot(Slots):
    """Never reads the other slots, which are written too."""

    def reads_slot(self, index: int) -> bool:
        return index == 0


class ReadsNoSlotInTraining(Slots):
    """Reads its bank in eval mode alone."""

    def reads_slot(self, index: int) -> bool:
        return not self.training


class LosesTheLastTokenInTraining(Honest):
    """Writes all tokens of a segment but the last, in train mode alone."""

    def summary(self, x: Tensor) -> Tensor:
        return x[:, :-1].sum(1) / x.shape[1] if self.training else super().summary(x)


class RemembersUndeclared(Honest):
    """Declares that it forgets, and remembers."""

    remembers = False


class NothingToRemember(Honest):
    """Declares that it remembers, with a state that has no tensors."""

    learns_through_memory = False
    reach = SEGMENT

    def init_state(self, rows: int) -> State:
        return ()

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        return super().segment(tokens, super().init_state(len(tokens)))[0], ()


class CentresTheBatch(Honest):
    """Subtracts the batch mean from every embedding."""

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        x = super().embed_tokens(tokens)
        return x - x.mean(0)


class CentresInTraining(Honest):
    """The same in train mode alone, undeclared."""

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        x = super().embed_tokens(tokens)
        return x - x.mean(0) if self.training else x


class OneCountForAll(Honest):
    """A fresh row reads its empty memory if any row has read something."""

    def has_read(self, state: Memory) -> Tensor:
        return super().has_read(state).amax(0, keepdim=True)


class GrowsLate(Honest):
    """A state of fixed shape, until a text has more than five segments."""

    fixed_segments = 5

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, after = super().segment(tokens, state._replace(upper=state.upper[:, :WIDTH]))
        if bool((after.segments > self.fixed_segments).all()):
            after = after._replace(upper=torch.cat([after.upper, after.upper], dim=1))
        return logits, after


class GrowsMuchLater(GrowsLate):
    """The same after twenty segments."""

    fixed_segments = 20


class HasEightPositions(Honest):
    """A table with a vector for each segment, of which a text may have eight."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(8, WIDTH)

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        self.position = self.positions(state.segments)[:, None]
        return super().segment(tokens, state)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        return super().embed_tokens(tokens) + self.position


class LosesTheLastToken(Honest):
    """Writes all tokens of a segment but the last."""

    def summary(self, x: Tensor) -> Tensor:
        return x[:, :-1].sum(1) / x.shape[1]


class StopsReading(Honest):
    """Reads its memory in a text's first twenty segments."""

    def has_read(self, state: Memory) -> Tensor:
        return super().has_read(state) * (state.segments < 20).to(state.lower.dtype)[:, None, None]


class SharesWithTheFifthRow(Honest):
    """Each row's memory also has what the fourth row before it has written."""

    def summary(self, x: Tensor) -> Tensor:
        y = super().summary(x)
        return torch.cat([y[:4], y[4:] + y[:-4]]) if len(y) > 4 else y


class DetachedWhenRead(Honest):
    """Declares that it learns, and detaches its memory where it is read."""

    def read_memory(self, layer: int, x: Tensor, memory: Tensor, has_read: Tensor) -> Tensor:
        return super().read_memory(layer, x, memory.detach(), has_read)

    def write_memory(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return super().write_memory(layer, x, memory.detach())


class DetachedWhenWritten(Honest):
    """The same, detached where it is written."""

    def write_memory(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return super().write_memory(layer, x, memory).detach()


class OneLayerDetached(Honest):
    """Detaches the memory of its second layer alone."""

    def write_memory(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        written = super().write_memory(layer, x, memory)
        return written.detach() if layer else written


class StoresDetached(Honest):
    """The gradient runs through the memory, but not into the tokens written to it."""

    def summary(self, x: Tensor) -> Tensor:
        return super().summary(x).detach()


class LearnsUndeclared(Honest):
    """Declares that it doesn't learn through its memory, and does."""

    learns_through_memory = False


class NamesAnUnknownField(Honest):
    """Declares a field that its state doesn't have."""

    learns_through_memory = ("lower", "upper", "memory")


class DetachesInTheTokenLoop(DeltaRule):
    """Its gradient runs through what each token takes away, and not through what stays."""

    def retained(self, matrix: Tensor) -> Tensor:
        return matrix.detach()


class DetachesInTheTokenLoopInTraining(DeltaRule):
    """The same in train mode alone."""

    def retained(self, matrix: Tensor) -> Tensor:
        return matrix.detach() if self.training else matrix


class FreezesTokensByAHook(Honest):
    """A hook on the embeddings' gradient keeps the first token's from learning."""

    def __init__(self) -> None:
        super().__init__()
        learns = (torch.arange(VOCAB) > 0)[:, None]
        self.embed.weight.register_hook(lambda grad: grad * learns)


class DetachesTheStrength(DeltaRule):
    """A weight that has no gradient and decides how much is written."""

    def write_strength(self, x: Tensor) -> Tensor:
        return super().write_strength(x).detach()


class HalvesTheGradientOfShortSegments(Honest):
    """What a short segment has written has half its gradient."""

    def summary(self, x: Tensor) -> Tensor:
        y = super().summary(x)
        return y if x.shape[1] == SEGMENT else 0.5 * (y + y.detach())


class DetachesBetweenSegments(Recurrent):
    """A parallel form with the right values whose gradient ends at each segment."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        state, outputs = self.init_state(len(tokens)) if state is None else state, []
        for i, piece in enumerate(tokens.split(SEGMENT, dim=1)):
            logits, state = self.segment(piece, detach(state) if i else state)
            outputs.append(logits)
        return torch.cat(outputs, dim=1), state


class DetachesInTraining(DetachesBetweenSegments):
    """The same in train mode alone."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        return super().forward(tokens, state) if self.training else self.fold(tokens, state)


class SplitProjection(Honest):
    """The training loop projects its hidden states chunk by chunk."""

    def hidden_segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x, has_read = self.embed_tokens(tokens), self.has_read(state)
        x = self.read_memory(0, x, state.lower, has_read)
        lower = self.write_memory(0, x, state.lower)
        x = self.read_memory(1, x, state.upper, has_read)
        return x, Memory(lower, self.write_memory(1, x, state.upper), state.segments + 1)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


class CapsOutsideTheProjection(SplitProjection):
    """Bounds the logits in `segment`, and not in `logits`."""

    separates_projection = True

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, after = super().segment(tokens, state)
        return 3 * (logits / 3).tanh(), after


class DetachesBesideFreshRows(Honest):
    """Its gradient ends before a batch in which some rows are fresh and others continue."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        mixed = state is not None and len(state.segments.unique()) > 1
        return self.fold(tokens, detach(state) if mixed else state)


class UnsavedWeight(Honest):
    """Has a random mask that isn't saved."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.randn(WIDTH), persistent=False)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        return super().embed_tokens(tokens) * self.mask


class StoresBfloat16(Honest):
    """Its memory has the dtype that autocast computed it in."""

    def write_memory(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return (self.retain[layer](memory) + self.store[layer](self.summary(x))).tanh()


class RoundsToOne(Honest):
    """log(1 - gate) of a gate near 1, which bfloat16 rounds to 1."""

    def running_mean(self, x: Tensor) -> Tensor:
        gate = (10 + self.mix[0](x)).sigmoid()
        return super().running_mean(x * (1 - gate).log())


class PeeksInHalfPrecision(Honest):
    """Its kernel for bfloat16 and float32 lets a segment's second token see the third."""

    def running_mean(self, x: Tensor) -> Tensor:
        means = super().running_mean(x)
        if x.dtype == torch.float64 or x.shape[1] < 3:
            return means
        return torch.cat([means[:, :1], means[:, 2:3], means[:, 2:]], dim=1)


class CentresUnderAutocast(Honest):
    """Subtracts the batch mean from every embedding under autocast alone."""

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        x = super().embed_tokens(tokens)
        return x - x.mean(0) if torch.is_autocast_enabled("cpu") else x


class ReachesFartherThanDeclared(Honest):
    """Declares a reach of two segments, and remembers all of them."""

    reach = 2 * SEGMENT


class DeclaresMoreThanItReaches(SeesThreeTokens):
    """Declares one position more."""

    reach = 4


class DeclaresToCarryFurther(SeesThreeTokens):
    """Declares that something carries further than its three tokens."""

    reach = None


class ReadsAtTheFirstToken(Honest):
    """Reads its memory at each segment's first token alone, which no other sees."""

    def read_memory(self, layer: int, x: Tensor, memory: Tensor, has_read: Tensor) -> Tensor:
        y = super().read_memory(layer, x, memory, has_read)
        without = super().read_memory(layer, x, memory, torch.zeros_like(has_read))
        return torch.cat([y[:, :1], without[:, 1:]], dim=1)

    def running_mean(self, x: Tensor) -> Tensor:
        return x


class Unseeded(Honest):
    """Draws a weight from a generator that no seed reaches."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator()
        generator.seed()  # from the system's entropy
        nn.init.normal_(self.head.weight, generator=generator)


# -- caught by several laws -------------------------------------------------------------------------


class PeeksAhead(Honest):
    """Each token sees the next one of its segment."""

    def running_mean(self, x: Tensor) -> Tensor:
        means = super().running_mean(x)
        return torch.cat([means[:, 1:], means[:, -1:]], dim=1)


class PeeksInTheLastSegment(Honest):
    """A call's last segment is read without a mask."""

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().fold(tokens, state)
        tail = (tokens.shape[1] - 1) % SEGMENT + 1
        end = logits[:, -tail:]
        return torch.cat([logits[:, :-tail], end + end.mean(1, keepdim=True)], dim=1), after


class PeeksAtTheNextSegment(Recurrent):
    """Its parallel form subtracts the mean over the call."""

    def sums(self, x: Tensor, state: Trace) -> Tensor:
        return super().sums(x, state) - x.mean(1, keepdim=True)


class CountsInFloats(Honest):
    """Its count starts as an integer and becomes a float."""

    learns_through_memory = ("lower", "upper")

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, state = super().segment(tokens, state)
        return logits, state._replace(segments=state.segments.to(torch.float32))


class Overflows(Honest):
    """A softmax without its maximum subtracted: finite in float64, infinite in float32."""

    def running_mean(self, x: Tensor) -> Tensor:
        weights = (100 + x.float().to(x.dtype)).exp()
        return (weights * x).cumsum(1) / weights.cumsum(1)


class UnseededDropout(Honest):
    """Dropout from a generator that no seed reaches."""

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        x = super().embed_tokens(tokens)
        return x * (torch.rand(x.shape, generator=generator) > 0.5) if self.training else x


class SharedMemory(Honest):
    """One memory for the whole batch."""

    def write_memory(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return super().write_memory(layer, x, memory).mean(0, keepdim=True).expand_as(memory)


class SharedAfterACall(Honest):
    """Rows are separate inside a call, and share the memory that it returns."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().forward(tokens, state)
        return logits, tree_map(
            lambda leaf: leaf.mean(0, keepdim=True).expand_as(leaf) if leaf.is_floating_point() else leaf,
            after,
        )


class Grows(Honest):
    """Appends every segment to its state."""

    def read_memory(self, layer: int, x: Tensor, memory: Tensor, has_read: Tensor) -> Tensor:
        return super().read_memory(layer, x, memory[:, -WIDTH:], has_read)

    def write_memory(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        return torch.cat([memory, super().write_memory(layer, x, memory[:, -WIDTH:])], dim=1)


class RowsSecond(Honest):
    """The rows are the second dimension of its first layer's memory."""

    def init_state(self, rows: int) -> State:
        state = super().init_state(rows)
        return state._replace(lower=state.lower.T)

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, after = super().segment(tokens, state._replace(lower=state.lower.T))
        return logits, after._replace(lower=after.lower.T)


class LosesALogit(Honest):
    """Returns no logits for the last token of a call."""

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        logits, after = super().fold(tokens, state)
        return logits[:, :-1], after

    forward = fold


class NeedsTwoTokens(Honest):
    """Raises on a text of one token."""

    def running_mean(self, x: Tensor) -> Tensor:
        if x.shape[1] < 2:
            raise ValueError("too short")
        return super().running_mean(x)


class DividesByTheCallLength(Honest):
    """Divides the running sum by the length of the segment, not by the tokens so far."""

    def running_mean(self, x: Tensor) -> Tensor:
        return x.cumsum(1) / x.shape[1]


class CountsPositionsPerCall(Recurrent):
    """Counts positions from the start of the call."""

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        return self.forward(tokens, state)

    def fold(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        return self.forward(tokens, state)

    def predict(self, x: Tensor, previous: Tensor, sums: Tensor) -> Tensor:
        return super().predict(x + torch.arange(x.shape[1])[:, None] / 10, previous, sums)


class IgnoresTheCarriedState(Recurrent):
    """Its parallel form starts from nothing."""

    def sums(self, x: Tensor, state: Trace) -> Tensor:
        return super().sums(x, state._replace(sums=torch.zeros_like(state.sums)))


class FirstCountForAll(Honest):
    """Its parallel form takes the first row's count for all rows."""

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if state is not None:
            state = state._replace(segments=state.segments[:1].expand_as(state.segments))
        return self.fold(tokens, state)


class InPlaceAndReadAgain(Honest):
    """Writes into the input state, which generation reads again at every token."""

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, after = super().segment(tokens, state)
        state.lower.data.copy_(after.lower)
        return logits, after


class HiddenMemory(Honest):
    """The first layer's memory is on the module; the one in the state is never read."""

    def segment(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        hidden = getattr(self, "hidden", None)
        usable = hidden is not None and len(hidden) == len(tokens) and bool((state.segments > 0).any())
        logits, after = super().segment(tokens, state._replace(lower=hidden) if usable else state)
        self.hidden = after.lower.detach()
        return logits, after


class HiddenCounter(Honest):
    """Scales its embeddings up with every call."""

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().embed_tokens(tokens) * (1 + self.calls / 100)


# -- honest too ------------------------------------------------------------------------------------


class ReachesUndeclared(SeesThreeTokens):
    """Says nothing of its reach."""

    reach = "unknown"


class MixesRowsAsDeclared(CentresInTraining):
    """Rows see one another in train mode, as declared."""

    mixes_rows_in_training = True


class ReadsNoSlotInTrainingAsDeclared(ReadsNoSlotInTraining):
    """Reads its bank in eval mode alone, as declared."""

    reads_memory_in_training = False


class LearnsInPartAsDeclared(OneLayerDetached):
    """Learns through its first layer alone, as declared."""

    learns_through_memory = ("lower",)


class ForgetsAsDeclared(NothingToRemember):
    """Forgets, as declared."""

    remembers = False


class StoresTheOddToken(Honest):
    """Its second memory holds the last token of an odd segment: empty after whole segments."""

    def write_memory(self, layer: int, x: Tensor, memory: Tensor) -> Tensor:
        if layer == 0:
            return super().write_memory(layer, x, memory)
        return self.store[1](x[:, -1]).to(memory.dtype) * (x.shape[1] % 2)


class StopsTheStrength(DeltaRule):
    """How much is written is constant by definition."""

    def write_strength(self, x: Tensor) -> Tensor:
        return stop_gradient(super().write_strength(x))
