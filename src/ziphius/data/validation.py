"""The held-out rows that a run is measured on: the same ones each time, shared out as the mix is.

Shapes: B rows, T tokens.
"""

from collections.abc import Iterator

import numpy as np
import torch

from ziphius.data.batch import Batch
from ziphius.data.packing import Packing, count_rows
from ziphius.data.prepare import PreparedData


class ValidationSet:
    """A fixed sample of the held-out text of each domain.

    Args:
        data: the tokenized domains.
        seq_len: tokens of a row.
        rows: how many rows in all; each domain has its share of them, at least one, and no more
            than it holds.
    """

    def __init__(self, data: PreparedData, *, seq_len: int, rows: int) -> None:
        self.data, self.seq_len = data, seq_len
        self.rows = {
            name: _spread(count_rows(data.domains[name].validation, seq_len), round(share * rows))
            for name, share in data.shares.items()
        }

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield every row once, in batches of one domain each."""
        for name, rows in self.rows.items():
            for first in range(0, len(rows), batch_size):
                yield self._batch(name, rows[first : first + batch_size])

    def _batch(self, name: str, rows: list[int]) -> Batch:
        split = self.data.domains[name].validation
        packing = Packing(split, self.seq_len, np.arange(split.counts.documents))
        pairs = [packing.row(row) for row in rows]
        ids_BT = np.stack([ids_T for ids_T, _ in pairs])
        documents_BT = np.stack([documents_T for _, documents_T in pairs])
        is_whole = bool((documents_BT >= 0).all())
        return Batch(
            ids_BT=torch.from_numpy(ids_BT),
            documents_BT=torch.from_numpy(documents_BT),
            loss_mask_BT=None if is_whole else torch.from_numpy(documents_BT >= 0),
            bytes_count=self.data.predicted_bytes(ids_BT, documents_BT),
            domains=(name,) * len(rows),
        )


def _spread(available: int, wanted: int) -> list[int]:
    """Choose rows at even distances; row 0, padded, where there is less than a whole row."""
    count = max(1, min(available, wanted))
    return [index * available // count for index in range(count)]
