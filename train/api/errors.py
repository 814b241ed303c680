"""Errors as the commands print them."""

import contextlib
import re
from collections.abc import Iterator, Sequence

from zoo.errors import UserError
from zoo.train.commands.cli import user_message


@contextlib.contextmanager
def user_errors(words: Sequence[str]) -> Iterator[None]:
    """An error about these words, Hydra's too, becomes a UserError with the line that the command prints."""
    for word in words:
        if not isinstance(word, str) or re.match(r"[\w.]+=\S+\s+[\w.]+=", word):
            raise UserError(f'expected words such as "model=rmt", "size=nano", each a string, found {word!r}')
    try:
        yield
    except Exception as error:
        if (message := user_message(error, words)) is None:
            raise
        raise UserError(message) from error
