"""Texts that are left out of a corpus, and why, in words."""

from collections import Counter

from zoo.errors import UserError, counted
from zoo.train.corpora.documents import Gathered
from zoo.train.corpora.unread import READABLE

LEFT_OUT_BECAUSE = {
    "binary": "has a NUL byte",
    "empty": "is empty",
    "UTF-16": "is UTF-16: expected UTF-8",
    "UTF-32": "is UTF-32: expected UTF-8",
    "null": "is a row whose text is null",
}
"""Why a text is left out, in words for one."""


def refuse_empty(texts: Gathered, where: str) -> None:
    """Raises UserError where there is no text, with what was found instead."""
    if texts.names:
        return
    counts = Counter(reason for _, reason in texts.left_out)
    unusable = f"{counted(counts['binary'], 'binary file')} and {counted(counts['empty'], 'empty file')}"
    for name, reason in texts.left_out[:1]:
        unusable += f"; {name} {LEFT_OUT_BECAUSE[reason]}"
    raise UserError(f"no text in {where}: expected {READABLE}; found {unusable}")
