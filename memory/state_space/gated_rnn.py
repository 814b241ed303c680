"""The classic gated recurrent layers, LSTM and GRU, with PyTorch's kernels.

LSTM: Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735, with the forget gate of Gers et al. 2000.

    i, f, o = sigmoid(W x_t + U h_{t-1} + b)        g = tanh(W_g x_t + U_g h_{t-1} + b_g)
    c_t = f c_{t-1} + i g        h_t = o tanh(c_t)        y_t = W_out h_t

GRU: Cho et al. 2014, arXiv:1406.1078.

    r, z = sigmoid(W x_t + U h_{t-1} + b)        n = tanh(W_n x_t + b_n + r (U_n h_{t-1} + b_h))
    h_t = (1 - z) n + z h_{t-1}        y_t = W_out h_t

Carried: h, and the LSTM's c; zeros before the first token.
Differs from the papers: the output is projected from `hidden_size` back to the width.  As in torch.nn, the
LSTM has no peepholes, the GRU resets after the matrix product, and each gate has two biases.  Initial weights
are those of all models here, and the LSTM's forget gates start with a bias of 1 (Gers et al. 2000).
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.mixer import Mixer, no_autocast


class LSTMState(NamedTuple):
    h: Float[Tensor, "rows hidden_size"]  # the last output
    c: Float[Tensor, "rows hidden_size"]  # the cell


class GRUState(NamedTuple):
    h: Float[Tensor, "rows hidden_size"]


class GatedRNN(nn.Module):
    """A recurrent layer of torch.nn and its output projection.

    Autocast is off inside the recurrence: all of it is in the weights' dtype, the state included.
    """

    def __init__(self, rnn: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.rnn = rnn
        self.out_proj = nn.Linear(rnn.hidden_size, rnn.input_size, bias=False)
        for name, weight in rnn.named_parameters():
            if name.startswith("weight"):
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            else:
                nn.init.zeros_(weight)

    def train(self, mode: bool = True) -> "GatedRNN":
        """The recurrent layer stays in train mode, where it computes the same, as it has no dropout: cuDNN
        gives gradients in no other."""
        super().train(mode)
        self.rnn.train()
        return self

    def zeros(self, rows: int) -> Float[Tensor, "rows hidden_size"]:
        return self.out_proj.weight.new_zeros(rows, self.rnn.hidden_size)


class LSTMMixer(GatedRNN, Mixer):
    """`hidden_size` cells."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__(nn.LSTM(width, hidden_size, batch_first=True))
        bias = self.rnn.get_parameter("bias_ih_l0")  # of i, f, g and o
        nn.init.ones_(bias[hidden_size : 2 * hidden_size])

    def init_state(self, rows: int) -> LSTMState:
        return LSTMState(self.zeros(rows), self.zeros(rows))

    def forward(
        self, x: Float[Tensor, "rows time width"], state: LSTMState
    ) -> tuple[Float[Tensor, "rows time width"], LSTMState]:
        with no_autocast(x):
            y, (h, c) = self.rnn(x.to(state.h.dtype), (state.h[None], state.c[None]))
        return self.out_proj(y), LSTMState(h[0], c[0])


class GRUMixer(GatedRNN, Mixer):
    """`hidden_size` units."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__(nn.GRU(width, hidden_size, batch_first=True))

    def init_state(self, rows: int) -> GRUState:
        return GRUState(self.zeros(rows))

    def forward(
        self, x: Float[Tensor, "rows time width"], state: GRUState
    ) -> tuple[Float[Tensor, "rows time width"], GRUState]:
        with no_autocast(x):
            y, h = self.rnn(x.to(state.h.dtype), state.h[None])
        return self.out_proj(y), GRUState(h[0])
