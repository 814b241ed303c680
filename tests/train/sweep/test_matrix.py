"""Matrices in yaml files: which runs they are, what is refused, and the zoo's own."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.docs.test_architectures import MODELS
from zoo.errors import UserError
from zoo.train.commands.sweep import parse_args
from zoo.train.runs import budget
from zoo.train.runs.config import compose, validate_config
from zoo.train.runs.folder import flatten
from zoo.train.sweep.matrix import read_matrix
from zoo.train.sweep.plan import plan
from zoo.train.sweep.protocol import Cell, Protocol

MINE = """
sweep:
  options: jobs=1
  settings: size=nano trainer.accelerator=cpu
  tasks:
    - task=recall task.length=32 steps=4
    - task=passkey task.form=compact task.length=48 steps=6
  models:
    - model=rmt model.memory_tokens=3
    - model=transformer
    - model=transformer model.segment_len=${data.seq_len}
"""

REACHES = {"matrix": 80, "matrix_gpu": 4608}
"""The constant of each matrix of the zoo's: targets with evidence so far back are beyond attention."""
CONTRASTS = {
    "contrast_xl_memory": {"model.memory_len"},
    "contrast_rmt_bptt": {"data.seq_len", "data.batch_size"},
    "contrast_hybrid_attention": {"model.pattern", "model.mlp_width"},  # the latter by the budget
}
"""In which settings the arms differ."""


def write(text: str, name: str = "mine") -> None:
    path = Path("configs/experiment", f"{name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_every_row_runs_in_every_column(zoo: Any) -> None:
    write(MINE)
    options, matrix = parse_args(["experiment=mine", "val_every=2"])
    jobs = plan(matrix, options)
    cells = [(job.config["names.task"], job.config["names.model"], job.config["steps"]) for job in jobs]
    assert cells == [
        ("recall", "rmt", 4),
        ("recall", "transformer", 4),
        ("recall", "transformer", 4),
        ("passkey", "rmt", 6),
        ("passkey", "transformer", 6),
        ("passkey", "transformer", 6),
    ]
    assert [job.config["model.segment_len"] for job in jobs] == [16, 16, 32, 16, 16, 48]
    assert {job.config["model.memory_tokens"] for job in jobs if "rmt" in str(job.folder)} == {3}
    assert len({job.folder for job in jobs}) == 6
    assert {job.config["val_every"] for job in jobs} == {2}


def test_rows_and_columns_are_picked_and_seeds_repeat_them(zoo: Any) -> None:
    write(MINE.replace("jobs=1", "seeds=0,2"))
    _, matrix = parse_args(["experiment=mine", "model=transformer", "task=passkey"])
    assert [(words[1], words[-1]) for words in matrix] == [
        ("task=passkey", "seed=0"),
        ("task=passkey", "seed=2"),
        ("model.segment_len=${data.seq_len}", "seed=0"),
        ("model.segment_len=${data.seq_len}", "seed=2"),
    ]


def test_a_matrix_without_a_size_takes_sizes_of_the_command_line(zoo: Any) -> None:
    write(MINE.replace("size=nano ", ""))
    _, matrix = parse_args(["experiment=mine", "model=rmt", "task=passkey", "size=nano,micro"])
    assert [words[-2:] for words in matrix] == [["size=nano", "seed=0"], ["size=micro", "seed=0"]]


REFUSED = {
    "model=mamba": "model: experiment=mine has rmt, transformer, found mamba",
    "task=lm": "task: experiment=mine has recall, passkey, found lm",
    "size=micro": "size: experiment=mine sets it",
    "steps=9": "steps: experiment=mine sets it",
    "++model.memory_tokens=9": "model.memory_tokens: experiment=mine sets it",
    "seeds=0:2": "seeds is given twice",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_a_matrix_does_not_have_or_sets_itself_is_refused(zoo: Any, word: str) -> None:
    write(MINE.replace("jobs=1", "seeds=0,2"))
    with pytest.raises(UserError, match=REFUSED[word]):
        parse_args(["experiment=mine", word])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep: 3\n", "expected sweep alone, with models, options, settings, tasks"),
        (MINE + "steps: 3\n", "expected sweep alone"),
        (MINE + "  optim: 3\n", "expected sweep alone"),
        (MINE.replace("- task=passkey", "- passkey"), "expected tasks to be lines that begin with task="),
    ],
)
def test_a_file_that_is_no_matrix_is_refused(zoo: Any, text: str, message: str) -> None:
    write(text)
    with pytest.raises(UserError, match=f"experiment=mine: {message}"):
        read_matrix("mine")


def test_wrong_options_of_a_file_are_refused_as_on_the_command_line(zoo: Any) -> None:
    write(MINE.replace("jobs=1", "beyond=far protocol=1"))
    with pytest.raises(UserError, match="sweep: beyond: expected a whole number of at least 1, found far"):
        parse_args(["experiment=mine"])


def test_a_matrix_is_no_run(zoo: Any) -> None:
    ended = zoo.run("experiment=matrix", "run_dir=run", as_given=True)
    assert (ended.code, ended.err) == (
        2,
        "error: experiment=matrix has many runs: python -m zoo sweep experiment=matrix\n",
    )


def test_every_model_tries_its_own_rates(zoo: Any) -> None:
    """Whatever was composed last."""
    write(MINE.replace("jobs=1", "protocol=1 beyond=8"))
    jobs = Protocol(*reversed(parse_args(["experiment=mine", "task=recall"]))).jobs()
    assert [(job.purpose, job.config["names.model"]) for job in jobs] == [
        ("short rate", model) for model in ("rmt", "transformer", "transformer") for _ in range(3)
    ]
    assert {job.config["names.task"] for job in jobs} == {"passkey"}
    assert jobs[0].config["model.memory_tokens"] == 3


@pytest.mark.parametrize(("name", "beyond"), REACHES.items())
def test_the_zoos_matrix_has_every_model_and_its_ceiling(name: str, beyond: int) -> None:
    matrix = read_matrix(name)
    assert matrix is not None
    models = [line.split()[0].removeprefix("model=") for line in matrix.models]
    assert {*models} == {*MODELS}
    assert len(models) == len(MODELS) + 1  # a transformer over the whole sample
    assert matrix.options == f"protocol=1 beyond={beyond}"


@pytest.mark.parametrize(("name", "beyond"), REACHES.items())
def test_beyond_is_where_the_attention_of_the_longest_reach_ends(name: str, beyond: int) -> None:
    matrix = read_matrix(name)
    assert matrix is not None
    [words] = matrix.cells(["transformer_xl"], ["recall"])
    assert Cell(words, compose([*words, "run_dir=."])).attention_reach == beyond


@pytest.mark.parametrize(("name", "settings"), CONTRASTS.items())
def test_the_arms_of_a_contrast_differ_in_what_it_is_about_alone(name: str, settings: set[str]) -> None:
    matrix = read_matrix(name)
    assert matrix is not None
    by_model: dict[str, list[dict[str, Any]]] = {}
    for words in matrix.cells():
        cfg = compose([*words, "run_dir=."])
        cfg.model = budget.solve_width(cfg)
        by_model.setdefault(cfg.names.model, []).append(flatten(OmegaConf.to_container(cfg, resolve=True)))
        assert cfg.data.batch_size * cfg.data.seq_len * cfg.steps == 600 * 2048
    for arms in by_model.values():
        assert len(arms) > 2
        keys = {key for arm in arms for key in arm}
        assert {key for key in keys if len({repr(arm.get(key)) for arm in arms}) > 1} == settings


@pytest.mark.slow
@pytest.mark.parametrize("name", REACHES)
def test_every_cell_of_the_zoos_matrix_is_composed_within_its_budget(name: str) -> None:
    matrix = read_matrix(name)
    assert matrix is not None
    for words in matrix.cells():
        cfg = compose([*words, "run_dir=."])
        validate_config(cfg)
        cfg.model = budget.solve_width(cfg)
        assert cfg.data.seq_len % cfg.size.segment_len == 0, words
