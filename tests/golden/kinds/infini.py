"""How the kinds of Infini-attention are held to their files."""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tests.golden.cases import Case
from zoo.memory.fast_weights.infini_attention import CompressiveAttention, MemoryState, read_and_write_loop
from zoo.models.infini import Infini
from zoo.models.published import infini
from zoo.models.published.weights import fill, gradients
from zoo.state import State, detach, leaves, tree_map

SCENARIOS = {"full": False, "detached": True}  # is the state that a segment leaves detached?


def parts(layer: CompressiveAttention, x: Tensor, state: MemoryState) -> dict[str, Tensor]:
    """What a segment's attention is made of; A_mem by the definition."""
    q, k, v = layer.project(x)
    far, _ = read_and_write_loop(q[:, None], k[:, None], v[:, None], state, layer.rule)
    near = layer.attend(q, k, v)
    return {"q": q, "k": k, "v": v, "A_mem": far[:, 0], "A_dot": near, "A": layer.mix(far[:, 0], near)}


def same_lengths(lengths: list[int]) -> bool:
    """Whether a text cut into segments as long as the longest is cut like this."""
    return all(length == max(lengths) for length in lengths[:-1])


def expect_form(case: Case, lengths: list[int], rows: int) -> None:
    """Fields of both kinds; those in words have one meaning here, as in models/published/infini.py."""
    case.expect(
        seg_lens=lengths,
        batch=rows,
        scale="1/sqrt(d_key)",
        eps=re.compile(r"none; A_mem := 0 while the memory is empty.*, gate still applied"),
        rope_pairing=re.compile("half-split.*"),
    )
    if not case.config.get("rope", True):
        case.ignore("rope_base")


def check_layer(case: Case) -> None:
    """`infini/layer`: one layer from given inputs, segment after segment and all at once."""
    config, lengths = case.config, case.read("in/seg_lens").tolist()
    layer = CompressiveAttention(**infini.attention_shape(config), segment_len=max(lengths)).eval()
    names = infini.attention(layer)
    fill(layer, case.weights, names)
    expect_form(case, lengths, len(case.tensors["in/x"]))
    x, cotangent = case.read("in/x").clone().requires_grad_(), case.read("in/cotangent")

    for scenario, cut in SCENARIOS.items():
        layer.zero_grad()
        x.grad = None
        state, outputs = layer.init_state(len(x)), []
        for index, piece in enumerate(x.split(lengths, dim=1)):
            made = parts(layer, piece, state)
            out, state = layer(piece, state)
            outputs.append(out)
            case.compare(f"out/seg{index}/", made | {"out": out})
            case.compare(f"state/after_seg{index}/", infini.memory(state))
            if not index:
                near = layer.out_proj(rearrange(made["A_dot"], "b h s k -> b s (h k)"))
                case.compare("alt_bypass_first_segment/seg0_", {"out": near})
            if cut:
                state = detach(state)
        loss = (torch.cat(outputs, dim=1) * cotangent).sum()
        case.compare("out/", {"loss": loss})
        loss.backward()
        case.compare(f"grad/{scenario}/", gradients(layer, names) | {"x": x.grad})

    if same_lengths(lengths):
        layer.zero_grad()
        x.grad = None
        whole = len(lengths) * max(lengths) if lengths[-1] == max(lengths) else sum(lengths[:-1])
        state, outputs = layer.init_state(len(x)), []
        for piece in (x[:, :whole], x[:, whole:]):
            if piece.shape[1]:
                out, state = layer(piece, state)
                outputs.append(out)
        together = torch.cat(outputs, dim=1)
        for index, out in enumerate(together.split(lengths, dim=1)):
            case.compare(f"out/seg{index}/", {"out": out})
        case.compare(f"state/after_seg{len(lengths) - 1}/", infini.memory(state))
        (together * cotangent).sum().backward()
        case.compare("grad/full/", gradients(layer, names) | {"x": x.grad})


class Reading:
    """One fold over a case's segments: what was said, what was carried, what the parts said on the way."""

    def __init__(self, model: Infini, pieces: list[Tensor], cut: bool) -> None:
        self.logits: list[Tensor] = []
        self.told: list[dict[str, Tensor]] = []
        self.entering: list[State] = []
        self.after: list[State] = []
        for layer, block in enumerate(model.stack):
            block.register_forward_hook(lambda _m, _x, y, name=f"layer{layer}_out": self.hear(name, y))
            mixer: Any = block.mixer
            mixer.register_forward_hook(lambda _m, _x, y, name=f"layer{layer}_attn_out": self.hear(name, y))
        state = model.init_state(len(pieces[0]))
        for piece in pieces:
            for leaf in leaves(state):
                if leaf.requires_grad:
                    leaf.retain_grad()
            self.entering.append(state)
            self.told.append({})
            logits, state = model.segment(piece, state)
            self.logits.append(logits)
            self.after.append(state)
            state = detach(state) if cut else state

    def hear(self, name: str, outputs: tuple[Tensor, State]) -> None:
        self.told[-1][name] = outputs[0]


def slopes(state: State) -> dict[str, Tensor]:
    """d loss / d state, under the state's published names; zeros where there is none."""

    def slope(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        grad = leaf.grad if leaf.requires_grad else None
        return torch.zeros_like(leaf) if grad is None else grad

    return infini.published_state(tree_map(slope, state))


def check_model(case: Case) -> None:
    """`infini/model`: fold, states, losses, each scenario's gradients; and `forward` on the whole text."""
    lengths = case.read("in/seg_lens").tolist()
    text, targets = case.read("in/input_ids"), case.read("in/target_ids")
    pieces = list(text.split(lengths, dim=1))
    expect_form(case, lengths, len(text))
    case.expect(norm="pre-LayerNorm eps 1e-5, final norm_f", activation=re.compile(r"gelu( \(erf\))?"))
    case.expect_flag("lm_head", "lm_head.weight" not in case.weights)

    def nll(logits: list[Tensor]) -> Tensor:
        return F.cross_entropy(torch.cat(logits, dim=1).mT, targets, reduction="none")

    def loaded() -> Infini:
        model = infini.load(case.weights, case.config).eval()
        assert {weight.dtype for weight in model.parameters()} == {torch.float64}
        return model

    for scenario, cut in SCENARIOS.items():
        model = loaded()
        reading = Reading(model, pieces, cut)
        each_nll = nll(reading.logits)
        case.compare("out/", {"loss": each_nll.mean()})
        for index, (logits, lost) in enumerate(
            zip(reading.logits, each_nll.split(lengths, dim=1), strict=True)
        ):
            case.compare(f"out/seg{index}/", {"logits": logits, "nll": lost} | reading.told[index])
            case.compare(f"state/after_seg{index}/", infini.published_state(reading.after[index]))
        each_nll.mean().backward()
        case.compare(f"grad/{scenario}/", infini.published_gradients(model))

    model = loaded()
    reading = Reading(model, pieces, False)
    nll(reading.logits)[:, -lengths[-1] :].mean().backward()
    for index, state in enumerate(reading.entering):
        named = {f"{name.replace('/', '_')}_enter_seg{index}": grad for name, grad in slopes(state).items()}
        case.compare("grad/last_segment_loss/", named)
    case.compare("grad/last_segment_loss/", infini.published_gradients(model))

    if same_lengths(lengths):
        model = loaded()
        logits, after = model(text)
        lost = nll([logits])
        case.compare("out/", {"loss": lost.mean(), "logits": logits})
        for index, piece in enumerate(logits.split(lengths, dim=1)):
            case.compare(f"out/seg{index}/", {"logits": piece})
        case.compare(f"state/after_seg{len(lengths) - 1}/", infini.published_state(after))
        lost.mean().backward()
        case.compare("grad/full/", infini.published_gradients(model))


KINDS: dict[str, Callable[[Case], None]] = {"infini/layer": check_layer, "infini/model": check_model}
