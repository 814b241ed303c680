"""Words at which generated text ends; they are no part of it."""

import itertools
from collections.abc import Iterator, Sequence

Pieces = Iterator[tuple[int, str]]
"""Text piece by piece, each with the number of tokens so far."""


def stop_at(pieces: Pieces, stops: Sequence[str]) -> Pieces:
    """The pieces up to the first stop word; text that may be the beginning of one is held back until it is
    known."""
    held, count = "", 0
    for count, piece in pieces:
        held += piece
        if (end := first_stop(held, stops)) is not None:
            yield count, held[:end]
            return
        released = len(held) - longest_beginning(held, stops)
        yield count, held[:released]
        held = held[released:]
    if held:
        yield count, held


def stop_at_numbers(pieces: Pieces, stops: Sequence[str]) -> Pieces:
    """The same for tokens that are written as numbers, each with a space after it: 5 doesn't end at 15."""
    leading = 1
    for count, text in stop_at(itertools.chain([(0, " ")], pieces), [spaced(stop) for stop in stops]):
        yield count, text[leading:]
        leading -= min(leading, len(text))


def spaced(numbers: str) -> str:
    """ " 3 1 " of "3 1" and of "3,1"."""
    return f" {' '.join(numbers.replace(',', ' ').split())} "


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop word in a text begins; None without one."""
    return min((end for stop in stops if (end := text.find(stop)) >= 0), default=None)


def longest_beginning(text: str, stops: Sequence[str]) -> int:
    """The number of last characters of a text with which a stop word may begin."""
    lengths = range(1, min(len(text) + 1, max(map(len, stops), default=1)))
    return max((n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops)), default=0)
