"""The mixers of DeltaNet, Gated DeltaNet and Kimi Delta Attention: a memory that overwrites what a key had.

DeltaNet: Yang et al. 2024, arXiv:2406.06484; gated: Yang et al. 2024, arXiv:2412.06464; `kda`: Kimi Team
2025, arXiv:2510.26692; several writes a token: Siems et al. 2025, arXiv:2502.10297; strengths up to 2: Grazzi
et al. 2024, arXiv:2411.12537.  Per head, with l2(x) = x / sqrt(|x|^2 + 1e-6):

    q, k, v = silu(conv(W x))        q = l2(q) / sqrt(K)        k = l2(k)        beta = sigmoid(W_b x)
    S_t = (I - beta_t k_t k_t^T) diag(exp g_t) S_{t-1} + beta_t k_t v_t^T        o_t = S_t^T q_t
    y = W_o (RMSNorm(o) * gate)

    delta: g = 0                                                gate = silu(W_g x), where there is one
    additive: as delta, but S_t = S_{t-1} + beta_t k_t v_t^T: nothing is overwritten
    gated: g = -exp(A_log) softplus(W_a x + dt_bias)            gate = silu(W_g x)
    kda:   g = -exp(A_log) softplus(F_2 F_1 x + dt_bias)        gate = sigmoid(G_2 G_1 x + b), g per channel
           or lower_bound sigmoid(exp(A_log) (F_2 F_1 x + dt_bias))

With `negative_eigenvalues` beta = 2 sigmoid(W_b x).
Carried: every head's S, and the convolution's last K-1 inputs (q, k and v).
Differs from the papers: `additive` is no model of theirs, but what the delta rule is compared with.  A memory
decays first, is read with k after that, and is then written.
"""

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.memory.fast_weights.inputs import Inputs
from zoo.memory.fast_weights.recurrence import Backend, Recurrence
from zoo.memory.mixer import Mixer, float32_zeros, no_autocast
from zoo.memory.state_space.conv import CausalConv
from zoo.memory.state_space.mamba_mixer import initial_dt_bias

Rule = Literal["delta", "gated", "kda", "additive"]
L2_EPS = 1e-6


class DeltaState(NamedTuple):
    conv: Float[Tensor, "rows earlier channels"]  # the convolution's last K-1 inputs: q, k and v
    matrix: Float[Tensor, "rows heads head_dim value_dim"]  # S, in float32 at least


def l2_normalise(x: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows channels"]:
    """x / sqrt(|x|^2 + 1e-6)."""
    return x * (x.square().sum(-1, keepdim=True) + L2_EPS).rsqrt()


class DeltaMixer(Mixer):
    """`heads` of queries and keys of `head_dim`; `value_heads` (by default as many) of values of `value_dim`,
    of which consecutive ones share a query and key.

    `steps` writes a token, of which the first decays.  `conv_size` 0 leaves out the convolution.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rule: Rule,
        head_dim: int,
        value_dim: int,
        value_heads: int | None = None,
        gate: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        negative_eigenvalues: bool = False,
        lower_bound: float | None = None,
        steps: int = 1,
        norm_eps: float = 1e-5,
        chunk_size: int = 32,
        backend: Backend = "torch",
    ) -> None:
        super().__init__()
        value_heads = value_heads or heads
        if rule not in get_args(Rule):
            raise ValueError(f"rule must be {', '.join(get_args(Rule))}, not {rule}")
        if value_heads % heads:
            raise ValueError(f"value_heads {value_heads} is not a multiple of heads {heads}")
        if lower_bound is not None and (rule != "kda" or lower_bound >= 0):
            raise ValueError(f"lower_bound must be negative, with rule kda, not {lower_bound} with {rule}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        self.rule: Rule = rule
        self.has_decay = rule in ("gated", "kda")
        self.heads, self.value_heads, self.head_dim, self.value_dim = heads, value_heads, head_dim, value_dim
        self.max_beta = 2.0 if negative_eigenvalues else 1.0
        self.lower_bound = lower_bound
        self.steps = steps
        self.norm_eps = norm_eps
        self.recurrence = Recurrence(chunk_size, backend)
        self.qkv = [heads * head_dim, steps * heads * head_dim, steps * value_heads * value_dim]
        inner = value_heads * value_dim
        low_rank = rule == "kda"
        self.parts = {"qkv": sum(self.qkv), "beta": steps * value_heads}
        if self.has_decay:
            self.parts["decay"] = value_dim if low_rank else value_heads
        if gate:
            self.parts["gate"] = value_dim if low_rank else inner
        self.in_proj = nn.Linear(width, sum(self.parts.values()), bias=False)
        self.conv = CausalConv(sum(self.qkv), conv_size, conv_bias) if conv_size else None
        self.decay_proj = nn.Linear(value_dim, value_heads * head_dim, bias=False) if low_rank else None
        self.gate_proj = nn.Linear(value_dim, inner) if low_rank and gate else None
        if self.has_decay:
            self.A_log = nn.Parameter(torch.empty(value_heads))
            self.dt_bias = nn.Parameter(torch.empty(value_heads * (head_dim if low_rank else 1)))
        self.norm_weight = nn.Parameter(torch.empty(value_dim))
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """exp(A_log) ~ U(0, 16), for `kda` from 1 on, with a lower bound 1; dt_bias the inverse softplus of a
        log-uniform step; the norm 1."""
        self.norm_weight.fill_(1.0)
        if self.has_decay:
            self.dt_bias.copy_(initial_dt_bias(len(self.dt_bias)))
            self.A_log.uniform_(1.0 if self.rule == "kda" else 1e-3, 16.0).log_()
        if self.lower_bound is not None:
            self.A_log.zero_()

    def init_state(self, rows: int) -> DeltaState:
        weight = self.norm_weight
        conv = weight.new_zeros(rows, 0, sum(self.qkv)) if self.conv is None else self.conv.init_state(rows)
        shape = (rows, self.value_heads, self.head_dim, self.value_dim)
        return DeltaState(conv, float32_zeros(weight, *shape))

    def forward(
        self, x: Float[Tensor, "rows time width"], state: DeltaState
    ) -> tuple[Float[Tensor, "rows time width"], DeltaState]:
        projected = self.in_proj(x).split(list(self.parts.values()), dim=-1)
        parts = dict(zip(self.parts, projected, strict=True))
        qkv, conv = parts["qkv"], state.conv
        if self.conv is not None:
            qkv, conv = self.conv(qkv, conv)
        decay = parts.get("decay")
        decay = decay if self.decay_proj is None else self.decay_proj(decay)
        inputs = self.recurrence_inputs(F.silu(qkv), parts["beta"], decay, state.matrix)
        o, matrix = self.recurrence(inputs)
        o = o[:, self.steps - 1 :: self.steps].to(x.dtype)
        y = rearrange(F.rms_norm(o, o.shape[-1:], self.norm_weight, self.norm_eps), "r t h v -> r t (h v)")
        if "gate" in parts:
            gate = parts["gate"]
            y = y * (F.silu(gate) if self.gate_proj is None else self.gate_proj(gate).sigmoid())
        return self.out_proj(y), DeltaState(conv, matrix)

    def recurrence_inputs(
        self,
        qkv: Float[Tensor, "rows time channels"],
        beta: Float[Tensor, "rows time strengths"],
        decay: Float[Tensor, "rows time decays"] | None,
        matrix: Float[Tensor, "rows heads head_dim value_dim"],
    ) -> Inputs:
        """The recurrence's arguments in the state's dtype, `steps` of its tokens for every token."""
        n = self.steps
        with no_autocast(qkv):
            q, k, v = qkv.to(matrix.dtype).split(self.qkv, dim=-1)
            q = l2_normalise(rearrange(q, "r t (h k) -> r t h k", h=self.heads)) * self.head_dim**-0.5
            k = l2_normalise(rearrange(k, "r t (n h k) -> r (t n) h k", n=n, h=self.heads))
            v = rearrange(v, "r t (n h v) -> r (t n) h v", n=n, h=self.value_heads)
            beta = rearrange(beta.to(matrix.dtype), "r t (n h) -> r (t n) h 1", n=n)
            beta = self.max_beta * beta.sigmoid()
            g = None if decay is None else self.log_decay(decay.to(matrix.dtype))
            if n > 1:  # the first of a token's steps decays, the last is read
                q = rearrange(F.pad(q[:, :, None], (0, 0, 0, 0, n - 1, 0)), "r t n h k -> r (t n) h k")
                if g is not None:
                    g = rearrange(F.pad(g[:, :, None], (0, 0, 0, 0, 0, n - 1)), "r t n h k -> r (t n) h k")
            shared = self.value_heads // self.heads
            if shared > 1:
                q, k = (part.repeat_interleave(shared, dim=2) for part in (q, k))
            if self.rule == "additive":
                return Inputs(q, beta * k, v, None, matrix)
            return Inputs(q, k, v, g, matrix, strength=beta)

    def log_decay(
        self, decay: Float[Tensor, "rows time decays"]
    ) -> Float[Tensor, "rows time heads channels"]:
        """g, per head or per channel."""
        A, dt_bias = self.A_log.to(decay.dtype).exp()[:, None], self.dt_bias.to(decay.dtype)
        dt = rearrange(decay + dt_bias, "r t (h k) -> r t h k", h=self.value_heads)
        return -A * F.softplus(dt) if self.lower_bound is None else self.lower_bound * (A * dt).sigmoid()
