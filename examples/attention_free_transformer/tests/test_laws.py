"""The zoo's laws, held by this model."""

from collections.abc import Callable

import pytest
from attention_free_transformer.model import AFT

from zoo import laws


def small() -> AFT:
    return AFT(vocab_size=50, segment_len=16, depth=2, width=32, mlp_width=48)


@pytest.mark.parametrize(("name", "check"), list(laws(small)))
def test_law(name: str, check: Callable[[], None]) -> None:
    check()
