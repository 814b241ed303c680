"""Errors as the commands print them."""

import contextlib
import re
from collections.abc import Iterator, Sequence

from zoo.errors import UserError
from zoo.train.commands.cli import user_message


@contextlib.contextmanager
def user_errors(args: Sequence[str]) -> Iterator[None]:
    """An error about these arguments, also Hydra's, becomes a UserError with the command's message."""
    for arg in args:
        if not isinstance(arg, str) or re.match(r"[\w.]+=[^\s'\"/]+\s+[\w.]+=", arg):
            raise UserError(
                f'expected arguments such as "model=rmt", "size=nano", each a string, found {arg!r}'
            )
    try:
        yield
    except Exception as error:
        if (message := user_message(error, args)) is None:
            raise
        raise UserError(message) from error
