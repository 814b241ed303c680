"""`model.position.KEY=value` on the command line, whatever the model's yaml has."""

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from omegaconf import OmegaConf

POSITION = "model.position."


def position_overrides(args: list[str]) -> list[str]:
    """The overrides, with keys of `model.position` added to what the model's yaml has, a name or keys."""
    key = f"{POSITION[:-1]}="  # the key itself, which some models' yaml files lack
    args = [f"++{arg}" if arg.startswith(key) else arg for arg in args]
    dotted = [arg for arg in args if arg.lstrip("+").startswith(POSITION)]
    if not dotted:
        return args
    rest = [arg for arg in args if arg not in dotted]
    keys = {arg.lstrip("+").partition("=")[0] for arg in dotted}
    kind = [] if f"{POSITION}kind" in keys else position_kind(rest)
    return [*rest, *kind, *(f"++{arg.lstrip('+')}" for arg in dotted)]


def position_kind(args: list[str]) -> list[str]:
    """The override that names the kind, where the configuration has a name in place of keys."""
    try:
        with initialize_config_module("zoo.configs", version_base="1.3"):
            position = OmegaConf.select(hydra_compose("train", args), "model.position")
    except Exception:  # Hydra reports it when it composes all of them
        return []
    return [f"++{POSITION}kind={position}"] if isinstance(position, str) else []
