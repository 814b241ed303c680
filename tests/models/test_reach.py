"""The reach that models declare, number by number and measured by the law."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from zoo.contract import reach_is_true
from zoo.law_tools import perturbed
from zoo.models.griffin import Griffin
from zoo.models.jamba import Jamba
from zoo.models.rmt_xl import RMTXL
from zoo.models.samba import Samba
from zoo.models.transformer import Transformer
from zoo.models.transformer_xl import TransformerXL
from zoo.module import SequenceModule

SHAPE: dict[str, Any] = {"vocab_size": 23, "width": 16, "heads": 4, "mlp_width": 20}
DEPTH_4: dict[str, Any] = {**SHAPE, "depth": 4, "segment_len": 16}
DEPTH_3: dict[str, Any] = {**SHAPE, "depth": 3, "segment_len": 8}
XL = partial(TransformerXL, **DEPTH_3)
RMT_ON_XL = partial(RMTXL, **DEPTH_3, memory_tokens=2)
ATTENTION: dict[str, Any] = {"pattern": ["attention"]}

REACH: dict[str, tuple[Callable[[], SequenceModule], int | None]] = {
    "transformer": (partial(Transformer, **DEPTH_4), 16),
    "window": (partial(Transformer, **DEPTH_4, window=16), 4 * 15 + 1),
    "half_window": (partial(Transformer, **DEPTH_4, window=8), 4 * 7 + 1),
    "window_of_one": (partial(Transformer, **DEPTH_4, window=1), 1),
    "sinks": (partial(Transformer, **DEPTH_4, window=8, sinks=1), None),
    "xl": (partial(TransformerXL, **DEPTH_4, memory_len=16), 4 * 16 + 16),
    "xl_half_memory": (partial(TransformerXL, **DEPTH_4, memory_len=8), 4 * 16 + 8),
    "xl_one_layer": (partial(TransformerXL, **{**DEPTH_3, "depth": 1}, memory_len=5), 8 + 5),
    "xl_no_memory": (partial(XL, memory_len=0), 8),
    "xl_memory_of_one": (partial(XL, memory_len=1), 3 * 8 + 1),
    "xl_memory_of_9": (partial(XL, memory_len=9), 8 + 2 * 16 + 9),
    "xl_memory_of_16": (partial(XL, memory_len=16), 8 + 2 * 16 + 16),
    "xl_memory_of_21": (partial(XL, memory_len=21), 8 + 2 * 24 + 21),
    "xl_same_length": (partial(XL, memory_len=8, same_length=True), 3 * 7 + 1),
    "xl_same_length_of_21": (partial(XL, memory_len=21, same_length=True), 3 * 20 + 1),
    "rmt_xl": (partial(RMT_ON_XL, memory_len=8), None),
    "rmt_xl_writes_first": (partial(RMT_ON_XL, memory_len=8, write_at_end=False), 3 * 8 + 8),
    "rmt_xl_writes_first_12": (partial(RMT_ON_XL, memory_len=12, write_at_end=False), 8 + 2 * 16 + 8 + 2),
    "rmt_xl_writes_first_and_reads": (
        partial(RMT_ON_XL, memory_len=8, write_at_end=False, read_cache=True),
        None,
    ),
    "samba_of_attention": (partial(Samba, **DEPTH_3, window=5, **ATTENTION), 3 * 4 + 1),
    "griffin_of_attention": (partial(Griffin, **DEPTH_3, window=5, **ATTENTION), 3 * 4 + 1),
    "jamba_of_attention": (partial(Jamba, **DEPTH_3, context=5, **ATTENTION), 3 * 5 + 1),
    "jamba": (partial(Jamba, **DEPTH_3, context=5), None),
}


@pytest.mark.parametrize("name", REACH)
@torch.no_grad()
def test_the_declared_reach_is_this_number_and_true(name: str) -> None:
    build, reach = REACH[name]
    model = perturbed(build).eval()
    assert model.reach == reach
    reach_is_true(model)


def test_a_query_that_sees_itself_alone_remembers_nothing() -> None:
    assert not XL(memory_len=1, same_length=True).remembers
    assert XL(memory_len=2, same_length=True).remembers
    assert XL(memory_len=1).remembers
