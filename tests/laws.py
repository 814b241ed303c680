"""The laws as test cases.

Checking every shape and type with beartype takes as long as the model itself, and most laws repeat the same
calls: so only the laws of `TYPED` run with these checks.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from jaxtyping import config

from zoo.contract import Build, laws

TYPED = (
    "odd_lengths",
    "parallel_equals_fold",
    "parallel_equals_fold-train",
    "bf16_is_finite",
    "bf16_is_finite-train",
)
"""One token, short and full segments, fold and forward, fresh and carried, both modes, both precisions."""


@contextmanager
def untyped() -> Iterator[None]:
    """Without checks of shapes and types."""
    previous = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", previous)


def law_cases(
    models: Mapping[str, Build],
    exceptions: Mapping[str, Mapping[str, str]] | None = None,
    only: Collection[str] | None = None,
) -> list[Any]:
    """A case per model and law, or per law of `only`; `exceptions`, {model: {law: reason}}, must fail."""
    cases = []
    for name, build in models.items():
        for law, check in laws(build):
            if only is None or law in only:
                reason = (exceptions or {}).get(name, {}).get(law)
                marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True)]
                case = check if law in TYPED else without_types(check)
                cases.append(pytest.param(case, id=f"{name}-{law}", marks=marks))
    return cases


def without_types(check: Callable[[], None]) -> Callable[[], None]:
    def untyped_check() -> None:
        with untyped():
            check()

    return untyped_check
