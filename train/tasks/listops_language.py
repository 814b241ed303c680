"""The language of ListOps: its symbols, what an expression is worth, reading and drawing expressions."""

import hashlib
import logging
import os
import random
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from io import BufferedWriter
from itertools import count, islice
from multiprocessing import get_context
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from zoo.errors import UserError

log = logging.getLogger(__name__)

OPERATORS = ("MAX", "MIN", "MED", "SM")
OPEN, CLOSE, END, VOCABULARY = 10, 14, 15, 16  # digits are themselves; OPEN + i opens OPERATORS[i]
IDS = {str(digit): digit for digit in range(10)} | {f"[{name}": OPEN + i for i, name in enumerate(OPERATORS)}
IDS |= {"]": CLOSE, "X": CLOSE}  # X: what many readers of these files turn ] into
MOST_ARGUMENTS = 10
NESTED = 0.25  # how likely a node is an operator
CHUNK = 4096  # trees drawn from one generator, most of them too short
BARREN = 64  # chunks in a row without a new tree: there are no more


def mark(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()


def _write(out: BufferedWriter, lines: Iterator[bytes], counts: list[int]) -> dict[str, Any]:
    offsets = [0]
    for line in lines:
        out.write(line)
        offsets.append(offsets[-1] + len(line))
    out.write(bytes(-out.tell() % 8))
    out.write(np.array(offsets, np.int64).tobytes())
    return {"counts": counts}


# -- what a list is worth ------------------------------------------------------------------------------------
def value(tokens: str | Sequence[str | int] | Integer[np.ndarray, " n"] | Integer[Tensor, " n"]) -> int:
    """What a list comes to, from its tokens: ids, words such as "[MAX", or a line of LRA's files.

    UserError: it isn't one whole list, or a digit (END may follow).
    """
    symbols = parse(tokens) if isinstance(tokens, str) else list(tokens)
    ids = [IDS.get(token, -1) if isinstance(token, str) else int(token) for token in symbols]
    if ids and ids[-1] == END:
        del ids[-1]
    lists: list[list[int]] = [[]]  # those that are open: the operator, then the values so far
    for place, token in enumerate(ids):
        if lists[0]:
            raise UserError(
                f"expected one list, found another token at {place} behind its end: {symbols[place]!r}"
            )
        if 0 <= token < 10:
            lists[-1].append(token)
        elif OPEN <= token < CLOSE:
            lists.append([token])
        elif token != CLOSE or len(lists[-1]) < 2 or len(lists) == 1:
            raise UserError(f"expected a token of a list, found {symbols[place]!r} at {place}")
        else:
            operator, *values = lists.pop()
            lists[-1].append(_applied(OPERATORS[operator - OPEN], values))
    if len(lists) > 1 or not lists[0]:
        raise UserError(f"expected a whole list, found {len(ids)} tokens and {len(lists) - 1} brackets open")
    return lists[0][0]


def _applied(operator: str, values: list[int]) -> int:
    ordered = sorted(values)
    if operator == "MAX":
        return ordered[-1]
    if operator == "MIN":
        return ordered[0]
    if operator == "SM":
        return sum(values) % 10
    half = len(ordered) // 2
    return (ordered[half] + ordered[-1 - half]) // 2


def direct_digits(tokens: Integer[np.ndarray, " tokens"]) -> Integer[np.ndarray, " digits"]:
    """The digits that stand in the root itself."""
    opens = (tokens >= OPEN) & (tokens < CLOSE)
    depth = np.cumsum(opens.astype(np.int64) - (tokens == CLOSE))
    direct: Bool[np.ndarray, " tokens"] = (tokens < 10) & (depth == 1)
    return tokens[direct]


def parse(source: str) -> list[str]:
    """The words of a list; LRA's files nest them in round parentheses, which carry no information."""
    return source.replace("(", " ").replace(")", " ").split()


# -- the generator -------------------------------------------------------------------------------------------
APPLY: tuple[Callable[[list[int]], int], ...] = (
    max,
    min,
    lambda values: int(statistics.median(values)),
    lambda values: sum(values) % 10,
)


class _TooLongError(Exception):
    pass


def tree(draw: Callable[[], float], max_length: int, max_depth: int) -> bytes | None:
    """One tree from uniform numbers in [0, 1), as tokens, END and answer; None as soon as it is too long."""
    if draw() > NESTED:
        digit = int(10 * draw())
        return bytes([digit, END, digit])
    line = bytearray()
    try:
        answer = _grow(line, draw, 1, max_length, max_depth)
    except _TooLongError:
        return None
    return bytes([*line, END, answer])


def _grow(line: bytearray, draw: Callable[[], float], depth: int, max_length: int, max_depth: int) -> int:
    """Append an operator's list at this depth; its value."""
    operator = int(len(OPERATORS) * draw())
    line.append(OPEN + operator)
    if len(line) >= max_length:
        raise _TooLongError
    values = []
    for _ in range(2 + int((MOST_ARGUMENTS - 1) * draw())):
        if depth + 1 < max_depth and draw() <= NESTED:
            values.append(_grow(line, draw, depth + 1, max_length, max_depth))
        else:
            line.append(int(10 * draw()))
            values.append(line[-1])
    line.append(CLOSE)
    return APPLY[operator](values)


def chunk(seed: int, number: int, min_length: int, max_length: int, max_depth: int) -> list[bytes]:
    """The trees of the right length among CHUNK of them: a function of its arguments alone."""
    draw = random.Random(f"{seed} {number}").random  # whose numbers Python promises to keep
    drawn = (tree(draw, max_length, max_depth) for _ in range(CHUNK))
    return [line for line in drawn if line is not None and min_length < len(line) - 2 < max_length]


def distinct(
    seed: int, min_length: int, max_length: int, max_depth: int, total: int, workers: int | None = None
) -> Iterator[bytes]:
    """So many different trees, in an order that doesn't depend on the processes that draw them.

    `workers`: at most so many, all cores by default.  UserError: there aren't so many trees.
    """
    arguments = (seed, min_length, max_length, max_depth)
    seen: set[bytes] = set()
    barren = 0
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        shown = bar.add_task("generating listops", total=total)
        log.info("generating %s samples of listops, once for all runs", f"{total:,}")
        for trees in _chunks(arguments, workers or _cores(), total):
            before = len(seen)
            for line in trees:
                if (own := mark(line)) not in seen:
                    seen.add(own)
                    yield line
                    if len(seen) == total:
                        return
            bar.update(shown, completed=len(seen))
            barren = 0 if len(seen) > before else barren + 1
            if barren == BARREN:
                raise UserError(
                    f"task listops: expected {total} different lists of {min_length + 1} to {max_length - 1} "
                    f"tokens and depth up to {max_depth}, found {len(seen)}"
                )


def _chunks(arguments: tuple[int, int, int, int], workers: int, total: int) -> Iterator[list[bytes]]:
    """Every chunk in its order, without end; drawn in this process where few are enough."""
    seed, *limits = arguments
    numbers, found = count(), 0
    for number in islice(numbers, None if workers == 1 else 4):
        trees = chunk(seed, number, *limits)
        found += len(trees)
        yield trees
    if 0 < total <= 4 * found:
        for number in numbers:
            yield chunk(seed, number, *limits)
    # A fork starts at once, whatever script this is; it touches neither threads nor devices of its parent's.
    pool = ProcessPoolExecutor(workers, get_context("fork" if sys.platform == "linux" else "spawn"))
    ahead: deque[Future[list[bytes]]] = deque()
    try:
        for number in numbers:
            ahead.append(pool.submit(chunk, seed, number, *limits))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
