"""The ring buffer against lists of entries: what is stored, which blocks are new, what is read."""

import pytest
import torch

from zoo.memory.retrieval.ring_buffer import gather_entries, oldest_first, touched_blocks, write_entries

CAPACITY, WIDTH = 6, 2


@pytest.mark.parametrize("block", [1, 2, 6])
@pytest.mark.parametrize("entry", [(WIDTH,), (3, WIDTH)], ids=str)
def test_each_row_stores_its_last_entries_and_shares_untouched_blocks(
    block: int, entry: tuple[int, ...]
) -> None:
    """Rows write different numbers of entries at different positions, some more than the capacity."""
    random = torch.Generator().manual_seed(0)
    ring = tuple(torch.zeros(3, 2, block, *entry) for _ in range(CAPACITY // block))
    stored: list[list[torch.Tensor]] = [[], [], []]
    length = torch.zeros(3, dtype=torch.long)
    for counts in ([1, 0, 4], [2, 2, 2], [0, 0, 0], [9, 1, 6], [1, 1, 1]):
        entries = torch.randn(3, 2, 9, *entry, generator=random)
        end = length + torch.tensor(counts)
        touched = touched_blocks(ring, length, end)
        assert touched == touched_blocks(ring, length, end, zip(length.tolist(), end.tolist(), strict=True))
        after = write_entries(ring, entries, length, end, touched)
        assert [new is not old for new, old in zip(after, ring, strict=True)] == [
            index in touched for index in range(len(ring))
        ]
        slots = {entry % CAPACITY for row in range(3) for entry in range(int(length[row]), int(end[row]))}
        assert touched == {slot // block for slot in slots}
        ring, length = after, end
        for row, count in enumerate(counts):
            stored[row] += entries[row, :, :count].unbind(1)
        ordered = oldest_first(ring, length)
        for row, expected in enumerate(stored):
            last = expected[-CAPACITY:]
            for index, value in enumerate(last, CAPACITY - len(last)):
                assert torch.equal(ordered[row, :, index], value)


@pytest.mark.parametrize("readable", [("cpu",), ()], ids=["", "unreadable"])
def test_an_entry_is_gathered_by_its_slot(readable: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.host.READABLE_DEVICES", readable)
    ring = torch.arange(12.0).view(1, 1, 6, WIDTH).split(2, dim=2)
    slots = torch.tensor([[[[0, 5, -1]]]])
    expected = torch.tensor([[0.0, 1], [10, 11], [0, 0]])
    assert torch.equal(gather_entries(ring, slots)[0, 0, 0], expected)
    assert torch.equal(gather_entries(ring, slots.expand(-1, -1, 9, -1))[0, 0, 8], expected)
