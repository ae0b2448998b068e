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
    look,
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


def expand(visible, rows, new_tokens, all_tokens):
    """What the kernel does with it, as a mask."""
    if visible.mask_BTS is not None:
        assert not visible.is_causal
        return visible.mask_BTS
    mask_TS = torch.ones(new_tokens, all_tokens, dtype=torch.bool)
    if visible.is_causal:
        assert new_tokens == all_tokens
        mask_TS = mask_TS.tril()
    return mask_TS.expand(rows, -1, -1)


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
    visible = look(pattern, tokens, [0])
    assert expand(visible, 1, len(where), len(where))[0].tolist() == expected


@examples(100)
@given(
    pattern=PATTERNS,
    held=st.one_of(
        st.lists(st.integers(0, 9), min_size=1, max_size=3),
        st.builds(lambda n, rows: [n] * rows, st.integers(0, 9), st.integers(1, 3)),
    ),
    new_tokens=st.integers(1, 6),
)
def test_every_form_equals_the_rule_over_the_cache(pattern, held, new_tokens):
    rows, all_tokens = len(held), max(held) + new_tokens
    positions_BT = torch.tensor(held)[:, None] + torch.arange(new_tokens)
    visible = look(pattern, Tokens(positions_BT), held)
    mask_BTS = expand(visible, rows, new_tokens, all_tokens)
    expected = [
        [[sees(pattern, length + t, slot) for slot in range(all_tokens)] for t in range(new_tokens)]
        for length in held
    ]
    assert mask_BTS.tolist() == expected


def test_the_kernels_own_forms_are_used_where_they_are_exact():
    def form(held, new_tokens, pattern=None):
        positions_BT = torch.tensor(held)[:, None] + torch.arange(new_tokens)
        visible = look(pattern or Causal(), Tokens(positions_BT), held)
        return "mask" if visible.mask_BTS is not None else visible.is_causal

    assert form([0, 0], 5) is True
    assert form([7, 7], 1) is False
    assert form([7, 7], 2) == "mask"
    assert form([7, 6], 1) == "mask"
    assert form([0, 0], 5, SlidingWindow(3)) == "mask"


def test_packed_documents_cannot_go_on_from_a_cache():
    tokens = Tokens(torch.tensor([[3]]), torch.tensor([[0]]))
    with pytest.raises(AssertionError, match="one document"):
        look(Causal(), tokens, [3])


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
