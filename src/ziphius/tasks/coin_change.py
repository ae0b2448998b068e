"""An amount paid exactly with few coins, found by taking them away."""

import re
from collections.abc import Mapping
from random import Random
from typing import Any

from ziphius.tasks.search import SearchTask, take_away

LARGEST, MOST_COINS = 15, 3
MOST_TRIES = 4
"""Of a demonstration."""
_FORM = re.compile(r"[1-9][0-9]?(\+[1-9][0-9]?){0,6}")
_KINDS = {1: 4, 2: 6}
"""Of coins, by level."""


class CoinChange(SearchTask):
    """`pay 17: 3 5 7 12`; an answer is `5+5+7`, with three coins at most."""

    name = "coin_change"
    levels = tuple(_KINDS)

    def draw(self, random: Random, level: int) -> Mapping[str, Any] | None:
        """Draw kinds of coins, and an amount that needs three of them and not fewer."""
        coins = random.sample(range(2, LARGEST + 1), _KINDS[level])
        amounts = [n for n, count in _needed(coins).items() if count == MOST_COINS]
        return {"coins": coins, "amount": random.choice(sorted(amounts))}

    def ask(self, facts: Mapping[str, Any]) -> str:
        """Show amount and kinds."""
        kinds = " ".join(map(str, facts["coins"]))
        return f"pay {facts['amount']}: {kinds}"

    def content(self, facts: Mapping[str, Any]) -> str:
        """Name the kinds in any order, and the amount."""
        return f"{facts['amount']} of {sorted(facts['coins'])}"

    def search(self, facts: Mapping[str, Any], random: Random) -> tuple[str, str] | None:
        """Take coins away at random; begin again when one is too large or there are too many."""
        tries = []
        for _ in range(MOST_TRIES):
            order = random.choices(facts["coins"], k=MOST_COINS)
            text, taken = take_away(facts["amount"], order)
            tries.append(text)
            if taken is not None:
                return "\n".join(tries), "+".join(map(str, taken))
        return None

    def is_correct(self, facts: Mapping[str, Any], answer: str) -> bool:
        """Add the coins up, few enough and each of a kind that there is."""
        if not _FORM.fullmatch(answer):
            return False
        paid = [int(coin) for coin in answer.split("+")]
        is_allowed = len(paid) <= MOST_COINS and set(paid) <= set(facts["coins"])
        return is_allowed and sum(paid) == facts["amount"]


def _needed(coins: list[int]) -> dict[int, int]:
    """Return the fewest coins for every amount that can be paid."""
    found, edge = {0: 0}, {0}
    for count in range(1, MOST_COINS + 1):
        edge = {amount + coin for amount in edge for coin in coins} - found.keys()
        found |= dict.fromkeys(edge, count)
    return found
