"""The answer that most samples give stands for all of them."""

import dataclasses

import pytest

from tests.unit.evals.measurements import answers
from ziphius.evals.errors import EvalError
from ziphius.evals.majority import majority, majority_class


@pytest.mark.parametrize(
    ("said", "correct", "is_correct"),
    [
        (("7", "7", "8"), (True, True, False), True),
        (("7", "8", "8"), (True, False, False), False),
        # The text counts, not the blanks around it.
        (("8", " 7", "7\n"), (False, True, True), True),
        # Of a tie, the earliest.
        (("8", "7"), (False, True), False),
        (("9", "7", "8", "7", "8"), (False, True, False, True, False), True),
        (("8", "7", "7", "8"), (False, True, True, False), False),
        # What says nothing has no vote.
        ((None, None, None, "7"), (False, False, False, True), True),
        (("", " ", "", "7"), (False, False, False, True), True),
        ((None, "", None), (False, False, False), False),
    ],
)
def test_most_samples_decide(
    said: tuple[str | None, ...], correct: tuple[bool, ...], is_correct: bool
) -> None:
    one = dataclasses.replace(answers("easy", "a", 0, len(said)), answers=said, correct=correct)
    assert majority(one) is is_correct


def test_the_majority_class_is_the_most_frequent_answer() -> None:
    assert majority_class(["2", "1", "1 ", "3"]) == "1"
    assert majority_class(["2", "1", "1", "2"]) == "2"


def test_no_answers_have_no_majority_class() -> None:
    with pytest.raises(EvalError, match="answers of training problems; there are none"):
        majority_class([])
