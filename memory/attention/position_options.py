"""The settings of a position encoding, `model.position`: its keys, and which of them act together.

A plain name stands for its kind: `position: alibi` is `position: {kind: alibi}`.  Keys that would have no
effect beside the others are refused, except for `trained`: an evaluation, and a run with a base, set it for
most kinds, whether it acts or not.
"""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, Literal, get_args

from zoo.errors import nearest
from zoo.memory.attention.option_types import as_floats, fits, in_words

Kind = Literal[
    "rope",
    "xpos",
    "coca",
    "alibi",
    "t5",
    "kerple",
    "sandwich",
    "fire",
    "dape",
    "cope",
    "learned",
    "none",
]
Scaling = Literal[
    "none",
    "linear",
    "ntk",
    "dynamic",
    "mixed",
    "yarn",
    "longrope",
    "llama3",
    "hope",
    "clex",
    "power",
    "truncated",
]
Position = Kind | dict[str, Any]
"""`model.position` in a configuration."""


@dataclasses.dataclass(frozen=True)
class PositionOptions:
    """The keys of `model.position`.  None is a default that `resolve` finds, or that the kind has."""

    kind: Kind = "rope"
    base: float = 10000.0
    rotated: int | None = None
    """Features of a head that rotary positions rotate, all by default."""
    scaling: Scaling = "none"
    factor: float | None = None
    """s.  By default context / trained, at least 1; of `dynamic` 1; of `clex` the largest that is trained."""
    trained: int | None = None
    """L, the context that the weights were trained with, by default the model's; it acts with scaling, far
    distances, log-n, xPos and FIRE, and is accepted with all."""
    beta_fast: float = 32.0
    """Of `yarn`: pairs that turn at least so often within the trained length keep their rate."""
    beta_slow: float = 1.0
    """Of `yarn`: pairs that turn at most so often have their rate divided by s; between the two is a ramp."""
    truncate: bool = True
    """Of `yarn`: the ramp's ends are rounded outwards to whole pairs."""
    attention_factor: float | None = None
    """Factor of rotated queries and keys with `yarn` and `longrope`, by default computed from s."""
    mscale: float | None = None
    """Of `yarn`, with `mscale_all_dim`: the factor as DeepSeek's models have it, a quotient."""
    mscale_all_dim: float | None = None
    low: float = 1.0
    """Of `llama3`: pairs that turn fewer times within the trained length have their rate divided by s."""
    high: float = 4.0
    """Of `llama3`: pairs that turn more often keep their rate."""
    long: Sequence[float] | None = None
    """LongRoPE's factor of each pair beyond the trained length, by default what its search starts from."""
    short: Sequence[float] | None = None
    """The same within the trained length, by default 1."""
    exponent: float | None = None
    """Of `mixed`, 0.75 by default; of `power`, by default that which divides the lowest rate by s."""
    expand: int = 1
    """Of `clex`: hidden features of its network, in multiples of the rotated ones."""
    step: float = 0.5
    """Of `clex`: the step of its ODE solver in the scale t."""
    far: Literal["exact", "capped", "leaky", "grouped"] = "exact"
    near: int | None = None
    """Distances below it are exact; by default trained / 2 (capped), trained / 4 (leaky, grouped)."""
    group: int | None = None
    """By default the smallest with near + (context - near) / group at most 2/3 of trained."""
    log_n: bool = False
    buckets: int = 32
    """Of `t5`: distances share so many biases a head; the first half are those of one distance each."""
    farthest: int = 128
    """Of `t5`: distances from here on share the last bucket."""
    kernel: Literal["log", "power"] = "log"
    """Of `kerple`."""
    terms: int = 128
    """n of Sandwich: twice the number of its cosines."""
    hidden: int = 32
    """Hidden features of the networks of `fire` and `dape`."""
    inner: Literal["alibi", "kerple", "fire", "rope", "none"] = "kerple"
    """What DAPE's scores have without it; `rope` and `none` are no bias."""
    convolution: int = 1
    """Neighbouring keys that the network of `dape` sees, an odd number; above 1 it is DAPE v2."""
    gates: int = 64
    """P of CoPE: the positions that it has embeddings for."""
    draw: Literal["none", "random", "pose", "scale"] = "none"
    longest: int | None = None
    """The length that positions are drawn for, 4 times the context by default."""

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"position.{name}: expected at least {least}, found {value}")
        if self.base <= 0 or self.step <= 0 or (self.attention_factor or 1) <= 0:
            raise ValueError("position: expected a base, step and attention_factor above 0")
        if self.convolution % 2 == 0:
            raise ValueError(f"position.convolution: expected an odd number, found {self.convolution}")
        if self.draw == "scale" and self.kind in IN_TABLES:
            raise ValueError(
                f"position.draw: expected random or pose with kind {self.kind}, whose biases are those of "
                f"whole distances, found scale"
            )
        acting = _acting_keys(self)
        for field in dataclasses.fields(self):
            if getattr(self, field.name) != field.default and field.name not in acting:
                raise ValueError(f"position.{field.name} has no effect with {self.title}")

    @property
    def title(self) -> str:
        parts = [f"kind {self.kind}"]
        parts += [f"scaling {self.scaling}"] if self.scaling != "none" else []
        parts += [f"far {self.far}"] if self.far != "exact" else []
        parts += [f"draw {self.draw}"] if self.draw != "none" else []
        return " and ".join(parts)

    def resolve(self, context: int | None) -> "PositionOptions":
        """All lengths set, for a model that attends over `context` positions.

        Raises ValueError without a context where one is needed.
        """
        trained = self.trained or context
        if trained is None:
            if self.kind in ("xpos", "fire", "sandwich") or self != PositionOptions(
                self.kind, self.base, self.rotated
            ):
                raise ValueError(f"position with {self.title} needs a context or position.trained")
            return self
        if trained < 2 and (self.log_n or self.scaling == "longrope"):
            raise ValueError(f"position.trained: expected at least 2 with {self.title}, found {trained}")
        context = context or trained
        changes: dict[str, Any] = {"trained": trained}
        if self.scaling not in ("none", "hope", "truncated") and self.factor is None:
            changes["factor"] = {"dynamic": 1.0, "clex": 16.0}.get(self.scaling, max(1.0, context / trained))
        if self.far != "exact":
            changes |= self._far_defaults(trained, context)
        if self.draw != "none":
            changes["longest"] = self.longest or 4 * context
            if changes["longest"] < context:
                raise ValueError(
                    f"position.longest: expected at least the context {context}, found {self.longest}"
                )
        return dataclasses.replace(self, **changes)

    def _far_defaults(self, trained: int, context: int) -> dict[str, int]:
        near = self.near or max(1, trained // (2 if self.far == "capped" else 4))
        if self.far == "capped":
            return {"near": near}
        room = max(1, 2 * trained // 3 - near)
        return {"near": near, "group": self.group or max(1, -(-(context - near) // room))}


LEAST: dict[str, float] = {
    "factor": 1,
    "trained": 1,
    "rotated": 0,
    "near": 1,
    "group": 1,
    "buckets": 4,
    "farthest": 3,
    "terms": 2,
    "hidden": 1,
    "convolution": 1,
    "gates": 2,
    "expand": 1,
    "longest": 2,
}

ROTARY = {"base", "rotated", "scaling", "far", "log_n", "draw"}
OF_KIND: dict[str, set[str]] = {
    "rope": ROTARY,
    "xpos": {"base"},
    "coca": {"base", "scaling", "log_n"},
    "alibi": {"factor", "draw"},
    "t5": {"buckets", "farthest", "draw"},
    "kerple": {"kernel", "draw"},
    "sandwich": {"terms", "draw"},
    "fire": {"hidden", "draw"},
    "dape": {"inner", "convolution", "hidden"},
    "cope": {"gates"},
    "learned": set(),
    "none": set(),
}
INNER_ROPE = {"base", "rotated"}
"""Keys that act with DAPE's inner rope too."""
IN_TABLES = ("t5", "sandwich")
"""Kinds whose biases are looked up by distance, and have none between two positions."""
OF_SCALING: dict[str, set[str]] = {
    "none": set(),
    "yarn": {"factor", "beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"},
    "longrope": {"factor", "long", "short", "attention_factor"},
    "llama3": {"factor", "low", "high"},
    "mixed": {"factor", "exponent"},
    "power": {"factor", "exponent"},
    "hope": set(),
    "truncated": {"factor"},
    "clex": {"factor", "expand", "step"},
}
OF_FAR: dict[str, set[str]] = {
    "exact": set(),
    "capped": {"near"},
    "leaky": {"near", "group"},
    "grouped": {"near", "group"},
}


def _acting_keys(options: PositionOptions) -> set[str]:
    """The keys that have an effect beside the other ones, and `trained`."""
    keys = {"kind", "trained"} | OF_KIND[options.kind]
    if "scaling" in keys:
        keys |= OF_SCALING.get(options.scaling, {"factor"})
    if "far" in keys:
        keys |= OF_FAR[options.far]
    if options.draw != "none":
        keys.add("longest")
    if options.inner == "rope":
        keys |= INNER_ROPE
    return keys


def position_options(position: "Position | PositionOptions", **defaults: Any) -> PositionOptions:
    """The options of `model.position`, a name or a mapping of keys; `defaults` for keys that it lacks.

    Raises ValueError for unknown keys, naming the nearest, for values of another type or out of bounds, and
    for keys other than `trained` without effect.
    """
    if isinstance(position, PositionOptions):
        return position
    keys = {"kind": position} if isinstance(position, str) else dict(position)
    names = [field.name for field in dataclasses.fields(PositionOptions)]
    for key in keys:
        if key not in names:
            message = f"position.{key}: unknown; expected one of {', '.join(names)}"
            raise ValueError(message + nearest(str(key), names, prefix="position."))
    kind = keys.get("kind", "rope")
    if not fits(kind, Kind):
        raise ValueError(
            f"position.kind: expected {in_words(Kind)}, found {kind!r}" + nearest(str(kind), get_args(Kind))
        )
    for key, value in keys.items():
        if not fits(value, HINTS[key]):
            raise ValueError(f"position.{key}: expected {in_words(HINTS[key])}, found {value!r}")
    acting = OF_KIND[kind] | (INNER_ROPE if keys.get("inner") == "rope" else set())
    keys = {key: as_floats(value, HINTS[key]) for key, value in keys.items()}
    return PositionOptions(**({key: value for key, value in defaults.items() if key in acting} | keys))


def position_kind(position: Position) -> str:
    """The kind of `model.position`."""
    return position if isinstance(position, str) else str(dict(position).get("kind", "rope"))


HINTS = typing.get_type_hints(PositionOptions)
