"""`zoo generate run=<run_dir> [key=value …]`: continue a text with a trained run, printed as it is generated.

    run=          a run's folder: its config.yaml and checkpoints
    checkpoint=   last (default) or best
    prompt=       the text to continue (default: none, the start of a document); - reads standard input
    prompt_file=  the same from a file
    tokens=       maximum to generate (default 256); a text ends at the end of its document
    temperature=  0 takes the most probable token; 1 (default) samples the model's distribution
    top_p=        sample from the fewest tokens with this probability mass (default 1: all)
    seed=         of sampling (default 0): the same command generates the same text
    echo=         true (default): print the prompt first; false: only the new text

Runs on bytes (lm, passkey, needle, …) read and write UTF-8; invalid bytes are printed as �.  Others
read and write token ids: prompt="3 1 4".  Memory doesn't grow with the text.
"""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import UserError
from zoo.lazy import large_imports
from zoo.train.commands.cli import boolean, command, integer, number, one_of, parse

if TYPE_CHECKING:
    from zoo.train.evaluation.text_generation import GenerateOptions


@command
def main(args: list[str]) -> None:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    options = parse_args(args)
    from zoo.train.evaluation.text_generation import generate_text

    start, count = time.perf_counter(), 0
    try:
        for count, piece in generate_text(options):  # noqa: B007
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print()
        raise
    print()
    speed = count / max(time.perf_counter() - start, 1e-9)
    end = "" if count == options.tokens else ", where it ended the document"
    print(f"{count:,} tokens{end}; {speed:,.0f} a second", file=sys.stderr)


def prompt(value: str) -> bytes:
    return sys.stdin.buffer.read() if value == "-" else os.fsencode(value)


KEYS = {
    "run": Path,
    "checkpoint": one_of("last", "best"),
    "prompt": prompt,
    "prompt_file": lambda value: Path(value).read_bytes(),
    "tokens": integer(least=0),
    "temperature": number(least=0),
    "top_p": number(least=1e-6, most=1),
    "seed": integer(least=0, most=2**63 - 1),
    "echo": boolean,
}
TARGETS = ("model._target_", "task._target_")


def parse_args(args: list[str]) -> "GenerateOptions":
    options, overrides = parse("generate", args, KEYS, required=["run"], passed_on=TARGETS)
    if "prompt" in options and "prompt_file" in options:
        raise UserError("generate: expected prompt= or prompt_file=, found both")
    if "prompt_file" in options:
        options["prompt"] = options.pop("prompt_file")
    with large_imports():
        from zoo.train.evaluation.text_generation import GenerateOptions
    return GenerateOptions(overrides=tuple(overrides), **options)
