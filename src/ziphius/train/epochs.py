"""How often conversations are seen, and in which batches, where that is not given.

Steps are what small data lack: 300 short chats fill some forty rows, which in batches of eight and
three epochs are sixteen steps, and those teach nothing. So batches shrink first, to one row, which
holds several conversations; and where three epochs of single rows are still few steps, more epochs
follow. Three, and at most 25 where data are few, is also what OpenAI's fine-tuning takes by itself.
"""

from dataclasses import dataclass

from ziphius.train.config import GLOBAL_BATCH_SIZE

EPOCHS, MOST_EPOCHS = 3, 25
ENOUGH_STEPS = 100


@dataclass(frozen=True)
class Pacing:
    """Rows of a step, and how often all rows are seen; 0 for without end."""

    global_batch_size: int
    epochs: int


def suited(
    rows: int, *, global_batch_size: int | None, epochs: int | None, multiple: int
) -> Pacing:
    """Choose what is not given.

    Args:
        rows: that all conversations fill once.
        global_batch_size: as it is asked for.
        epochs: as they are asked for.
        multiple: what a chosen batch is a multiple of, so that processes and micro-batches can
            share it.
    """
    if epochs is None:
        epochs = min(MOST_EPOCHS, max(EPOCHS, -(-ENOUGH_STEPS // rows)))
    if global_batch_size is None:
        most = min(GLOBAL_BATCH_SIZE, max(1, rows * (epochs or EPOCHS) // ENOUGH_STEPS))
        power = 1 << (most.bit_length() - 1)
        global_batch_size = -(-power // multiple) * multiple
    return Pacing(global_batch_size, epochs)
