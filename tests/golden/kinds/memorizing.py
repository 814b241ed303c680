"""How the kinds of the Memorizing Transformer are held to their files."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.cases import Case
from zoo.memory.retrieval.bank import Bank, KNNMemory
from zoo.memory.retrieval.memorizing_attention import attend_local, attend_retrieved, blend
from zoo.models.published import memorizing
from zoo.state import reset_rows


def weights(case: Case) -> dict[str, Tensor]:
    return {results[1]: case.read(results[0]) for results in case.matching(r"w/(.*)")}


def tokens_of(slots: Tensor, written: Tensor, capacity: int) -> Tensor:
    """The numbers, counted from when the row was fresh, of what lies in these slots; -1 stays."""
    last = (written - 1)[:, None, None, None]
    return torch.where(slots < 0, -1, last - (last - slots) % capacity)


def check_paper(case: Case) -> None:
    """`memorizing/paper_gate_topk`: the paper's equations over several segments, rows cleared amid others."""
    c, tensors = case.config, weights(case)
    rows, heads, segment, head_dim = case.tensors["in/seg0/q"].shape
    case.expect(B=rows, H=heads, segment=segment, head_dim=head_dim)
    case.expect(segments=len(case.matching(r"in/seg\d+/q")))
    scale, gate = (tensors[name].clone().requires_grad_() for name in ("scale", "gate_bias"))
    bias = case.read("in/local_bias") if "in/local_bias" in case else None
    knn = KNNMemory(c["memory_cap"], c["H"], c["head_dim"], c["head_dim"], c["k"])
    bank, begin = knn.init_state(c["B"], scale), torch.zeros(c["B"], dtype=torch.long)
    read = 0  # the file counts the tokens of a row through all its documents
    for s in range(c["segments"]):
        fresh = case.read(f"in/seg{s}/start_of_document").bool()
        bank = reset_rows(bank, knn.init_state(c["B"], scale), fresh)
        begin = torch.where(fresh, read, begin)
        inputs = {name: case.read(f"in/seg{s}/{name}").clone().requires_grad_() for name in "qkv"}
        q, k = (F.normalize(inputs[name], dim=-1) for name in "qk")
        y = blend(
            attend_local(q, k, inputs["v"], scale, bias),
            attend_retrieved(knn, bank, q, scale),
            gate,
        )
        ids = tokens_of(knn.search(q, bank), bank.length, c["memory_cap"])
        ids = torch.where(ids < 0, -1, ids + begin[:, None, None, None])
        ids = F.pad(ids, (0, c["k"] - ids.shape[-1]), value=-1)  # k may be more than there is room for
        case.compare(f"idx/seg{s}/", {"retrieved": ids.int()})
        case.compare(f"out/seg{s}/", {"y": y})
        learned = {**inputs, "scale": scale, "gate_bias": gate}
        total = (y * case.read(f"in/seg{s}/cotangent")).sum()
        grads = torch.autograd.grad(total, list(learned.values()))
        case.compare(f"grad/seg{s}/", dict(zip(learned, grads, strict=True)))
        bank = knn.add(bank, k, inputs["v"])
        read += q.shape[2]
        alive = bank.length.clamp(max=c["memory_cap"])
        last = begin + bank.length - 1
        ends = torch.stack([last - alive + 1, last], dim=1)
        case.compare(f"state/seg{s}/", {"memory_ids_first_last": ends.int()})


def check_layer(case: Case) -> None:
    """`memorizing/luc_core`: the other implementation's layer, with memories that are there already."""
    layer = memorizing.load_layer(weights(case), case.config)
    x = case.read("in/x").clone().requires_grad_()
    case.expect(B=len(x), n=x.shape[1], memories=case.tensors["in/memories"].shape[1])
    bias = case.read("in/rel_pos_bias") if "in/rel_pos_bias" in case else None
    kept = case.read("in/memories")[:, None]
    bank = layer.knn.add(layer.init_state(len(x)), kept[..., 0, :], kept[..., 1, :])

    results: list[Tensor] = []
    search = layer.knn.search

    def hear(queries: Tensor, bank: Bank) -> Tensor:
        results.append(search(queries, bank))
        return results[-1]

    layer.knn.search = hear  # type: ignore[method-assign]
    y, after = layer.forward(x, bank, bias)
    ids = tokens_of(results[0], bank.length, layer.knn.capacity)[:, 0].unflatten(1, (layer.heads, -1))
    case.compare("idx/", {"retrieved": ids.int()})
    case.compare("out/", {"y": y})
    state = {"db_after": memorizing.published_state(after), "db_offsets_after": after.length.int()}
    case.compare("state/", state)
    (y * case.read("in/cotangent")).sum().backward()
    case.compare("grad/", {"x": x.grad, **memorizing.published_gradients(layer)})


KINDS = {"memorizing/paper_gate_topk": check_paper, "memorizing/luc_core": check_layer}
LEFT_OUT = {  # kind: why it isn't run
    "memorizing/luc_model": "a whole model of other parts than ours (T5's biases, a biased head), with an "
    "option of XL memory that has a bug; its memory layer is memorizing/luc_core",
    "memorizing/meliad_layer": "the published layer as it is: its search is approximate, its empty buckets "
    "take part in the softmax, and a token doesn't see itself",
}
