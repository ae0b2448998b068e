"""Vocabularies that many tests of this room share; making one takes a second."""

import pytest

from ziphius.text.tokenizer import Tokenizer
from ziphius.text.vocabulary import deepseek_tokenizer


@pytest.fixture(scope="session")
def full() -> Tokenizer:
    return deepseek_tokenizer()


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    return deepseek_tokenizer(4_096)


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    return deepseek_tokenizer(512)
