"""A pytest plug-in: Triton's kernels run on the CPU, interpreted, as far as the packages expect a GPU.

The interpreter keeps bfloat16 as integers and multiplies matrices of them as such (triton 3.9), so tests of
16-bit inputs use float16.
"""

import builtins
import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch


def pytest_configure() -> None:
    without_gpu()
    smallest_blocks()
    without_package_init("mamba_ssm", "ops", "ops.triton", "utils")


def without_gpu() -> None:
    """Kernels ask which device they are launched on, and how large it is."""
    torch.cuda.device = lambda *_: nullcontext()  # type: ignore[assignment, misc]
    size = SimpleNamespace(multi_processor_count=8, shared_memory_per_block_optin=101_376)
    torch.cuda.get_device_properties = lambda *_: size  # type: ignore[assignment]


def smallest_blocks() -> None:
    """Nothing is timed on a GPU: of the configurations to choose from the one with the smallest blocks."""
    from triton.runtime.autotuner import Autotuner

    def block_size(config: Any) -> int:
        return math.prod(value for value in config.kwargs.values() if isinstance(value, int))

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = self.best_config = min(self.configs, key=block_size)
        if config.pre_hook is not None:
            config.pre_hook(dict(zip(self.arg_names, args, strict=False)) | kwargs)
        return self.fn.run(*args, **kwargs, **config.all_kwargs())

    Autotuner.run = run


def without_package_init(package: str, *modules: str) -> None:
    """mamba_ssm's __init__ imports its CUDA extension; its parts are imported without it."""
    spec = find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    for name in ("", *modules):
        module = ModuleType(f"{package}.{name}" if name else package)
        module.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[module.__name__] = module


class Index(int):
    """A kernel's loop variable, which the interpreter makes an int: a compiled kernel may convert it."""

    def to(self, dtype: Any) -> Any:
        from triton.runtime.interpreter import _implicit_cvt

        return _implicit_cvt(int(self)).to(dtype)


def interpretable_fla() -> None:
    """Let the kernels of flash-linear-attention run here, as far as they do what only a compiler accepts.

    Loop variables are converted with `.to`, and `tl.gather` is called by a name from before the interpreter
    took its place: kernels have a branch without it for versions of Triton that lack it.
    """

    def indices(*bounds: Any) -> Iterator[Index]:
        return map(Index, builtins.range(*map(int, bounds)))

    import_module("fla.ops")
    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops."):
            module.range = indices  # type: ignore[attr-defined]
            if hasattr(module, "IS_GATHER_SUPPORTED"):
                module.IS_GATHER_SUPPORTED = False
