"""`rl/batch.py`: where every token of a group goes, by hand."""

import torch

from ziphius.rl.batch import Group, ScoredCompletion, build_batch


def routes(*tokens: int) -> dict[int, torch.Tensor]:
    """Routes of one layer, K = 1, that name the token they belong to."""
    return {3: torch.tensor([[token] for token in tokens], dtype=torch.int16)}


GROUPS = [
    Group(
        (1, 2),
        [
            ScoredCompletion((10, 11, 12), (-0.1, -0.2, -0.3), 1.0, routes(1, 2, 10, 11)),
            ScoredCompletion((20,), (-0.4,), -1.0, routes(1, 2)),
            ScoredCompletion((30, 31), (-0.5, -0.6), 0.5, routes(1, 2, 30)),
        ],
    ),
    Group((3,), [ScoredCompletion((40, 41), (-0.7, -0.8), -2.0, routes(3, 40))]),
]


def test_a_prompt_stands_once_and_last_tokens_are_predicted_only() -> None:
    batch = build_batch(GROUPS)
    assert batch.ids_BT.tolist() == [[1, 2, 10, 11, 30, 3, 40]]
    assert batch.documents_BT.tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    assert batch.branches_BT.tolist() == [[0, 0, 1, 1, 3, 0, 1]]
    assert batch.targets_X.tolist() == [10, 11, 12, 20, 30, 31, 40, 41]
    assert batch.ids_BT[0, batch.sources_X].tolist() == [2, 10, 11, 2, 2, 30, 3, 40]
    torch.testing.assert_close(
        batch.rollout_logprobs_X, -torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    )
    assert batch.advantages_X.tolist() == [1, 1, 1, -1, 0.5, 0.5, -2, -2]
    assert batch.tokens == 7


def test_routes_stand_where_their_tokens_do() -> None:
    batch = build_batch(GROUPS)
    assert list(batch.routes) == [3]
    assert batch.routes[3].squeeze(-1).tolist() == batch.ids_BT.tolist()
    assert batch.routes[3].dtype == torch.int64


def test_a_prompt_alone_predicts_nothing() -> None:
    batch = build_batch([Group((1, 2), ())])
    assert batch.ids_BT.tolist() == [[1, 2]]
    assert batch.routes == {}
    for values in (batch.sources_X, batch.targets_X, batch.rollout_logprobs_X, batch.advantages_X):
        assert len(values) == 0
    assert batch.targets_X.dtype == torch.int64


def test_all_tensors_move_to_a_device() -> None:
    batch = build_batch(GROUPS).to(torch.device("meta"))
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 7
    assert all(value.is_meta for value in (*tensors, *batch.routes.values()))
