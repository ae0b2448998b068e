"""Problems with verified answers: `TASKS` is the only list of them.

    task = get_task("gcd")
    problem = task.problems("train", level=1, count=1)[0]
    task.verify(problem, "12")

To add one: a file with a subclass of `GymTask` or `Task`, and a line in the table.
"""

from ziphius.tasks.ab import AB
from ziphius.tasks.base_conversion import BaseConversion
from ziphius.tasks.basic_arithmetic import BasicArithmetic
from ziphius.tasks.chain_sum import ChainSum, DecimalChainSum
from ziphius.tasks.count_bits import CountBits
from ziphius.tasks.errors import TaskError
from ziphius.tasks.fraction_simplification import FractionSimplification
from ziphius.tasks.gcd import Gcd, Lcm
from ziphius.tasks.leg_counting import LegCounting
from ziphius.tasks.letter_counting import LetterCounting
from ziphius.tasks.prime_factorization import PrimeFactorization
from ziphius.tasks.products import Products
from ziphius.tasks.simple_equations import SimpleEquations
from ziphius.tasks.simple_geometry import SimpleGeometry
from ziphius.tasks.spell_backward import SpellBackward
from ziphius.tasks.task import SPLITS, Problem, Split, Task

TASKS: dict[str, Task] = {
    "ab": AB(),
    "base_conversion": BaseConversion(),
    "basic_arithmetic": BasicArithmetic(),
    "chain_sum": ChainSum(),
    "count_bits": CountBits(),
    "decimal_chain_sum": DecimalChainSum(),
    "fraction_simplification": FractionSimplification(),
    "gcd": Gcd(),
    "lcm": Lcm(),
    "leg_counting": LegCounting(),
    "letter_counting": LetterCounting(),
    "prime_factorization": PrimeFactorization(),
    "products": Products(),
    "simple_equations": SimpleEquations(),
    "simple_geometry": SimpleGeometry(),
    "spell_backward": SpellBackward(),
}


def get_task(name: str) -> Task:
    """Return the task of that name; the error for an unknown one lists them all."""
    if name not in TASKS:
        raise TaskError(f"Unknown task {name!r}; known are {', '.join(TASKS)}.")
    return TASKS[name]


__all__ = ["SPLITS", "TASKS", "Problem", "Split", "Task", "get_task"]
