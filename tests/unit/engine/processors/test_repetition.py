"""`engine/processors/repetition.py` against a search for patterns in the whole answer."""

import random

import pytest
import torch

from ziphius.engine.processors.repetition import REASON, RepetitionGuard
from ziphius.engine.sampling_params import RepetitionDetection


def repeats(answer: list[int], detection: RepetitionDetection) -> bool:
    for size in range(detection.min_pattern_size, detection.max_pattern_size + 1):
        pattern = answer[-size:]
        if len(answer) >= size * detection.min_count and (
            answer[-size * detection.min_count :] == pattern * detection.min_count
        ):
            return True
    return False


@pytest.mark.parametrize("sizes", [(1, 1, 3), (1, 4, 3), (2, 5, 2), (3, 3, 4)])
def test_it_ends_where_a_search_finds_a_pattern(sizes: tuple[int, int, int]) -> None:
    least, most, count = sizes
    detection = RepetitionDetection(min_pattern_size=least, max_pattern_size=most, min_count=count)
    found = 0
    for seed in range(40):
        chooser, guard, answer = random.Random(seed), RepetitionGuard(detection), list[int]()
        for _ in range(60):
            token_id = chooser.choice([0, 0, 1])
            if answer and chooser.random() < 0.3:  # a draft that does not stay
                guard.accept(chooser.choice([0, 1, 2]))
                guard.accept(answer[-1])
                guard.rollback(2)
            answer.append(token_id)
            reason = guard.accept(token_id)
            assert reason == (REASON if repeats(answer, detection) else None), answer
            found += reason is not None
    assert found > 5


def test_it_masks_nothing() -> None:
    logits_W = torch.ones(4)
    RepetitionGuard(RepetitionDetection())(logits_W, [1, 1])
    assert (logits_W == 1).all()
