"""`models/segments.py`: a row of branches is its sequences, one by one, and equals the mask."""

import pytest
import torch
from torch import Tensor

from tests.tiny import (
    V2_EXPERTS,
    V3_EXPERTS,
    assert_same_gradients,
    build,
    gradients,
    grouped_config,
    latent_config,
    random_ids,
)
from ziphius.models.config import ModelConfig
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.patterns import Causal, SlidingWindow, Tokens, visibility_mask
from ziphius.models.segments import branch_positions, split_branches

# (length of the trunk, lengths of its branches) of each document.
DOCUMENTS = [(3, [2, 5, 1]), (4, []), (1, [4, 4])]
CONFIGS = {
    "v3": latent_config(**V3_EXPERTS),
    "v2": latent_config(**V2_EXPERTS | {"model_type": "deepseek_v2"}),
    "grouped": grouped_config(),
    "window": grouped_config(pattern="sliding_window", sliding_window=3, attention_sinks=1),
}


def packed() -> tuple[Tensor, Tensor, list[list[int]]]:
    """Documents and branches [1, M] of the row, and its sequences as places in it."""
    documents: list[int] = []
    branches: list[int] = []
    sequences: list[list[int]] = []
    for number, (trunk, lengths) in enumerate(DOCUMENTS):
        beginning = list(range(len(documents), len(documents) + trunk))
        documents += [number] * trunk
        branches += [0] * trunk
        if not lengths:
            sequences.append(beginning)
        for branch, length in enumerate(lengths, 1):
            sequences.append([*beginning, *range(len(documents), len(documents) + length)])
            documents += [number] * length
            branches += [branch] * length
    return torch.tensor([documents]), torch.tensor([branches]), sequences


def test_positions_go_on_from_the_trunk() -> None:
    documents_BT, branches_BT, sequences = packed()
    positions_BT = branch_positions(documents_BT, branches_BT)
    for places in sequences:
        assert positions_BT[0, places].tolist() == list(range(len(places)))


@pytest.mark.parametrize("pattern", [Causal(), SlidingWindow(2, sinks=1)])
def test_segments_say_what_the_mask_says(pattern: Causal | SlidingWindow) -> None:
    documents_BT, branches_BT, _ = packed()
    positions_BT = branch_positions(documents_BT, branches_BT)
    tokens = Tokens(positions_BT, documents_BT, branches_BT)
    mask_TS = visibility_mask(pattern, tokens, tokens)[0]
    segments = split_branches(pattern.sees, positions_BT, documents_BT, branches_BT)
    width = segments.queries_ZT.shape[1]
    for query in range(mask_TS.shape[0]):
        run, place = divmod(int(segments.places_M[query]), width)
        assert segments.queries_ZT[run, place] == query
        seen = segments.keys_ZS[run][segments.mask_ZTS[run, place]]
        assert seen.tolist() == mask_TS[query].nonzero().flatten().tolist()
    assert bool(segments.mask_ZTS.any(-1).all()), "a padded query that sees nothing gives NaN"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_row_of_branches_is_its_sequences_one_by_one(config: ModelConfig) -> None:
    model = build(config).eval()
    documents_BT, branches_BT, sequences = packed()
    ids_BT = random_ids(1, documents_BT.shape[1], config.vocab_size)
    shared_BTD = model(
        ForwardBatch(ids_BT, documents_BT=documents_BT, branches_BT=branches_BT)
    ).hidden_BTD
    weights_BTD = torch.randn(shared_BTD.shape, generator=torch.Generator().manual_seed(1))
    # A token of a trunk is in several sequences: each has its share of the token's weight.
    times_T = torch.bincount(torch.tensor([place for places in sequences for place in places]))
    (shared_BTD * weights_BTD).sum().backward()
    actual = gradients(model)
    for places in sequences:
        alone_TD = model(ids_BT[:, places]).hidden_BTD[0]
        torch.testing.assert_close(shared_BTD[0, places], alone_TD, atol=2e-5, rtol=1e-4)
        shares_T1 = (1.0 / times_T[places]).unsqueeze(-1)
        (alone_TD * weights_BTD[0, places] * shares_T1).sum().backward()
    assert_same_gradients(actual, gradients(model))


def test_a_branch_without_its_trunk_is_a_broken_row() -> None:
    numbers_BT = torch.tensor([[0, 0, 1, 1]])
    with pytest.raises(AssertionError, match="begins with its trunk"):
        branch_positions(numbers_BT, torch.tensor([[0, 1, 1, 1]]))
