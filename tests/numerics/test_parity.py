"""Logits and gradients equal those of transformers, on random configs of every family.

Both sides run in float32 with the same weights, transformers from the config.json that ours writes
and with eager attention.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.figures import seen
from tests.numerics.oracles import CONFIGS, EXAMPLES, seeds, twin
from tests.tiny import assert_same_gradients, build, gradients, random_ids

LOGITS_TOLERANCE = 2e-5


@pytest.mark.parametrize("family", CONFIGS)
@EXAMPLES
@given(
    data=st.data(),
    seed=seeds,
    rows=st.integers(1, 3),
    length=st.integers(1, 24),
    # -4: all biased scores are negative, and a group masked with 0 would win over the best ones
    bias_shift=st.sampled_from([0.0, -4.0]),
)
def test_logits_and_gradients_equal_transformers(family, data, seed, rows, length, bias_shift):
    config = data.draw(CONFIGS[family], label="config")
    ours = build(config, seed, bias_shift=bias_shift)
    theirs = twin(ours)
    ids_BT = random_ids(rows, length, config.vocab_size, seed)

    actual_BTW = ours.logits(ours(ids_BT).hidden_BTD)
    expected_BTW = theirs(ids_BT).logits
    assert expected_BTW.abs().max() > 0.1
    difference = (actual_BTW - expected_BTW).abs().max()
    assert seen(f"logits against transformers, {family}", difference, LOGITS_TOLERANCE)

    weights_BTW = torch.randn(expected_BTW.shape, generator=torch.Generator().manual_seed(seed))
    (actual_BTW * weights_BTW).sum().backward()
    (expected_BTW * weights_BTW).sum().backward()
    figure = f"gradients against transformers, {family}, of each norm"
    assert_same_gradients(gradients(ours), gradients(theirs), figure)
