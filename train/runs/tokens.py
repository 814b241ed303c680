"""The tokenizer of a run: a tokenizer.json in its folder, which the settings of its task name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from zoo.errors import UserError
from zoo.train.corpora.tokenizer import FILE, count_ids, special_ids, tokenizer_file
from zoo.train.corpora.tokenizer import Tokenizer as Tokenizer
from zoo.train.runs.import_options import NO_TOKENIZER
from zoo.train.tasks.token_lm import TokenLanguageModelling

DATA_ROOT = "${oc.env:ZOO_DATA,data}"


def uses_run_tokenizer(cfg: DictConfig) -> bool:
    """Whether the run's texts are in the tokens of the tokenizer in its folder."""
    return str(cfg.task.get("tokenizer", "")) == FILE


def with_run_tokenizer(cfg: DictConfig, run_dir: Path) -> DictConfig:
    """The configuration with the tokenizer's place, wherever the folder lies now."""
    if not uses_run_tokenizer(cfg):
        return cfg
    cfg = cfg.copy()
    cfg.task.tokenizer = str(run_dir / FILE)
    return cfg


def run_tokenizer(cfg: DictConfig, run_dir: Path) -> Tokenizer | None:
    """None for a run on bytes or on a task's symbols."""
    return Tokenizer(run_dir / FILE) if uses_run_tokenizer(cfg) else None


# -- of an imported model


def find_tokenizer(folder: Path, vocab_size: int, options: Mapping[str, str]) -> Path | None:
    """The tokenizer that the model speaks: the option's, or the one beside its weights; None for a model on a
    task's symbols.  Raises UserError for one with more symbols than the model has."""
    given = options.get("tokenizer")
    if "task" in options:
        if given is not None:
            raise UserError(
                f"import: tokenizer={given} has no effect on the symbols of task={options['task']}"
            )
        return None
    if given == NO_TOKENIZER or (given is None and not (folder / FILE).is_file()):
        return None
    file = tokenizer_file(folder if given is None else Path(given))
    if (size := count_ids(file)) > vocab_size:
        raise UserError(
            f"import: expected a tokenizer of at most the model's {vocab_size:,} symbols, found {size:,} in "
            f"{file}; tokenizer={NO_TOKENIZER} leaves it out"
        )
    return file


def token_task(tokenizer: Path, vocab_size: int) -> dict[str, Any]:
    """The task of a run with a tokenizer, which reads no text until one is named."""
    start, end = special_ids(tokenizer)
    for name, index in (("start", start), ("end", end)):
        if index is not None and not 0 <= index < vocab_size:
            raise UserError(f"import: expected the {name} symbol, a token below {vocab_size}, found {index}")
    return {
        "_target_": f"{TokenLanguageModelling.__module__}.{TokenLanguageModelling.__name__}",
        "corpus": "",
        "root": DATA_ROOT,
        "vocab_size": vocab_size,
        "tokenizer": FILE,
        "start": start,
        "end": end,
        "seed": 0,
    }
