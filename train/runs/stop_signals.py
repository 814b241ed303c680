"""The signals at which a run saves and stops."""

import signal

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGPIPE")
"""Ctrl-C, a polite kill, a closed terminal, a scheduler's warning, an output that nobody reads any more
(which Python ignores unless a command says otherwise)."""


def stop_signals() -> list[signal.Signals]:
    """Those that this system has and that nobody ignores: nohup has a closed terminal ignored."""
    signals = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


class InterruptedRunError(Exception):
    """A signal stopped the run; everything is saved."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)
