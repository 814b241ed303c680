"""Rotary positions of transformers' configs, with their scaling, as `position` of the zoo's attentions.

Their fields lie in `rope_parameters` (transformers 5), or in `rope_scaling` beside `rope_theta`.
"""

from collections.abc import Mapping
from typing import Any

from zoo.errors import UserError
from zoo.models.published.fields import rope_base
from zoo.models.published.weights import Config, number

TRAINED = "original_max_position_embeddings"
SCALINGS: dict[str, dict[str, str]] = {  # their fields of every kind by ours
    "linear": {"factor": "factor"},
    "llama3": {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor"},
    "yarn": {
        **{"factor": "factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow", "truncate": "truncate"},
        **{"attention_factor": "attention_factor", "mscale": "mscale", "mscale_all_dim": "mscale_all_dim"},
    },
}
NEEDED = {"linear": ("factor",), "llama3": ("factor", "low", "high"), "yarn": ("factor",)}


def rotary_position(config: Config) -> dict[str, Any]:
    """`position` of a config.  UserError for a scaling that the zoo doesn't compute as transformers does."""
    parameters: dict[str, Any] = {}
    for field in ("rope_scaling", "rope_parameters"):
        value = config.get(field)
        if isinstance(value, Mapping):
            parameters |= {name: value[name] for name in value if value[name] is not None}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return {"kind": "rope", "base": rope_base(config)}
    if kind not in SCALINGS:
        raise UserError(
            f"config: expected rotary positions of rope_type default, {', '.join(SCALINGS)}, found {kind!r}"
        )
    fields = SCALINGS[kind]
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", TRAINED, *fields.values()}
    if unknown := sorted(parameters.keys() - known):
        raise UserError(f"config: rope_type {kind} doesn't know {unknown[0]} {parameters[unknown[0]]!r}")
    plain = {key: parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters}
    outside = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    position = {"kind": "rope", "scaling": kind, "base": rope_base(outside | {"rope_parameters": plain})}
    position |= {ours: parameters[theirs] for ours, theirs in fields.items() if theirs in parameters}
    for ours in NEEDED[kind]:
        if ours not in position:
            raise UserError(f"config: expected {fields[ours]} of rope_type {kind}, found none")
    if kind != "linear":
        trained = {TRAINED: config[TRAINED]} if config.get(TRAINED) is not None else parameters
        default = number(config, "max_position_embeddings", default=2048)
        position["trained"] = number(trained, TRAINED, default=default)
    return position
