"""The Chomsky hierarchy suite: documents, random inputs against exact distributions, and baselines."""

import typing
from typing import Any

import numpy as np
import pytest

from tests.train.tasks.samples import check_windows, read_sample
from zoo.errors import UserError
from zoo.module import IGNORE
from zoo.train.runs import build
from zoo.train.runs.config import compose
from zoo.train.tasks.base import Subset
from zoo.train.tasks.chomsky import Chomsky, ChomskyDataset, KindName
from zoo.train.tasks.chomsky_inputs import draw_inputs
from zoo.train.tasks.chomsky_language import EQUATION, EXPRESSION, KINDS, RUNNING, evaluate_expression

KIND_NAMES: list[Any] = list(KINDS)


def make(kind: Any, **settings: Any) -> Chomsky:
    sizes = KINDS[kind].input_symbols, KINDS[kind].output_symbols
    return Chomsky(kind=kind, vocab_size=max(sizes) + 1, **settings)


def train_dataset(task: Chomsky) -> ChomskyDataset:
    dataset = task.split("train")
    assert isinstance(dataset, ChomskyDataset)
    return dataset


def samples(kind: str, length: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [draw_inputs(kind, length, rng) for _ in range(count)]


def check_frequencies(values: Any, shares: Any) -> None:
    """Chi-square of counts against exact shares, at 5 standard deviations of its own distribution."""
    counts = np.bincount(values, minlength=len(shares))
    assert len(counts) == len(shares)
    expected = np.array(shares) * counts.sum()
    assert (counts[expected == 0] == 0).all()
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_yaml_has_the_sizes_of_every_kind(kind: str) -> None:
    assert kind in typing.get_args(KindName)
    cfg = compose(["task=chomsky", "size=nano", f"task.kind={kind}", "size.segment_len=1"])
    task = build.task(cfg)
    assert isinstance(task, Chomsky)
    assert task.vocab_size == task.empty_symbol + 1
    longest = train_dataset(make(kind, samples=500)).lengths.max()
    assert longest <= cfg.data.seq_len <= longest + 1


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_answer_stands_after_the_input_and_only_the_given_form_reads_it(kind: Any) -> None:
    hidden, given = (train_dataset(make(kind, answers=form, length=12)) for form in ("hidden", "given"))
    for document in range(60):
        inputs, answer = hidden.sample(document)
        empty = make(kind).empty_symbol
        assert max(inputs) < empty
        tokens, targets = (row.tolist() for row in read_sample(hidden, document))
        assert tokens == inputs + [empty] * KINDS[kind].answer_length(int(hidden.input_lengths[document]))
        assert targets[: len(inputs)] == [IGNORE] * len(inputs)
        assert targets[len(inputs) :][: len(answer)] == answer
        assert set(targets[len(inputs) + len(answer) :]) <= {IGNORE}
        tokens, given_targets = (row.tolist() for row in read_sample(given, document))
        assert given_targets == targets
        assert tokens[: len(inputs) + len(answer)] == [*inputs, empty, *answer[:-1]]


@pytest.mark.parametrize("kind", RUNNING)
def test_running_answers_are_those_of_every_beginning(kind: Any) -> None:
    task = make(kind, answers="running", length=9)
    dataset = task.split("val")
    for document in range(50):
        tokens, targets = (row.tolist() for row in read_sample(dataset, document))
        assert targets == [KINDS[kind].answer(tokens[: end + 1])[0] for end in range(9)]
        assert read_sample(make(kind, length=9).split("val"), document)[1][-1] == targets[-1]
    hits = np.array([False] * 8 + [True])
    assert task.scores(dataset, 0, hits) == {"last answer": 1.0}
    assert make(kind, length=9).scores(dataset, 0, hits[-1:]) == {}


@pytest.mark.parametrize(("kind", "symbols"), [(KIND_NAMES[3], EXPRESSION), (KIND_NAMES[4], EXPRESSION)])
def test_expressions_have_the_value_that_python_gives_them(kind: str, symbols: str) -> None:
    for inputs in samples(kind, 60, 100) + samples(kind, 7, 50):
        assert KINDS[kind].answer(inputs) == [eval("".join(symbols[symbol] for symbol in inputs)) % 5]


def test_an_equation_is_true_of_its_answer_alone() -> None:
    for inputs in samples("solve_equation", 40, 100):
        expression, value = "".join(EQUATION[symbol] for symbol in inputs).split("=")
        true = [x for x in range(5) if eval(expression.replace("x", str(x))) % 5 == int(value)]
        assert [*true] == KINDS["solve_equation"].answer(inputs)
        assert "*" not in expression


def test_expressions_may_be_nested_to_any_depth() -> None:
    assert evaluate_expression("(" * 5000 + "3" + "-4)" * 5000) == (3 - 4 * 5000) % 5


def bracket_values(length: int) -> Any:
    """The exact distribution of the value of a bracketed expression."""
    shares = np.full((length + 1, 5), 0.2)
    for n in range(5, length + 1):
        shares[n] = 0
        for left in range(1, n - 3):
            for a, b in np.ndindex(5, 5):
                for value in (a + b, a - b, a * b):
                    shares[n, value % 5] += shares[left, a] * shares[n - 3 - left, b] / (3 * (n - 4))
    return shares[length]


def arithmetic_values(digits: int) -> Any:
    """The exact distribution of the value of digits with operators between them, `*` first."""
    shares = np.zeros((5, 5))  # of the sum before the last term, and of the last term
    shares[0] = 0.2
    for _ in range(digits - 1):
        last, shares = shares, np.zeros((5, 5))
        for total, term, digit in np.ndindex(5, 5, 5):
            for new in ((total + term, digit), (total + term, -digit), (total, term * digit)):
                shares[new[0] % 5, new[1] % 5] += last[total, term] / 15
    values = np.zeros(5)
    for total, term in np.ndindex(5, 5):
        values[(total + term) % 5] += shares[total, term]
    return values


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("even_pairs", [0.5, 0.5]),
        ("parity_check", [0.5, 0.5]),
        ("missing_duplicate_string", [0.5, 0.5]),
        ("cycle_navigation", [0.2] * 5),
        ("solve_equation", [0.2] * 5),
        ("modular_arithmetic", arithmetic_values(20)),
        ("modular_arithmetic_brackets", bracket_values(40)),
    ],
)
def test_answers_of_one_symbol_have_their_exact_frequencies(kind: str, shares: Any) -> None:
    check_frequencies([KINDS[kind].answer(inputs)[0] for inputs in samples(kind, 40, 2000)], shares)


@pytest.mark.parametrize("kind", [kind for kind in KIND_NAMES if KINDS[kind].answer_length(9) > 1])
def test_inputs_are_uniform(kind: str) -> None:
    """Of five symbols all inputs are as frequent as the generator's rule makes them."""
    base = KINDS[kind].input_symbols
    number = [sum(s * base**i for i, s in enumerate(inputs)) for inputs in samples(kind, 5, 6000)]
    shares = np.zeros(base**5)
    for index in range(base**5):
        digits = [index // base**i % base for i in range(5)]
        if kind == "stack_manipulation":  # 1 to 4 symbols of a stack, then actions
            height = next((i for i, digit in enumerate(digits) if digit > 1), 5)
            if 1 <= height <= 4 and min(digits[height:]) > 1:
                shares[index] = 1 / 4 / 2**height / 3 ** (5 - height)
        elif kind in ("binary_addition", "binary_multiplication"):
            for first in (1, 2, 3):
                a, b = digits[:first], digits[first + 1 :]
                if digits[first] == 2 and 2 not in a + b and any(a) and any(b):
                    shares[index] = 1 / 3 / (2**first - 1) / (2 ** (4 - first) - 1)
        else:
            shares[index] = 1
    if kind == "compute_sqrt":
        shares[0] = 0
    check_frequencies(number, shares / shares.sum())


def test_where_the_parts_of_an_input_stand_is_random() -> None:
    blanks = [inputs.index(2) for inputs in samples("missing_duplicate_string", 11, 2000)]
    check_frequencies(blanks, [0.1] * 10)
    unknowns = [inputs.index(9) for inputs in samples("solve_equation", 7, 2000)]  # (a+b)=c
    check_frequencies(unknowns, [0, 3 / 5, 0, 2 / 5])
    expressions = ["".join(EXPRESSION[i] for i in inputs) for inputs in samples(KIND_NAMES[4], 9, 2000)]
    lefts = [{"-": 2, "(": text.index(")")}.get(text[1], 1) for text in expressions]
    check_frequencies(lefts, [0, *[1 / 5] * 5])


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_nothing_that_never_reads_solves_it(kind: Any) -> None:
    """The baselines count other samples: they are just below the best that could be counted here."""
    task = make(kind, length=10, eval_samples=300)
    dataset = task.split("val")
    baselines, exact = task.baselines(dataset), task.exact_baselines(dataset)
    rows = [read_sample(dataset, document)[1] for document in range(300)]
    answers = [row[row != IGNORE] for row in rows]
    best = np.bincount(np.concatenate(answers)).max() / sum(map(len, answers))
    assert best - 0.1 < baselines["constant"] <= best
    in_position = [
        [answer[i] for answer in answers if len(answer) > i] for i in range(max(map(len, answers)))
    ]
    most = sum(np.bincount(symbols).max() for symbols in in_position) / sum(map(len, answers))
    assert most - 0.1 < baselines["position"] <= most
    assert baselines["constant"] < 0.66
    assert max(exact.values()) < 0.61
    expected = {"bucket_sort": 0.59, "binary_multiplication": 0.57, "binary_addition": 0.53}
    assert abs(baselines["position"] - expected.get(kind, baselines["position"])) < 0.04


def test_bucket_sort_of_a_hundred_symbols_is_known_to_87_per_cent_unread() -> None:
    task = make("bucket_sort", length=100, eval_samples=200)
    baselines = task.baselines(task.split("val"))
    assert abs(baselines["constant"] - 0.20) < 0.02
    assert abs(baselines["position"] - 0.87) < 0.02


def test_baselines_are_of_the_samples_that_are_scored() -> None:
    task = make("parity_check", length=10, eval_samples=400)
    subset = Subset(task.split("val"), 7)
    (constant,) = {task.baselines(subset)["constant"], task.exact_baselines(subset)["constant"]}
    ones = sum(int(read_sample(subset, document)[1][-1]) for document in range(7))
    assert constant in (ones / 7, 1 - ones / 7)


def test_training_lengths_are_uniform_and_held_out_ones_fixed() -> None:
    task = make("duplicate_string", length=5, samples=3000, eval_samples=10)
    check_frequencies(task.split("train").lengths // 3, [0, *[0.2] * 5])
    assert set(task.split("test").lengths) == {15}
    assert set(make("duplicate_string", length=5, lengths="fixed").split("train").lengths) == {15}
    longer = task.at(length=50.0)
    assert longer == make("duplicate_string", length=50, samples=3000, eval_samples=10)
    assert longer.groups(longer.split("test"), 3) == {"length": 50}
    with pytest.raises(UserError, match="no depth to vary"):
        task.at(depth=0.5)


def test_windows_are_slices_and_splits_and_seeds_differ() -> None:
    dataset = make("reverse_string", length=40).split("test")
    check_windows(dataset, 7, [(0, 80), (0, 1), (30, 50), (79, 80), (9, 9)])
    tokens = read_sample(dataset, 7)[0]
    np.testing.assert_array_equal(
        tokens, read_sample(make("reverse_string", eval_samples=8).split("test"), 7)[0]
    )
    for different in (make("reverse_string").split("val"), make("reverse_string", seed=1).split("test")):
        assert not np.array_equal(read_sample(different, 7)[0], tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 3}, "task.length: expected at least 4 symbols, found 3"),
        ({"vocab_size": 2}, "task.vocab_size: expected at least 3, found 2"),
        ({"samples": 0}, "task.samples and task.eval_samples: expected at least 1, found 0"),
        ({"seed": -1}, "task.seed: expected at least 0, found -1"),
        (
            {"kind": "bucket_sort", "vocab_size": 6, "answers": "running"},
            "expected hidden or given .*, found running",
        ),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Chomsky(**settings)


def test_an_unknown_kind_is_one_line_that_lists_them() -> None:
    with pytest.raises(Exception, match=r"expected one of even_pairs, .*, found odd_pairs"):
        compose(["task=chomsky", "task.kind=odd_pairs"]).task.vocab_size  # noqa: B018
