"""`engine/processors/thinking.py`: blocks that open and close, and what their budget writes."""

import pytest
import torch

from ziphius.engine.processors.thinking import ThinkBlock, Thinking, ThinkingBudget


def forced(budget: ThinkingBudget) -> int | None:
    """Return the only token that may come, None if any may."""
    logits_W = torch.ones(10)
    budget(logits_W, [])
    if (logits_W == 1).all():
        return None
    [token_id] = (logits_W > -torch.inf).nonzero().flatten().tolist()
    return int(token_id)


def written(budget: ThinkingBudget, own: list[int], count: int) -> list[int]:
    """Let a model that wants to write `own` write `count` tokens."""
    out = []
    for place in range(count):
        token_id = forced(budget)
        out.append(own[place] if token_id is None else token_id)
        assert budget.accept(out[-1]) is None
    return out


@pytest.mark.parametrize("spent", [0, 1, 3])
def test_a_budget_closes_the_block_once(spent: int) -> None:
    budget = ThinkingBudget(spent, Thinking(end_ids=(9,)))
    assert written(budget, [1] * 6, 6) == [1] * spent + [9] + [1] * (5 - spent)


def test_a_block_that_ends_by_itself_is_left_alone() -> None:
    budget = ThinkingBudget(3, Thinking(end_ids=(9,)))
    assert written(budget, [1, 9, 2, 2, 2, 2], 6) == [1, 9, 2, 2, 2, 2]


def test_an_end_of_several_tokens_is_written_whole() -> None:
    budget = ThinkingBudget(2, Thinking(end_ids=(7, 7, 8)))
    assert written(budget, [1] * 8, 8) == [1, 1, 7, 7, 8, 1, 1, 1]
    # What it began by itself counts as part of the end, not of the thinking.
    own_end = ThinkingBudget(2, Thinking(end_ids=(7, 7, 8)))
    assert written(own_end, [1, 1, 7, 7, 8, 2], 6) == [1, 1, 7, 7, 8, 2]


def test_a_block_that_the_model_opens_has_the_budget_too() -> None:
    thinking = Thinking(end_ids=(9,), start_ids=(5,), is_open=False)
    budget = ThinkingBudget(2, thinking)
    assert written(budget, [1, 1, 1, 5, 1, 1, 1, 1], 8) == [1, 1, 1, 5, 1, 1, 9, 1]


def test_tokens_that_are_taken_back_were_never_there() -> None:
    thinking = Thinking(end_ids=(7, 8), start_ids=(5,), is_open=False)
    block, again = ThinkBlock(thinking), ThinkBlock(thinking)
    tokens = [1, 5, 2, 7, 7, 8, 3, 5, 7]
    states = [block.state]
    for token_id in tokens:
        block.accept(token_id)
        states.append(block.state)
    assert [state.inside for state in states] == [
        *[False, False, True, True, True, True, False, False, True, True]
    ]
    for count in range(1, len(tokens) + 1):
        for token_id in tokens[:count]:
            again.accept(token_id)
        again.rollback(count - 1)
        assert again.state == states[1]
        again.rollback(1)
        assert again.state == states[0]


def test_a_budget_goes_back_too() -> None:
    budget = ThinkingBudget(2, Thinking(end_ids=(9,)))
    for token_id in (1, 1):
        budget.accept(token_id)
    assert forced(budget) == 9
    budget.rollback(1)
    assert forced(budget) is None
    budget.rollback(0)
    assert forced(budget) is None
