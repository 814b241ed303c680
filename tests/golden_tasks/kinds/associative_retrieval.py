"""ARMT's associative retrieval: lines, answers, and which symbols of a line are targets."""

from typing import Any

from zoo.train.tasks.pairs import EOS, GEN, SEP, recall, render

TASKS = frozenset({"associative_retrieval"})
SYMBOLS = {100: SEP, 101: GEN, 102: EOS}  # ours by theirs; digits are the same


def check(data: dict[str, Any]) -> None:
    for sample in data["samples"]:
        k, v, pairs = sample["key_size"], sample["value_size"], sample["pairs"]
        line = [SYMBOLS.get(symbol, symbol) for symbol in sample["line"]]
        size = k + v + 2
        spans = [line[start : start + size] for start in range(0, pairs * size, size)]
        keys, values, key = (
            [span[:k] for span in spans],
            [span[k + 1 : -1] for span in spans],
            line[-size:][:k],
        )
        answer = recall(keys, values, key)
        assert [*render(keys, values, key), EOS] == line, sample
        assert len(answer) == v
        assert sample["rewrite"] or len(set(map(tuple, keys))) == pairs, sample
        targets = [*range(len(line) - 1 - v, len(line) - 1)]
        assert sample["asked"] == [targets[0] - 1, *targets, targets[-1] + 1], (
            sample
        )  # theirs: GEN and EOS too
