"""What a user can do wrong, said in one line."""


class UserError(Exception):
    """A slip of the user's: the command line prints its one line and exits with code 2, without a traceback.

    The message says what was expected and what was found.
    """


def one_line(error: BaseException) -> str:
    """The message on one line, with Hydra's cause, without the trailers of Hydra and OmegaConf."""
    hydras = type(error).__module__.startswith("hydra.")
    lines = [line.strip() for line in str(error).splitlines()]
    lines += [line.strip() for line in str(error.__cause__ or "").splitlines()] if hydras else []
    if "Config search path:" in lines:
        lines = lines[: lines.index("Config search path:")]
    noise = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "See https://hydra.cc",
        "To append to your config",
    )
    return " ".join(line for line in lines if line and not line.startswith(noise)) or type(error).__name__
