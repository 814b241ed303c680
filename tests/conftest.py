"""Shared by all tests."""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from tests.laws import untyped

# The tensors here are tiny: threads would only wait for one another, most of all on a machine that is shared.
torch.set_num_threads(1)
os.environ.pop("COLUMNS", None)  # set by readline in the processes of pytest-xdist
# a shell's background jobs ignore Ctrl-C, and so would the processes that tests start and interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


decorate = jaxtyping.jaxtyped


def jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """As jaxtyping's own, but a function inside a function, decorated anew at each call of the outer one
    (2 ms), is left as it is while checks are off."""
    if function is None:
        return partial(jaxtyped, typechecker=typechecker)
    if jaxtyping.config.jaxtyping_disable and "<locals>" in function.__qualname__:
        return function
    return decorate(function, typechecker=typechecker)


jaxtyping.jaxtyped = jaxtyped


def pytest_collection_finish() -> None:
    """Leave imported modules and collected tests out of every later garbage collection: they all stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


WHOLE_RUNS = ("docs", "faults", "fuzz")
"""Folders whose tests train models that others have checked: shapes and types are not looked at again."""


@pytest.fixture(autouse=True, scope="module")
def shapes_and_types(request: pytest.FixtureRequest) -> Iterator[None]:
    folder = Path(request.node.path).relative_to(Path(__file__).parent).parts[0]
    with untyped() if folder in WHOLE_RUNS else nullcontext():
        yield
