"""Infini-attention transformer: every layer reads its segment, and a compressive memory of all before it.

Munkhdalai, Faruqui & Gopal 2024, arXiv:2404.07143; attention, memory and gate:
memory/fast_weights/infini_attention.py.

    h += attention(norm(h))        h += mlp(norm(h))        logits = E norm(h)

Carried from segment to segment: in every layer and head a matrix M and a vector z.  The gradient runs through
them back to the beginning of the window.
Differs from the paper, which leaves blocks and gates open: blocks are LLaMA-shaped; gates start half open
and learn faster than the rest, without weight decay, as a replication needed (Hugging Face,
"A failed experiment: Infini-Attention, and why we should keep trying?", August 2024).
"""

from typing import Any, Unpack

import torch
from torch import Tensor

from zoo.memory.attention.position_options import Position
from zoo.memory.fast_weights.infini_attention import CompressiveAttention, MemoryState, Rule
from zoo.models.decoder import Decoder, DecoderOptions

GATE_LR_SCALE = 10.0


class Infini(Decoder):
    """`bias` applies to the feed-forward only."""

    learns_through_memory = True
    reach = None
    parallel = "segments"

    def __init__(
        self,
        vocab_size: int,
        segment_len: int,
        depth: int,
        width: int,
        heads: int,
        mlp_width: int,
        rule: Rule = "delta",
        head_dim: int | None = None,
        value_width: int | None = None,
        position: Position = "rope",
        rope_base: float = 10000.0,
        qk_norm: bool = False,
        **options: Unpack[DecoderOptions],
    ) -> None:
        def mixer() -> CompressiveAttention:
            return CompressiveAttention(
                width,
                heads,
                segment_len=segment_len,
                rule=rule,
                head_dim=head_dim,
                value_width=value_width,
                position=position,
                rope_base=rope_base,
                qk_norm=qk_norm,
                dropout=options.get("dropout", 0.0),
            )

        mixers = (mixer() for _ in range(depth))
        super().__init__(vocab_size, segment_len, width, mixers, mlp_width=mlp_width, **options)

    def gates(self) -> list[Tensor]:
        """Every layer's beta, one per head."""
        return [part.gate for part in self.modules() if isinstance(part, CompressiveAttention)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The gates are in a separate group."""
        gates = self.gates()
        identities = {id(gate) for gate in gates}
        groups = super().parameter_groups()
        for group in groups:
            group["params"] = [weight for weight in group["params"] if id(weight) not in identities]
        trainable = [gate for gate in gates if gate.requires_grad]
        return [*groups, {"params": trainable, "decays": False, "lr_scale": GATE_LR_SCALE}]

    @torch.no_grad()
    def diagnostics(self, state: tuple[MemoryState, ...]) -> dict[str, float]:
        """Gate values (1: only the memory is used), and the mean norm of M."""
        gates = torch.stack(self.gates()).sigmoid()
        norms = torch.stack([layer.matrix for layer in state]).norm(dim=(-2, -1))
        return {
            "gate": gates.mean().item(),
            "gate_min": gates.min().item(),
            "gate_max": gates.max().item(),
            "norm": norms.mean().item(),
        }
