"""How the kinds of Unlimiformer are held to their files (retrieval attention alone: see LEFT_OUT)."""

import torch
from einops import einsum, rearrange
from torch import Tensor

from tests.golden.cases import Case
from tests.memory.retrieval.loops import attend_memory_loop
from zoo.memory.retrieval.bank import Bank, KNNMemory
from zoo.memory.retrieval.unlimiformer_attention import UnlimiformerAttention


def loaded(case: Case) -> UnlimiformerAttention:
    c = case.config
    weights = {results[1]: case.read(results[0]) for results in case.matching(r"w/(.*)")}
    knn = KNNMemory(c["n_hidden"], 1, c["dim"], neighbours=c["k"])
    bias = "q_proj.bias" in weights
    mixer = UnlimiformerAttention(c["dim"], c["heads"], knn, position="none", bias=bias).double().eval()
    for part in ("weight", "bias") if bias else ("weight",):
        packed = torch.cat([weights[f"{name}_proj.{part}"] for name in "qkv"])
        mixer.load_state_dict(
            {f"qkv.{part}": packed, f"out_proj.{part}": weights[f"out_proj.{part}"]}, strict=False
        )
    return mixer


class Heard:
    """What was found, and with which weights."""

    def __init__(self, mixer: UnlimiformerAttention) -> None:
        self.search, self.ids, self.weights = mixer.knn.search, torch.empty(0), torch.empty(0)
        mixer.knn.search = self.hear  # type: ignore[method-assign]
        mixer.dropout.register_forward_hook(self.weigh)

    def hear(self, queries: Tensor, bank: Bank) -> Tensor:
        self.ids = self.search(queries, bank)
        return self.ids

    def weigh(self, _module: object, _read: object, outputs: Tensor) -> None:
        self.weights = outputs

    def best_first(self, heads: int) -> tuple[Tensor, Tensor]:
        """Weights and ids, (rows, queries, heads, k)."""
        ids = rearrange(self.ids, "b 1 (h t) k -> b t h k", h=heads)
        weights, order = rearrange(self.weights, "b h t k -> b t h k").sort(descending=True)
        return weights, ids.gather(-1, order)


def check_core(case: Case) -> None:
    """`unlimiformer/core_retrieval_attention`: one query of each beam among what its row's index holds.

    A row's beams come one after another, in an axis of theirs, or with the rows or the heads in one.
    """
    c, mixer = case.config, loaded(case)
    heads, width = c["heads"], mixer.head_dim
    asked, kept = case.read("in/h_dec"), case.read("in/h_enc")
    case.expect(B=len(kept), beam=asked[..., 0].numel() // len(kept), n_hidden=kept.shape[1])
    heard = Heard(mixer)
    q, _, v = mixer.project(asked.reshape(len(kept), -1, c["dim"]))
    bank = mixer.knn.add(mixer.init_state(len(kept)), kept[:, None], None)
    near, none = q.new_empty(*q.shape[:3], 0), v[:, :, :0]
    for attend_memory in (UnlimiformerAttention.attend_memory, attend_memory_loop):
        y = mixer.out_proj(rearrange(attend_memory(mixer, q, near, none, bank), "b h t k -> b t (h k)"))
        compare(case, {"out/attn_output": y})

    weights, ids = heard.best_first(heads)
    compare(case, {"out/attn_weights": weights, "idx/retrieved": ids.int()})
    w_k, w_v, b_k, b_v = mixer.kv_projections()
    z = einsum(q, w_k, "b h t k, h k d -> b t h d")
    keys, values = (
        einsum(kept, w, "b n d, h k d -> b h n k") + b[:, None] for w, b in ((w_k, b_k), (w_v, b_v))
    )
    found_keys, found_values = (
        part[:, None].expand(-1, ids.shape[1], -1, -1, -1).gather(3, ids[..., None].expand(*ids.shape, width))
        for part in (keys, values)
    )
    mids = {
        "query": rearrange(q, "b h t k -> b t h k"),
        "datastore_query": z,
        "direct_scores_q_dot_k": einsum(q, keys, "b h t k, b h n k -> b t h n"),
        "search_scores": einsum(z, kept, "b t h d, b n d -> b t h n").gather(-1, ids),
        "retrieved_keys": found_keys,
        "retrieved_values": found_values,
    }
    compare(case, {f"mid/{name}": part for name, part in mids.items()})


def compare(case: Case, ours: dict[str, Tensor]) -> None:
    """Ours have axes for rows and beams; a file may have both in one, or beams and heads."""
    for name, part in ours.items():
        if name in case and case.tensors[name].numel() == part.numel():
            part = part.reshape(case.tensors[name].shape)
        case.compare("", {name: part})


KINDS = {"unlimiformer/core_retrieval_attention": check_core}
LEFT_OUT = {  # kind: why it isn't run
    **dict.fromkeys(
        ("unlimiformer/bart_inference", "unlimiformer/bart_retrieval_training"),
        "an encoder-decoder, of which every decoder layer retrieves from one encoder",
    ),
    "unlimiformer/llama_inference": "the published decoder as it is, bugs kept: its search looks at half of "
    "each head's features, and what it finds takes the place of the oldest keys",
}
