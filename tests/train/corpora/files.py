"""Files of texts, written and read back."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zoo.train.corpora.catalog import Corpus


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def contents(corpus: Corpus, split: str) -> list[bytes]:
    """The documents of a split."""
    documents = corpus.split(split)
    assert documents.lengths.dtype == np.int64
    texts = [documents.bytes_of(i, 0, int(length)).tobytes() for i, length in enumerate(documents.lengths)]
    assert len(texts) == len(documents)
    return texts


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"id": i, "text": text}) + "\n\n" for i, text in enumerate(texts)).encode()


def tar(members: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()
