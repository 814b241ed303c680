"""Position encodings from their options: which module computes which, and what an attention can't compute."""

from typing import Any, Literal

from torch import nn

from zoo.memory.attention.biases import Alibi, Fire, Kerple, Sandwich, T5Bias
from zoo.memory.attention.contextual_biases import Cope, Dape
from zoo.memory.attention.far_distances import FarRope
from zoo.memory.attention.position_draws import Draw
from zoo.memory.attention.position_options import Position, PositionOptions, position_options
from zoo.memory.attention.positions import InterleavedRope, Positions, Rope
from zoo.memory.attention.rotary_forms import ClexRope, Coca, XPos
from zoo.memory.attention.rotary_scaling import frequencies

Support = Literal["segment", "window", "sinks", "both_ways", "retrieval", "rotation"]
"""What an attention computes exactly: `segment` all kinds; `window` and `sinks` those that texts of any
length leave alone; `both_ways`, `retrieval` and `rotation` the kinds of KINDS in their plain forms."""
KINDS: dict[Support, tuple[str, ...]] = {
    "both_ways": ("rope", "learned", "none"),
    "retrieval": ("rope", "alibi", "learned", "none"),
    "rotation": ("rope", "none"),
}


def build_positions(
    position: Position | PositionOptions,
    heads: int,
    head_dim: int,
    *,
    context: int | None = None,
    base: float = 10000.0,
    rotated: int | None = None,
    support: Support = "segment",
    interleaved: bool = False,
) -> Positions:
    """The encoding of `model.position` for an attention over `context` positions.

    `base` and `rotated` are defaults of the keys of the same name, `heads` those of queries.

    Raises ValueError for options that contradict one another (`position_options`) or that this attention
    can't compute exactly, and if the number of features that are rotated isn't even or exceeds head_dim.
    """
    options = position_options(position, base=base, rotated=rotated)
    refuse(options, support)
    context = context or options.trained
    options = options.resolve(context)
    positions = _build(options, heads, head_dim, context or 0, interleaved)
    derived = {name: getattr(options, name) for name in ("trained", "factor", "near", "group")}
    positions.lengths = {name: value for name, value in derived.items() if value is not None}
    if options.log_n:
        positions.log_n = options.trained
    if options.draw != "none":
        assert options.longest is not None
        positions.draw = Draw(options.draw, options.longest)
    return positions


def refuse(options: PositionOptions, support: Support) -> None:
    """Raises ValueError for an encoding that such an attention can't compute exactly."""
    message = ""
    if support in KINDS:
        plain = options.far == "exact" and not options.log_n and options.draw == "none"
        if options.kind not in KINDS[support] or options.scaling == "clex" or not plain:
            kinds = ", ".join(KINDS[support])
            message = f"a kind of {kinds}, any scaling but clex, far exact, no log_n and no draw"
    elif support in ("window", "sinks"):
        if options.kind in ("learned", "coca") or options.scaling == "clex" or options.draw != "none":
            message = "a kind that counts distances: any but learned and coca, no scaling clex and no draw"
        elif options.convolution > 1:
            message = "convolution 1, as others would see keys outside the window"
        elif support == "sinks" and options.kind == "cope":
            message = "sinks 0 with kind cope, which counts all keys together"
    if message:
        raise ValueError(f"position: {TITLES[support]} needs {message}; found {options.title}")


TITLES: dict[Support, str] = {
    "window": "a window",
    "sinks": "a window with sinks",
    "both_ways": "a memory whose positions see one another",
    "retrieval": "attention to retrieved tokens",
    "rotation": "this model's attention, which only rotates queries and keys,",
}


def _build(options: PositionOptions, heads: int, head_dim: int, context: int, interleaved: bool) -> Positions:
    trained = options.trained or context
    longest = max(context, options.longest or 0)
    match options.kind:
        case "none" | "learned":
            return Positions()
        case "rope":
            return _rope(options, head_dim, context, interleaved)
        case "xpos":
            even(head_dim, head_dim)
            return XPos(options.base, float(trained))
        case "coca":
            even(head_dim, head_dim)
            return Coca(options.base, frequencies=frequencies(head_dim, options, context))
        case "alibi":
            return Alibi(heads, options.factor or 1.0)
        case "t5":
            return T5Bias(heads, options.buckets, options.farthest)
        case "kerple":
            return Kerple(heads, options.kernel)
        case "sandwich":
            return Sandwich(heads, options.terms, longest)
        case "fire":
            return Fire(heads, trained / 2, longest, options.hidden)
        case "dape":
            return Dape(heads, _inner(options, heads, head_dim, context), options.hidden, options.convolution)
        case "cope":
            return Cope(head_dim, options.gates)


def _inner(options: PositionOptions, heads: int, head_dim: int, context: int) -> Positions | None:
    """The encoding inside DAPE; FIRE has a leaky ReLU there."""
    match options.inner:
        case "none":
            return None
        case "fire":
            return Fire(heads, (options.trained or context) / 2, context, options.hidden, nn.LeakyReLU())
        case inner:
            return _build(position_options(_inner_keys(options, inner)), heads, head_dim, context, False)


def _inner_keys(options: PositionOptions, inner: str) -> dict[str, Any]:
    keys = {"base": options.base, "rotated": options.rotated} if inner == "rope" else {}
    return {"kind": inner, **keys}


def _rope(options: PositionOptions, head_dim: int, context: int, interleaved: bool) -> Positions:
    rotated = even(head_dim if options.rotated is None else options.rotated, head_dim)
    if options.scaling == "clex":
        if options.far != "exact":
            raise ValueError(f"position.far: expected exact with scaling clex, found {options.far}")
        if options.draw != "none":
            raise ValueError(f"position.draw: expected none with clex, which draws, found {options.draw}")
        return ClexRope(
            rotated,
            base=options.base,
            rotated=rotated,
            trained=options.trained or context,
            context=context,
            max_factor=int(options.factor or 16),
            expand=options.expand,
            step_size=options.step,
        )
    scaled = frequencies(rotated, options, context)
    if options.far != "exact":
        assert options.near is not None
        return FarRope(
            options.far,
            options.near,
            options.group or 1,
            base=options.base,
            rotated=rotated,
            frequencies=scaled,
        )
    return (InterleavedRope if interleaved else Rope)(options.base, rotated, scaled)


def even(rotated: int, head_dim: int) -> int:
    """The number of rotated features; ValueError unless a head has such pairs."""
    if rotated % 2 or not 0 < rotated <= head_dim:
        raise ValueError(f"rotary positions need an even head_dim, not {rotated} of {head_dim}")
    return rotated
