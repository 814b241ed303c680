"""The laws as test cases.

Most laws read the same few texts again and again, in calls that others have checked: those of `TYPED` alone
run with every shape and type checked by beartype, which takes as long as the model.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from jaxtyping import config

from zoo.contract import Build, laws

TYPED = ("shapes", "odd_lengths", "parallel_equals_fold", "bf16_is_finite", "gradient_reach")
"""One token, short and whole segments, fold and window, fresh and carried, both modes, both precisions."""


@contextmanager
def untyped() -> Iterator[None]:
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)


def law_cases(
    models: Mapping[str, Build],
    exceptions: Mapping[str, Mapping[str, str]] | None = None,
    only: Collection[str] | None = None,
) -> list[Any]:
    """A case per model and law, of `only` some laws; `exceptions`, {model: {law: reason}}, must fail."""
    cases = []
    for name, build in models.items():
        for law, check in laws(build):
            if only is None or law in only:
                reason = (exceptions or {}).get(name, {}).get(law)
                marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True)]
                case = check if law.removesuffix("-train") in TYPED else untyped_check(check)
                cases.append(pytest.param(case, id=f"{name}-{law}", marks=marks))
    return cases


def untyped_check(check: Callable[[], None]) -> Callable[[], None]:
    def checked() -> None:
        with untyped():
            check()

    return checked
