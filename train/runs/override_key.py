"""The key of an override; needs nothing but Python, for help and errors that come at once."""


def key_of(override: str) -> str:
    """`model.width` of `model.width=64`, `+model.width=64`, `++model.width=64` and `~model.width`."""
    return override.lstrip("+~").partition("=")[0]
