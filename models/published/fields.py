"""Fields of a published config: the ones that a loader reads, those that change no logits, and all others,
which it refuses.

A published code can be told more than ours computes.  So a loader declares, beside the fields that it reads,
the ones that don't matter and the ones that must have one value; a field of none of the three kinds is
refused by its name, unless it is null.
"""

import functools
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from zoo.errors import UserError
from zoo.models.published.weights import Config, require

Load = Callable[[dict[str, Tensor], Config], Any]


class UnknownFieldError(UserError):
    """`names`: the fields of a config that a loader doesn't know."""

    def __init__(self, message: str, names: Iterable[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


# -- fields that change no logits

TRANSFORMERS = (  # of every config of transformers
    *("transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "auto_map", "tokenizer_class"),
    *("dtype", "torch_dtype", "use_bfloat16", "torchscript", "tf_legacy_loss", "_attn_implementation"),
    *("attn_implementation", "_attn_implementation_autoset", "use_cache", "return_dict"),
    *("output_hidden_states", "output_attentions", "output_scores", "return_dict_in_generate"),
    *("id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id"),
    *("unk_token_id", "decoder_start_token_id", "initializer_range", "chunk_size_feed_forward", "prefix"),
    *("is_decoder", "cross_attention_hidden_size", "tie_encoder_decoder", "gradient_checkpointing"),
    # of generation, in configs of earlier versions
    *("max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams"),
    *("num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p"),
    *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("bad_words_ids", "num_return_sequences", "forced_bos_token_id", "forced_eos_token_id"),
    *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
    "begin_suppress_tokens",
)
TRANSFORMERS_FIXED: dict[str, Any] = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
}
LLAMA = ("pretraining_tp", "attention_dropout")
LLAMA_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
}
CASE = (
    *("arch", "kind", "source", "backbone", "layout", "loss", "tied", "untied", "tie_lm_head", "seed"),
    *("B", "L", "batch", "batch_size", "seq", "seq_len", "bounds", "n_seg", "n_segments", "seg_lens"),
    *("segments", "chunks", "windows", "window_starts", "per_segment", "per_step", "prefill_len"),
    *("weight_seed", "gen_steps", "left_pad", "disjoint_tokens_per_segment"),
)
"""Of golden cases: where they come from and what is read."""


def knows(
    *,
    model_types: Iterable[str] = (),
    architectures: Iterable[str] = (),
    without_effect: Iterable[str] = (),
    fixed: Mapping[str, Any] | None = None,
) -> Callable[[Load], Load]:
    """A loader that refuses what it doesn't know of a config.

    `model_types` and `architectures` are what transformers calls the models that the loader computes;
    `without_effect` are fields that change no logits in evaluation; `fixed` are fields that change them and
    have one value here.  Both name a nested field with dots.
    """
    names = {"model_type": tuple(model_types), "architectures": tuple(architectures)}
    neutral = {*TRANSFORMERS, *CASE, *without_effect}
    only = {**TRANSFORMERS_FIXED, **(fixed or {})}

    def decorate(load: Load) -> Load:
        format_ = load.__module__.rpartition(".")[2]

        @functools.wraps(load)
        def checked(weights: dict[str, Tensor], config: Config) -> Any:
            for field, accepted in names.items():
                _check_name(field, config.get(field), accepted, format_)
            fields = config if isinstance(config, Fields) else Fields(config)
            model = load(weights, fields)
            unread = {name: value for name, value in fields.unread() if value is not None}
            require(unread, **only)
            fields.read |= {name for name in unread if name in only}
            unknown = {name: unread[name] for name in unread if name not in {*neutral, *names, *only}}
            if unknown:
                raise UnknownFieldError(_refusal(unknown, format_), unknown)
            return model

        checked.model_types = names["model_type"]  # type: ignore[attr-defined]
        return checked

    return decorate


def _refusal(unknown: dict[str, Any], format_: str) -> str:
    first = ", ".join(f"{name} {_short(value)}" for name, value in list(unknown.items())[:3])
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
    return (
        f"config: format {format_} doesn't know {first}{more}; "
        f"config.{next(iter(unknown))}=null leaves out a field that changes nothing"
    )


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" …")


def _check_name(field: str, value: Any, accepted: tuple[str, ...], format_: str) -> None:
    for name in value if isinstance(value, (list, tuple)) else [value]:
        if name is not None and name not in accepted:
            expected = f"{field} {' or '.join(accepted)}" if accepted else f"no {field}"
            raise UserError(f"config: expected {expected} for format {format_}, found {name!r}")


class Fields(Mapping[str, Any]):
    """A config that remembers which of its fields were read, nested ones too, and which were looked for."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.read: set[str] = set()
        self.sought: set[str] = set()
        self.nested: dict[str, Fields] = {}

    def __getitem__(self, name: str) -> Any:
        self.sought.add(name)
        value = self.config[name]
        self.read.add(name)
        if isinstance(value, Mapping):
            return self.nested.setdefault(name, Fields(value))
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.config

    def __iter__(self) -> Iterator[str]:
        return iter(self.config)

    def __len__(self) -> int:
        return len(self.config)

    def __repr__(self) -> str:
        return repr(self.config)

    def unread(self) -> Iterator[tuple[str, Any]]:
        """Fields that weren't read, with their values; nested ones by dotted names."""
        for name, value in self.config.items():
            if name not in self.read:
                yield name, value
            elif name in self.nested:
                yield from ((f"{name}.{inner}", value) for inner, value in self.nested[name].unread())


class Renamed(Mapping[str, Any]):
    """A config with the usual names for those that another code has."""

    def __init__(self, config: Config, usual: Mapping[str, str]) -> None:
        self.config = config
        self.stored = {usual.get(name, name): name for name in config}

    def __getitem__(self, name: str) -> Any:
        return self.config[self.stored[name]]

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def rope_base(config: Config, default: float = 10000.0, rotated: float = 1.0) -> float:
    """The base of plain rotary positions, from `rope_theta` or from `rope_parameters` (transformers 5).

    `rotated` is the part of a head that they rotate.  UserError for any other, and for any scaling, which
    would be other positions.
    """
    bases = {}
    for field in ("rope_parameters", "rope_scaling"):
        parameters = config.get(field) or {}
        if not isinstance(parameters, Mapping):
            raise UserError(f"config: expected {field}, an object, found {parameters!r}")
        for name in parameters:
            value = parameters[name]
            if name == "rope_theta":
                bases[f"{field}.rope_theta"] = value
            elif (name, value) not in (
                ("rope_type", "default"),
                ("type", "default"),
                ("partial_rotary_factor", rotated),
            ):
                raise UserError(
                    f"config: expected {field} without scaling, found {name} {value!r} in {dict(parameters)}"
                )
    require(config, partial_rotary_factor=rotated)
    if config.get("rope_theta") is not None:
        bases["rope_theta"] = config["rope_theta"]
    for name, base in bases.items():
        if type(base) not in (int, float) or not 0 < base < float("inf"):
            raise UserError(f"config: expected {name}, a number above 0, found {base!r}")
    if len(set(bases.values())) > 1:
        raise UserError(f"config: expected one base of rotary positions, found {bases}")
    return float(next(iter(bases.values()), default))
