"""The numbers of a page under protocol 1, computed again from the runs' files alone, without the zoo.

    python tests/train/comparison/recompute.py FOLDER [BASELINE]

prints every table of the page as JSON: cells by the head of their column.
"""

import itertools
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

Row = dict[str, str]


class Run:
    """The files of a finished run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = yaml.safe_load((folder / "config.yaml").read_text())
        self.metrics = json.loads((folder / "metrics.json").read_text())
        self.purpose = json.loads((folder / "protocol.json").read_text())["purpose"]
        self.model, self.task = self.config["names"]["model"], self.config["names"]["task"]
        self.seed, self.lr = self.config["seed"], self.config["optim"]["lr"]
        self.is_text = "val/bits_per_byte" in self.metrics
        if self.purpose == "score":
            [entry] = json.loads((folder / "evaluation.json").read_text())["evaluations"]
            assert entry["split"] == "test"
            self.results = entry["results"]

    def at(self, length: int) -> dict[str, Any]:
        [result] = [result for result in self.results if result["axes"].get("length", length) == length]
        return result

    def scores(self, reach: int) -> dict[str, float]:
        """By the beginning of a column's head."""
        if self.is_text:
            kept, reset = (
                next(r for r in self.results if r["axes"]["memory"] == memory) for memory in ("kept", "reset")
            )
            bits = [
                sum(r["documents"]["nats"]) / math.log(2) / sum(r["documents"]["bytes"])
                for r in (kept, reset)
            ]
            return {"test bits per byte": bits[0], "worth of the memory": bits[1] - bits[0]}
        result = self.at(self.config["task"]["length"])
        noun = self.metrics["score_names"]["val/accuracy"]
        scores = {f"test {noun} beyond {reach}": beyond(result, reach)}
        scores |= {"test exact match": share(result["exact"]), f"test {noun}": share(result["targets"])}
        scores |= self.over_lengths(reach, max(result["reference"].values()))
        scores["worth of the memory (points)"] = beyond(result, reach) - beyond(result["reset"], reach)
        return scores

    def over_lengths(self, reach: int, untaught: float) -> dict[str, float]:
        counts = {}
        for result in self.results:
            evidence = result["evidence"]
            far = [index for index, distance in enumerate(evidence["distance"]) if distance >= reach]
            hits, n = (sum(evidence[key][i] for i in far) for key in ("hits", "targets"))
            every = result["targets"]
            independent = n * every.get("effective", every["of"]) / every["of"]
            counts[result["axes"]["length"] / self.config["task"]["length"]] = hits / n, independent
        lengths = sorted(counts)
        share = {m: counts[m][0] for m in lengths}
        low = {m: wilson(p * n, n)[0] for m, (p, n) in counts.items()}
        longest = 0.0
        for m in lengths:
            if low[1] <= untaught or low[m] <= share[1] / 2:
                break
            longest = m
        pairs = list(itertools.pairwise(lengths))
        area = sum((share[a] + share[b]) / 2 * math.log(b / a) for a, b in pairs) / math.log(lengths[-1])
        return {"longest length": longest, "mean over log length": area}


def share(counts: dict[str, float]) -> float:
    return counts["hits"] / counts["of"]


def beyond(result: dict[str, Any], reach: int) -> float:
    evidence = result["evidence"]
    far = [index for index, distance in enumerate(evidence["distance"]) if distance >= reach]
    return sum(evidence["hits"][i] for i in far) / sum(evidence["targets"][i] for i in far)


def wilson(hits: float, n: float) -> tuple[float, float]:
    """The roots of (p - hits/n)² = z² p (1 - p) / n."""
    z, p = 1.96, hits / n
    roots = np.roots([1 + z * z / n, -(2 * p + z * z / n), p * p])
    return max(0.0, float(roots.min().real)), min(1.0, float(roots.max().real))


def median(values: list[float | None]) -> float:
    """inf for a run that never got there."""
    return statistics.median(math.inf if value is None else value for value in values)


def mean_cell(values: list[float], form: str) -> str:
    if len({*values}) == 1:
        return form.format(values[0])
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{form.format(np.mean(values))} ± {form.format(half).lstrip('+')}"


# -- differences from the baseline


class Difference:
    def __init__(self, mean: float, low: float, high: float, p: float) -> None:
        self.mean, self.low, self.high, self.p = mean, low, high, p


def difference(
    runs: list[Run], baseline: list[Run], reach: int, two_way: tuple[float, int] | None
) -> Difference:
    if not runs[0].is_text:
        (k, n), (j, m) = (
            (sum(r.metrics["solved_at"] is not None for r in row), len(row)) for row in (runs, baseline)
        )
        (low, high), (low0, high0) = wilson(k, n), wilson(j, m)
        p, q = k / n, j / m
        return Difference(
            p - q,
            p - q - math.sqrt((p - low) ** 2 + (high0 - q) ** 2),
            p - q + math.sqrt((high - p) ** 2 + (q - low0) ** 2),
            stats.fisher_exact([[k, n - k], [j, m - j]])[1],
        )
    x, y = ([run.scores(reach)["test bits per byte"] for run in row] for row in (runs, baseline))
    if two_way is None:
        parts = [(np.var(x, ddof=1) / len(x), len(x) - 1), (np.var(y, ddof=1) / len(y), len(y) - 1)]
        total = sum(v for v, _ in parts)
        seeds = (total, total**2 / sum(v**2 / dof for v, dof in parts))
    else:
        seeds = (two_way[0] ** 2 * 2 / len(x), two_way[1])
    kept = [
        [next(r for r in run.results if r["axes"]["memory"] == "kept") for run in row]
        for row in (runs, baseline)
    ]
    nats = [np.mean([r["documents"]["nats"] for r in row], axis=0) for row in kept]
    gaps, sizes = (nats[0] - nats[1]) / math.log(2), np.array(kept[0][0]["documents"]["bytes"])
    n = len(gaps)
    residuals = gaps - gaps.sum() / sizes.sum() * sizes
    documents = (n / (n - 1) * float((residuals**2).sum()) / float(sizes.sum()) ** 2, n - 1)
    variance = seeds[0] + documents[0]
    dof = variance**2 / (seeds[0] ** 2 / seeds[1] + documents[0] ** 2 / documents[1])
    mean, error = float(np.mean(x) - np.mean(y)), math.sqrt(variance)
    half = stats.t.ppf(0.975, dof) * error
    return Difference(mean, mean - half, mean + half, 2 * stats.t.sf(abs(mean) / error, dof))


def seed_effect(rows: list[list[Run]], reach: int) -> tuple[float, int] | None:
    """The residual sd and its degrees of freedom, if the F test of seeds in score = model + seed says so."""
    if not rows[0][0].is_text or len({tuple(run.seed for run in row) for row in rows}) > 1:
        return None
    table = np.array([[run.scores(reach)["test bits per byte"] for run in row] for row in rows])
    models, seeds = table.shape
    fitted = table.mean(1, keepdims=True) + table.mean(0) - table.mean()
    dof = (models - 1) * (seeds - 1)
    residual = ((table - fitted) ** 2).sum() / dof
    effect = models * ((table.mean(0) - table.mean()) ** 2).sum() / (seeds - 1)
    return (math.sqrt(residual), dof) if stats.f.sf(effect / residual, seeds - 1, dof) < 0.05 else None


def marks(differences: dict[str, Difference]) -> dict[str, bool]:
    """Holm's step-down procedure: reject in the order of p until one is above .05 / those that are left."""
    rejected, ranked = dict.fromkeys(differences, False), sorted(differences, key=lambda m: differences[m].p)
    for index, model in enumerate(ranked):
        if differences[model].p * (len(ranked) - index) >= 0.05:
            break
        rejected[model] = True
    return rejected


# -- tables


def rows_of(runs: list[Run], task: str) -> dict[str, list[Run]]:
    scored = sorted(
        (r for r in runs if r.purpose == "score" and r.task == task), key=lambda r: (r.model, r.seed)
    )
    return {model: list(row) for model, row in itertools.groupby(scored, key=lambda r: r.model)}


def comparison(
    runs: list[Run], task: str, baseline: str, reach: int, reaches: dict[str, str], effect: float, loss: float
) -> dict[str, Row]:
    rows = rows_of(runs, task)
    two_way = seed_effect(list(rows.values()), reach)
    differences = {
        model: difference(row, rows[baseline], reach, two_way)
        for model, row in rows.items()
        if model != baseline
    }
    holm = marks(differences)
    table = {}
    for model, row in rows.items():
        cells = score_cells(row, reach)
        cells |= difference_cells(row, differences.get(model), holm.get(model, False), baseline, effect)
        tried = [
            r for r in runs if r.model == model and r.purpose == "short rate" and r.is_text == row[0].is_text
        ]
        best = min(tried, key=lambda r: (*order(r), r.lr))
        edge = best.lr in (min(r.lr for r in tried), max(r.lr for r in tried))
        cells |= {"reach": reaches[model], "learning rate": f"{row[0].lr:g}{', edge' if edge else ''}"}
        cells |= cost_cells(row, loss)
        table[model] = cells
    return table


def score_cells(row: list[Run], reach: int) -> Row:
    by_name = {name: [run.scores(reach)[name] for run in row] for name in row[0].scores(reach)}
    if row[0].is_text:
        signs = {"test bits per byte": "{:.3f}", "worth of the memory": "{:+.3f}"}
        return {name: mean_cell(values, signs[name]) for name, values in by_name.items()}
    solved = [run.metrics["solved_at"] for run in row]
    hits, n, cap = sum(step is not None for step in solved), len(row), row[0].config["steps"]
    low, high = wilson(hits, n)
    fallen = sum(run.metrics["collapsed"] for run in row)
    cells = {
        "solved": f"{hits} of {n} ({low:.0%} to {high:.0%})" + (f", {fallen} collapsed" if fallen else "")
    }
    steps = median(solved)
    cells["steps to solve, median"] = f"> {cap:,}" if math.isinf(steps) else f"{steps:,.0f}"
    for name, values in by_name.items():
        middle = statistics.median(values)
        cells[f"{name}, median"] = f"{100 * middle:+.1f}" if "points" in name else f"{middle:.1%}"
        if name == "longest length":
            cells[f"{name}, median"] = f"{middle:g}x" if middle else "none"
    return cells


def difference_cells(
    row: list[Run], value: Difference | None, mark: bool, baseline: str, effect: float
) -> Row:
    head = f"against {baseline}" if row[0].is_text else f"solved against {baseline} (points)"
    if value is None:
        return {head: "-", "can't tell": "-"}
    if row[0].is_text:
        cell = f"{value.mean:+.3f} ± {value.high - value.mean:.3f}"
    else:
        cell = f"{100 * value.mean:+.0f} ({100 * value.low:+.0f} to {100 * value.high:+.0f})"
    unsure = value.low < 0 < value.high and max(-value.low, value.high) > effect
    return {head: cell + (" *" if mark else ""), "can't tell": "can't tell" if unsure else "-"}


def cost_cells(row: list[Run], loss: float) -> Row:
    means = {key: np.mean([run.metrics[key] for run in row]) for key in row[0].metrics if key in COSTS}
    cells = {COSTS[key]: f"{value:,.0f}" for key, value in means.items()}
    cells["peak memory"] = f"{np.mean([run.metrics['peak_memory_bytes'] for run in row]) / 2**20:,.0f} MiB"
    if not row[0].is_text:
        cells["held-out loss (nats)"] = mean_cell([run.metrics["val/loss"] for run in row], "{:.3f}")
    reached = [[p["step"] for p in run.metrics["curve"] if p["val/loss"] <= loss] for run in row]
    steps = median([min(points, default=None) for points in reached])
    cells[f"steps to held-out loss {loss:g}"] = (
        f"> {row[0].config['steps']:,}" if math.isinf(steps) else f"{steps:,.0f}"
    )
    return cells


COSTS = {
    "parameters": "parameters",
    "state_bytes": "state bytes per row",
    "tokens_seen": "targets seen",
    "tokens_per_s": "training targets/s",
    "eval_tokens_per_s": "evaluation targets/s",
}


def order(run: Run) -> tuple[bool, float, float]:
    step = run.metrics.get("solved_at")
    return bool(run.metrics.get("collapsed")), math.inf if step is None else step, run.metrics["val/loss"]


def over_tasks(runs: list[Run], tasks: list[str], baseline: str, reach: int) -> dict[str, Row]:
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for task in tasks:
        rows = rows_of(runs, task)
        name = next(iter(next(iter(rows.values()))[0].scores(reach)))
        values = {model: {run.seed: run.scores(reach)[name] for run in row} for model, row in rows.items()}
        run = next(iter(rows.values()))[0]
        if run.is_text:
            zero = run.results[-1]["reference"]["order-0"]
            one = min(value for of_model in values.values() for value in of_model.values())
        else:
            references = run.at(run.config["task"]["length"])["reference"]
            zero, one = max(v for k, v in references.items() if k not in ("in view", "Bayes")), 1.0
        for model, of_model in values.items():
            scores.setdefault(model, {})[task] = {s: (v - zero) / (one - zero) for s, v in of_model.items()}
    matrices = {}
    for model, by_task in scores.items():
        seeds = sorted(set.intersection(*(set(values) for values in by_task.values())))
        matrices[model] = seeds, np.array([[by_task[task][seed] for task in tasks] for seed in seeds])
    table = {}
    for model, (seeds, matrix) in matrices.items():
        rng, (n, columns) = np.random.default_rng(0), matrix.shape
        draws = rng.integers(n, size=(2_000, n, columns))
        means = [iqm([matrix[draw[i, j], j] for i in range(n) for j in range(columns)]) for draw in draws]
        wins = [
            1.0 if x > y else 0.5 if x == y else 0.0
            for j in range(columns)
            for x in matrix[:, j]
            for y in matrices[baseline][1][:, j]
        ]
        table[model] = {
            "seeds": ", ".join(map(str, seeds)),
            "interquartile mean": f"{iqm(list(matrix.flat)):.3f}",
            "95 % interval": f"{np.quantile(means, 0.025):.3f} to {np.quantile(means, 0.975):.3f}",
            "optimality gap": f"{1 - np.mean([min(x, 1) for x in matrix.flat]):.3f}",
            f"better than {baseline}": "-" if model == baseline else f"{np.mean(wins):.0%}",
        }
    return table


def iqm(values: list[float]) -> float:
    ranked = sorted(values)
    cut = len(ranked) // 4
    return sum(ranked[cut : len(ranked) - cut]) / (len(ranked) - 2 * cut)


def run_rows(runs: list[Run], task: str, reach: int) -> list[Row]:
    """Of the table of runs."""
    return [
        {"model": run.model, "seed": str(run.seed), "score": f"{next(iter(run.scores(reach).values())):.4f}"}
        for row in rows_of(runs, task).values()
        for run in row
    ]


def rate_rows(runs: list[Run], task: str) -> list[Row]:
    """Of the table of learning rates."""
    lines = []
    for model, row in rows_of(runs, task).items():
        for run in runs:
            is_short = run.purpose == "short rate" and run.model == model and run.is_text == row[0].is_text
            if is_short or (run.purpose == "rate" and run.model == model and run.task == task):
                step = run.metrics.get("solved_at")
                outcome = f"> {run.config['steps']:,}" if step is None else f"{step:,}"
                lines.append(
                    {
                        "model": model,
                        "learning rate": f"{run.lr:g}",
                        "solved at step": "collapsed" if run.metrics.get("collapsed") else outcome,
                        "held-out loss": f"{run.metrics['val/loss']:.3f}",
                        "the row's": "x" if run.lr == row[0].lr else "-",
                    }
                )
    return lines


def read(folder: Path) -> list[Run]:
    return [Run(path.parent) for path in sorted(folder.rglob("protocol.json"))]


if __name__ == "__main__":
    read_runs = read(Path(sys.argv[1]))
    reach_of_table = int(sys.argv[3]) if len(sys.argv) > 3 else 16
    for name in sorted({run.task for run in read_runs if run.purpose == "score"}):
        for line in run_rows(read_runs, name, reach_of_table):
            print(json.dumps(line))
