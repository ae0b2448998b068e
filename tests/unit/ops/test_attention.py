import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from ziphius.ops.attention import attend

SEEN = {
    "all": lambda t, s: True,
    "causal": lambda t, s: s <= t,
    "mask": lambda t, s: (t * 5 + s * 3) % 4 < 2 or s == t,
}


def plain(query_BNTH, key_BNSH, value_BNSV, seen, scale):
    scores_BNTS = query_BNTH @ key_BNSH.transpose(2, 3) * scale
    for t in range(scores_BNTS.shape[2]):
        for s in range(scores_BNTS.shape[3]):
            if not seen(t, s):
                scores_BNTS[:, :, t, s] = -math.inf
    return scores_BNTS.softmax(-1) @ value_BNSV


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize(("heads", "width", "value_width"), [(3, 12, 12), (1, 12, 7), (5, 9, 1)])
def test_values_and_gradients_equal_plain_softmax(seen, heads, width, value_width):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, 6, width), (2, heads, 6, width), (2, heads, 6, value_width)]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    weights_BNTV = torch.randn(2, heads, 6, value_width, generator=generator)
    mask_BTS = None
    if seen == "mask":
        mask_TS = torch.tensor([[SEEN[seen](t, s) for s in range(6)] for t in range(6)])
        mask_BTS = mask_TS.expand(2, 6, 6)

    results = []
    for fused in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        if fused:
            out = attend(*leaves, mask_BTS=mask_BTS, is_causal=seen == "causal", scale=0.6)
        else:
            out = plain(*leaves, SEEN[seen], 0.6)
        out.backward(weights_BNTV)
        results.append((out.detach(), *(leaf.grad for leaf in leaves)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_each_row_has_a_mask_of_its_own():
    query = torch.randn(2, 3, 1, 4)
    value_BNSV = torch.arange(2.0).expand(2, 3, 4, 2).transpose(2, 3)
    mask_BTS = torch.tensor([[[True, False]], [[False, True]]])
    key = torch.randn(2, 3, 2, 4)
    out = attend(query, key, value_BNSV, mask_BTS=mask_BTS, is_causal=False, scale=1.0)
    assert out[0].eq(0).all()
    assert out[1].eq(1).all()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("new_tokens", [1, 3, 9])  # more than a query is wide: not folded
def test_heads_of_a_group_share_keys_and_values(groups, new_tokens):
    query_BNTH = torch.randn(2, 4, new_tokens, 6)
    key_BGSH, value_BGSV = torch.randn(2, groups, 5, 6), torch.randn(2, groups, 5, 3)
    mask_BTS = torch.rand(2, new_tokens, 5) < 0.5
    mask_BTS[..., 0] = True

    def of(key, value):
        return attend(query_BNTH, key, value, mask_BTS=mask_BTS, is_causal=False, scale=0.6)

    repeated = (x.repeat_interleave(4 // groups, 1) for x in (key_BGSH, value_BGSV))
    torch.testing.assert_close(of(key_BGSH, value_BGSV), of(*repeated))


def peak_bytes(run):
    """Follow the allocations of a run to their highest sum."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return max(itertools.accumulate(size for _, size in sorted(changes, key=lambda it: it[0])))


@pytest.mark.parametrize("queries", [64, 200])  # folded into one head, and too many for that
def test_a_key_that_many_heads_share_is_not_copied_for_each(queries):
    heads, keys, width = 16, 4_096, 128
    query_BNTH, row_B1SH = torch.randn(1, heads, queries, width), torch.randn(1, 1, keys, width)
    mask_BTS = torch.ones(1, queries, keys, dtype=torch.bool)
    arguments = {"mask_BTS": mask_BTS, "is_causal": False, "scale": 0.1}
    peak = peak_bytes(lambda: attend(query_BNTH, row_B1SH, row_B1SH, **arguments))
    assert peak < heads * row_B1SH.nbytes


def test_values_wider_than_queries_are_refused():
    query, value = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2, 5)
    with pytest.raises(AssertionError, match="wider"):
        attend(query, query, value, mask_BTS=None, is_causal=False, scale=1.0)


@pytest.fixture
def library():
    """Chooses what multiplies float32 matrices, as `prefer_onednn_for_float32` does."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    yield settings
    settings.fp32_precision = before


@pytest.mark.parametrize(("groups", "value_width"), [(4, 32), (4, 16), (1, 32)])
@pytest.mark.parametrize("new_tokens", [1, 7])
def test_decoding_is_the_same_whichever_library_multiplies(
    groups, value_width, new_tokens, library
):
    generator = torch.Generator().manual_seed(3)
    query_BNTH = torch.randn(64, 4, new_tokens, 32, generator=generator)
    key_BGSH = torch.randn(64, groups, 50, 32, generator=generator)
    value_BGSV = torch.randn(64, groups, 50, value_width, generator=generator)
    mask_BTS = torch.rand(64, new_tokens, 50, generator=generator) < 0.7
    mask_BTS[..., 0] = True

    def attended(chosen, dtype=torch.float32):
        library.fp32_precision = chosen
        inputs = (x.to(dtype) for x in (query_BNTH, key_BGSH, value_BGSV))
        found = attend(*inputs, mask_BTS=mask_BTS, is_causal=False, scale=0.2)
        assert library.fp32_precision == chosen
        return found

    exact = attended("none", torch.float64).float()
    for chosen in ("none", "bf16"):
        torch.testing.assert_close(attended(chosen), exact, rtol=1e-5, atol=1e-5)


def test_the_fused_kernel_takes_the_default_library_and_gives_the_other_back(library, monkeypatch):
    library.fp32_precision = "bf16"
    seen = []

    def fails(*args, **options):
        seen.append(library.fp32_precision)
        raise ZeroDivisionError

    monkeypatch.setattr(F, "scaled_dot_product_attention", fails)
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ZeroDivisionError):
        attend(x, x, x, mask_BTS=None, is_causal=True, scale=1.0)
    assert (seen, library.fp32_precision) == (["none"], "bf16")
