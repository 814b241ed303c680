"""Names that aren't UTF-8 and outputs that can't encode what is printed: no command fails on either."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train.commands.test_train import check_refused
from zoo.errors import printable
from zoo.train.evaluation.evaluate import label_and_title
from zoo.train.evaluation.options import EvalOptions
from zoo.train.runs.files import write_text
from zoo.train.runs.overrides import override_value, path_override

NAME = "caf\udce9"  # b"caf\xe9", as Python has the name of such a file


def test_a_corpus_whose_name_is_not_utf8(zoo: Any) -> None:
    shutil.copytree(zoo.folder / "text", zoo.folder / NAME)
    words = [f'data.corpus="{NAME}"', "steps=2", "val_every=2"]
    assert zoo.run(*words).code == 0
    assert zoo.run("resume=run", "steps=3").code == 0
    assert (zoo.folder / "run/config.yaml").read_text("utf-8").count(r'"caf\uDCE9"') == 2
    assert zoo.metrics("run")["corpus"] == NAME


def test_a_run_whose_name_is_not_utf8_is_refused(zoo: Any) -> None:
    check_refused(zoo.run(f'run_dir="{NAME}"'), r"run_dir: expected a name in UTF-8, .* found .*caf")
    assert set(os.listdir(zoo.folder)) <= {"text", "cache"}


def test_labels_and_files_have_escapes(tmp_path: Path) -> None:
    assert printable(NAME + "é") == r"caf\udce9é"
    options = EvalOptions(overrides=(f"data.corpus={NAME}",))
    assert all(r"caf\udce9" in text for text in label_and_title("rmt", "lm", options, 3, "32-true", None))
    write_text(tmp_path / "a.txt", NAME)
    assert (tmp_path / "a.txt").read_text("utf-8") == r"caf\udce9"


@pytest.mark.parametrize(
    "path", ["runs/a", "runs/日本", "runs/a=b", "it's", "a b", 'a"b', "a\\b", "a,b", "{a}", "1"]
)
def test_paths_survive_hydras_grammar(path: str) -> None:
    assert override_value(path_override("run_dir", path)) == path


@pytest.mark.parametrize("encoding", [pytest.param("latin-1", marks=pytest.mark.slow), "ascii"])
@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        pytest.param(["sweep", "--help"], marks=pytest.mark.slow),
        ["list", "corpora", "path=text"],
        ["trian"],
    ],
)
def test_an_output_that_cannot_encode(zoo: Any, encoding: str, words: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "zoo", *words],
        cwd=zoo.folder,
        env={**zoo.env, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert ended.returncode == (2 if words == ["trian"] else 0), ended.stderr
    assert b"Traceback" not in ended.stderr
    assert ended.stdout
