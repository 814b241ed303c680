"""Imports when they are needed: a package's public names (PEP 562), and large packages uncollected."""

import gc
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

# What Lightning takes from torchmetrics while it is imported, and the submodules to import for it in this
# order (each of `metric` and `utilities` imports the other); the last one defines it.
TAKEN_BY_LIGHTNING = {
    "__version__": ["__about__"],
    "Metric": ["utilities", "metric"],
    "MetricCollection": ["utilities", "collections"],
}


def lazy_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose public names are defined in these modules."""

    def get(name: str) -> Any:
        if name not in modules:
            if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
                return importlib.import_module(f"{package}.{name}")  # `zoo.state` after `import zoo`
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)  # the next use doesn't come here
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *modules})


@contextmanager
def large_imports() -> Iterator[None]:
    """A block that imports Lightning, in half the time.

    Nothing is garbage-collected meanwhile, and what is imported never is again: each collection would walk
    through all that torch and Lightning have made so far, a fifth of the time.  Of torchmetrics only what
    Lightning takes is imported, a third of the time: the package imports SciPy and transformers.
    """
    enabled, imported = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        defer_torchmetrics()
        yield
    finally:
        if len(sys.modules) > imported:
            gc.freeze()
        if enabled:
            gc.enable()


def defer_torchmetrics() -> None:
    """Let torchmetrics' `__init__` run when a name is first asked for that isn't in TAKEN_BY_LIGHTNING.
    Nothing is done if it is imported or isn't installed."""
    spec = None if "torchmetrics" in sys.modules else importlib.util.find_spec("torchmetrics")
    if spec is None or spec.loader is None:
        return
    package, loader = importlib.util.module_from_spec(spec), spec.loader
    vars(package)["_logger"] = logging.getLogger("torchmetrics")  # its submodules ask for it

    def get(name: str) -> Any:
        if name in TAKEN_BY_LIGHTNING:
            with suppress(ImportError):  # another version, with other submodules
                parts = [importlib.import_module(f"torchmetrics.{part}") for part in TAKEN_BY_LIGHTNING[name]]
                setattr(package, name, getattr(parts[-1], name))
                return vars(package)[name]
            for part in [part for part in sys.modules if part.startswith("torchmetrics.")]:
                del sys.modules[part]
        vars(package).pop("__getattr__", None)  # from here on it is a package like all others
        loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = get  # type: ignore[method-assign]  # PEP 562
    sys.modules["torchmetrics"] = package
