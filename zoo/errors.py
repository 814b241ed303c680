"""What a user can do wrong, said in one line."""

from hydra.errors import HydraException


class UserError(Exception):
    """A slip of the user's: the command line prints its one line and exits with code 2, without a traceback.

    The message says what was expected and what was found.
    """


def one_line(error: BaseException) -> str:
    """The whole message on one line, with its cause, without the trailers of Hydra and OmegaConf."""
    cause = error.__cause__ if isinstance(error, HydraException) else None
    said = [line.strip() for one in (error, cause) if one for line in str(one).splitlines()]
    if "Config search path:" in said:
        said = said[: said.index("Config search path:")]
    noise = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "See https://hydra.cc",
        "To append to your config",
    )
    return " ".join(line for line in said if line and not line.startswith(noise)) or type(error).__name__
