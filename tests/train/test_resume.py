"""A run that is killed and resumed is the run that wasn't: weights, memory, data, dice and every point drawn."""

import pytest

DROPOUT = "model.dropout=0.1"


@pytest.mark.parametrize("model", ["rmt", "transformer_xl"])
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_end", 5),  # between two checkpoints, behind the first pass
        ("on_validation_batch_end", 3),
        ("on_train_batch_end", 6),  # a checkpoint is there, its validation isn't
        ("on_validation_batch_end", 8),  # in the last validation
        ("on_validation_end", 6),
        ("on_train_batch_start", 1),  # before the first checkpoint
    ],
)
def test_killed_and_resumed(zoo, same_checkpoints, model, hook, step):
    words = (f"model={model}", DROPOUT)
    assert zoo.run(*words, "run_dir=whole").code == 0
    assert zoo.run(*words, "run_dir=cut", callbacks=[zoo.kill(hook, step)]).code == "killed"
    assert not (zoo.folder / "cut" / "metrics.json").exists()
    ended = zoo.run("resume=cut")
    assert (ended.code, ended.err) == (0, "")
    for name in ("last.ckpt", "best.ckpt"):
        assert same_checkpoints(zoo.checkpoint("whole", name), zoo.checkpoint("cut", name)) == []
    assert zoo.scalars("cut") == zoo.scalars("whole")
