"""`zoo import from=<folder or file> run_dir=<run_dir> [key=value …]`: weights from elsewhere as a run's
folder, which evaluate and generate take like any other.

    from=         a folder that `zoo export` made; or a published checkpoint: a folder with its weights and
                  its config.json, or the file of its weights
    run_dir=      a new folder, for the run
    format=       whose names and config it has: rmt, armt, transformer_xl, mamba, mamba2, jamba, …  (what
                  `zoo export` wrote says so itself)
    config=       another place of config.json
    config.KEY=   a field of it: config.segment_len=512 config.num_mem_tokens=16
    task= size=   of a published checkpoint: the task whose symbols it speaks, such as lm if it was trained on
                  bytes; without one its tokens are numbers.  data.KEY=, task.KEY=: settings of that task

Weights are read from .safetensors, .bin, .pt, .pth or .ckpt, in one file or several with an index; no file's
code is run.
"""

import hashlib
import importlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning
import torch
from hydra.errors import HydraException
from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load as load_safetensors
from torch import Tensor

from zoo import plugins
from zoo.errors import UserError
from zoo.train import build, checkpoints
from zoo.train.checkpoints import check_weights
from zoo.train.cli import one_line, stop, words_or_help
from zoo.train.exporting import CONFIG, FORMAT, VERSION, appearing, free, words
from zoo.train.files import replacing, write_text
from zoo.train.loop import stored_config
from zoo.train.task import Split, Task, Texts

KEYS = ("from", "run_dir", "format", "config", "task", "size", "model._target_", "task._target_")
PREFIXES = ("config.", "task.", "data.")
ROOT = "${oc.env:ZOO_DATA,data}"
IMPORTED = "zoo.models.published.imported"  # imported by name: train knows no models
WHOLE = ("model.safetensors", "pytorch_model.bin", "consolidated.safetensors", "model.pt")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
WRAPPED = ("state_dict", "model", "module", "model_state_dict")  # where weights lie in files that hold more


class Tokens(Task):
    """Of a model whose tokens nothing is known of but their number."""

    name = "tokens"
    VERSION = 1
    metric: ClassVar[Literal["bits_per_byte", "accuracy"]] = "accuracy"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def split(self, name: Split) -> Texts:
        raise UserError("an imported model has no texts of its own: name a task in its tokens, task=…")

    def byte_count(self, targets: Int[Tensor, "*shape"]) -> Int[Tensor, ""]:
        return torch.zeros((), dtype=torch.long, device=targets.device)


def main() -> None:
    """Exit code 0, or 2 for a slip of the user's."""
    found = words_or_help(__doc__)
    try:
        run_dir = bring(words(found, "import", KEYS, ("from", "run_dir"), PREFIXES))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        stop(one_line(error), 2)
    except OSError as error:
        if error.filename is None:
            raise
        stop(f"can't use {error.filename}: {error.strerror}", 2)
    print(f"{run_dir}: zoo evaluate run={run_dir}   zoo generate run={run_dir} prompt=…")


def bring(given: Mapping[str, str]) -> Path:
    """Make the run's folder; UserError: whatever doesn't fit, and nothing is made."""
    plugins.register()
    source, run_dir = Path(given["from"]), Path(given["run_dir"])
    free(run_dir)
    if not source.exists():
        raise UserError(f"import: from: expected a folder or a file of weights, found none at {source}")
    files = weight_files(source)
    config = read_config(Path(given["config"]) if "config" in given else files[0].parent / CONFIG)
    if given.get("format", FORMAT if config.get("format") == FORMAT else "") == FORMAT:
        made = from_zoo(files, config, given)
    else:
        made = from_published(files, config, given)
    cfg, weights, far, metrics = made
    check_finite(weights)
    model = build.model(cfg)
    kept: dict[str, Any] = {
        "state_dict": weights,
        "pytorch-lightning_version": lightning.__version__,
        "optimizer_states": [],
        "lr_schedulers": [],
        "loops": None,
        "callbacks": {},
        "global_step": far["step"],
        "metrics": {"tokens_seen": far["tokens_seen"]},
        "zoo": {"version": checkpoints.VERSION, "ranks": []},
    }
    check_weights(model, kept, files[0])
    with appearing(run_dir) as folder:
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg))
        if metrics is not None:
            write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        with replacing(folder / "checkpoints" / "last.ckpt") as file:
            torch.save(kept, file)
    return run_dir


Made = tuple[DictConfig, dict[str, Tensor], dict[str, int], dict[str, Any] | None]


def from_zoo(files: list[Path], config: dict[str, Any], given: Mapping[str, str]) -> Made:
    """What `zoo export` wrote."""
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise UserError(
            f"import: expected a {CONFIG} of zoo export, version {VERSION}, found format "
            f"{config.get('format')!r}, version {config.get('version')!r}"
        )
    if strange := [key for key in given if key.startswith(PREFIXES) and not key.endswith("_target_")]:
        raise UserError(f"import: {strange[0]} is settled by the run that was exported")
    try:
        settings = {**config["run"], "model": config["model"], "task": config["task"]}
        about, far = config["weights"], {key: int(config[key]) for key in ("step", "tokens_seen")}
        tied, digest = dict(about["tied"]), str(about["sha256"])
        targets = {f"{group}._target_": str(settings[group]["_target_"]) for group in ("model", "task")}
        names, data = settings["names"], settings["data"]
        if min(far.values()) < 0 or not all(isinstance(one, dict) for one in (names, data, settings["task"])):
            raise ValueError("a setting of the wrong kind")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"import: {CONFIG} is no whole one of zoo export: {error!r}") from error
    for key, target in targets.items():
        if not plugins.trusted(target) and given.get(key) != target:
            raise UserError(
                f"import: {CONFIG} names a class of no installed plug-in: {target}; if you trust it, add "
                f"{key}={target}"
            )
    if len(files) > 1 or files[0].suffix != ".safetensors":
        raise UserError(f"import: expected the .safetensors of zoo export, found {files[0].name}")
    found = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if found != digest:
        raise UserError(f"{files[0]} is damaged: expected sha256 {digest}, found {found}")
    weights = read_weights(files)
    for name, first in tied.items():
        if first not in weights:
            raise UserError(f"import: weight {name} is tied to {first}, which isn't there")
        weights[name] = weights[first]
    cfg = settled(settings)
    cfg.data.root = ROOT
    if "root" in cfg.task:
        cfg.task.root = "${data.root}"
    metrics = config.get("metrics")
    return cfg, weights, far, metrics if isinstance(metrics, dict) else None


def from_published(files: list[Path], config: dict[str, Any], given: Mapping[str, str]) -> Made:
    """What another code made, as models/published reads it; its weights in 32 bits."""
    published = importlib.import_module(IMPORTED)
    name = given.get("format", "")
    if name not in published.formats():
        raise UserError(
            f"import: format: expected {FORMAT} or one of {', '.join(published.formats())}, found "
            f"{name or 'none'}"
        )
    for key, value in given.items():
        if key.startswith("config."):
            config[key.removeprefix("config.")] = literal(value)
    weights = {
        name: weight.float() if weight.is_floating_point() else weight
        for name, weight in read_weights(files).items()
    }
    model = published.loaded(name, weights, config)
    names = ("task", "size")
    asked = [f"{key}={value}" for key, value in given.items() if key in names or key.startswith(PREFIXES[1:])]
    if "task" not in given and (strange := [word for word in asked if word.startswith("task.")]):
        raise UserError(f"import: {strange[0]} is a setting of no task: name one, task=…")
    composed = build.compose(asked)
    composed.model = settled(
        {
            "_target_": f"{IMPORTED}.Imported",
            "format": name,
            "config": config,
            "shapes": {key: list(weight.shape) for key, weight in weights.items()},
            "tied": ties(weights),
        }
    )
    composed.names.model = name
    composed.size.budget = None
    if "task" not in given:
        composed.names.task = Tokens.name
        composed.task = {"_target_": f"{__name__}.{Tokens.__name__}", "vocab_size": model.vocab_size}
    cfg = OmegaConf.create(stored_config(composed))
    assert isinstance(cfg, DictConfig)
    ours = {f"model.{key}": weight for key, weight in model.state_dict().items()}
    return cfg, ours, {"step": 0, "tokens_seen": 0}, None


def settled(settings: dict[str, Any]) -> DictConfig:
    """Settings from a file, none of which may ask for anything to be worked out."""

    def look(node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                look(key)
                look(value)
        elif isinstance(node, list):
            for value in node:
                look(value)
        elif isinstance(node, str) and ("${" in node or node == "???"):
            raise UserError(f"import: {CONFIG}: expected plain values, found {node!r}")

    look(settings)
    cfg = OmegaConf.create(settings)
    assert isinstance(cfg, DictConfig)
    return cfg


def literal(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def ties(weights: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of matrices that are the same numbers."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    shapes = [weight.shape for weight in weights.values()]
    for name, weight in weights.items():
        if weight.ndim > 1 and shapes.count(weight.shape) > 1:
            digest = hashlib.blake2b(weight.contiguous().numpy().tobytes()).digest()
            groups.setdefault((weight.shape, digest), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def check_finite(weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise UserError(f"import: weight {name} is not finite")


# -- files


def read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"import: expected the model's {CONFIG} at {path}, found none; config=… says where it is"
        )
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"import: expected json in {path}, found something else: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"import: expected an object in {path}, found {type(config).__name__}")
    return config


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


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
