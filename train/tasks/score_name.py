"""Names of scores; the one that a task is judged by is read from its class's source, without torch."""

import ast
import importlib.util
from pathlib import Path

SCORE_NAMES = {"exact": "exact match", "accuracy": "accuracy", "bits_per_byte": "bits per byte"}
"""By the metric of a task."""


def score_name(target: str) -> str:
    """The score's name of a class at a dotted path, "" where the source doesn't say."""
    return SCORE_NAMES.get(class_attribute(target, "metric"), "")


def short_name(score: str) -> str:
    """A score's name beside others, where room is scarce: "per digit"."""
    return score.removeprefix("accuracy ")


def class_attribute(target: str, name: str) -> str:
    """The text that a class, or the first of its bases to name it, assigns to an attribute; "" for none."""
    module, _, class_name = target.rpartition(".")
    spec = importlib.util.find_spec(module)
    if not (spec and spec.origin and spec.origin.endswith(".py")):
        return ""
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
        for alias in node.names
    }
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            inherited = (class_attribute(imported.get(base, f"{module}.{base}"), name) for base in bases)
            return assigned(node, name) or next(filter(None, inherited), "")
    return ""


def assigned(node: ast.ClassDef, name: str) -> str:
    """The text that the class's body assigns to a name, "" for none."""
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
        value = getattr(statement, "value", None)
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
    return ""
