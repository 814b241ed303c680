"""Tables on a terminal."""

import sys

from rich.console import Console

WIDTH = 180  # columns where the output isn't a terminal


def table_console() -> Console:
    """A console as wide as the terminal; text without highlighted numbers."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
