"""What is printed of the corpus that a task reads."""

from zoo.train.corpora.catalog import MissingSplitError as MissingSplitError
from zoo.train.corpora.parts import describe, describe_part
from zoo.train.tasks.base import Split, Task


def corpus_notes(task: Task) -> list[str]:
    """Lines about a text of the user's own: texts and bytes of every split, and what is unusual about the
    splits; none of stdlib, and of a published corpus of which all is read."""
    corpus = task.opened_corpus()
    return [note for note in (describe(corpus), corpus.remark) if note] if corpus else []


def part_note(task: Task, split: Split) -> str:
    """Which part a split is of a single text that is cut into splits; "" of all else."""
    corpus = task.opened_corpus()
    return "" if corpus is None else describe_part(corpus, split)
