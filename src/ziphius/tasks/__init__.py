"""Problems with verified answers: `TASKS` is the only list of them.

    task = get_task("gcd")
    problem = task.problems("train", level=1, count=1)[0]
    task.verify(problem, "12")

To add one: a file with a subclass of `GymTask` or `Task`, and a line in the table.
"""

from ziphius.tasks.chain_sum import ChainSum
from ziphius.tasks.errors import TaskError
from ziphius.tasks.gcd import Gcd
from ziphius.tasks.letter_counting import LetterCounting
from ziphius.tasks.task import SPLITS, Problem, Split, Task

TASKS: dict[str, Task] = {
    "chain_sum": ChainSum(),
    "gcd": Gcd(),
    "letter_counting": LetterCounting(),
}


def get_task(name: str) -> Task:
    """Return the task of that name; the error for an unknown one lists them all."""
    if name not in TASKS:
        raise TaskError(f"Unknown task {name!r}; known are {', '.join(TASKS)}.")
    return TASKS[name]


__all__ = ["SPLITS", "TASKS", "Problem", "Split", "Task", "get_task"]
