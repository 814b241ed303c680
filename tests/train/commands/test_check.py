"""`zoo check`: one line a law; 0 where all hold, 1 where one is broken, 2 for a user error."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from zoo import contract
from zoo.train.commands import check

MODEL = "zoo.models.transformer.Transformer"
WORDS = ("depth=1", "width=8", "heads=2", "mlp_width=8", "window=16")


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["zoo check", *words])
    try:
        check.main()
        code = 0
    except SystemExit as left:
        code = left.code or 0
    return (code, *capsys.readouterr())


@pytest.mark.parametrize(
    "words", [(MODEL, *WORDS), ("model=sliding_window", *(f"model.{word}" for word in WORDS))]
)
def test_a_line_a_law(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: Any
) -> None:
    code, out, err = run(capsys, monkeypatch, *words)
    *lines, last = out.splitlines()
    assert (code, err, last) == (0, "", "every law holds")
    names = [name for name, _ in contract.laws(check.model_builder(list(words)))]
    assert [line.split()[0] for line in lines] == names
    assert all(line.endswith(" s  holds") for line in lines)


def test_some_laws_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run(capsys, monkeypatch, MODEL, *WORDS, "law=purity,causality-train")
    first, second, last = out.splitlines()
    assert (code, err, last) == (0, "", "2 laws checked, none broken")
    assert (first.split()[0], second.split()[0]) == ("purity", "causality-train")


@pytest.mark.parametrize(
    ("trait", "laws", "shown"),
    [
        (
            "reach = property(lambda self: 'unknown', lambda self, reach: None)",
            ["reach_is_true"],
            'reach is "unknown"',
        ),
        (
            "mixes_rows_in_training = True",
            ["batch_invariance-train", "fresh_rows_forget-train"],
            "mixes_rows_in_training is True",
        ),
        (
            "reads_memory_in_training = False",
            ["memory_is_alive-train", "last_token_is_remembered-train"],
            "reads_memory_in_training is False",
        ),
    ],
)
def test_a_law_that_a_trait_does_not_promise(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    trait: str,
    laws: list[str],
    shown: str,
) -> None:
    monkeypatch.delitem(sys.modules, "model_of_few_promises", raising=False)
    importlib.invalidate_caches()
    (tmp_path / "model_of_few_promises.py").write_text(
        f"from zoo.models.transformer import Transformer\nclass Shy(Transformer):\n    {trait}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("model_of_few_promises.Shy", *WORDS, f"law=shapes,{','.join(laws)}")
    code, out, err = run(capsys, monkeypatch, *words)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()[1:-1]] == [
        [law, "promises", "nothing:", *shown.split()] for law in laws
    ]


def test_a_broken_law(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model_that_forgets.py").write_text(
        "from zoo.models.transformer import Transformer\n"
        "class Old(Transformer):\n"
        "    def segment(self, tokens, state):\n"
        "        return super().segment(tokens, state)[0], state\n"
        "    forward = Transformer.fold\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, err = run(capsys, monkeypatch, "model_that_forgets.Old", *WORDS)
    *lines, last = out.splitlines()
    broken = [line for line in lines if " s  BROKEN: " in line]
    assert (code, err) == (1, "")
    assert last == f"{len(broken)} laws broken"
    assert 0 < len(broken) < len(lines)
    assert all(len(line) > 60 for line in broken)  # it says what was expected


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("return torch.cat([logits, logits[..., 0]]), state", "RuntimeError: "),
        ("assert logits.ndim == 2", "AssertionError: "),
    ],
)
def test_a_crash_is_told_once_with_its_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, kind: str
) -> None:
    monkeypatch.delitem(sys.modules, "model_that_crashes", raising=False)
    importlib.invalidate_caches()
    (tmp_path / "model_that_crashes.py").write_text(
        "import torch\n"
        "from zoo.models.transformer import Transformer\n"
        "class Wide(Transformer):\n"
        "    def segment(self, tokens, state):\n"
        "        logits, state = super().segment(tokens, state)\n"
        f"        {line}\n"
        "    forward = Transformer.fold\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, err = run(capsys, monkeypatch, "model_that_crashes.Wide", *WORDS)
    assert (code, err) == (1, "")
    told = [line.partition("BROKEN: ")[2] for line in out.splitlines() if "BROKEN" in line]
    assert told[0].startswith(kind)
    assert told[0].endswith(" (model_that_crashes.py:6)")
    assert "as shapes" in told[1:]
    assert not any(told[0] == other for other in told[1:])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((MODEL,), "model: Transformer also needs depth, width, heads"),
        ((MODEL, *WORDS, "wdth=3"), "model.wdth: unknown; Transformer takes"),
        ((MODEL, *WORDS[1:], "depth=one"), "model.depth: expected int, found 'one'"),
        (("nowhere.Model",), "model: can't import nowhere.Model: No module named 'nowhere'"),
        (("dsum",), "package.module.Class, found 'dsum'; did you mean model=dsum?"),
        (("torch.nn.Linear",), "model: expected a SequenceModule, found torch.nn.Linear"),
        (("model=rtm",), "Could not find 'model/rtm'"),
        ((MODEL, *WORDS, "law=streeming"), "check: unknown law 'streeming'; did you mean streaming?"),
        ((MODEL, *WORDS, "law="), "check: unknown law ''"),
        (
            (MODEL, *WORDS, "law=purity", "law=shapes"),
            "check: expected law= once, found law=purity law=shapes",
        ),
        (("law=purity",), "check: expected model=NAME or a class, package.module.Class, beside law="),
    ],
)
def test_a_slip(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: Any, says: str
) -> None:
    code, out, err = run(capsys, monkeypatch, *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err


def test_a_missing_trait_is_named_before_any_law(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model_without_trait.py").write_text(
        "from zoo.models.transformer import Transformer\n"
        "class Lost(Transformer):\n"
        "    def __getattribute__(self, name):\n"
        "        if name == 'learns_through_memory':\n"
        "            raise AttributeError\n"
        "        return super().__getattribute__(name)\n"
        "class Wrong(Transformer):\n"
        "    def __getattribute__(self, name):\n"
        "        return 'segment' if name == 'parallel' else super().__getattribute__(name)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = run(capsys, monkeypatch, "model_without_trait.Lost", *WORDS)
    message = "check: Lost.learns_through_memory: expected True, False or a tuple of names, found none"
    assert found == (2, "", f"error: {message}\n")
    found = run(capsys, monkeypatch, "model_without_trait.Wrong", *WORDS)
    choices = "none | segments | segments_as_batch | any_length"
    assert found == (2, "", f"error: check: Wrong.parallel: expected {choices}, found 'segment'\n")
