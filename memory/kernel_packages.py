"""Packages of kernels that a configuration may request by `backend`.

They are imported on first use, never at a module's top; a missing one is an error, never another code path.
"""

import importlib
import os
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError, first_line

INSTALL = {
    "fla-core": "pip install -c constraints/cuda.txt fla-core (with torch for CUDA installed)",
    "triton": "torch for CUDA brings it along on Linux: pip install -c constraints/cuda.txt torch",
}
INSTALL_FROM_SOURCE = (
    "pip install --no-build-isolation -c constraints/cuda.txt {} (with torch and nvcc installed)"
)


def require(package: str, module: str = "") -> Any:
    """The package (`mamba-ssm`, `triton`), or a module of it.  If it is missing, raises UserError with the
    line that installs it."""
    try:
        return importlib.import_module((module or package).replace("-", "_"))
    except Exception as error:  # a package without its CUDA part fails in many ways
        install = INSTALL.get(package, INSTALL_FROM_SOURCE.format(package))
        raise UserError(
            f"backend: expected the package {package}: {install}; found {first_line(error)}"
        ) from error


def require_gpu(package: str, x: Tensor, *, triton: bool = False) -> None:
    """Raises UserError unless x is on a CUDA device and not in float64.  Kernels in `triton` also run where
    Triton interprets them, on any device."""
    interpreted = triton and os.environ.get("TRITON_INTERPRET") == "1"
    if not x.is_cuda and not interpreted:
        raise UserError(f"backend: expected a CUDA device for the kernels of {package}, found {x.device}")
    if x.dtype == torch.float64:
        raise UserError(
            f"backend: expected float32, bfloat16 or float16 for the kernels of {package}, found float64"
        )
