"""The language of ListOps: its symbols, its parser, the value of an expression, and a generator."""

import hashlib
import logging
import os
import random
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import count, islice
from multiprocessing import get_context

import numpy as np
from jaxtyping import Bool, Integer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from zoo.errors import UserError

log = logging.getLogger(__name__)

OPERATORS = ("MAX", "MIN", "MED", "SM")
OPEN, CLOSE, END, VOCAB_SIZE = 10, 14, 15, 16  # digits are themselves; OPEN + i opens OPERATORS[i]
IDS = {str(digit): digit for digit in range(10)} | {f"[{name}": OPEN + i for i, name in enumerate(OPERATORS)}
IDS |= {"]": CLOSE, "X": CLOSE}  # many readers of these files replace ] by X
MAX_ARGUMENTS = 10
OPERATOR_PROBABILITY = 0.25
CHUNK = 4096  # trees drawn from one generator, most of them too short
MAX_EMPTY_CHUNKS = 64  # chunks in a row without a new tree: there are no more
SERIAL_CHUNKS = 4  # chunks drawn before further processes start


# -- values --------------------------------------------------------------------------------------------------
APPLY: tuple[Callable[[list[int]], int], ...] = (
    max,
    min,
    lambda values: int(statistics.median(values)),
    lambda values: sum(values) % 10,
)


def evaluate(tokens: str | Sequence[str | int] | Integer[np.ndarray, " n"] | Integer[Tensor, " n"]) -> int:
    """The value of a list, from its tokens: ids, words such as "[MAX", or a line of LRA's files.

    Raises UserError for anything but one complete list or a digit (END may follow).
    """
    symbols = parse(tokens) if isinstance(tokens, str) else list(tokens)
    ids = [IDS.get(symbol, -1) if isinstance(symbol, str) else int(symbol) for symbol in symbols]
    if ids and ids[-1] == END:
        del ids[-1]
    # of each open list the operator, then its values so far; the first holds the result
    open_lists: list[list[int]] = [[]]
    for position, token in enumerate(ids):
        if open_lists[0]:
            raise UserError(
                f"expected one list, found another token at {position} after its end: {symbols[position]!r}"
            )
        if 0 <= token < 10:
            open_lists[-1].append(token)
        elif OPEN <= token < CLOSE:
            open_lists.append([token])
        elif token != CLOSE or len(open_lists[-1]) < 2 or len(open_lists) == 1:
            raise UserError(f"expected a token of a list, found {symbols[position]!r} at {position}")
        else:
            operator, *values = open_lists.pop()
            open_lists[-1].append(APPLY[operator - OPEN](values))
    if len(open_lists) > 1 or not open_lists[0]:
        raise UserError(
            f"expected a complete list, found {len(ids)} tokens and {len(open_lists) - 1} brackets open"
        )
    return open_lists[0][0]


def direct_digits(tokens: Integer[np.ndarray, " tokens"]) -> Integer[np.ndarray, " digits"]:
    """The digits directly in the root."""
    opens = (tokens >= OPEN) & (tokens < CLOSE)
    depth = np.cumsum(opens.astype(np.int64) - (tokens == CLOSE))
    direct: Bool[np.ndarray, " tokens"] = (tokens < 10) & (depth == 1)
    return tokens[direct]


def parse(source: str) -> list[str]:
    """The words of a list; LRA's files nest them in round parentheses, which carry no information."""
    return source.replace("(", " ").replace(")", " ").split()


# -- the generator -------------------------------------------------------------------------------------------
class _TooLongError(Exception):
    pass


def draw_tree(draw: Callable[[], float], max_length: int, max_depth: int) -> bytes | None:
    """One tree from uniform numbers in [0, 1), as tokens, END and answer; None as soon as it is too long."""
    if draw() > OPERATOR_PROBABILITY:
        digit = int(10 * draw())
        return bytes([digit, END, digit])
    line = bytearray()
    try:
        answer = _append_list(line, draw, 1, max_length, max_depth)
    except _TooLongError:
        return None
    return bytes([*line, END, answer])


def _append_list(
    line: bytearray, draw: Callable[[], float], depth: int, max_length: int, max_depth: int
) -> int:
    """Append an operator's list at this depth; returns its value."""
    operator = int(len(OPERATORS) * draw())
    line.append(OPEN + operator)
    if len(line) >= max_length:
        raise _TooLongError
    values = []
    for _ in range(2 + int((MAX_ARGUMENTS - 1) * draw())):
        if depth + 1 < max_depth and draw() <= OPERATOR_PROBABILITY:
            values.append(_append_list(line, draw, depth + 1, max_length, max_depth))
        else:
            line.append(int(10 * draw()))
            values.append(line[-1])
    line.append(CLOSE)
    return APPLY[operator](values)


def draw_chunk(seed: int, chunk: int, min_length: int, max_length: int, max_depth: int) -> list[bytes]:
    """The trees of the right length among CHUNK of them: a function of its arguments alone."""
    draw = random.Random(f"{seed} {chunk}").random  # Python promises never to change these numbers
    trees = (draw_tree(draw, max_length, max_depth) for _ in range(CHUNK))
    return [tree for tree in trees if tree is not None and min_length < len(tree) - 2 < max_length]


def tree_digest(tree: bytes) -> bytes:
    return hashlib.blake2b(tree, digest_size=16).digest()


def distinct_trees(
    seed: int, min_length: int, max_length: int, max_depth: int, total: int, workers: int | None = None
) -> Iterator[bytes]:
    """`total` different trees, in an order that doesn't depend on the processes that draw them.

    `workers`: processes at most, all cores by default.  Raises UserError if fewer exist.
    """
    arguments = (seed, min_length, max_length, max_depth)
    digests: set[bytes] = set()
    empty_chunks = 0
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        bar = progress.add_task("generating listops", total=total)
        log.info("generating %s samples of listops, once for all runs", f"{total:,}")
        for trees in _draw_chunks(arguments, workers or _cores(), total):
            before = len(digests)
            for tree in trees:
                if (digest := tree_digest(tree)) not in digests:
                    digests.add(digest)
                    yield tree
                    if len(digests) == total:
                        return
            progress.update(bar, completed=len(digests))
            empty_chunks = 0 if len(digests) > before else empty_chunks + 1
            if empty_chunks == MAX_EMPTY_CHUNKS:
                raise UserError(
                    f"task listops: expected {total} different lists of {min_length + 1} to {max_length - 1} "
                    f"tokens and depth up to {max_depth}, found {len(digests)}"
                )


def _draw_chunks(arguments: tuple[int, int, int, int], workers: int, total: int) -> Iterator[list[bytes]]:
    """Every chunk in its order, without end; drawn in this process where few are enough."""
    seed, *limits = arguments
    chunks, num_trees = count(), 0
    for chunk in islice(chunks, None if workers == 1 else SERIAL_CHUNKS):
        trees = draw_chunk(seed, chunk, *limits)
        num_trees += len(trees)
        yield trees
    if 0 < total <= SERIAL_CHUNKS * num_trees:
        for chunk in chunks:
            yield draw_chunk(seed, chunk, *limits)
    # A fork starts at once, in any script; it touches neither threads nor devices of its parent.
    pool = ProcessPoolExecutor(workers, get_context("fork" if sys.platform == "linux" else "spawn"))
    pending: deque[Future[list[bytes]]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(draw_chunk, seed, chunk, *limits))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
