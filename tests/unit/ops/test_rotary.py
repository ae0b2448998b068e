import pytest
import torch

from ziphius.ops.rotary import rotate_halves, rotate_pairs

ROTATIONS = {
    # which two numbers of a vector of 6 make frequency i's pair
    rotate_pairs: lambda i: (2 * i, 2 * i + 1),
    rotate_halves: lambda i: (i, i + 3),
}


def random_heads(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def turns(positions_BT):
    angles_BTr = positions_BT[..., None] * 10_000 ** (-torch.arange(3) / 3)
    return angles_BTr.cos(), angles_BTr.sin()


@pytest.mark.parametrize("rotate", ROTATIONS)
def test_rotation_turns_each_pair_as_a_complex_number(rotate):
    x_BTNR = random_heads(2, 5, 3, 6)
    positions_BT = torch.tensor([[0, 1, 2, 3, 4], [9, 3, 11, 0, 2]])
    rotated_BTNR = rotate(x_BTNR, *turns(positions_BT))
    for index in range(3):
        first, second = ROTATIONS[rotate](index)
        number_BTN = torch.complex(x_BTNR[..., first], x_BTNR[..., second])
        angle_BT = positions_BT * 10_000 ** (-index / 3)
        expected_BTN = number_BTN * torch.polar(torch.ones(2, 5), angle_BT)[..., None]
        actual_BTN = torch.complex(rotated_BTNR[..., first], rotated_BTNR[..., second])
        torch.testing.assert_close(actual_BTN, expected_BTN)


@pytest.mark.parametrize("rotate", ROTATIONS)
def test_scores_depend_on_distance_alone(rotate):
    query, key = random_heads(1, 2, 1, 6).chunk(2, dim=1)

    def score(query_position, key_position):
        turned = [
            rotate(x, *turns(torch.tensor([[position]])))
            for x, position in ((query, query_position), (key, key_position))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(9, 4), score(105, 100))
    assert (score(9, 4) - score(9, 5)).abs() > 0.01


@pytest.mark.parametrize("rotate", ROTATIONS)
def test_bfloat16_is_rotated_in_float32_and_rounded_once(rotate):
    rope = turns(torch.arange(40)[None])
    x_BTNR = random_heads(1, 40, 2, 6).bfloat16()
    assert torch.equal(rotate(x_BTNR, *rope), rotate(x_BTNR.float(), *rope).bfloat16())
