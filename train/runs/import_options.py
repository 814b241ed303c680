"""What the keys of `zoo import` may be; read before anything large is imported."""

from pathlib import Path

from zoo.errors import UserError

PREFIXES = ("config.", "task.", "data.")
PADDED = "padded"
NO_TOKENIZER = "none"


def require_source(source: Path) -> None:
    """Raises UserError where there is nothing to import."""
    if not source.exists():
        raise UserError(f"import: from: expected a folder or a file of weights, found none at {source}")
