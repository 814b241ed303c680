"""The three types of faiss index: recall, training, tuning and rebuilding; the package and its errors."""

import importlib
import importlib.metadata
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.memory.retrieval.banks import INDEX_TYPES, add, faiss_only, overlap, randn
from zoo.errors import UserError
from zoo.memory.retrieval import faiss_index
from zoo.memory.retrieval.bank import KNNMemory
from zoo.memory.retrieval.faiss_index import FlatIndex, HNSWIndex, IndexType
from zoo.memory.retrieval.faiss_package import load_faiss
from zoo.memory.retrieval.ivf_index import IVFIndex, list_count
from zoo.memory.retrieval.search import search_exact
from zoo.models.memorizing import Memorizing
from zoo.state import detach


@faiss_only
@pytest.mark.parametrize("index", INDEX_TYPES)
def test_nearest_means_the_largest_inner_product(index: IndexType) -> None:
    """A long distant key beats a short close one."""
    knn = KNNMemory(200, 1, 4, 0, 1, backend="faiss", index=index)
    keys = torch.nn.functional.normalize(randn(0, 1, 1, 200, 4), dim=-1)
    keys[0, 0, 123] = torch.tensor([50.0, 20, 20, 20])
    bank = knn.add(knn.init_state(1, keys), keys)
    query = torch.tensor([1.0, 0.1, 0.1, 0.1])
    assert knn.search(query.expand(1, 1, 1, 4), bank).item() == 123
    assert knn.index_cache is not None
    metric = load_faiss().METRIC_INNER_PRODUCT
    assert [row.heads[0].index.metric_type for row in knn.index_cache.rows.values()] == [metric]


def only_index(knn: KNNMemory) -> Any:
    assert knn.index_cache is not None
    return next(reversed(knn.index_cache.rows.values())).heads[0]


@faiss_only
def test_ivf_is_exact_until_it_can_train_and_trains_again() -> None:
    knn = KNNMemory(256, 1, 4, 0, 8, 16, "faiss", "ivf")  # 6 lists, trained from 234 keys on
    bank, queries, indexes = knn.init_state(1, torch.empty(0)), randn(1, 1, 1, 20, 4), []
    for step in range(40):
        bank = add(knn, bank, 16, seed=step)
        slots, expected = knn.search(queries, bank), search_exact(queries, bank.keys, bank.length, 8)
        indexes.append(only_index(knn))
        assert isinstance(indexes[-1], FlatIndex if bank.length < 234 else IVFIndex)
        assert isinstance(indexes[-1], IVFIndex) or torch.equal(slots, expected)
        assert indexes[-1].index.ntotal == min(256, int(bank.length))
    trained = {id(index) for index in indexes[14:]}
    assert len(trained) == 2  # trained at 240 tokens, and again at 496
    assert indexes[30] is not indexes[29]


@faiss_only
def test_hnsw_skips_overwritten_keys_and_is_built_anew() -> None:
    knn = KNNMemory(64, 1, 4, 0, 64, 16, "faiss", "hnsw")
    bank, queries, sizes = knn.init_state(1, torch.empty(0)), randn(1, 1, 1, 5, 4), []
    for step in range(12):
        bank = add(knn, bank, 16, seed=step)
        slots = knn.search(queries, bank)
        stored = min(64, int(bank.length))
        expected = [-1] * (64 - stored) + list(range(stored))
        assert all(sorted(nearest.tolist()) == expected for nearest in slots[0, 0])
        assert isinstance(only_index(knn), HNSWIndex)
        sizes.append(only_index(knn).index.ntotal)
    assert sizes == [16, 32, 48, 64, 80, 96, 112, 128, 64, 80, 96, 112]


@pytest.fixture(scope="module")
def trained() -> tuple[Tensor, Tensor]:
    """Queries and keys (1, heads, tokens, width) of a model that was trained a little on the standard
    library's sources and reads more of them."""
    torch.manual_seed(0)
    text = torch.tensor(list(Path(typing.__file__).read_bytes()[:60_000]))
    model = Memorizing(256, 64, 2, 32, 2, 64, capacity=2048, neighbours=32, block=64)
    optimizer, batch, state = torch.optim.AdamW(model.parameters(), 1e-2), text[:40_960].view(8, -1), None
    for step in range(30):
        window = batch[:, step * 128 : step * 128 + 129]
        logits, state = model(window[:, :-1], state)
        state = detach(state)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.mT, window[:, 1:]).backward()
        optimizer.step()
    (memory,), projected = model.eval().memories(), []
    memory.qkv.register_forward_hook(lambda _, __, qkv: projected.append(memory.split_heads(qkv)[:2]))
    with torch.no_grad():
        for piece in text[41_000 : 41_000 + 16_384 + 256].split(1664):
            model(piece[None])
    queries, keys = (
        torch.cat([rearrange(part, "s h t k -> 1 h (s t) k") for part in parts], dim=2)
        for parts in zip(*projected, strict=True)
    )
    return torch.nn.functional.normalize(queries, dim=-1), torch.nn.functional.normalize(keys, dim=-1)


@faiss_only
@pytest.mark.parametrize(
    ("index", "capacity"),
    [
        ("flat", 4096),
        ("hnsw", 4096),
        ("ivf", 4096),
        *(pytest.param("ivf", capacity, marks=pytest.mark.slow) for capacity in (2048, 16_384)),
    ],
)
def test_faiss_finds_most_of_a_trained_models_neighbours(
    index: IndexType, capacity: int, trained: tuple[Tensor, Tensor]
) -> None:
    queries, keys = trained[0][:, :, capacity : capacity + 256], trained[1][:, :, :capacity]
    knn = KNNMemory(capacity, 2, 16, 0, 32, 64, "faiss", index)
    bank = knn.add(knn.init_state(1, keys), keys)
    recall = overlap(search_exact(queries, bank.keys, bank.length, 32), knn.search(queries, bank))
    assert recall > (0.998 if index == "flat" else 0.96)  # of keys with equal scores any may be returned


@faiss_only
@pytest.mark.parametrize(("capacity", "max_share"), [(4096, 0.3), (16_384, 0.2), (65_536, 0.14)])
def test_an_ivf_search_reads_a_small_share_of_the_lists(capacity: int, max_share: float) -> None:
    index = IVFIndex(8, capacity).index
    assert index.nprobe <= max_share * index.nlist


@faiss_only
def test_ivf_reads_as_few_lists_as_reach_the_recall(trained: tuple[Tensor, Tensor]) -> None:
    """A model's keys need many lists, clustered ones few; with few queries nothing is tuned."""
    random = torch.Generator().manual_seed(0)
    capacity = 4096
    queries, keys = trained[0][0, 0, capacity:], trained[1][0, 0, :capacity].contiguous()
    clustered = 20 * torch.nn.functional.one_hot(torch.arange(capacity) % 16, 16).float()
    clustered += torch.randn(capacity, 16, generator=random)
    probes = []
    for stored, vectors in ((keys, queries), (clustered, clustered)):
        index = IVFIndex(16, capacity)
        untuned = index.index.nprobe
        index.put(0, stored)
        index.search(vectors[:31], 32)
        assert index.index.nprobe == untuned
        index.search(vectors[:128].contiguous(), 32)
        probes.append(index.index.nprobe)
        bank = (stored[None, None],)
        expected = search_exact(vectors[None, None, 128:256], bank, torch.tensor([capacity]), 32)
        slots = index.search(vectors[128:256].contiguous(), 32)[1][None, None]
        assert overlap(expected, slots) > 0.95
    assert probes[1] < probes[0] < list_count(capacity)


@faiss_only
def test_ivf_reads_fewer_lists_for_a_lower_recall(trained: tuple[Tensor, Tensor]) -> None:
    queries, keys, probes = trained[0][:, :, 4096:], trained[1][:, :, :4096], []
    for target_recall in (0.3, 0.97):
        knn = KNNMemory(4096, 2, 16, 0, 32, 64, "faiss", "ivf", target_recall=target_recall)
        bank = knn.add(knn.init_state(1, keys), keys)
        recall = overlap(search_exact(queries, bank.keys, bank.length, 32), knn.search(queries, bank))
        assert recall > target_recall - 0.02
        probes.append(only_index(knn).index.nprobe)
    assert probes[0] < probes[1]


@faiss_only
def test_ivf_reads_on_where_its_lists_hold_too_few_keys() -> None:
    """Every key has a dozen near ones and is asked for 64."""
    centres = torch.nn.functional.normalize(randn(0, 340, 16), dim=-1)
    keys = (20 * centres.repeat(12, 1) + randn(1, 4080, 16) / 10).contiguous()
    index = IVFIndex(16, 4096)
    index.put(0, keys)
    index.index.nprobe = 1
    for first in range(0, 4080, 340):
        scores, slots = index.search(keys[first : first + 30].contiguous(), 64)
        assert (slots >= 0).all()
        assert all(len(set(nearest)) == 64 for nearest in slots.tolist())
        assert torch.allclose(scores, (keys[slots] @ keys[first : first + 30, :, None])[..., 0], rtol=1e-4)


@faiss_only
def test_ivf_finds_rare_keys_among_many_that_are_almost_equal() -> None:
    """Three quarters of the keys are one cluster, the others scatter, and the queries are near these."""
    capacity = 16_384
    keys = torch.nn.functional.normalize(randn(0, capacity, 16), dim=-1)
    keys[torch.arange(capacity) % 4 > 0] = keys[0] + randn(1, capacity // 4 * 3, 16) / 1000
    queries = keys[::64] + randn(2, capacity // 64, 16) / 10
    knn = KNNMemory(capacity, 1, 16, 0, 32, 512, "faiss", "ivf")
    bank = knn.add(knn.init_state(1, keys), keys[None, None])
    slots = knn.search(queries[None, None], bank)
    index = only_index(knn).index
    assert overlap(search_exact(queries[None, None], bank.keys, bank.length, 32), slots) > 0.95
    assert max(map(index.invlists.list_size, range(index.nlist))) < capacity / 4


@faiss_only
def test_ivf_is_tuned_again_as_keys_are_written() -> None:
    keys = torch.randn(8192, 8, generator=torch.Generator().manual_seed(0))
    index, untuned = IVFIndex(8, 4096), []
    for first in range(0, 8192, 256):
        index.put(first, keys[first : first + 256])
        index.search(keys[:32].contiguous(), 4)
        untuned.append(index.untuned)
    assert untuned == [256, 512, 768, 0] * 8


@faiss_only
def test_ivf_keeps_up_with_a_text_that_changes_its_topic() -> None:
    """Clustered keys are replaced step by step by keys without clusters."""
    random = torch.Generator().manual_seed(0)
    clustered = 20 * torch.nn.functional.one_hot(torch.arange(4096) % 16, 16).float()
    clustered += torch.randn(4096, 16, generator=random)
    noise = torch.randn(4096, 16, generator=random)
    knn = KNNMemory(4096, 1, 16, 0, 32, 256, "faiss", "ivf")
    bank = knn.add(knn.init_state(1, clustered), clustered[None, None])
    knn.search(clustered[None, None, :256], bank)
    for first in range(0, 4096, 256):
        bank = knn.add(bank, noise[None, None, first : first + 256])
        queries = torch.randn(1, 1, 256, 16, generator=random)
        slots = knn.search(queries, bank)  # in every step, or the index would be built anew
        if first % 1024 == 768:
            expected = search_exact(queries, bank.keys, bank.length, 32)
            assert overlap(expected, slots) > 0.9  # noise is the hardest


@pytest.fixture
def unloaded() -> Any:
    load_faiss.cache_clear()
    yield
    load_faiss.cache_clear()


@pytest.mark.usefixtures("unloaded")
def test_missing_faiss_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", missing)
    KNNMemory(8, 1, 2)  # torch needs none
    with pytest.raises(
        UserError, match=r"expected the package faiss-cpu: pip install faiss-cpu .* No module"
    ):
        KNNMemory(8, 1, 2, backend="faiss")


@pytest.mark.usefixtures("unloaded")
def test_two_packages_of_faiss_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("faiss-cpu", "faiss-gpu"):
            return "1.15.1"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    packages = "faiss-cpu and faiss-gpu, which share a folder: pip uninstall -y faiss-cpu faiss-gpu, then"
    with pytest.raises(UserError, match=f"found {packages}"):
        KNNMemory(8, 1, 2, backend="faiss")


@pytest.mark.usefixtures("unloaded")
def test_flat_on_a_gpu_needs_faiss_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    package = type("faiss", (), {"IndexFlatIP": lambda width: None})
    monkeypatch.setattr(faiss_index, "load_faiss", lambda: package)
    with pytest.raises(UserError, match="expected faiss-gpu for a bank on cuda:0, found faiss-cpu"):
        FlatIndex(4, 8, torch.device("cuda:0"))


@pytest.mark.gpu
@faiss_only
@pytest.mark.parametrize("index", INDEX_TYPES)
def test_search_on_a_gpu(index: IndexType) -> None:
    """Needs faiss-gpu."""
    knn = KNNMemory(96, 2, 5, 0, 7, 16, "faiss", index)
    bank = knn.init_state(2, torch.empty(0, device="cuda"))
    for step in range(20):
        bank = knn.add(bank, randn(step, 2, 2, 5 + step % 9, 5).cuda())
        queries = randn(step, 2, 2, 30, 5).cuda()
        slots, expected = knn.search(queries, bank), search_exact(queries, bank.keys, bank.length, 7)
        assert slots.is_cuda
        assert overlap(expected, slots) >= (1.0 if index == "flat" else 0.75)
