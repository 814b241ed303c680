"""Weights and configs in files of other programs, read without running any code."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from zoo.errors import UserError, first_line

FILE_NAMES = ("model.safetensors", "pytorch_model.bin", "consolidated.safetensors", "model.pt")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
WRAPPERS = (
    "state_dict",
    "model",
    "module",
    "model_state_dict",
)  # keys of the weights in files that hold more


def check_finite(weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise UserError(f"import: weight {name} is not finite")


def read_model_config(path: Path) -> dict[str, Any]:
    """A config.json that describes the weights beside it."""
    if not path.is_file():
        raise UserError(
            f"import: expected the model's config.json at {path}, found none; config=… says where it is"
        )
    try:
        config = json.loads(path.read_text(), object_hook=_float)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"import: expected json in {path}, found something else: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"import: expected an object in {path}, found {type(config).__name__}")
    return config


def _float(value: dict[str, Any]) -> Any:
    """transformers writes infinity as {"__float__": "Infinity"}."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def weight_files(source: Path) -> list[Path]:
    """The file of the weights, or all files that an index names."""
    if source.is_file():
        return indexed_files(source) if source.name.endswith(".index.json") else [source]
    for name in FILE_NAMES:
        if (source / name).is_file():
            return [source / name]
        if (index := source / f"{name}.index.json").is_file():
            return indexed_files(index)
    paths = sorted(path for path in source.iterdir() if path.suffix in (".safetensors", *PICKLED))
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths) or "none"
        below = sorted(path.parent for path in source.glob("*/config.json"))
        advice = f"from={below[0]}" if below and not paths else "from=…"
        raise UserError(
            f"import: expected one file of weights in {source}, found {names}; {advice} may name one"
        )
    return paths


def indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"import: {index} is not an index of weights: expected weight_map, file names by weight"
        ) from error
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(f"import: {index} names {', '.join(missing)}, which isn't there")
    return [index.parent / name for name in names]


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of the files by name, on the CPU."""
    weights: dict[str, Tensor] = {}
    for path in files:
        for name, weight in read_file(path).items():
            if name in weights:
                raise UserError(f"import: {name} is in {path} and in a file before it")
            weights[name] = weight
    return weights


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix not in PICKLED:
        kinds = ", ".join((".safetensors", *PICKLED))
        raise UserError(f"import: expected weights in a file of {kinds}, found {path.name}")
    weights = read_pickled(path)
    for key in WRAPPERS:
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights):
        raise UserError(f"expected weights by name in {path}, found {type(weights).__name__}")
    for name, weight in weights.items():
        if not isinstance(weight, Tensor) or weight.layout != torch.strided:
            raise UserError(f"expected tensors in {path}, found {name}, {type(weight).__name__}")
    return weights


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # a damaged header leads to many kinds
        raise UserError(
            f"expected safetensors in {path}, found a damaged or unrelated file: {first_line(error)}"
        ) from error


def read_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain Python data, or is damaged; it is not loaded"
        ) from error
    except Exception as error:
        raise UserError(f"expected weights in {path}, found a damaged or unrelated file") from error
