"""Megalodon's moving average: for each channel, a few damped and turning averages of its past.

Ma et al. 2024, arXiv:2404.08801, section 3.1.  For each channel d and each of its N states n = 1..N:

    p = sigmoid(alpha)        q = (1 - sigmoid(alpha) sigmoid(delta)) e^{i n sigmoid(theta) 2 pi / N}
    h_t = q h_{t-1} + p x_t        y_t = sum_n Re(gamma_n / sqrt(N) h_{t,n}) + omega x_t

Carried: h, complex, at float32 or better.
Differs from the paper, as its code does: p is real, gamma is scaled by 1/sqrt(N), and omega x_t is added.

`ema_loop` is what it means.  `ema` reads chunks: inside a chunk the average is one matrix product, and only
h is handed from chunk to chunk.  Every power of q is taken anew, exp(l log q) with l up to the chunk's
length and its angle reduced in float64, and nothing is ever divided by one, so that a decay may be as strong
or as weak as it likes.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor, nn

from zoo.memory.mixer import Mixer

CHUNK = 32  # tokens: longer ones cost more multiplications, shorter ones more steps


class Coefficients(NamedTuple):
    """What the recurrence is made of, in float64; log|q| and the angle of q, so that powers are exact."""

    enter: Float[Tensor, "width states"]  # p
    decay: Float[Tensor, "width states"]  # log|q|, at most 0
    angle: Float[Tensor, "width states"]
    leave: Complex[Tensor, "width states"]  # gamma / sqrt(N)
    skip: Float[Tensor, " width"]  # omega

    def powers(self, length: int, exact: torch.dtype) -> Complex[Tensor, "width states powers"]:
        """q^0 .. q^length, with parts of the dtype `exact`."""
        steps = torch.arange(length + 1, device=self.decay.device, dtype=torch.float64)
        size = (self.decay[..., None] * steps).to(exact).exp()
        angle = (self.angle[..., None] * steps).remainder(2 * math.pi).to(exact)
        return torch.complex(size * angle.cos(), size * angle.sin())


def ema_loop(
    x: Float[Tensor, "rows time width"], given: Coefficients, h: Complex[Tensor, "rows width states"]
) -> tuple[Float[Tensor, "rows time width"], Complex[Tensor, "rows width states"]]:
    """The recurrence token by token, at the precision of h: the definition."""
    q = torch.polar(given.decay.exp(), given.angle).to(h.dtype)
    enter, leave, skip = given.enter.to(h.real.dtype), given.leave.to(h.dtype), given.skip.to(h.real.dtype)
    said = []
    for token in x.to(h.real.dtype).unbind(1):
        h = q * h + enter * token[..., None]
        said.append((leave * h).real.sum(-1) + skip * token)
    return torch.stack(said, dim=1).to(x.dtype), h


def ema(
    x: Float[Tensor, "rows time width"], given: Coefficients, h: Complex[Tensor, "rows width states"]
) -> tuple[Float[Tensor, "rows time width"], Complex[Tensor, "rows width states"]]:
    """What `ema_loop` says, chunk by chunk, at the precision of h."""
    rows, time, _ = x.shape
    exact = h.real.dtype
    chunk = min(CHUNK, time)
    chunks = -(-time // chunk)
    last = time - (chunks - 1) * chunk  # the last chunk's length
    powers = given.powers(chunk, exact)
    enters = given.enter.to(exact)[..., None] * powers  # what a token has become l tokens later
    leaves = given.leave.to(h.dtype)[..., None] * powers

    # inside a chunk: y_i += sum_{j <= i} kernel_{i-j} x_j
    kernel = (given.leave.to(h.dtype)[..., None] * enters[..., :chunk]).real.sum(1)
    kernel = kernel + F.pad(given.skip.to(exact)[:, None], (0, chunk - 1))
    inside = F.pad(kernel, (chunk - 1, 0)).unfold(1, chunk, 1).flip(1)  # (width, chunk j, chunk i)
    pieces = F.pad(x.to(exact), (0, 0, 0, chunks * chunk - time))
    pieces = rearrange(pieces, "b (n c) d -> d (b n) c", c=chunk).contiguous()

    # from chunk to chunk: h after each of them, the last one as short as it is
    to_end = rearrange(torch.view_as_real(enters[..., :chunk].flip(2)), "d s c r -> d c (s r)").contiguous()
    ends = rearrange(pieces @ to_end, "d (b n) (s r) -> d b n s r", b=rows, r=2)
    step, before = powers[:, None, :, chunk], [h.transpose(0, 1)]
    for end in torch.view_as_complex(ends).unbind(2)[:-1]:
        before.append(step * before[-1] + end)
    tail = rearrange(pieces, "d (b n) c -> d b n c", b=rows)[:, :, -1, :last] @ to_end[:, chunk - last :]
    after = powers[:, None, :, last] * before[-1] + torch.view_as_complex(tail.unflatten(2, (-1, 2)))

    carried = rearrange(torch.view_as_real(torch.stack(before, dim=2)), "d b n s r -> d (b n) (s r)")
    # Re(a h) = Re(a*) Re(h) + Im(a*) Im(h)
    from_before = torch.view_as_real(leaves[..., 1:].conj().resolve_conj())
    from_before = rearrange(from_before, "d s c r -> d (s r) c").contiguous()
    y = torch.baddbmm(pieces @ inside, carried, from_before)
    if y.requires_grad:
        y.register_hook(Tensor.contiguous)  # else its three products copy their gradient channel by channel
    y = rearrange(y, "d (b n) c -> b (n c) d", b=rows)[:, :time]
    return y.to(x.dtype), after.transpose(0, 1)


class ComplexEMA(Mixer):
    def __init__(self, width: int, state_size: int = 16) -> None:
        super().__init__()
        self.width, self.state_size = width, state_size
        self.alpha = nn.Parameter(torch.empty(width, state_size))
        self.delta = nn.Parameter(torch.empty(width, state_size))
        self.theta = nn.Parameter(torch.empty(width))
        self.gamma = nn.Parameter(torch.empty(width, state_size, 2))  # real and imaginary part
        self.omega = nn.Parameter(torch.empty(width))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """As the published code draws them: alpha, delta ~ N(0, 0.2); sigmoid(theta) = D^(-j/D) for j = 1..D
        in random order; gamma ~ N(0, 1), real; omega ~ N(0, 0.25) within [-1, 1]."""
        for weight in (self.alpha, self.delta):
            nn.init.normal_(weight, std=0.2)
        order = torch.randperm(self.width, device=self.theta.device) + 1
        self.theta.copy_((self.width ** -(order / self.width)).clamp(max=0.999).logit())  # width 1 has only 1
        nn.init.normal_(self.gamma[..., 0])
        nn.init.zeros_(self.gamma[..., 1])
        nn.init.trunc_normal_(self.omega, std=0.25, a=-1.0, b=1.0)

    def init_state(self, rows: int) -> Complex[Tensor, "rows width states"]:
        exact = torch.promote_types(self.alpha.dtype, torch.float32).to_complex()
        return self.alpha.new_zeros(rows, self.width, self.state_size, dtype=exact)

    def coefficients(self) -> Coefficients:
        alpha, delta, theta, gamma, omega = (
            weight.double() for weight in (self.alpha, self.delta, self.theta, self.gamma, self.omega)
        )
        enter = alpha.sigmoid()
        lost = (enter * delta.sigmoid()).clamp(max=1 - 2**-53)  # both may round to 1, and log 0 is no decay
        turns = torch.arange(1, self.state_size + 1, device=theta.device, dtype=theta.dtype)
        angle = turns * (theta.sigmoid() * 2 * math.pi / self.state_size)[:, None]
        leave = torch.view_as_complex(gamma) * self.state_size**-0.5
        return Coefficients(enter, torch.log1p(-lost), angle, leave, omega)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: Complex[Tensor, "rows width states"]
    ) -> tuple[Float[Tensor, "rows time width"], Complex[Tensor, "rows width states"]]:
        with torch.autocast(x.device.type, enabled=False):
            return ema(x, self.coefficients(), state)
