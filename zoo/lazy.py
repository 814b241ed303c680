"""Imports when they are needed: a package's public names (PEP 562), and large packages uncollected."""

import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


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
def uncollected_imports() -> Iterator[None]:
    """A block of imports during which nothing is garbage-collected, and whose objects never are again: each
    collection would walk through all that torch and Lightning have made so far, a fifth of the time."""
    enabled, imported = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > imported:
            gc.freeze()
        if enabled:
            gc.enable()
