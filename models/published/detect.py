"""The format of a config.json: by its `model_type`, or by the fields of mamba_ssm, which writes none."""

from typing import Any

from zoo.errors import UserError
from zoo.models.published.imported import formats, model_types
from zoo.models.published.transformer import window
from zoo.models.published.weights import Config


def _of_llama(config: Config) -> str:
    if config.get("mem_layers") is not None:
        return "focused"
    if config.get("mem_id") is not None:
        return "landmark"
    return "transformer" if window(config) is None else "sliding_window"


def _of_gpt2(config: Config) -> str:
    if config.get("num_mem_tokens") is None:
        return "transformer"
    return "rmt" if config.get("d_mem") is None else "armt"


SEVERAL = {"llama": _of_llama, "mistral": _of_llama, "gpt2": _of_gpt2}
"""Of a `model_type` that several formats read: the one that the config's other fields ask for."""


def detect(config: Config) -> str:
    """The format's name.  UserError if the config doesn't settle it, or is one that no format reads."""
    model_type = config.get("model_type")
    if model_type is None:
        return _of_mamba_ssm(config)
    accepted = {name: model_types(name) for name in formats()}
    matching = [name for name, types in accepted.items() if model_type in types]
    if isinstance(model_type, str) and model_type in SEVERAL:
        return SEVERAL[model_type](config)
    if len(matching) == 1:
        return matching[0]
    known = ", ".join(sorted({known for types in accepted.values() for known in types}))
    message = f"config: expected model_type, one of {known}, found {model_type!r}"
    if not matching:
        raise UserError(f"{message}, which no format reads")
    raise UserError(f"{message} of {', '.join(matching)}; format=… names a format")


def _of_mamba_ssm(config: Config) -> str:
    cell: Any = config.get("ssm_cfg")
    if "d_model" not in config or "n_layer" not in config or not (cell is None or isinstance(cell, dict)):
        raise _unsettled()
    if config.get("attn_layer_idx"):
        return "mamba2_hybrid"
    layer = (cell or {}).get("layer", "Mamba1")
    if cell is None or layer not in ("Mamba1", "Mamba2"):
        raise _unsettled()
    return "mamba" if layer == "Mamba1" else "mamba2"


def _unsettled() -> UserError:
    return UserError(
        f"format: expected zoo or one of {', '.join(formats())}, found none, "
        "and config.json has no model_type that would settle it"
    )
