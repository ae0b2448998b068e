"""Exercises with worked solutions, in English and Chinese, without end and without a network.

Each document is a pure function of (seed, number) and of the exercises that are left out: a handful
of exercises of one language. Every step is a line that holds by itself (`17 + 25 = 42`), so that a
model can learn the steps and a test can check them.
"""

from collections.abc import Callable, Collection, Iterator
from random import Random

from ziphius.core.errors import ConfigError
from ziphius.data import arithmetic, word_problems
from ziphius.data.arithmetic import Exercise
from ziphius.data.document import Document

EXERCISES_PER_DOCUMENT = 6
CHINESE_SHARE = 0.4


def mathematics(seed: int = 0, without: Collection[str] = ()) -> Iterator[Document]:
    """Yield documents without end, and without the exercises of these names."""
    number = 0
    while True:
        yield exercises(seed, number, without)
        number += 1


def exercises(seed: int, number: int, without: Collection[str] = ()) -> Document:
    """Write one document of exercises, of all but those left out."""
    random = Random(f"{seed} {number}")
    language = int(random.random() < CHINESE_SHARE)
    names = remaining(without)
    texts = [
        render(EXERCISES[random.choice(names)](random), language, random.randrange(3))
        for _ in range(EXERCISES_PER_DOCUMENT)
    ]
    return Document(f"mathematics/{seed}/{number}", "\n\n".join(texts) + "\n")


def remaining(without: Collection[str]) -> list[str]:
    """Return the names of the exercises that are not left out, sorted.

    Raises:
        ConfigError: there is no exercise of a name, or none remains.
    """
    if unknown := sorted(set(without) - set(EXERCISES)):
        known = ", ".join(sorted(EXERCISES))
        raise ConfigError(f"There is no exercise {', '.join(unknown)}. Known: {known}.")
    names = sorted(set(EXERCISES) - set(without))
    if not names:
        raise ConfigError("No exercise remains. Leave out fewer, or choose a mix without them.")
    return names


def render(exercise: Exercise, language: int, style: int) -> str:
    """Write an exercise in English (0) or Chinese (1), in one of three layouts."""
    steps = [step if isinstance(step, str) else step[language] for step in exercise.steps]
    ask, solve, answer = _LABELS[language][style]
    head = f"{ask}{exercise.question[language]}"
    return "\n".join([head, *([solve] if solve else []), *steps, f"{answer}{exercise.answer}"])


_LABELS = (
    (("Question: ", "", "Answer: "), ("", "Solution:", "The answer is "), ("Q: ", "A:", "= ")),
    (
        ("\u95ee\u9898\uff1a", "", "\u7b54\u6848\uff1a"),
        ("", "\u89e3\uff1a", "\u6240\u4ee5\u7b54\u6848\u662f "),
        ("\u95ee\uff1a", "\u7b54\uff1a", "= "),
    ),
)


EXERCISES: dict[str, Callable[[Random], Exercise]] = {
    "addition": arithmetic.addition,
    "binary": arithmetic.binary,
    "brackets": arithmetic.brackets,
    "chain": arithmetic.chain,
    "conversion": word_problems.conversion,
    "division": arithmetic.division,
    "equation": arithmetic.equation,
    "factors": arithmetic.factors,
    "fraction_sum": arithmetic.fraction_sum,
    "greatest_divisor": arithmetic.greatest_divisor,
    "least_multiple": arithmetic.least_multiple,
    "mean": word_problems.mean,
    "multiplication": arithmetic.multiplication,
    "percentage": word_problems.percentage,
    "power": arithmetic.power,
    "rectangle": word_problems.rectangle,
    "sequence": word_problems.sequence,
    "sharing": word_problems.sharing,
    "shopping": word_problems.shopping,
    "simplification": arithmetic.simplification,
    "subtraction": arithmetic.subtraction,
    "travel": word_problems.travel,
}
