"""Every field of a case's config is held: another value fails, and so does a field that nobody reads."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

from tests.golden import test_focused, test_landmark, test_unlimiformer
from tests.golden.cases import NOTES, Case, read_case
from tests.golden.reference import focused, landmark, unlimiformer
from tests.golden.test_golden import FIXTURES, KINDS, check
from zoo.errors import UserError

FILES = sorted(FIXTURES.rglob("*.json"))
OF_KIND = {json.loads(path.read_text())["kind"]: path for path in FILES}
OTHER: dict[str, Any] = {  # where the next value would be as right as the file's
    "attn_layer_period": 2,
    "clamp_len": 1,
    "d_intermediate": 129,  # rounded up to 128
    "lm_head": "tied",
    "mask_value": -1.0,
    "max_groups_for_softmax": 2,
    "max_sequence_length": 8,
    "mem_cache_size": 5,
    "tgt_len": 5,
}
OTHER_OF_FILE: dict[str, Any] = {  # where it is rounded or clipped to the file's
    "clex:max_factor": 2,
    "llama_yarn:max_position_embeddings": 16,
    "llama_yarn:rope_parameters.original_max_position_embeddings": 64,
    "llama_yarn:rope_parameters.beta_slow": 0.05,
    "pose:text_lengths": [16, 40, 80, 79],
    "rope_scaled:methods.dynamic_short.original": 10,
    "rope_scaled:methods.dynamic_short.length": 40,
    "rope_scaled:methods.yarn4.original": 256,
    "rope_scaled:methods.yarn4.beta_fast": 2,
    "rope_scaled:methods.yarn4.beta_slow": 4,
    "rope_scaled:methods.yarn_mscale.original": 1024,
    "rope_scaled:methods.yarn_mscale.beta_fast": 16,
    "rope_scaled:methods.yarn_mscale.beta_slow": 4,
    "rope_scaled:methods.longrope_long.length": 64,
    "rope_scaled:methods.hope.original": 10,
}
BOUNDS = {"block_size": 23, "vocab_size": 3}  # where only smaller numbers are wrong
REFUSED = r"config field no_such_field: never read|doesn't know no_such_field 1"  # by the kind, by a loader
INERT: dict[str, str] = {  # fields of kinds, or of one file, that change no number
    "chunk_size": "how Mamba-2's recurrence is computed, not what",
    "residual_in_fp32": "all that the files have is in float64",
    "armt_model:wrap_pos": "a table as long as a segment: memory tokens come last in any case",
    "core_crossbatch:cross_batch_stepping": "no packs in which rows could see more and more",
    "core_crossbatch:dataset_packing": "packs say nothing without stepping",
    "infini_layer_linear_nope:rope_base": "no rotary positions",
    "llama_yarn:rope_parameters.beta_fast": "the ramp begins at the first pair",
    "lm_infinite_ceiling:global": "no mask",
    "rope_scaled:methods.dynamic_short.factor": "nothing is scaled up to the trained length",
    "rope_scaled:methods.longrope_long.short_factor": "beyond the trained length",
    "rope_scaled:methods.longrope_short.long_factor": "up to the trained length",
    "jamba_nomoe:expert_layer_offset": "one expert",
    "jamba_nomoe:expert_layer_period": "one expert",
    "jamba_nomoe:num_experts_per_tok": "one expert",
    "txl_layer_postln:mem_len": "its memory is given",
    "txl_model_preln_samelen_clamp_untied:disjoint_tokens_per_segment": "how the tokens were drawn",
    **{f"megalodon/layer:{name}": "of the model" for name in ("num_layers", "scale_emb", "share_emb")},
    "megalodon/layer:vocab_size": "of the model",
}


class Strict(Case):
    """Stops at the first difference."""

    def compare(self, *compared: Any) -> None:
        super().compare(*compared)
        assert not self.wrong, self.wrong[0]


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def changed(value: Any) -> Any:
    """A value of the same type, unlike this one."""
    if isinstance(value, dict):
        return {"more": 1} | {name: changed(part) for name, part in value.items()}
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])] if value else [1]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"not {value}" if value else "something"


def with_value(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return config | {name: with_value(config[name], rest, value) if rest else value}


def at(config: dict[str, Any], path: str) -> Any:
    name, _, rest = path.partition(".")
    return at(config[name], rest) if rest else config[name]


def compare(case: Case) -> None:
    KINDS[case.kind](case)
    case.close()


@pytest.mark.parametrize("kind", OF_KIND)
def test_an_unknown_field_is_refused(kind: str) -> None:
    case = read_case(OF_KIND[kind])
    config = json.loads(OF_KIND[kind].read_text())["config"] | {"no_such_field": 1}
    case = Case(kind, config, case.tensors, case.atol, case.rtol, case.of_max)
    with pytest.raises((AssertionError, UserError), match=REFUSED):
        compare(case)
    assert case.wrong == []


def other_value(path: Path, kind: str, field: str, value: Any) -> Any:
    if f"{path.stem}:{field}" in OTHER_OF_FILE:
        return OTHER_OF_FILE[f"{path.stem}:{field}"]
    name = field.split(".")[-1]
    model = kind.startswith(("hybrids/", "mamba"))
    return BOUNDS[name] if model and name in BOUNDS else OTHER.get(name, changed(value))


@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: path.relative_to(FIXTURES).with_suffix("").as_posix()
)
def test_another_value_of_a_field_fails(path: Path) -> None:
    record, case = json.loads(path.read_text()), read_case(path)
    kind, config, unnoticed = record["kind"], record["config"], []
    for field in leaves(config):
        name = field.split(".")[-1]
        names = {name, f"{path.stem}:{name}", f"{path.stem}:{field}", f"{kind}:{name}"}
        if (NOTES | INERT.keys()) & names:
            continue
        value = other_value(path, kind, field, at(config, field))
        changed_config = with_value(config, field, value)
        other = Strict(kind, changed_config, case.tensors, case.atol, case.rtol, case.of_max)
        try:
            compare(other)
        except Exception:  # a difference, a refusal, or shapes that don't fit
            continue
        unnoticed.append(f"{field} = {value!r}")
    assert not unnoticed


def padded() -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = test_focused.LONG | {"B": 2, "left_pad": [0, 7]}
    inputs = test_focused.random_tensors("fot/longllama", config)
    return config, inputs | focused.longllama(config, inputs)


def offloaded() -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = test_landmark.LLAMA | {"offload_cache_to_cpu": True}
    inputs = test_landmark.inputs("landmark/llama_cache", config)
    return config, inputs | landmark.computed("landmark/llama_cache", config, inputs)


def beams() -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = {"B": 3, "beam": 2, "heads": 2, "dim": 8, "n_hidden": 9, "k": 4}
    inputs = test_unlimiformer.random_tensors(config, bias=True)
    return config, inputs | unlimiformer.core(config, inputs)


@pytest.mark.parametrize(
    ("kind", "made", "field", "another"),
    [
        ("fot/longllama", padded, "left_pad", [0, 6]),
        ("landmark/llama_cache", offloaded, "offload_cache_to_cpu", False),
        ("unlimiformer/core_retrieval_attention", beams, "beam", 3),
    ],
)
def test_a_folder_with_other_values_of_a_field(
    tmp_path: Path, kind: str, made: Callable[[], tuple[Any, Any]], field: str, another: Any
) -> None:
    """As a user's $ZOO_GOLDEN has them: files with values that no fixture has."""
    config, tensors = made()
    fixture = json.loads(OF_KIND[kind].read_text())["config"]
    assert fixture[field] != config[field]
    path = tmp_path / "case.json"
    save_file({name: x.contiguous() for name, x in tensors.items()}, path.with_suffix(".safetensors"))
    record = {"kind": kind, "tensors": dict.fromkeys(tensors), "tolerance": {"atol": 1e-10, "rtol": 1e-9}}
    path.write_text(json.dumps(record | {"config": config}))
    check(path)
    path.write_text(json.dumps(record | {"config": config | {field: another}}))
    with pytest.raises(AssertionError, match=rf"config field {field}|state/final/"):
        check(path)
