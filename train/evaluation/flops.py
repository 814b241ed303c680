"""Floating-point operations of a step, counted while it runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

COUNTED = {
    *("cumsum", "_softmax", "_safe_softmax", "_softmax_backward_data", "softplus_backward"),
    *("_log_softmax", "_log_softmax_backward_data"),
}
"""Operations that torch doesn't tag as pointwise and that count with one operation per element."""


class Flops(NamedTuple):
    """Operations of matrix products (two per multiply-add), and of elementwise operations, softmax and
    cumulative sums (one per element of the result): the scans of recurrent models, activations, norms, masks.
    Sums over elements, the updates of a foreach optimiser and searches are in neither."""

    products: float
    elementwise: float


def count_flops(step: Callable[[], object]) -> Flops:
    """The operations of `step()`.

    Attention counts as the products that it is defined by, with the masked half of the scores: its fused
    kernels skip some of these, and what they skip differs from device to device.  What kernels of other
    packages (mamba-ssm, causal-conv1d) compute inside isn't seen.
    """
    elementwise = _Elementwise()
    with (
        torch.backends.mkldnn.flags(enabled=False),
        torch.backends.cudnn.flags(enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        elementwise,
    ):
        step()
    return Flops(counter.get_total_flops(), elementwise.count)


class _Elementwise(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in COUNTED or (torch.Tag.pointwise in func.tags and name != "clone"):
            self.count += sum(
                leaf.numel()
                for leaf in tree_leaves(result)
                if isinstance(leaf, Tensor) and leaf.is_floating_point()
            )
        return result


def product_rate(
    device: torch.device, dtype: torch.dtype, seconds: Callable[[Callable[[], object]], float]
) -> float:
    """Operations per second of a product of two square matrices, of the fastest size: what this machine can
    reach at best.  `seconds` measures a step, in seconds."""
    rates = []
    for size in (512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192):
        left, right = torch.randn(2, size, size, device=device, dtype=dtype).unbind(0)
        rates.append(2 * size**3 / seconds(lambda left=left, right=right: left @ right))  # type: ignore[misc]
    return max(rates)
