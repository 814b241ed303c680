"""The Chomsky hierarchy suite: answers, scored positions, and the official accuracy of given predictions."""

from typing import Any

from zoo.train.tasks.chomsky_language import KINDS, scored_length

TASKS = frozenset(KINDS)


def decode(symbols: str) -> list[int]:
    """One character a symbol, 0-9 then a-f."""
    return [int(symbol, 16) for symbol in symbols]


def check(data: dict[str, Any]) -> None:
    task = data["task"]
    kind = KINDS[task]
    assert (data["input_symbols"], data["output_symbols"]) == (kind.input_symbols, kind.output_symbols)
    answers = []
    for sample in data["samples"]:
        inputs, output = decode(sample["input"]), decode(sample["output"])
        lowered = task == "modular_arithmetic" and sample["length"] % 2 == 0  # its lengths are odd
        assert len(inputs) == sample["length"] - lowered, sample
        answer = kind.answer(inputs)
        assert answer == output, sample
        assert len(answer) == kind.answer_length(sample["length"]), sample
        assert scored_length(task, answer) == sample.get("asked", len(output)), sample
        answers.append(answer)
    for score in data["scores"]:
        start, stop = score["samples"]
        assert len(score["predictions"]) == stop - start
        hits: list[bool] = []
        for answer, prediction in zip(answers[start:stop], score["predictions"], strict=True):
            pairs = zip(answer, decode(prediction), strict=True)
            hits += [symbol == predicted for symbol, predicted in pairs][: scored_length(task, answer)]
        assert abs(sum(hits) / len(hits) - score["accuracy"]) < 1e-6, score
