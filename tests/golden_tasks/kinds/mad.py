"""MAD: the positions that have targets, and the targets, of the suite's texts.

In one fuzzy text of 50 the suite asks for a key that was not there before; only its other targets are
checked.
"""

from typing import Any

import numpy as np

from zoo.module import IGNORE
from zoo.train.tasks import mad_texts
from zoo.train.tasks.mad import Mad

TASKS = frozenset(
    {
        "in_context_recall",
        "noisy_in_context_recall",
        "fuzzy_in_context_recall",
        "memorization",
        "compression",
        "selective_copying",
    }
)


def make_task(data: dict[str, Any]) -> Mad:
    config = data["config"]
    return Mad(
        kind=data["task"],
        length=config["seq_len"],
        vocab_size=config["vocab_size"],
        noise=config.get("frac_noise", 0.0),
        remembered=config.get("num_tokens_to_copy", 16),
    )


def check_text(data: dict[str, Any], task: Mad, inputs: list[int], targets: list[int]) -> None:
    tokens, mark = np.array(inputs), task.vocab_size - 1
    assert len(inputs) == (task.length if task.kind == "compression" else task.positions)
    match task.kind:
        case "compression":  # the suite decodes the mark too, from the mark's position
            assert inputs.index(mark) == task.length - 1
            asked = [*inputs, *[mark] * (task.length - 1)]
            answer = task.targets(np.array(asked))
            assert (answer[: task.length] == IGNORE).all()
            actual = [*answer[task.length :].tolist(), mark]
        case "memorization":
            assert (tokens[1::2] == mark).all()
            values = np.array([data["map"][str(key)] for key in range(task.num_keys)])
            assert set(values.tolist()) <= set(range(task.num_keys, task.num_keys + task.num_answers))
            actual = mad_texts.memorization_targets(tokens, values).tolist()
        case "selective_copying":
            start = inputs.index(mark)
            assert inputs[start + 1 :] == [task.num_contents] * task.remembered
            actual = task.targets(tokens).tolist()
        case _:
            actual = task.targets(tokens).tolist()
    if task.kind == "fuzzy_in_context_recall" and is_unanswerable(task, inputs):
        assert actual[-1] == IGNORE
        actual[-1] = targets[-1]
    assert actual == targets


def is_unanswerable(task: Mad, inputs: list[int]) -> bool:
    """True where the last key is new."""
    *pairs, (last, _) = mad_texts.fuzzy_pairs(np.array(inputs), task.vocab_size)
    return last not in dict(pairs)


def check(data: dict[str, Any]) -> None:
    task = make_task(data)
    for sample in data["samples"]:
        check_text(data, task, sample["input"], sample["target"])
    if training := data.get("training_sample"):  # all next symbols are targets
        inputs, targets = training["input"], training["target"]
        assert inputs[1:] == targets[:-1]
        assert task.targets(np.array(inputs))[-1] == targets[-1]
