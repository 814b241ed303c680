"""Texts that are rows of JSON: one object a line, whose field is a string or a list of strings."""

import json
import os
from collections.abc import Iterator
from typing import Any

from zoo.errors import UserError

ENDINGS = (".jsonl", ".ndjson", ".jsonlines")


def is_rows(name: str, first_line: bytes, following: bytes, field: str) -> bool:
    """True for a file whose name or whose first line says that its lines are objects with this field.

    UserError where they are objects without it, or items of a list.  `following` begins with the second line.
    """
    suffix = os.path.splitext(name)[1].lower()
    if suffix in ENDINGS:
        return True
    first = _object(first_line)
    if first is not None and field in first:
        return True
    if suffix != ".json":
        return False
    if first and following.lstrip().startswith(b"{"):
        raise UserError(
            f"{name}: its lines are JSON objects without a field {field!r}, found {_names(first)}; "
            "data.field=… names one of them"
        )
    if _first_item(first_line + following, field):
        raise UserError(f"{name} is a JSON list of objects: expected one object a line")
    return False


def read_rows(name: str, lines: Iterator[bytes], field: str) -> Iterator[str | None]:
    """The text of every row, None where it is null."""
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _object(line)
        value = row.get(field) if row is not None else None
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            yield "\n".join(value)
        elif isinstance(value, str):
            yield value
        elif row is not None and field in row and value is None:
            yield None
        else:
            content = f"fields {_names(row)}; data.field=… names another" if row else repr(line[:40])
            raise UserError(
                f"{name}, line {line_number}: expected a JSON object with a string `{field}`, found {content}"
            )


def _object(line: bytes) -> dict[str, Any] | None:
    line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark of UTF-8
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _first_item(text: bytes, field: str) -> bool:
    """True if a text begins with a list whose first item is an object with this field."""
    start = text.lstrip()
    if not start.startswith(b"["):
        return False
    try:
        item, _ = json.JSONDecoder().raw_decode(start[1:].decode("utf-8", "replace").lstrip())
    except (ValueError, RecursionError):
        return False
    return isinstance(item, dict) and field in item


def _names(row: dict[str, Any]) -> str:
    names = [name if len(name) <= 20 else f"{name[:20]}…" for name in row][:6]
    return ", ".join([*names, *(["…"] if len(row) > 6 else [])]) or "none"
