"""CUDA kernels in place of our own loops, where a configuration asks for them: `backend: mamba_ssm`.

causal-conv1d and mamba-ssm (Dao & Gu) are imported here and when asked for, never at a module's top; missing
ones are an error, never another code path.  We call their functions, not their modules, which change states
in place.  All take an initial state and give the final one, with gradients through both.

Mamba-1's kernel knows no initial state, and gives none to the gradient of its last; `with_ends` makes up for
both with N tokens before the text that write the state, and N after it that read it.
"""

import importlib
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from zoo.errors import UserError, first_line

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

INSTALL = "pip install --no-build-isolation -c constraints/cuda.txt {} (with torch and nvcc installed)"
STEP = 2.0**-20  # dt of the tokens that write the state: so short that nothing decays meanwhile


def require(package: str, module: str = "") -> Any:
    """The package (`mamba-ssm`), or a module of it; UserError with the line that installs it."""
    try:
        return importlib.import_module((module or package).replace("-", "_"))
    except Exception as error:  # a package without its CUDA part fails in ways of its own
        raise UserError(
            f"backend: expected the package {package}: {INSTALL.format(package)}; found {first_line(error)}"
        ) from error


def for_conv(backend: Literal["torch", "mamba_ssm"]) -> Literal["torch", "causal_conv1d"]:
    """The convolution's backend in a mixer whose own is `backend`, after a look at what is installed."""
    if backend == "torch":
        return "torch"
    require("mamba-ssm")
    return "causal_conv1d"


def _on_gpu(package: str, x: Tensor) -> None:
    if not x.is_cuda:
        raise UserError(f"backend: expected a CUDA device for the kernels of {package}, found {x.device}")
    if x.dtype == torch.float64:
        raise UserError(
            f"backend: expected float32, bfloat16 or float16 for the kernels of {package}, found float64"
        )


def causal_conv(
    x: Float[Tensor, "rows time channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None,
    tail: Float[Tensor, "rows earlier channels"],
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows earlier channels"]]:
    """As zoo.memory.state_space.conv.causal_conv; `conv_size` 2 to 4, and channels in multiples of 8."""
    (channels, conv_size), package = weight.shape, require("causal-conv1d")
    if channels % 8 or not 2 <= conv_size <= 4:
        raise UserError(
            "backend: expected channels in multiples of 8 and a conv_size of 2 to 4 for causal-conv1d, found "
            f"{channels} channels and a conv_size of {conv_size}"
        )
    _on_gpu("causal-conv1d", x)
    x = x.contiguous()  # channels last: the layout whose initial states the kernel knows
    before = tail.to(x.dtype).contiguous()
    y = package.causal_conv1d_fn(x.mT, weight, bias, initial_states=before.mT)
    after = torch.cat([before, x[:, max(0, x.shape[1] - conv_size + 1) :]], dim=1)[:, 1 - conv_size :]
    return y.mT, after.to(tail.dtype)


def ssd(
    x: Float[Tensor, "rows time heads head_dim"],
    dt: Float[Tensor, "rows time heads"],
    rates: Float[Tensor, " heads"],
    write: Float[Tensor, "rows time groups states"],
    read: Float[Tensor, "rows time groups states"],
    state: Float[Tensor, "rows heads head_dim states"],
    *,
    skip: Float[Tensor, "heads ..."] | None,
    gate: Float[Tensor, "rows time heads head_dim"] | None,
    bias: Float[Tensor, " heads"] | None,
    softplus: bool,
    limits: tuple[float, float] | None,
    chunk_size: int,
) -> tuple[Float[Tensor, "rows time heads head_dim"], Float[Tensor, "rows heads head_dim states"]]:
    """As zoo.memory.state_space.ssd.ssd, by mamba_ssm's `mamba_chunk_scan_combined`; `chunk_size` is a power
    of 2 from 16."""
    package = require("mamba-ssm", "mamba_ssm.ops.triton.ssd_combined")
    _on_gpu("mamba-ssm", x)
    y, after = package.mamba_chunk_scan_combined(
        x,
        dt.float(),
        rates.float(),
        write.to(x.dtype),
        read.to(x.dtype),
        max(16, 1 << (chunk_size - 1).bit_length()),
        D=None if skip is None else skip.float(),
        z=None if gate is None else gate.to(x.dtype),
        dt_bias=None if bias is None else bias.float(),
        initial_states=state.contiguous(),
        dt_softplus=softplus,
        dt_limit=(0.0, float("inf")) if limits is None else limits,
        return_final_states=True,
    )
    return y, after.to(state.dtype)


def selective_scan(
    u: Float[Tensor, "rows time channels"],
    dt: Float[Tensor, "rows time channels"],
    rates: Float[Tensor, "channels states"],
    write: Float[Tensor, "rows time groups states"],
    read: Float[Tensor, "rows time groups states"],
    state: Float[Tensor, "rows channels states"],
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows channels states"]]:
    """The scan of zoo.memory.state_space.selective_scan with dt as it is, by mamba_ssm's `selective_scan_fn`,
    in float32."""
    package = require("mamba-ssm", "mamba_ssm.ops.selective_scan_interface")
    _on_gpu("mamba-ssm", u)

    def scan(u: Tensor, dt: Tensor, rates: Tensor, write: Tensor, read: Tensor) -> Tensor:
        u, dt = (rearrange(x, "b t e -> b e t").contiguous() for x in (u, dt))
        write, read = (rearrange(x, "b t g n -> b g n t").contiguous() for x in (write, read))
        return rearrange(package.selective_scan_fn(u, dt, rates.contiguous(), write, read), "b e t -> b t e")

    return with_ends(scan, u, dt, rates, write, read, state)


def with_ends(
    scan: Scan,
    u: Float[Tensor, "rows time channels"],
    dt: Float[Tensor, "rows time channels"],
    rates: Float[Tensor, "channels states"],
    write: Float[Tensor, "rows time groups states"],
    read: Float[Tensor, "rows time groups states"],
    state: Float[Tensor, "rows channels states"],
) -> tuple[Float[Tensor, "rows time channels"], Float[Tensor, "rows channels states"]]:
    """A scan that begins with an empty state and tells nothing of its last, made to begin with `state` and to
    tell it.

    Token n of the N before the text has B = e_n and dt u = h[n], raised by what h[n] loses until the text
    begins; token n of the N after it has dt = 0, which keeps the state, and C = e_n, which says h[n].
    """
    time, state_size = u.shape[1], rates.shape[1]
    each = repeat(torch.eye(state_size).to(u), "t n -> b t g n", b=len(u), g=write.shape[2])
    later = torch.arange(state_size - 1, -1, -1).to(u)
    first = rearrange(state * (-STEP * rates * later).exp() / STEP, "b e n -> b n e")
    ends = (0, 0, 0, state_size)
    u = torch.cat([first, F.pad(u, ends)], dim=1)
    dt = torch.cat([torch.full_like(first, STEP), F.pad(dt, ends)], dim=1)
    write = torch.cat([each, F.pad(write, (0, 0, *ends))], dim=1)
    read = torch.cat([torch.zeros_like(each), read, each], dim=1)
    y = scan(u, dt, rates, write, read)
    return y[:, state_size : state_size + time], rearrange(y[:, state_size + time :], "b n e -> b e n")
