"""Answers by majority: of one model's samples, and of a whole task.

maj@k is self-consistency (Wang et al. 2022, arXiv 2203.11171): of k samples, the answer given most
often stands for all. A model that answers the same to every problem is the baseline of a task whose
answers are few.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from ziphius.evals.errors import EvalError
from ziphius.evals.measure import Answers


def majority(answers: Answers) -> bool:
    """Tell whether the answer that most samples give is correct; of a tie, the earliest.

    Answers are the same if their texts are, without the blanks around them. Samples that say
    nothing have no vote, and where none says anything the majority is wrong.
    """
    said = [(text or "").strip() for text in answers.answers]
    winner = _most_frequent(text for text in said if text)
    return winner is not None and answers.correct[said.index(winner)]


def majority_class(train_answers: Sequence[str]) -> str:
    """Return the most frequent answer to a task's training problems; of a tie, the earliest.

    Raises:
        EvalError: there are no answers.
    """
    winner = _most_frequent(answer.strip() for answer in train_answers)
    if winner is None:
        raise EvalError("A majority class needs the answers of training problems; there are none.")
    return winner


def _most_frequent(texts: Iterable[str]) -> str | None:
    # A Counter keeps the order of first sight, and max returns the first of equals.
    counts = Counter(texts)
    return max(counts, key=counts.__getitem__, default=None)
