import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.tiny import latent_config
from ziphius.models.patterns import (
    Causal,
    SlidingWindow,
    Tokens,
    build_pattern,
    document_positions,
    visibility_mask,
)

PATTERNS = st.one_of(
    st.just(Causal()), st.builds(SlidingWindow, st.integers(1, 6), st.integers(0, 3))
)


def sees(pattern, query, key):
    """The rule, said once more: positions within one document."""
    if key > query:
        return False
    if isinstance(pattern, Causal):
        return True
    return query - key < pattern.window or key < pattern.sinks


@examples(100)
@given(pattern=PATTERNS, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_mask_of_packed_documents_is_the_rule_inside_each(pattern, lengths):
    where = [(document, t) for document, length in enumerate(lengths) for t in range(length)]
    tokens = Tokens(
        torch.tensor([[t for _, t in where]]), torch.tensor([[document for document, _ in where]])
    )
    expected = [
        [query[0] == key[0] and sees(pattern, query[1], key[1]) for key in where] for query in where
    ]
    assert visibility_mask(pattern, tokens, tokens)[0].tolist() == expected


def test_a_mask_needs_documents_on_both_sides():
    bare = Tokens(torch.arange(2)[None])
    with pytest.raises(AssertionError):
        visibility_mask(Causal(), bare, Tokens(bare.positions_BT, torch.zeros(1, 2)))


def test_positions_start_again_at_every_document():
    documents_BT = torch.tensor([[4, 4, 4, 2, 2, 9], [0, 1, 1, 1, 0, 0]])
    # the same number again after another one is another document
    assert document_positions(documents_BT).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 0, 1]]


def test_the_config_chooses_the_pattern():
    assert isinstance(build_pattern(latent_config()), Causal)
    config = latent_config(pattern="sliding_window", sliding_window=7, attention_sinks=2)
    pattern = build_pattern(config)
    assert isinstance(pattern, SlidingWindow)
    assert (pattern.window, pattern.sinks) == (7, 2)
