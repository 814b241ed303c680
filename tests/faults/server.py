"""Starts training runs as processes of their own without the seconds that imports take: each is a fork.

Reads a line of JSON per run, {"words": […], "out": file}; answers with its process id, and when it has ended
with its exit code (negative: the signal that ended it).
"""

import json
import os
import sys

import torch

from zoo.train.commands import train
from zoo.train.loop import trainer  # noqa: F401  # all that a run imports


def child(words: list[str], out: str) -> None:
    sink = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["zoo train", *words]
    code = 1
    try:
        train.main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        process = os.fork()
        if not process:
            child(asked["words"], asked["out"])
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
