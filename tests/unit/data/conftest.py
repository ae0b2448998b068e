"""A cache that is empty, and a vocabulary of bytes with the family's special tokens."""

from pathlib import Path

import pytest

from ziphius.text.tokenizer import Tokenizer
from ziphius.text.vocabulary import MIN_SIZE, deepseek_tokenizer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that this test alone uses."""
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One token for each byte."""
    return deepseek_tokenizer(MIN_SIZE)
