"""Settings of imported models on a command line: fields of their config, and the tokens of their segments."""

from pathlib import Path

import pytest

from tests.train.conftest import Workspace
from tests.train.runs.commands import call, refused
from tests.train.runs.test_import_published import checkpoint, published
from zoo.errors import UserError
from zoo.train.commands import evaluate, import_weights
from zoo.train.runs.load import load_trained
from zoo.train.runs.resume import args_to_resume


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("config.n_layers=2", "config.n_layers: format mamba doesn't know it; did you mean config.n_layer?"),
        ("config.batch=3", "config.batch: format mamba doesn't read it from this config"),
    ],
)
def test_a_field_that_is_not_read_is_refused(
    zoo: Workspace, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    """By import and, as a change of the run's config, by evaluate."""
    checkpoint(Path("there"), *published("mamba1/model_2layer"))
    source = ("from=there", "format=mamba")
    assert message in refused(call(zoo, capsys, import_weights.main, *source, "run_dir=wrong", word))
    assert call(zoo, capsys, import_weights.main, *source, "run_dir=here", "config.L=16").code == 0
    assert load_trained(Path("here"))[1].segment_len == 16
    assert message in refused(call(zoo, capsys, evaluate.main, "run=here", f"model.{word}"))


def test_segments_of_a_recurrence_can_be_set(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    for name, case in (("mamba", "mamba1/model_2layer"), ("transformer", "transformers/gpt2")):
        checkpoint(Path(f"of-{name}"), *published(case))
        words = (f"from=of-{name}", f"run_dir={name}", f"format={name}")
        assert call(zoo, capsys, import_weights.main, *words).code == 0
    _, model, _ = load_trained(Path("mamba"), overrides=("model.segment_len=24",))
    assert model.segment_len == 24
    with pytest.raises(UserError, match="attends within segments, which the config sets, found 24"):
        load_trained(Path("transformer"), overrides=("model.segment_len=24",))


def test_an_imported_run_is_not_resumed(zoo: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(Path("there"), *published("mamba1/model_2layer"))
    words = ("from=there", "run_dir=here", "format=mamba")
    assert call(zoo, capsys, import_weights.main, *words).code == 0
    with pytest.raises(UserError, match="resume: here was imported, without an optimiser to resume with"):
        args_to_resume(["resume=here"])
