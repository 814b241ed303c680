"""The fixture of tests that need faiss."""

from typing import Any

import pytest

from zoo.memory.retrieval.faiss_package import load_faiss


@pytest.fixture
def faiss() -> Any:
    return load_faiss()
