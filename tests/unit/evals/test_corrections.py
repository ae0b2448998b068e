"""What counts as a word of self-correction."""

import pytest

from ziphius.evals.corrections import self_corrections


@pytest.mark.parametrize(
    ("reasoning", "count"),
    [
        (None, 0),
        ("", 0),
        ("4-1=3\n+7=10", 0),
        ("4-1=4\nwait, 4-1=3", 1),
        ("Wait! No, that is wrong. Let me recompute.", 4),
        ("check: 3+7=10, checked", 2),
        ("I waited for a checkmate, and nothing was correct; no more", 0),
        ("no", 0),
    ],
)
def test_words_are_counted(reasoning: str | None, count: int) -> None:
    assert self_corrections(reasoning) == count
