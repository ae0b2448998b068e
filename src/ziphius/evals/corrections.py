"""How often a model takes itself up on its reasoning: a count of words, and no more than that.

DeepSeek-R1 (arXiv 2501.12948, section 2.2.4) shows reflection rise in training by such a count.
A word is a sign and no proof: a model can say "wait" and go on wrong. So the count stands beside
accuracy in every table, never for it.
"""

import re

SELF_CORRECTION = re.compile(
    r"\b(?:wait|hmm|actually|oops|mistake|wrong|recheck|double-check|check(?:s|ed|ing)?"
    r"|correct(?:ion|ing)|let me re\w+)\b|\bno,",
    re.IGNORECASE,
)
"""Whole words, in either case; `no` only before a comma ("no, that is 7")."""


def self_corrections(reasoning: str | None) -> int:
    """Count the words of `SELF_CORRECTION` in a reasoning; 0 without one."""
    return 0 if reasoning is None else sum(1 for _ in SELF_CORRECTION.finditer(reasoning))
