import math
from collections.abc import Iterator

import pytest
import torch

from tests.tiny import build, random_ids
from tests.training import RandomRows, moe_config, train_config
from ziphius.data.baselines import Baseline, Baselines
from ziphius.data.batch import Batch
from ziphius.dist.world import World
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.losses import next_token_loss
from ziphius.train.config import TrainConfig
from ziphius.train.stage import Stage
from ziphius.train.stages import STAGES
from ziphius.train.stages.pretrain import Pretrain


class HeldOut:
    """Three rows of code and two of books, the last with padding."""

    rows = ("code", "books")

    def batches(self, global_batch_size: int) -> Iterator[Batch]:
        ids_BT = random_ids(5, 16, 61, seed=3)
        documents_BT = torch.zeros_like(ids_BT)
        documents_BT[4, 10:] = -1
        for first, last, domain in ((0, 2, "code"), (2, 3, "code"), (3, 5, "books")):
            documents = documents_BT[first:last]
            counted = documents >= 0 if domain == "books" else None
            names = (domain,) * (last - first)
            yield Batch(ids_BT[first:last], documents, counted, 30 * (last - first), names)


def pretrain(world: World | None = None, **fields) -> Pretrain:
    config = train_config()
    world = world or World()
    return Pretrain(
        RandomRows(config), moe_config(), config, validation=HeldOut(), world=world, **fields
    )


def test_figures_are_means_by_domain_and_in_all() -> None:
    model = build(moe_config()).eval()
    with torch.no_grad():
        figures = pretrain().validate(model)
        nats, tokens = {"code": 0.0, "books": 0.0}, {"code": 0, "books": 0}
        for batch in HeldOut().batches(1):
            loss = next_token_loss(
                model,
                model(ForwardBatch(batch.ids_BT, documents_BT=batch.documents_BT)),
                batch.ids_BT,
                documents_BT=batch.documents_BT,
                loss_mask_BT=batch.loss_mask_BT,
            )
            nats[batch.domains[0]] += float(loss.loss_sum)
            tokens[batch.domains[0]] += int(loss.tokens)
    assert tokens == {"code": 45, "books": 24}
    assert figures["loss"] == pytest.approx(sum(nats.values()) / 69)
    assert figures["loss/code"] == pytest.approx(nats["code"] / 45)
    assert figures["bits_per_byte/books"] == pytest.approx(nats["books"] / math.log(2) / 60)
    assert figures["bits_per_byte"] == pytest.approx(sum(nats.values()) / math.log(2) / 150)
    assert {"mtp1", "mtp1/code", "mtp1/books"} <= figures.keys()


def test_ranks_share_the_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(moe_config()).eval()
    sums = []

    def keep(self, values, device):
        sums.append(dict(values))
        return dict(values)

    monkeypatch.setattr(World, "sum_numbers", keep)
    with torch.no_grad():
        for world in (World(0, 2), World(1, 2), World()):
            pretrain(world).validate(model)
    first, second, alone = sums
    assert first.keys() == second.keys() == alone.keys()
    for name, value in alone.items():
        assert first[name] + second[name] == pytest.approx(value)
    assert second["code/tokens0"] == 15


def test_ranks_get_their_own_rows() -> None:
    config = train_config(micro_batch_size=2)
    stages = [
        Pretrain(RandomRows(config), moe_config(), config, world=World(rank, 2)) for rank in (0, 1)
    ]
    batches = [batch.ids_BT for stage in stages for batch in stage.batches(5)]
    assert [len(ids_BT) for ids_BT in batches] == [2, 2, 2, 2]
    rows = {tuple(row) for ids_BT in batches for row in ids_BT.tolist()}
    whole = Pretrain(RandomRows(train_config()), moe_config(), train_config()).batches(5)
    assert rows == {tuple(row) for row in whole[0].ids_BT.tolist()}


def test_baselines_and_fingerprint_are_those_of_the_data() -> None:
    baseline = Baseline(uniform=4.1, unigram=3.0, bigram=2.0, tokens=7, bytes=9)
    stage = pretrain(baselines=Baselines(total=baseline, domains={}), data_fingerprint="abc")
    assert stage.baselines() == {"uniform": 4.1, "unigram": 3.0, "bigram": 2.0}
    assert pretrain().baselines() == {}

    def named(config: TrainConfig, text: str) -> str:
        loader = RandomRows(config)
        return Pretrain(loader, moe_config(), config, data_fingerprint=text).fingerprint()

    base = named(train_config(), "abc")
    assert base == named(train_config(learning_rate=1.0, workers=3), "abc")
    others = [
        named(train_config(), "abd"),
        named(train_config(seed=1), "abc"),
        named(train_config(seq_len=8), "abc"),
        named(train_config(global_batch_size=16), "abc"),
        named(train_config(rampup_batch_size=2, rampup_steps=5), "abc"),
    ]
    assert len({base, *others}) == 6


@pytest.mark.parametrize("name", STAGES)
def test_stages_stand_in_the_table_under_their_name(name: str) -> None:
    assert STAGES[name].name == name
    assert issubclass(STAGES[name], Stage)
