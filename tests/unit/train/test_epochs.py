"""What fine-tuning takes where batch and epochs are not given."""

import pytest

from ziphius.train.epochs import ENOUGH_STEPS, Pacing, suited


@pytest.mark.parametrize(
    ("rows", "global_batch_size", "epochs"),
    [
        (1, 1, 25),  # three chats, in one row
        (4, 1, 25),
        (10, 1, 10),
        (34, 1, 3),
        (48, 1, 3),  # 300 short chats
        (67, 2, 3),
        (150, 4, 3),
        (267, 8, 3),
        (100_000, 8, 3),
    ],
)
def test_small_data_get_small_batches_and_the_smallest_more_epochs(
    rows: int, global_batch_size: int, epochs: int
) -> None:
    found = suited(rows, global_batch_size=None, epochs=None, multiple=1)
    assert found == Pacing(global_batch_size, epochs)
    assert rows * epochs // global_batch_size >= ENOUGH_STEPS or epochs == 25


def test_what_is_given_wins() -> None:
    assert suited(48, global_batch_size=16, epochs=None, multiple=1) == Pacing(16, 3)
    assert suited(48, global_batch_size=None, epochs=1, multiple=1) == Pacing(1, 1)
    assert suited(48, global_batch_size=None, epochs=40, multiple=1) == Pacing(8, 40)
    # Without end: as if for three epochs.
    assert suited(150, global_batch_size=None, epochs=0, multiple=1) == Pacing(4, 0)


def test_a_chosen_batch_can_be_shared() -> None:
    assert suited(10, global_batch_size=None, epochs=None, multiple=2) == Pacing(2, 10)
    assert suited(150, global_batch_size=None, epochs=None, multiple=3) == Pacing(6, 3)
    assert suited(10_000, global_batch_size=None, epochs=None, multiple=12) == Pacing(12, 3)
