"""What tasks have in common whose documents are taken from a corpus."""

from functools import cached_property
from pathlib import Path

from zoo.train.corpora.catalog import Corpus, open_corpus


class ReadsCorpus:
    """Of a task with the fields `corpus`, `root` and `field`: the texts that they name."""

    corpus: str
    root: str | Path
    field: str

    @cached_property
    def documents(self) -> Corpus:
        return open_corpus(self.corpus, self.root, self.field)

    def opened_corpus(self) -> Corpus | None:
        return self.documents
