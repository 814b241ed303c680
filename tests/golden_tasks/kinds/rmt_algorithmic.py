"""The algorithmic tasks of the Recurrent Memory Transformer: lines and answers."""

from typing import Any

from zoo.train.tasks.algorithmic import FIRST_KEY, NUM_KEYS, NUM_VALUES, answer, render

TASKS = frozenset({"rmt_algorithmic"})


def check(data: dict[str, Any]) -> None:
    for sample in data["samples"]:
        kind, size, line = sample["kind"], sample["size"], sample["line"]
        assert kind in ("copy", "reverse", "retrieval"), sample
        inputs = line[: 2 * size + 1 if kind == "retrieval" else size]
        assert answer(kind, inputs) == sample["answer"], sample
        assert render(kind, inputs) == line, sample
        if kind == "retrieval":
            keys, values = inputs[:-1:2], inputs[1:-1:2]
            assert len(set(keys)) == size
            assert len(set(values)) == size or size > NUM_VALUES
            assert set(values) <= set(range(NUM_VALUES))
            assert set(keys) <= set(range(FIRST_KEY, FIRST_KEY + NUM_KEYS))
        else:
            assert set(inputs) <= set(range(2, 12))
