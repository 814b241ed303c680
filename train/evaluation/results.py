"""evaluation.json: every measurement of a finished run, as one object.

    run, model, task, size, seed …      the run itself: where it was trained
    evaluations: [                      one per task, settings, split, checkpoint, precision, architecture
      task, version, settings, split, checkpoint, step, tokens_seen, unit, label, title
      target                            of samples: what a target is, as "digit"
      precision                         that the model computed in, as trainer.precision names it
      read_by, reading                  the architecture that the weights were evaluated as, if it or its
                                        settings aren't the run's own, and these settings; else null
      changed_data                      true if the texts that the run was trained on have changed; else null
      results: [                        one per point of the axes
        axes                            {"length": 4000, "depth": 50} of samples; {"memory": "kept"} of text
        samples                         how many
        exact, targets                  exact match (samples of which every target is hit) and accuracy per
                                        target: share, hits, of, bounds low and high of the 95 % interval, and
                                        where targets share samples, how many independent ones say as much
        evidence                        where it is known: sums over the targets by distance to their nearest
                                        evidence (-1: without): targets, hits, nats, of a guess chance and
                                        constant, of the best prediction bayes
        beyond                          accuracy of the targets whose distance is `reach` or more
        reset                           the four above, with the memory reset at every segment
        groups                          both, for the samples of each label
        scores                          means of the task's further scores of a sample
        nats, tokens, bytes, bits_per_byte, word_perplexity, by_position …              of text
        documents, standard_errors      of text: nats, targets and bytes of every document; errors over them
        reference, reference_exact      baselines: accuracy per target or bits per byte; exact match; among
                                        them "in view", a perfect reader of a target's segment
        tokens_per_s                    positions read, or targets of a sliding window
        peak_memory_bytes               during this measurement; with peak_so_far also of all before it
        asked                           the options that it was run with
        device, commit, date ] ]

A result replaces an earlier one at the same axes; all others stay.
"""

import json
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.train.evaluation.intervals import proportion
from zoo.train.plotting.charts import Buckets, Number, Proportions
from zoo.train.runs.files import waiting_lock, write_text
from zoo.train.runs.resources import PeakMemory

FILE = "evaluation.json"
LOCK = ".evaluation.lock"
IN_VIEW = "in view"  # the name, among baselines, of a perfect reader of a target's segment
FORMAT = 1
EvalEntry = dict[str, Any]
EvalResult = dict[str, Any]
NOT_IDENTITY = ("label", "title", "target", "results")
"""Keys of an entry that don't say what was measured."""


class EvaluationFile:
    """The file of one run, rewritten after every result, with those of other processes."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    def entry(self, identity: dict[str, Any], label: str, title: str) -> EvalEntry:
        """The stored entry with these settings, or a new one."""
        for entry in self.content["evaluations"]:
            if all(entry.get(key) == value for key, value in identity.items()):
                return entry
        return {**identity, "label": label, "title": title, "results": []}

    def put(self, entry: EvalEntry, result: EvalResult) -> None:
        """Store a result in the order of the axes, in place of one at the same axes.

        `entry` gets the results that other processes have stored in it, too.
        """
        with waiting_lock(self.path.with_name(LOCK)):
            entries = read(self.path)["evaluations"] if self.path.exists() else []
            i = next((i for i, stored in enumerate(entries) if same_identity(stored, entry)), len(entries))
            earlier = entries[i]["results"] if i < len(entries) else entry["results"]
            entry["results"] = sorted(
                [old for old in earlier if old["axes"] != result["axes"]] + [result],
                key=lambda result: [(isinstance(v, str), v) for v in result["axes"].values()],
            )
            entries[i : i + 1] = [entry]
            self.content["evaluations"] = entries
            write_text(self.path, json.dumps(self.content, indent=1) + "\n")


def same_identity(entry: EvalEntry, other: EvalEntry) -> bool:
    """True if both measure the same; a key that earlier versions didn't store counts as null."""
    return all(entry.get(key) == other.get(key) for key in (entry | other).keys() - {*NOT_IDENTITY})


def load_or_create(path: Path, facts: dict[str, Any]) -> EvaluationFile:
    """The stored file, or an empty one, with these facts about the run.

    Raises UserError if the path holds something else, which stays as it is.
    """
    evaluations = read(path)["evaluations"] if path.exists() else []
    return EvaluationFile(path, {"format": FORMAT, **facts, "evaluations": evaluations})


def read(path: Path) -> dict[str, Any]:
    """Raises UserError unless it is an evaluation.json."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        stored_format = content["format"]
        for entry in content["evaluations"]:
            entry["label"], entry["results"]
            entry.setdefault("precision", "32-true")  # earlier versions evaluated every run in float32
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not an evaluation.json of the zoo: move it out of the way") from error
    if stored_format != FORMAT:
        raise UserError(f"{path}: expected format {FORMAT}, found {stored_format!r}")
    return content


def speed_and_memory(tokens: int, seconds: float, peak: PeakMemory) -> EvalResult:
    """Tokens per second and peak memory; `peak_so_far` where the system can't reset an earlier peak."""
    fields: EvalResult = {"tokens_per_s": tokens / seconds, "peak_memory_bytes": peak.bytes()}
    return fields | ({"peak_so_far": True} if peak.so_far else {})


# -- views of an entry


def axis_names(entry: EvalEntry) -> list[str]:
    """Names of the axes that its results vary."""
    return list(dict.fromkeys(name for result in entry["results"] for name in result["axes"]))


def has_grid(result: EvalResult) -> bool:
    """A cell of a grid of lengths and depths."""
    return {"length", "depth"} <= result["axes"].keys()


def pooled(results: list[EvalResult], axis: str, kind: str = "exact") -> Proportions:
    """Proportions at every point of one axis, pooled over all other axes."""
    parts: dict[Number, list[dict[str, Any]]] = {}
    for result in results:
        if axis in result["axes"] and kind in result:
            parts.setdefault(result["axes"][axis], []).append(result[kind])
    return {point: pool(shares) for point, shares in sorted(parts.items())}


def pool(shares: list[dict[str, Any]]) -> dict[str, Any]:
    """The proportion of all their trials."""
    effective = None
    if any("effective" in share for share in shares):
        effective = float(sum(share.get("effective", share["of"]) for share in shares))
    return proportion(sum(share["hits"] for share in shares), sum(share["of"] for share in shares), effective)


def losses(result: EvalResult) -> Buckets:
    """Loss by bucket of positions."""
    return {(bucket["from"], bucket["to"]): bucket["loss"] for bucket in result["by_position"]}


def memory_worth(results: list[EvalResult]) -> Buckets:
    """Loss with the memory reset minus loss with the memory kept, by position, over the same text."""
    by_axes = {json.dumps(result["axes"]): losses(result) for result in results}
    for result in results:
        with_memory = by_axes.get(json.dumps({**result["axes"], "memory": "kept"}))
        if result["axes"]["memory"] == "reset" and with_memory is not None:
            without = losses(result)
            return {edge: without[edge] - with_memory[edge] for edge in without if edge in with_memory}
    return {}


def memory_mode(axes: dict[str, Any]) -> str:
    """Describes how a text was read."""
    if axes["memory"] == "sliding":
        mode = f"window of {axes['context']:,}, stride {axes['stride']:,}"
    else:
        mode = {"kept": "memory kept", "reset": "memory reset at every segment"}[axes["memory"]]
    if "first" in axes:  # of earlier versions, which cut a text there
        return f"{mode}, first {axes['first']:,}"
    return f"{mode}, {axes['drawn']:,} bytes drawn" if "drawn" in axes else mode


def share_names(entry: EvalEntry) -> dict[str, str]:
    """Names of the shares in an entry's results, by their keys; what the task is judged by comes first."""
    if not multiple_targets(entry["results"]):
        return {"exact": "accuracy"}
    target = entry.get("target", "target")  # earlier versions stored none
    return {"exact": "exact match", "targets": f"accuracy per {target}"}


def baselines(entry: EvalEntry, share: str) -> dict[str, float]:
    """Scores of predictors that learn nothing under one of the shares, for the last result."""
    last = entry["results"][-1] if entry["results"] else {}
    key = "reference_exact" if share == "exact" and multiple_targets(entry["results"]) else "reference"
    return {name: score for name, score in last.get(key, {}).items() if name != IN_VIEW}


def multiple_targets(results: list[EvalResult]) -> bool:
    """True where a sample has more than one target."""
    return any(result["targets"]["of"] != result["exact"]["of"] for result in results)
