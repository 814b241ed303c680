"""Words on the command line of a training run: a good one begins to train, a bad one is one line."""

import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hypothesis import strategies as st

from zoo.train.runs.config import compose, to_dict

PLACES = ("data.corpus", "data.root", "task.corpus", "task.root", "run_dir", "resume")
NUMBERS = ["-1", "0", "3", "64", "-0.5", "0.5", "1e400", "nan", "inf", "-inf", "1_0", "0x10", "1e-3", "-1e9"]
PLAIN = [
    "null",
    "true",
    "False",
    "abc",
    "",
    " ",
    "''",
    '"',
    "'",
    "???",
    "\\",
    "a b",
    "é",
    "\udcff",
    "🦒",
    "#",
    "~",
]
NESTED = ["[]", "{}", "[1,2]", "[1", "{a:1}", "{a:{b:[null]}}", "1,2", "[[]]", "[nan,0.5]", "{", "}"]
REFERENCES = [
    "${",
    "${x}",
    "${size.width}",
    "${model}",
    "${size}",
    "${oc.env:NOT_SET}",
    "${mul:1}",
    "${.}",
    "${div:1,0}",
]
LETTERS = st.characters(blacklist_characters="/\0~.-", blacklist_categories=["Cs"])


def keys_of(node: Any, name: str = "") -> list[str]:
    found = [name] if name else []
    for key, value in node.items():
        inner = f"{name}.{key}" if name else str(key)
        found += keys_of(value, inner) if isinstance(value, dict) else [inner]
    return found


def words(keys: list[str]) -> st.SearchStrategy[str]:
    """Known keys with odd values, keys that are nearly right, and any text."""
    text = st.text(LETTERS, max_size=12)
    odd = st.sampled_from(NUMBERS + PLAIN + NESTED + REFERENCES) | text | st.integers(-9, 64).map(str)
    safe = st.sampled_from(NUMBERS + [word for word in PLAIN if word != "~"] + NESTED) | text
    signs = st.sampled_from(["", "", "", "", "+", "++", "~"])

    def given_to(key: str) -> st.SearchStrategy[str]:
        return st.tuples(signs, safe if key in PLACES else odd).map(lambda one: f"{one[0]}{key}={one[1]}")

    known = st.sampled_from(keys).flatmap(given_to)
    removed = st.sampled_from(keys).map(lambda key: f"~{key}")
    misspelt = st.tuples(st.sampled_from(keys), st.integers(0, 30), LETTERS).map(
        lambda one: f"{one[0][: one[1]]}{one[2]}{one[0][one[1] + 1 :]}=1"
    )
    option = st.sampled_from(
        ["--", "-x", "--cfg", "--cfg=x", "--multi", "-mx", "--resolve", "--package=1", "-c"]
    )
    anything = st.text(LETTERS, min_size=1, max_size=20)
    return known | known | known | misspelt | removed | option | anything


def remove(path: Path) -> None:
    """TensorBoard's thread of the run that was cut off may still be writing there."""
    for _ in range(100):
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.02 if path.exists() else 0)
    raise AssertionError(f"{path} can't be removed")


@pytest.mark.parametrize(
    ("examples", "at_least"), [(25, 10), pytest.param(800, 500, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_any_word(
    zoo: Any, fuzzing: Any, examples: int, at_least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that takes its words gets as far as its first step; its folder is removed for the next one."""

    def fit(*given: Any, **named: Any) -> None:
        raise zoo.KilledError

    zoo.train_whole()
    monkeypatch.setattr(L.Trainer, "fit", fit)
    keys = keys_of(to_dict(compose(["model=rmt", "size=nano", "run_dir=x"])))
    keys += ["model.base", "model.position", "experiment", "hydra.verbose", "hydra.job.name"]
    before = fuzzing.snapshot(zoo.folder / "whole", zoo.folder / "text")

    def check(word: str) -> bool:
        try:
            # a key of these settings that is given again stands behind, and the last one counts
            settings = [one for one in zoo.with_settings([]) if not one.startswith("run_dir=")]
            run_dir = [] if word.startswith("run_dir=") else ["run_dir=run"]
            refused = fuzzing.is_refused(zoo.run(*settings, *run_dir, word, as_given=True))
        finally:
            for folder in zoo.folder.iterdir():
                if folder.name not in ("whole", "text", "cache"):
                    remove(folder)
        assert fuzzing.snapshot(zoo.folder / "whole", zoo.folder / "text") == before
        return refused

    assert fuzzing.fuzz(examples, words(keys), check) >= at_least
