"""The package faiss: its import, a GPU's resources, searches that read and write tensors without a copy."""

import functools
import importlib
import importlib.metadata
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError, first_line

GPU_MEMORY = 2**28  # bytes of faiss's temporary memory; its default is a fifth of the GPU


@functools.cache
def load_faiss() -> Any:
    """The module faiss, imported after torch.

    Raises UserError if it is missing, or if two of its packages are installed, which overwrite each other's
    files.
    """
    names = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")
    installed = [name for name in names if _installed(name)]
    if len(installed) > 1:
        raise UserError(
            f"backend: expected one package of faiss, found {' and '.join(installed)}, which share a folder: "
            f"pip uninstall -y {' '.join(installed)}, then pip install -c constraints/cuda.txt faiss-gpu (or "
            "faiss-cpu, for machines without a GPU)"
        )
    try:
        return importlib.import_module("faiss")
    except Exception as error:  # faiss-gpu without its libraries raises other errors than ImportError
        raise UserError(
            "backend: expected the package faiss-cpu: pip install faiss-cpu (with a GPU: pip install -c "
            f"constraints/cuda.txt faiss-gpu); found {first_line(error)}"
        ) from error


def _installed(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


@functools.cache
def gpu() -> Any:
    """This process's GPU resources, on the stream that torch uses by default."""
    resources = load_faiss().StandardGpuResources()
    resources.setTempMemory(GPU_MEMORY)
    resources.setDefaultNullStreamAllDevices()
    return resources


def float_pointer(vectors: Tensor) -> Any:
    """The address of contiguous float32 vectors: faiss reads and writes tensors without a copy."""
    assert vectors.dtype == torch.float32
    assert vectors.is_contiguous()
    return load_faiss().cast_integer_to_float_ptr(vectors.data_ptr())


def id_pointer(ids: Tensor) -> Any:
    assert ids.dtype == torch.long
    assert ids.is_contiguous()
    return load_faiss().cast_integer_to_idx_t_ptr(ids.data_ptr())


def search_index(index: Any, queries: Tensor, count: int, parameters: Any = None) -> tuple[Tensor, Tensor]:
    scores = queries.new_empty(len(queries), count)
    ids = torch.empty_like(scores, dtype=torch.long)
    index.search_c(
        len(queries), float_pointer(queries), count, float_pointer(scores), id_pointer(ids), parameters
    )
    return scores, ids
