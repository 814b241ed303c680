"""Megalodon's moving average: for each channel, a few damped and rotating averages of its past.

Ma et al. 2024, arXiv:2404.08801, section 3.1.  For each channel d and each of its N states n = 1..N:

    p = sigmoid(alpha)        q = (1 - sigmoid(alpha) sigmoid(delta)) e^{i n sigmoid(theta) 2 pi / N}
    h_t = q h_{t-1} + p x_t        y_t = sum_n Re(gamma_n / sqrt(N) h_{t,n}) + omega x_t

Carried: h, complex, at float32 or better.
Differs from the paper, as its code does: p is real, gamma is scaled by 1/sqrt(N), and omega x_t is added.

`ema_loop` is the definition.  `ema` works in chunks: inside a chunk the average is one matrix product, and
only h passes from chunk to chunk.  Every power of q is computed directly, exp(l log q) with l up to the
chunk's length and its angle reduced in float64, and never as a quotient of powers, so that decays of any
strength are accurate.
"""

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor, nn

from zoo.memory.mixer import Mixer, no_autocast

CHUNK = 32  # tokens: longer ones cost more multiplications, shorter ones more steps


class Coefficients(NamedTuple):
    """The recurrence's coefficients in float64; q as log|q| and its angle, so that powers are accurate."""

    p: Float[Tensor, "width states"]
    log_abs_q: Float[Tensor, "width states"]  # at most 0
    angle_q: Float[Tensor, "width states"]
    gamma: Complex[Tensor, "width states"]  # gamma / sqrt(N)
    omega: Float[Tensor, " width"]

    def powers(self, length: int, dtype: torch.dtype) -> Complex[Tensor, "width states powers"]:
        """q^0 .. q^length, with real and imaginary parts of `dtype`."""
        exponents = torch.arange(length + 1, device=self.p.device, dtype=torch.float64)
        magnitude = (self.log_abs_q[..., None] * exponents).to(dtype).exp()
        angle = (self.angle_q[..., None] * exponents).remainder(2 * math.pi).to(dtype)
        return torch.complex(magnitude * angle.cos(), magnitude * angle.sin())


def ema_loop(
    x: Float[Tensor, "rows time width"], coefficients: Coefficients, h: Complex[Tensor, "rows width states"]
) -> tuple[Float[Tensor, "rows time width"], Complex[Tensor, "rows width states"]]:
    """The definition, token by token, at the precision of h."""
    p, log_abs_q, angle_q, gamma, omega = coefficients
    q = torch.polar(log_abs_q.exp(), angle_q).to(h.dtype)
    p, gamma, omega = p.to(h.real.dtype), gamma.to(h.dtype), omega.to(h.real.dtype)
    outputs = []
    for x_t in x.to(h.real.dtype).unbind(1):
        h = q * h + p * x_t[..., None]
        outputs.append((gamma * h).real.sum(-1) + omega * x_t)
    return torch.stack(outputs, dim=1).to(x.dtype), h


def ema(
    x: Float[Tensor, "rows time width"], coefficients: Coefficients, h: Complex[Tensor, "rows width states"]
) -> tuple[Float[Tensor, "rows time width"], Complex[Tensor, "rows width states"]]:
    """`ema_loop` in chunks, at the precision of h."""
    rows, time, _ = x.shape
    dtype = h.real.dtype
    size = min(CHUNK, time)
    num_chunks = -(-time // size)
    last_size = time - (num_chunks - 1) * size
    powers = coefficients.powers(size, dtype)
    p_powers = coefficients.p.to(dtype)[..., None] * powers  # p q^l: a token's weight in h, l tokens later
    gamma = coefficients.gamma.to(h.dtype)[..., None]

    # inside a chunk: y_i += sum_{j <= i} kernel_{i-j} x_j, a product with a Toeplitz matrix
    kernel = (gamma * p_powers[..., :size]).real.sum(1)
    kernel = kernel + F.pad(coefficients.omega.to(dtype)[:, None], (0, size - 1))
    toeplitz = F.pad(kernel, (size - 1, 0)).unfold(1, size, 1).flip(1)  # (width, chunk j, chunk i)
    x_chunks = F.pad(x.to(dtype), (0, 0, 0, num_chunks * size - time))
    x_chunks = rearrange(x_chunks, "b (n c) d -> d (b n) c", c=size).contiguous()

    # from chunk to chunk: h at the end of each; the last chunk may be shorter
    end_weights = torch.view_as_real(p_powers[..., :size].flip(2))
    end_weights = rearrange(end_weights, "d s c r -> d c (s r)").contiguous()
    chunk_states = rearrange(x_chunks @ end_weights, "d (b n) (s r) -> d b n s r", b=rows, r=2)
    decay, initial_states = powers[:, None, :, size], [h.transpose(0, 1)]
    for chunk_state in torch.view_as_complex(chunk_states).unbind(2)[:-1]:
        initial_states.append(decay * initial_states[-1] + chunk_state)
    last_x = rearrange(x_chunks, "d (b n) c -> d b n c", b=rows)[:, :, -1, :last_size]
    last_state = torch.view_as_complex((last_x @ end_weights[:, size - last_size :]).unflatten(2, (-1, 2)))
    h = powers[:, None, :, last_size] * initial_states[-1] + last_state

    initial = rearrange(torch.view_as_real(torch.stack(initial_states, dim=2)), "d b n s r -> d (b n) (s r)")
    # Re(a h) = Re(a*) Re(h) + Im(a*) Im(h)
    state_weights = torch.view_as_real((gamma * powers)[..., 1:].conj().resolve_conj())
    state_weights = rearrange(state_weights, "d s c r -> d (s r) c").contiguous()
    y = torch.baddbmm(x_chunks @ toeplitz, initial, state_weights)
    if y.requires_grad:
        y.register_hook(Tensor.contiguous)  # otherwise each product copies the gradient channel by channel
    y = rearrange(y, "d (b n) c -> b (n c) d", b=rows)[:, :time]
    return y.to(x.dtype), h.transpose(0, 1)


class ComplexEMA(Mixer):
    """Complex moving averages, `state_size` for each channel."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ("alpha", "delta", "gamma")

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
        """As in the published code: alpha, delta ~ N(0, 0.2); sigmoid(theta) = D^(-j/D) for j = 1..D
        in random order; gamma ~ N(0, 1), real; omega ~ N(0, 0.25) within [-1, 1]."""
        for weight in (self.alpha, self.delta):
            nn.init.normal_(weight, std=0.2)
        order = torch.randperm(self.width, device=self.theta.device) + 1
        self.theta.copy_((self.width ** -(order / self.width)).clamp(max=0.999).logit())  # width 1 has only 1
        nn.init.normal_(self.gamma[..., 0])
        nn.init.zeros_(self.gamma[..., 1])
        nn.init.trunc_normal_(self.omega, std=0.25, a=-1.0, b=1.0)

    def init_state(self, rows: int) -> Complex[Tensor, "rows width states"]:
        dtype = torch.promote_types(self.alpha.dtype, torch.float32).to_complex()
        return self.alpha.new_zeros(rows, self.width, self.state_size, dtype=dtype)

    def coefficients(self) -> Coefficients:
        alpha, delta, theta, gamma, omega = (
            weight.double() for weight in (self.alpha, self.delta, self.theta, self.gamma, self.omega)
        )
        p = alpha.sigmoid()
        one_minus_abs_q = (p * delta.sigmoid()).clamp(max=1 - 2**-53)  # at 1, log|q| is -inf
        n = torch.arange(1, self.state_size + 1, device=theta.device, dtype=theta.dtype)
        angle_q = n * (theta.sigmoid() * 2 * math.pi / self.state_size)[:, None]
        gamma = torch.view_as_complex(gamma) * self.state_size**-0.5
        return Coefficients(p, torch.log1p(-one_minus_abs_q), angle_q, gamma, omega)

    def forward(
        self, x: Float[Tensor, "rows time width"], state: Complex[Tensor, "rows width states"]
    ) -> tuple[Float[Tensor, "rows time width"], Complex[Tensor, "rows width states"]]:
        with no_autocast(x):
            return ema(x, self.coefficients(), state)
