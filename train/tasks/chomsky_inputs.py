"""Random inputs of the fifteen problems of the Chomsky hierarchy suite, distributed as those of its authors.

Every function draws an input of a given length; only modular_arithmetic makes an even length one shorter.
"""

from collections.abc import Callable

import numpy as np

from zoo.train.tasks.chomsky_language import (
    BLANK,
    EQUATION,
    EXPRESSION,
    KINDS,
    MODULUS,
    PAD,
    POP,
    SEPARATOR,
    evaluate_expression,
)

SHORT = {1: "%d", 2: "-%d", 3: "(%d)", 4: "(-%d)"}  # expressions without an operator, by their length


def draw_inputs(kind: str, length: int, rng: np.random.Generator) -> list[int]:
    """Symbols of a random input."""
    if kind in SPECIAL:
        return SPECIAL[kind](length, rng)
    return rng.integers(KINDS[kind].input_symbols, size=length).tolist()


def modular_arithmetic(length: int, rng: np.random.Generator) -> list[int]:
    """Digits with an operator between any two."""
    length -= 1 - length % 2
    symbols = rng.integers(MODULUS, size=length)
    symbols[1::2] = rng.integers(MODULUS, MODULUS + 3, size=length // 2)
    return symbols.tolist()


def draw_expression(length: int, operators: str, rng: np.random.Generator) -> str:
    """A bracketed expression; the length of the left one of two operands is uniform."""
    symbols: list[str] = []
    pending: list[int | str] = [length]  # lengths of expressions and literal symbols, the next one last
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            symbols.append(part)
        elif part in SHORT:
            symbols.append(SHORT[part] % rng.integers(MODULUS))
        else:
            left = int(rng.integers(1, part - 3))
            operator = operators[rng.integers(len(operators))]
            pending += [")", part - 3 - left, operator, left, "("]
    return "".join(symbols)


def modular_arithmetic_brackets(length: int, rng: np.random.Generator) -> list[int]:
    return [EXPRESSION.index(symbol) for symbol in draw_expression(length, "+-*", rng)]


def solve_equation(length: int, rng: np.random.Generator) -> list[int]:
    """An expression with an x for the digit at or after a random position, and its value; or zeros."""
    if length < 3:
        return [0] * length
    expression = draw_expression(length - 2, "+-", rng)
    position = int(rng.integers(len(expression)))
    while not expression[position].isdigit():
        position = (position + 1) % len(expression)
    with_x = f"{expression[:position]}x{expression[position + 1 :]}"
    return [EQUATION.index(symbol) for symbol in f"{with_x}={evaluate_expression(expression)}"]


def stack_manipulation(length: int, rng: np.random.Generator) -> list[int]:
    """A stack of uniform length, and as many actions as are left."""
    height = int(rng.integers(1, length)) if length > 1 else 1
    stack, actions = rng.integers(2, size=height), rng.integers(POP, POP + 3, size=length - height)
    return [*stack.tolist(), *actions.tolist()]


def missing_duplicate_string(length: int, rng: np.random.Generator) -> list[int]:
    if length == 1:
        return [1]
    half = rng.integers(2, size=length // 2).tolist()
    symbols = [*half, *half]
    symbols[rng.integers(len(symbols))] = BLANK
    return symbols + [PAD] * (length % 2)


def positive_number(num_bits: int, rng: np.random.Generator) -> list[int]:
    """The bits of a uniform number above 0."""
    while True:
        bits = rng.integers(2, size=num_bits)
        if bits.any():
            return bits.tolist()


def two_numbers(length: int, rng: np.random.Generator) -> list[int]:
    """Two positive numbers, the first of uniform length; too short for two, one whose bits aren't all 1."""
    if length <= 2:
        return [1 - bit for bit in positive_number(length, rng)]
    first = int(rng.integers(1, length - 1))
    return [*positive_number(first, rng), SEPARATOR, *positive_number(length - 1 - first, rng)]


SPECIAL: dict[str, Callable[[int, np.random.Generator], list[int]]] = {
    "modular_arithmetic": modular_arithmetic,
    "modular_arithmetic_brackets": modular_arithmetic_brackets,
    "solve_equation": solve_equation,
    "stack_manipulation": stack_manipulation,
    "missing_duplicate_string": missing_duplicate_string,
    "binary_addition": two_numbers,
    "binary_multiplication": two_numbers,
    "compute_sqrt": positive_number,
}
"""The others' symbols are independent and uniform."""
