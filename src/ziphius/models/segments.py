"""Sequences that share their beginning, packed into one row: the beginning is there only once.

A document of such a row is a trunk (branch 0, a prompt) and after it any number of branches (its
completions), each of which goes on from the end of the trunk. Tokens are packed without padding;
for attention alone every run of one branch becomes a row of a padded batch, its keys those of the
trunk and its own.

Shapes: M tokens of the row, Z runs, T queries of the longest run, S keys that a run sees at most.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ziphius.core.device import send


@dataclass(frozen=True)
class Segments:
    """Where the tokens of a packed row go for attention, and back."""

    queries_ZT: Tensor
    """Token of each query; padding repeats the first of its run, and its result is never read."""
    keys_ZS: Tensor
    """Token of each key; padding is hidden by the mask."""
    mask_ZTS: Tensor
    """Bool, true where a query sees a key."""
    places_M: Tensor
    """Place of each token among the Z * T queries."""


@dataclass(frozen=True)
class BranchRuns:
    """The stretches of one document and branch, in the order of the row."""

    run_M: Tensor
    """Run of each token."""
    starts_Z: Tensor
    lengths_Z: Tensor
    trunk_starts_Z: Tensor
    trunk_lengths_Z: Tensor
    """Of the trunk that a run goes on from; 0 for a trunk."""


def branch_runs(documents_BT: Tensor, branches_BT: Tensor) -> BranchRuns:
    """Find the runs of a row [1, M], on the CPU: their number steers the host.

    A host waits for a device once.
    """
    documents_M, branches_M = torch.cat((documents_BT, branches_BT)).cpu()
    changes_M = torch.ones_like(documents_M, dtype=torch.bool)
    changes_M[1:] = (documents_M[1:] != documents_M[:-1]) | (branches_M[1:] != branches_M[:-1])
    starts_Z = changes_M.nonzero().flatten()
    ends_Z = torch.cat((starts_Z[1:], starts_Z.new_tensor([len(documents_M)])))
    lengths_Z = ends_Z - starts_Z
    is_trunk_Z = branches_M[starts_Z] == 0
    # The trunk of a run is the last one that began before it.
    trunk_Z = torch.where(is_trunk_Z, torch.arange(len(starts_Z), device=starts_Z.device), 0)
    trunk_Z = trunk_Z.cummax(0).values
    assert bool((documents_M[starts_Z] == documents_M[starts_Z[trunk_Z]]).all()), (
        "a document of branches begins with its trunk"
    )
    trunk_lengths_Z = torch.where(is_trunk_Z, 0, lengths_Z[trunk_Z])
    return BranchRuns(
        changes_M.cumsum(0) - 1, starts_Z, lengths_Z, starts_Z[trunk_Z], trunk_lengths_Z
    )


def branch_positions(documents_BT: Tensor, branches_BT: Tensor) -> Tensor:
    """Count positions in a row of trunks and branches: every branch goes on from its trunk."""
    runs = branch_runs(documents_BT, branches_BT)
    first_Z = runs.trunk_lengths_Z - runs.starts_Z
    positions_M = torch.arange(documents_BT.shape[1]) + first_Z[runs.run_M]
    return send(positions_M, documents_BT.device).unsqueeze(0)


def split_branches(
    sees: Callable[[Tensor, Tensor], Tensor],
    positions_BT: Tensor,
    documents_BT: Tensor,
    branches_BT: Tensor,
) -> Segments:
    """Lay out the runs of a row for attention.

    Args:
        sees: of the pattern: positions of queries [Z, T, 1] and keys [Z, 1, S] to bool [Z, T, S].
        positions_BT: [1, M].
        documents_BT: [1, M], runs of equal numbers.
        branches_BT: [1, M], 0 for the trunk, with which a document begins.
    """
    assert len(documents_BT) == 1, "branches are packed into one row"
    runs, positions_M = branch_runs(documents_BT, branches_BT), positions_BT[0]
    device = positions_M.device
    place_T = torch.arange(int(runs.lengths_Z.max()))
    queries_ZT = runs.starts_Z[:, None] + place_T * (place_T < runs.lengths_Z[:, None])
    counts_Z = runs.trunk_lengths_Z + runs.lengths_Z
    place_S = torch.arange(int(counts_Z.max()))
    own_ZS = place_S - runs.trunk_lengths_Z[:, None]
    keys_ZS = torch.where(
        own_ZS < 0, runs.trunk_starts_Z[:, None] + place_S, runs.starts_Z[:, None] + own_ZS
    )
    is_key_ZS = place_S < counts_Z[:, None]
    keys_ZS = torch.where(is_key_ZS, keys_ZS, 0)
    places_M = torch.arange(len(positions_M)) - runs.starts_Z[runs.run_M]
    places_M = places_M + runs.run_M * len(place_T)
    queries_ZT, keys_ZS, is_key_ZS, places_M = (
        send(x, device) for x in (queries_ZT, keys_ZS, is_key_ZS, places_M)
    )
    mask_ZTS = sees(positions_M[queries_ZT][:, :, None], positions_M[keys_ZS][:, None, :])
    mask_ZTS = mask_ZTS & is_key_ZS[:, None, :]
    return Segments(queries_ZT, keys_ZS, mask_ZTS, places_M)
