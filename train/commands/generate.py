"""`zoo generate run=<run_dir> [key=value …]`: continue a text with a trained run, printed as it is generated.

    run=          a run's folder: its config.yaml and checkpoints
    checkpoint=   last (default) or best
    prompt=       the text to continue (default: none, the start of a document); - reads standard input
    prompt_file=  the same from a file
    tokens=       maximum to generate (default 256); a text ends at the end of its document
    temperature=  0 takes the most probable token; 1 (default) samples the model's distribution
    top_p=        sample from the fewest tokens with this probability mass (default 1: all)
    top_k=        sample from so many most probable tokens (default: all)
    stop=         text at which the output ends, without it; several as JSON: stop='["\\n", "END"]'
    samples=      texts of each prompt (default 1)
    prompts=      a file with a prompt on every line, instead of prompt=
    batch_size=   texts that are generated side by side (default 16)
    out=          a file.jsonl for the texts, each written when it is whole: prompt, text, tokens, ended_by
                  (tokens, stop or document)
    seed=         of sampling (default 0): the same command generates the same text
    echo=         true (default): print the prompt first; false: only the new text

Runs on bytes (lm, passkey, needle, …) read and write UTF-8; invalid bytes are printed as �.  Imported runs
with a tokenizer read and write its words.  Others read and write token ids: prompt="3 1 4".  Memory doesn't
grow with the text.
"""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from zoo.errors import UserError
from zoo.lazy import large_imports
from zoo.train.commands.cli import boolean, command, integer, number, one_of, output_file, parse, require_run

if TYPE_CHECKING:
    from zoo.train.evaluation.text_generation import GenerateOptions


@command
def main(args: list[str]) -> None:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    options, batch = parse_args(args)
    if batch is None:
        print_text(options)
    else:
        print_texts(options, batch)


def print_texts(options: "GenerateOptions", batch: "BatchOptions") -> None:
    """Each text under a line with its number, and with `out` as a line of JSON as soon as it is made."""
    from zoo.train.evaluation.batch_generation import generate_texts

    texts = generate_texts(options, batch.prompts, batch.samples, batch.batch_size)
    with contextlib.ExitStack() as stack:
        file: TextIO | None = None
        for number, made in enumerate(texts, 1):
            if batch.out is not None:
                file = file or stack.enter_context(batch.out.open("w"))  # not before anything is made
                file.write(json.dumps(asdict(made)) + "\n")
                file.flush()
            print(f"--- {number} of {len(batch.prompts) * batch.samples}, ended by {made.ended_by}")
            print(f"{made.prompt}{made.text}" if options.echo else made.text, flush=True)


def print_text(options: "GenerateOptions") -> None:
    """One text, as it is generated."""
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
    where = "ended the document or came to a stop word" if options.stop else "ended the document"
    end = "" if count == options.tokens else f", where it {where}"
    print(f"{count:,} tokens{end}; {speed:,.0f} a second", file=sys.stderr)


def prompt(value: str) -> bytes:
    return sys.stdin.buffer.read() if value == "-" else os.fsencode(value)


def stop_words(value: str) -> tuple[str, ...]:
    """One as it stands, or a JSON list of them."""
    words: Any = [value]
    if value.startswith("["):
        with contextlib.suppress(ValueError):
            words = json.loads(value)
    if not all(isinstance(word, str) and word for word in words) or (words == [value] and value[:1] == "["):
        raise ValueError(f'expected a text, or several such as ["END", "\\n"], found {value or "none"}')
    return tuple(words)


def lines(value: str) -> list[bytes]:
    prompts = Path(value).read_bytes().removesuffix(b"\n").split(b"\n")
    return [line.removesuffix(b"\r") for line in prompts]


class BatchOptions(NamedTuple):
    prompts: list[bytes]
    samples: int
    batch_size: int
    out: Path | None


KEYS = {
    "run": Path,
    "checkpoint": one_of("last", "best"),
    "prompt": prompt,
    "prompt_file": lambda value: Path(value).read_bytes(),
    "tokens": integer(least=0),
    "temperature": number(least=0),
    "top_p": number(least=1e-6, most=1),
    "top_k": integer(least=1),
    "stop": stop_words,
    "samples": integer(least=1),
    "prompts": lines,
    "batch_size": integer(least=1),
    "out": output_file(".jsonl"),
    "seed": integer(least=0, most=2**63 - 1),
    "echo": boolean,
}
VERBATIM = ("prompt", "stop")  # texts, no paths
OF_DRAWS = ("top_k", "top_p", "seed")
TARGETS = ("model._target_", "task._target_")


def check_greedy(options: dict[str, Any], samples: int) -> None:
    """Raises UserError for what says how tokens are drawn: at temperature=0 none is."""
    if samples > 1:
        raise UserError(
            "generate: samples: expected 1 with temperature=0, which gives the same text each time"
        )
    if given := [key for key in OF_DRAWS if key in options]:
        raise UserError(
            f"generate: {given[0]} has no effect with temperature=0, which takes the most probable token"
        )


def parse_args(args: list[str]) -> tuple["GenerateOptions", BatchOptions | None]:
    """The options, and those of several texts; None for one, which is printed as it comes."""
    options, overrides = parse("generate", args, KEYS, required=["run"], passed_on=TARGETS, verbatim=VERBATIM)
    given = [key for key in ("prompt", "prompt_file", "prompts") if key in options]
    if len(given) > 1:
        raise UserError(f"generate: expected one of prompt=, prompt_file= and prompts=, found {given}")
    if "prompt_file" in options:
        options["prompt"] = options.pop("prompt_file")
    is_batch = any(key in options for key in ("samples", "prompts", "out"))
    if "batch_size" in options and not is_batch:
        raise UserError("generate: batch_size has no effect on one text; samples= or prompts= makes several")
    prompts = options.pop("prompts", None) or [options.get("prompt", b"")]
    sizes = (options.pop("samples", 1), options.pop("batch_size", 16), options.pop("out", None))
    if options.get("temperature") == 0:
        check_greedy(options, sizes[0])
    batch = BatchOptions(prompts, *sizes) if is_batch else None
    require_run(options["run"])
    with large_imports():
        from zoo.train.evaluation.text_generation import GenerateOptions
    return GenerateOptions(overrides=tuple(overrides), **options), batch
