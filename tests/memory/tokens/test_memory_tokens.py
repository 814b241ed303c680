"""Memory tokens: their mask, against the loop over pairs, and their place around a segment."""

import pytest
import torch

from tests.memory.attention.loops import attention_loop
from zoo.memory.tokens.memory_tokens import BlockMemoryAttention, block_mask, surround_with_memory


@pytest.mark.parametrize("memory_tokens", [1, 2, 3])
@torch.no_grad()
def test_memory_tokens_attend_to_their_whole_block(memory_tokens: int) -> None:
    layer = BlockMemoryAttention(8, 2, memory_tokens, position="rope").double()
    time = 4 + 2 * memory_tokens

    def attends(query: int, key: int) -> bool:
        first = query < memory_tokens and key < memory_tokens
        last = min(query, key) >= time - memory_tokens
        return key <= query or first or last

    x = torch.randn(2, time, 8, dtype=torch.float64)
    assert block_mask(time, memory_tokens, x.device).tolist() == [
        [attends(query, key) for key in range(time)] for query in range(time)
    ]
    torch.testing.assert_close(layer(x, ())[0], attention_loop(layer, x, attends))


def test_surround_puts_the_memory_on_both_sides_in_the_segments_type() -> None:
    memory, x = torch.randn(2, 3, 4), torch.randn(2, 5, 4).bfloat16()
    surrounded = surround_with_memory(memory, x)
    assert surrounded.dtype == torch.bfloat16
    assert torch.equal(surrounded[:, :3], memory.bfloat16())
    assert torch.equal(surrounded[:, 3:8], x)
    assert torch.equal(surrounded[:, 8:], memory.bfloat16())
