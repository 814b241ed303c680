"""The command in this process."""

import sys
from pathlib import Path
from typing import Any

import pytest

from zoo.train.commands import compare
from zoo.train.comparison import page, reproduce


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`zoo compare …` in a temporary folder: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "sweep_command", lambda group: f"zoo sweep model={group.label}")

    def call(*words: str, pages: bool = False) -> tuple[Any, str, str]:
        if not pages:
            monkeypatch.setattr(page, "write", lambda *arguments: None)
        monkeypatch.setattr(sys, "argv", ["zoo compare", *words])
        code: Any = 0
        try:
            compare.main()
        except SystemExit as error:
            code = error.code
        return (code, *capsys.readouterr())

    return call
