import pytest
import torch
import torch.nn.functional as F

from tests.tiny import V2_EXPERTS, V3_EXPERTS, build, fill, latent_config, random_ids
from ziphius.models.attention.backend import AttentionMetadata
from ziphius.models.context import ForwardContext
from ziphius.models.moe import MixtureOfExperts
from ziphius.models.rope import Rope

CAPACITY = V2_EXPERTS | {"capacity_factor": 0.3}


def build_layer(experts):
    layer = MixtureOfExperts(latent_config(**experts), layer_idx=5)
    fill(layer, 0)
    return layer


def new_context():
    return ForwardContext(Rope(torch.empty(0), torch.empty(0)), AttentionMetadata(()))


def hidden(rows=12, length=4):
    width = latent_config().hidden_size
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(1))


def swiglu(x_D, gate_FD, up_FD, down_DF):
    return down_DF @ (F.silu(gate_FD @ x_D) * (up_FD @ x_D))


def plain(layer, x_BTD, routing):
    """Add up experts token by token, and the shared ones one by one."""
    width = layer.experts.down_proj.shape[-1]
    out_MD = []
    for x_D, experts_K, weights_K in zip(
        x_BTD.flatten(0, 1), routing.experts_MK, routing.weights_MK, strict=True
    ):
        out_D = torch.zeros_like(x_D)
        for expert, weight in zip(experts_K.tolist(), weights_K, strict=True):
            if expert < layer.gate.num_experts:
                gate_FD, up_FD = layer.experts.gate_up_proj[expert].chunk(2)
                out_D = out_D + weight * swiglu(
                    x_D, gate_FD, up_FD, layer.experts.down_proj[expert]
                )
        if layer.shared_experts is not None:
            shared = layer.shared_experts
            for part in range(shared.gate_proj.weight.shape[0] // width):
                rows = slice(part * width, (part + 1) * width)
                out_D = out_D + swiglu(
                    x_D,
                    shared.gate_proj.weight[rows],
                    shared.up_proj.weight[rows],
                    shared.down_proj.weight[:, rows],
                )
        out_MD.append(out_D)
    return torch.stack(out_MD).view_as(x_BTD)


@pytest.mark.parametrize(
    "experts",
    [V3_EXPERTS, V2_EXPERTS, V3_EXPERTS | {"n_shared_experts": 0}, CAPACITY],
    ids=["v3", "v2", "none shared", "capacity"],
)
def test_output_is_routed_and_shared_experts_added_up(experts):
    layer, context, x_BTD = build_layer(experts), new_context(), hidden()
    out_BTD = layer(x_BTD, context)
    assert context.routings.keys() == {5}
    torch.testing.assert_close(
        out_BTD, plain(layer, x_BTD, context.routings[5]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("experts", [V3_EXPERTS, V2_EXPERTS], ids=["one", "two"])
def test_shared_experts_are_one_layer_of_their_summed_width(experts):
    shared = build_layer(experts).shared_experts
    assert shared.up_proj.weight.shape[0] == experts["n_shared_experts"] * 12


def test_without_shared_experts_there_is_no_such_module():
    layer = build_layer(V3_EXPERTS | {"n_shared_experts": 0})
    assert not any("shared" in name for name in layer.state_dict())


def test_capacity_drops_in_training_and_never_in_evaluation():
    layer, x_BTD = build_layer(CAPACITY), hidden()
    kept = {}
    for training in (True, False):
        context = new_context()
        layer.train(training)(x_BTD, context)
        kept[training] = context.routings[5].counts().sum().item()
    pairs = 12 * 4 * 3
    # rows 0 and 10 of 12 are exempt, 24 pairs; each of 4 devices has room for 0.3 * 144 / 4 = 10
    assert kept[False] == pairs
    assert 24 <= kept[True] <= 4 * 10 + 24
    assert build_layer(V2_EXPERTS).train()(x_BTD, context) is not None
    assert context.routings[5].counts().sum().item() == pairs


def test_a_row_is_a_sequence_when_rows_are_exempt():
    layer, context = build_layer(CAPACITY | {"capacity_factor": 0.001}), new_context()
    layer.train()(hidden(), context)
    kept_BX = (context.routings[5].experts_MK < 8).view(12, -1)
    assert kept_BX.any(dim=1).tolist() == [row in (0, 10) for row in range(12)]
    assert kept_BX[[0, 10]].all()


def test_every_expert_layer_leaves_its_routing_and_dense_ones_none():
    config = latent_config(num_hidden_layers=4, num_nextn_predict_layers=1, **V3_EXPERTS)
    model = build(config)
    ids_BT = random_ids(2, 6, config.vocab_size)
    output = model(ids_BT)
    assert output.routings.keys() == {1, 2, 3}
    model.predict_mtp(output, ids_BT)
    assert output.routings.keys() == {1, 2, 3, 4}
    assert all(routing.counts().sum() == 2 * 6 * 2 for routing in output.routings.values())
