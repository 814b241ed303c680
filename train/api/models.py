"""Models by their names."""

import torch

from zoo import plugins
from zoo.module import SequenceModule
from zoo.train.api.errors import user_errors
from zoo.train.commands.cli import refuse_without_effect
from zoo.train.runs import build
from zoo.train.runs.config import compose, validate_config
from zoo.train.runs.override_key import refuse_repeated


def list_models() -> list[str]:
    """The names that `model=` takes: the zoo's architectures and those of plug-ins, sorted."""
    return sorted({choice.name for choice in plugins.choices("model")})


def build_model(*args: str) -> SequenceModule:
    """The model that `python -m zoo.train` would train with these arguments, with its initial weights.

    `zoo.build_model("model=rmt", "size=nano", "seed=3")` is a SequenceModule on the CPU, in train mode:
    `logits, state = model(tokens)` reads tokens (rows, time) from the initial state.  `seed` (default 0)
    decides the weights, whatever the state of torch's generator, which stays as it is.  Raises
    zoo.errors.UserError, whose message is the line that the command prints, for an argument that is wrong.
    """
    with user_errors(args):
        refuse_repeated(args)
        refuse_without_effect("build_model", args, ("resume", "run_dir"), "a model with initial weights")
        cfg = compose(list(args))
        validate_config(cfg)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            return build.model(cfg)
