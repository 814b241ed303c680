"""Weights from files of other programs: which files hold them, and reading these without running any code."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from zoo.errors import UserError, first_line

WHOLE = ("model.safetensors", "pytorch_model.bin", "consolidated.safetensors", "model.pt")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
WRAPPED = ("state_dict", "model", "module", "model_state_dict")  # where weights lie in files that hold more


def check_finite(weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise UserError(f"import: weight {name} is not finite")


def weight_files(source: Path) -> list[Path]:
    """The file of the weights, or all of them where an index says so."""
    if source.is_file():
        return indexed(source) if source.name.endswith(".index.json") else [source]
    for name in WHOLE:
        if (source / name).is_file():
            return [source / name]
        if (index := source / f"{name}.index.json").is_file():
            return indexed(index)
    found = sorted(path for path in source.iterdir() if path.suffix in (".safetensors", *PICKLED))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"import: expected one file of weights in {source}, found {names}; from=… may name one"
        )
    return found


def indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"import: {index} is no index of weights: expected weight_map, file names by weight"
        ) from error
    if lacking := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(f"import: {index} names {', '.join(lacking)}, which isn't there")
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
    if path.suffix == ".safetensors":
        try:
            return load_safetensors(path.read_bytes())
        except OSError:
            raise
        except Exception as error:  # whatever a damaged header leads to
            raise UserError(
                f"expected safetensors in {path}, found a damaged or foreign file: {first_line(error)}"
            ) from error
    if path.suffix not in PICKLED:
        kinds = ", ".join((".safetensors", *PICKLED))
        raise UserError(f"import: expected weights in a file of {kinds}, found {path.name}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain data, or is damaged; it is not loaded"
        ) from error
    except Exception as error:
        raise UserError(f"expected weights in {path}, found a damaged or foreign file") from error
    for key in WRAPPED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found):
        raise UserError(f"expected weights by name in {path}, found {type(found).__name__}")
    for name, weight in found.items():
        if not isinstance(weight, Tensor) or weight.layout != torch.strided:
            raise UserError(f"expected tensors in {path}, found {name}, {type(weight).__name__}")
    return found
