"""Problems with verified answers: `TASKS` is the only list of them.

    task = get_task("gcd")
    problem = task.problems("train", level=1, count=1)[0]
    task.verify(problem, "12")

GSM8K comes from a folder of files: `get_task("gsm8k", folder)`.

To add one: a file with a subclass of `GymTask`, `SearchTask` or `Task`, and a line in the table.
"""

from pathlib import Path

from ziphius.tasks.ab import AB
from ziphius.tasks.base_conversion import BaseConversion
from ziphius.tasks.basic_arithmetic import BasicArithmetic
from ziphius.tasks.chain_sum import ChainSum, DecimalChainSum
from ziphius.tasks.coin_change import CoinChange
from ziphius.tasks.count_bits import CountBits
from ziphius.tasks.countdown import Countdown
from ziphius.tasks.errors import TaskError
from ziphius.tasks.fraction_simplification import FractionSimplification
from ziphius.tasks.gcd import Gcd, Lcm
from ziphius.tasks.grid_path import GridPath
from ziphius.tasks.gsm8k import Gsm8k
from ziphius.tasks.leg_counting import LegCounting
from ziphius.tasks.letter_counting import LetterCounting
from ziphius.tasks.prime_factorization import PrimeFactorization
from ziphius.tasks.products import Products
from ziphius.tasks.refused import REFUSED
from ziphius.tasks.simple_equations import SimpleEquations
from ziphius.tasks.simple_geometry import SimpleGeometry
from ziphius.tasks.spell_backward import SpellBackward
from ziphius.tasks.subset_sum import SubsetSum
from ziphius.tasks.task import SPLITS, Problem, Split, Task

TASKS: dict[str, Task] = {
    "ab": AB(),
    "base_conversion": BaseConversion(),
    "basic_arithmetic": BasicArithmetic(),
    "chain_sum": ChainSum(),
    "coin_change": CoinChange(),
    "count_bits": CountBits(),
    "countdown": Countdown(),
    "decimal_chain_sum": DecimalChainSum(),
    "fraction_simplification": FractionSimplification(),
    "gcd": Gcd(),
    "lcm": Lcm(),
    "grid_path": GridPath(),
    "leg_counting": LegCounting(),
    "letter_counting": LetterCounting(),
    "prime_factorization": PrimeFactorization(),
    "products": Products(),
    "simple_equations": SimpleEquations(),
    "simple_geometry": SimpleGeometry(),
    "spell_backward": SpellBackward(),
    "subset_sum": SubsetSum(),
}


def get_task(name: str, folder: Path | None = None) -> Task:
    """Return the task of that name.

    Args:
        name: a key of `TASKS`, or `gsm8k`.
        folder: where the files of GSM8K are; it verifies and solves without, but has no problems.

    Raises:
        TaskError: the name is unknown (the known ones are listed), or of a family that is refused
            (the reason is given), or a folder is given that nothing would read.
    """
    if name == Gsm8k.name:
        return Gsm8k(folder)
    if name in REFUSED:
        raise TaskError(f"The family {name} of reasoning-gym is no task here: {REFUSED[name]}.")
    if name not in TASKS:
        raise TaskError(f"Unknown task {name!r}; known are {', '.join([*TASKS, Gsm8k.name])}.")
    if folder is not None:
        raise TaskError(f"Task {name} makes its own problems: give no folder.")
    return TASKS[name]


__all__ = ["REFUSED", "SPLITS", "TASKS", "Gsm8k", "Problem", "Split", "Task", "get_task"]
