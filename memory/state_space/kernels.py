"""Kernels in place of the zoo's loops, where a configuration requests them: `backend: mamba_ssm`, `triton`.

Of causal-conv1d and mamba-ssm (Dao & Gu) the functions are called, not the modules, which change states in
place.
All take an initial state and return the final one, with gradients through both of them.

Mamba-1's kernel takes no initial state, and gives its last state no gradient; `with_states` makes up for both
with N tokens before the text that write the state, and N after it that read it.
"""

import importlib
import os
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from zoo.errors import UserError
from zoo.memory.kernel_packages import require, require_gpu
from zoo.memory.state_space.inputs import SSDInputs

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # (u, dt, A, B, C) -> y

TRITON_STATUS = "interpreted and compiled in tests, never run on a GPU yet: compare with model.backend=torch"
STEP = 2.0**-20  # dt of the tokens that write the state: so short that nothing decays meanwhile


def scan_note(backend: str, device: torch.device) -> str:
    """What a run of Mamba's selective scan on this device says of its backend."""
    if device.type == "cuda" and backend == "torch":
        return (
            "backend torch: Mamba's scan launches about three kernels per token and layer on CUDA; "
            "model.backend=triton or mamba_ssm launch one per layer"
        )
    return f"backend triton: {TRITON_STATUS}" if backend == "triton" else ""


def for_conv(backend: Literal["torch", "mamba_ssm", "triton"]) -> Literal["torch", "causal_conv1d"]:
    """The convolution's backend in a mixer with `backend`.

    Raises UserError if the package of the mixer's own kernel is missing.
    """
    if backend == "torch":
        return "torch"
    if backend == "triton":
        require("triton")
        return "torch"
    require("mamba-ssm")
    return "causal_conv1d"


def causal_conv(
    x: Float[Tensor, "rows time channels"],
    weight: Float[Tensor, "channels conv_size"],
    bias: Float[Tensor, " channels"] | None,
    state: Float[Tensor, "rows earlier channels"],
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows earlier channels"]]:
    """As zoo.memory.state_space.conv.causal_conv; `conv_size` 2 to 4, and channels in multiples of 8."""
    (channels, conv_size), package = weight.shape, require("causal-conv1d")
    if channels % 8 or not 2 <= conv_size <= 4:
        raise UserError(
            "backend: expected channels in multiples of 8 and a conv_size of 2 to 4 for causal-conv1d, found "
            f"{channels} channels and a conv_size of {conv_size}"
        )
    require_gpu("causal-conv1d", x)
    x = x.contiguous()  # channels last: the layout whose initial states the kernel accepts
    before = state.to(x.dtype).contiguous()
    y = package.causal_conv1d_fn(x.mT, weight, bias, initial_states=before.mT)
    after = torch.cat([before, x[:, max(0, x.shape[1] - conv_size + 1) :]], dim=1)[:, 1 - conv_size :]
    return y.mT, after.to(state.dtype)


def ssd(
    inputs: SSDInputs, chunk_size: int
) -> tuple[Float[Tensor, "rows time heads head_dim"], Float[Tensor, "rows heads head_dim states"]]:
    """As zoo.memory.state_space.ssd.ssd, by mamba_ssm's `mamba_chunk_scan_combined`; `chunk_size` is a power
    of 2 from 16."""
    package = require("mamba-ssm", "mamba_ssm.ops.triton.ssd_combined")
    x, D, z, dt_bias = inputs.x, inputs.D, inputs.z, inputs.dt_bias
    require_gpu("mamba-ssm", x, triton=True)
    y, state = package.mamba_chunk_scan_combined(
        x,
        inputs.dt.float(),
        inputs.A.float(),
        inputs.B.to(x.dtype),
        inputs.C.to(x.dtype),
        max(16, 1 << (chunk_size - 1).bit_length()),
        D=None if D is None else D.float(),
        z=None if z is None else z.to(x.dtype),
        dt_bias=None if dt_bias is None else dt_bias.float(),
        initial_states=inputs.state.contiguous(),
        dt_softplus=inputs.dt_softplus,
        dt_limit=inputs.dt_limit or (0.0, float("inf")),
        return_final_states=True,
    )
    return y, state.to(inputs.state.dtype)


def selective_scan(
    u: Float[Tensor, "rows time channels"],
    dt: Float[Tensor, "rows time channels"],
    A: Float[Tensor, "channels states"],
    B: Float[Tensor, "rows time groups states"],
    C: Float[Tensor, "rows time groups states"],
    state: Float[Tensor, "rows channels states"],
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows channels states"]]:
    """The scan of zoo.memory.state_space.selective_scan with dt as it is, by mamba_ssm's `selective_scan_fn`,
    in float32."""
    package = require("mamba-ssm", "mamba_ssm.ops.selective_scan_interface")
    require_gpu("mamba-ssm", u)

    def scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        u, dt = (rearrange(part, "b t e -> b e t").contiguous() for part in (u, dt))
        B, C = (rearrange(part, "b t g n -> b g n t").contiguous() for part in (B, C))
        return rearrange(package.selective_scan_fn(u, dt, A.contiguous(), B, C), "b e t -> b t e")

    return with_states(scan, u, dt, A, B, C, state)


def triton_scan(
    u: Float[Tensor, "rows time channels"],
    dt: Float[Tensor, "rows time channels"],
    A: Float[Tensor, "channels states"],
    B: Float[Tensor, "rows time groups states"],
    C: Float[Tensor, "rows time groups states"],
    state: Float[Tensor, "rows channels states"],
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows channels states"]]:
    """As `selective_scan`, by the zoo's own kernel (triton_scan.py), in the dtype of the state."""
    require("triton")
    module = importlib.import_module("zoo.memory.state_space.triton_scan")
    if os.environ.get("TRITON_INTERPRET") != "1" and not u.is_cuda:
        raise UserError(f"backend: expected a CUDA device for the kernels of triton, found {u.device}")
    result: tuple[Tensor, Tensor] = module.scan(u, dt, A, B, C, state)
    return result


def with_states(
    scan: Scan,
    u: Float[Tensor, "rows time channels"],
    dt: Float[Tensor, "rows time channels"],
    A: Float[Tensor, "channels states"],
    B: Float[Tensor, "rows time groups states"],
    C: Float[Tensor, "rows time groups states"],
    state: Float[Tensor, "rows channels states"],
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows channels states"]]:
    """Give an initial and a final state to a scan that starts from an empty state and returns y alone.

    Token n of the N before the text has B = e_n and dt u = h[n], raised by what h[n] loses until the text
    starts; token n of the N after it has dt = 0, which keeps the state, and C = e_n, so that y is h[n].
    """
    time, state_size = u.shape[1], A.shape[1]
    # both are made on the device: a copy of pageable memory would wait for it
    units = torch.eye(state_size, device=u.device, dtype=u.dtype)
    units = repeat(units, "t n -> b t g n", b=len(u), g=B.shape[2])
    steps_left = torch.arange(state_size - 1, -1, -1, device=u.device, dtype=u.dtype)
    first = rearrange(state * (-STEP * A * steps_left).exp() / STEP, "b e n -> b n e")
    padding = (0, 0, 0, state_size)
    u = torch.cat([first, F.pad(u, padding)], dim=1)
    dt = torch.cat([torch.full_like(first, STEP), F.pad(dt, padding)], dim=1)
    B = torch.cat([units, F.pad(B, (0, 0, *padding))], dim=1)
    C = torch.cat([torch.zeros_like(units), C, units], dim=1)
    y = scan(u, dt, A, B, C)
    return y[:, state_size : state_size + time], rearrange(y[:, state_size + time :], "b n e -> b e n")
