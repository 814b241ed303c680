"""The log handler of training's console."""

import logging
import sys
from typing import TextIO

from zoo.errors import discard_closed_outputs


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Prints messages, and nothing more once their reader has closed the pipe: SIGPIPE stops the run then."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not (isinstance(sys.exc_info()[1], BrokenPipeError) and discard_closed_outputs()):
            super().handleError(record)
