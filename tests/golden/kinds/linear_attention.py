"""How the kinds of linear attention with features are held to their files."""

from collections.abc import Callable
from functools import partial

import torch

from tests.golden.cases import Case
from tests.golden.kinds.fast_weights import cuts, ends, leaves
from zoo.memory.fast_weights.linear_attention import (
    FeatureMap,
    Features,
    LinearAttentionState,
    linear_attention,
)


def check(case: Case, feature_map: FeatureMap) -> None:
    """`performer/favor` and `performer/linear`: features, output and states from given queries, keys and
    values."""
    rows, time, heads, head_dim = case.tensors["in/q"].shape
    value_dim = case.tensors["in/v"].shape[3]
    case.expect(batch=rows, heads=heads, key_dim=head_dim, value_dim=value_dim)
    size = case.config["features"]
    features = Features(feature_map, head_dim, size if feature_map == "favor" else None).double()
    case.expect(features=features.size)
    if features.projection is not None:
        features.projection.copy_(case.read("in/projection"))
    for lengths in cuts(case, time):
        for chunk_size in (1, 4, 32):
            x, done, outputs = leaves(case), 0, []
            matrix = torch.zeros(rows, heads, features.size, value_dim + 1, dtype=torch.float64)
            state = LinearAttentionState(matrix)
            pieces = [part.split(lengths, dim=1) for part in (x["q"], x["k"], x["v"])]
            for q, k, v in zip(*pieces, strict=True):
                q, k = features(q, is_query=True), features(k, is_query=False)
                o, state = linear_attention(q, k, v, state, case.config["eps"], chunk_size=chunk_size)
                outputs.append(o)
                done += o.shape[1]
                if done in ends(case):
                    named = {"S": state.matrix[..., :-1], "z": state.matrix[..., -1]}
                    case.compare(f"state/after_seg{ends(case)[done]}/", named)
            o = torch.cat(outputs, dim=1)
            loss = (o * case.read("in/cotangent")).sum()
            loss.backward()
            case.compare("out/", {"o": o, "loss": loss})
            case.compare("grad/", {name: leaf.grad for name, leaf in x.items()})


KINDS: dict[str, Callable[[Case], None]] = {
    "performer/favor": partial(check, feature_map="favor"),
    "performer/linear": partial(check, feature_map="elu"),
}
