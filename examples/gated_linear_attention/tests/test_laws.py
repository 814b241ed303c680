"""The zoo's laws, held by this model."""

from collections.abc import Callable

import pytest
from gated_linear_attention.model import GLA

from zoo.contract import laws


def small() -> GLA:
    return GLA(vocab_size=50, segment_len=16, depth=2, width=32, heads=4, mlp_width=48)


@pytest.mark.parametrize(("name", "check"), list(laws(small)))
def test_law(name: str, check: Callable[[], None]) -> None:
    check()
