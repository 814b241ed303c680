"""evaluation.json: what several processes that measure one run at the same time leave in it."""

import threading
from pathlib import Path
from typing import Any

from zoo.train.evaluation import results
from zoo.train.evaluation.results import EvalEntry, EvaluationFile

FACTS = {"run": "a"}


def identity(task: str, **changed: Any) -> dict[str, Any]:
    return {"task": task, "settings": {"length": 8}, "precision": "32-true", **changed}


def opened(path: Path, task: str = "passkey", **changed: Any) -> tuple[EvaluationFile, EvalEntry]:
    file = results.load_or_create(path, FACTS)
    return file, file.entry(identity(task, **changed), task, task)


def stored(path: Path) -> list[tuple[str, list[int]]]:
    content = results.read(path)
    assert content["run"] == "a"
    return [(e["task"], [r["axes"]["length"] for r in e["results"]]) for e in content["evaluations"]]


def at(length: int, **measured: Any) -> dict[str, Any]:
    return {"axes": {"length": length}, **measured}


def test_evaluations_at_the_same_time_keep_each_others_results(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    (a, of_a), (b, of_b), (c, of_c) = opened(path), opened(path), opened(path, "chain")
    of_a["target"] = "digit"  # which the other hasn't set yet
    a.put(of_a, at(8))
    b.put(of_b, at(32))
    c.put(of_c, at(8))
    a.put(of_a, at(16))
    assert stored(path) == [("passkey", [8, 16, 32]), ("chain", [8])]
    assert [result["axes"]["length"] for result in of_a["results"]] == [8, 16, 32]  # what the caller prints
    b.put(of_b, at(16, again=True))  # in place of that of the other
    assert stored(path) == [("passkey", [8, 16, 32]), ("chain", [8])]
    assert results.read(path)["evaluations"][0]["results"][1] == at(16, again=True)


def test_other_settings_are_another_entry(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    earlier = results.load_or_create(path, FACTS)
    fewer = {"task": "passkey", "precision": "32-true"}  # keys, of an earlier version
    old = earlier.entry(fewer, "", "")
    earlier.put(old, at(8))
    file, entry = opened(path, read_by="rmt", reading={"segment_len": 4})
    file.put(entry, at(16))
    earlier.put(old, at(32))
    assert stored(path) == [("passkey", [8, 32]), ("passkey", [16])]


def test_no_result_is_lost_in_a_race(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    files = [opened(path) for _ in range(4)]

    def measure(i: int) -> None:
        file, entry = files[i]
        for step in range(5):
            file.put(entry, at(4 * step + i))

    threads = [threading.Thread(target=measure, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(path) == [("passkey", list(range(20)))]
