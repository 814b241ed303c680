"""The fifteen problems of the Chomsky hierarchy suite: their alphabets and their answers.

Delétang et al. 2022, arXiv:2207.02098; answers as in google-deepmind/neural_networks_chomsky_hierarchy
(tests/golden_tasks).  Inputs and answers are symbols 0, 1, ….  Numbers of binary_addition and of
binary_multiplication are little-endian, those of compute_sqrt big-endian.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import isqrt
from typing import NamedTuple

MODULUS = 5  # of the arithmetic, and the length of the cycle
END = 2  # ends an answer that may be shorter than its positions; zeros follow
POP, PUSH_0 = 2, 3
SEPARATOR = 2
BLANK, PAD = 2, 3
EXPRESSION = "01234+-*()"  # the symbols of modular arithmetic, with brackets and without
EQUATION = "01234+-()x="


def even_pairs(inputs: Sequence[int]) -> list[int]:
    """1 if the number of unequal neighbours is odd: if the ends differ."""
    return [int(inputs[0] != inputs[-1])]


def parity_check(inputs: Sequence[int]) -> list[int]:
    return [sum(inputs) % 2]


def cycle_navigation(inputs: Sequence[int]) -> list[int]:
    """The position on a cycle of five after the steps -1, 0 and +1 (symbols 0, 1, 2) from position 0."""
    return [sum(step - 1 for step in inputs) % MODULUS]


def evaluate_expression(expression: str) -> int:
    """The value modulo 5 of digits, + - * (first), unary minus and brackets, nested to any depth."""
    total, term, sign, operator = 0, 0, 1, "+"
    outer: list[tuple[int, int, int, str]] = []
    expects_value = True
    for symbol in expression:
        if expects_value and symbol == "-":
            sign = -sign
            continue
        if symbol == "(":
            outer.append((total, term, sign, operator))
            total, term, sign, operator = 0, 0, 1, "+"
            continue
        if symbol in "+-*":
            operator, expects_value = symbol, True
            continue
        value = int(symbol) if symbol != ")" else total + term
        if symbol == ")":
            total, term, sign, operator = outer.pop()
        value *= sign
        if operator == "*":
            term = term * value % MODULUS
        else:
            total, term = total + term, value if operator == "+" else -value
        sign, expects_value = 1, False
    return (total + term) % MODULUS


def modular_arithmetic(inputs: Sequence[int]) -> list[int]:
    return [evaluate_expression("".join(EXPRESSION[symbol] for symbol in inputs))]


def solve_equation(inputs: Sequence[int]) -> list[int]:
    """The digit that x stands for; 0 where the input is too short for an equation."""
    if len(inputs) < 3:
        return [0]
    expression, value = "".join(EQUATION[symbol] for symbol in inputs).split("=")
    (root,) = (x for x in "01234" if evaluate_expression(expression.replace("x", x)) == int(value))
    return [int(root)]


def stack_manipulation(inputs: Sequence[int]) -> list[int]:
    """The final stack, its top first; POP on an empty stack does nothing."""
    stack: list[int] = []
    for symbol in inputs:
        if symbol != POP:
            stack.append(symbol if symbol < POP else symbol - PUSH_0)
        elif stack:
            stack.pop()
    return padded([*reversed(stack), END], len(inputs) + 1)


def reverse_string(inputs: Sequence[int]) -> list[int]:
    return list(reversed(inputs))


def duplicate_string(inputs: Sequence[int]) -> list[int]:
    return [*inputs, *inputs]


def missing_duplicate_string(inputs: Sequence[int]) -> list[int]:
    """The symbol that stands in the other half of a doubled string where this half has a blank."""
    if len(inputs) == 1:
        return [1]
    half, blank = len(inputs) // 2, list(inputs).index(BLANK)
    return [inputs[(blank + half) % (2 * half)]]


def odds_first(inputs: Sequence[int]) -> list[int]:
    """The 2nd, 4th … symbols, then the 1st, 3rd …: odd positions counted from 0."""
    return [*inputs[1::2], *inputs[::2]]


def binary_addition(inputs: Sequence[int]) -> list[int]:
    """The sum without leading zeros; an input of at most two symbols is one number, and its own answer."""
    return padded([*bits_of(sum(numbers(inputs))), END], len(inputs) + 1)


def binary_multiplication(inputs: Sequence[int]) -> list[int]:
    """The product without leading zeros; END in the last position where the input has at most two symbols."""
    if len(inputs) <= 2:
        return [0] * (len(inputs) - 1) + [END]
    first, second = numbers(inputs)
    return padded([*bits_of(first * second), END], len(inputs))


def compute_sqrt(inputs: Sequence[int]) -> list[int]:
    """The square root, rounded down, in half as many symbols."""
    root = isqrt(int("".join(map(str, inputs)), 2))
    return list(map(int, f"{root:0{-(-len(inputs) // 2)}b}"))


def bucket_sort(inputs: Sequence[int]) -> list[int]:
    return sorted(inputs)


def padded(symbols: list[int], length: int) -> list[int]:
    return symbols + [0] * (length - len(symbols))


def bits_of(number: int) -> list[int]:
    """Little-endian, of zero one bit."""
    return list(map(int, reversed(f"{number:b}")))


def numbers(inputs: Sequence[int]) -> list[int]:
    """The little-endian numbers between separators."""
    return [int(bits[::-1], 2) for bits in "".join(map(str, inputs)).split(str(SEPARATOR))]


class Kind(NamedTuple):
    """A problem: the sizes of its alphabets as the suite declares them, and its answers."""

    input_symbols: int
    output_symbols: int
    answer: Callable[[Sequence[int]], list[int]]
    answer_length: Callable[[int], int]
    """Positions of the answer to an input that is drawn with this length."""
    has_end: bool = False
    """True if the answer is scored up to its END only."""


def one(length: int) -> int:
    return 1


def same(length: int) -> int:
    return length


def longer(length: int) -> int:
    return length + 1


KINDS = {
    "even_pairs": Kind(2, 2, even_pairs, one),
    "parity_check": Kind(2, 2, parity_check, one),
    "cycle_navigation": Kind(3, 5, cycle_navigation, one),
    "modular_arithmetic": Kind(9, 5, modular_arithmetic, one),
    "modular_arithmetic_brackets": Kind(11, 5, modular_arithmetic, one),
    "solve_equation": Kind(11, 5, solve_equation, one),
    "stack_manipulation": Kind(5, 3, stack_manipulation, longer, has_end=True),
    "reverse_string": Kind(2, 2, reverse_string, same),
    "duplicate_string": Kind(2, 2, duplicate_string, lambda length: 2 * length),
    "missing_duplicate_string": Kind(4, 2, missing_duplicate_string, one),
    "odds_first": Kind(2, 2, odds_first, same),
    "binary_addition": Kind(3, 3, binary_addition, longer, has_end=True),
    "binary_multiplication": Kind(3, 3, binary_multiplication, same, has_end=True),
    "compute_sqrt": Kind(2, 2, compute_sqrt, lambda length: -(-length // 2)),
    "bucket_sort": Kind(5, 5, bucket_sort, same),
}
RUNNING: dict[str, Callable[[Sequence[int]], list[int]]] = {
    "even_pairs": lambda inputs: [int(symbol != inputs[0]) for symbol in inputs],
    "parity_check": lambda inputs: [ones % 2 for ones in accumulate(inputs)],
    "cycle_navigation": lambda inputs: [
        position % MODULUS for position in accumulate(step - 1 for step in inputs)
    ],
}
"""The answers to all beginnings of an input, of the kinds in which each is one symbol."""


def scored_length(kind: str, answer: Sequence[int]) -> int:
    """Positions of an answer that are scored: all, or those up to its END."""
    return list(answer).index(END) + 1 if KINDS[kind].has_end else len(answer)
