import pytest
import torch

from ziphius.ops.precision import (
    compute_dtype,
    own_float32_products,
    prefer_onednn_for_float32,
)


def test_autocast_decides_the_dtype_where_it_is_on():
    x = torch.zeros(1)
    assert compute_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(x) == torch.bfloat16
    assert compute_dtype(x.double()) == torch.float64


def test_float32_products_stay_exact_whichever_library_is_taken():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    try:
        taken = prefer_onednn_for_float32()
        assert taken == (settings.fp32_precision == "bf16")
        a = torch.randn(300, 300, generator=torch.Generator().manual_seed(1))
        expected = a.double() @ a.double()
        assert ((a @ a) - expected).norm() <= 1e-6 * expected.norm()
    finally:
        settings.fp32_precision = before


@pytest.mark.parametrize("chosen", ["none", "ieee", "bf16"])
def test_the_choice_of_the_library_is_taken_back_inside_a_block_alone(chosen):
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = chosen
        with own_float32_products():
            assert settings.fp32_precision == "none"
            with own_float32_products():
                assert settings.fp32_precision == "none"
            assert settings.fp32_precision == "none"
        assert settings.fp32_precision == chosen
        with pytest.raises(ZeroDivisionError), own_float32_products():
            raise ZeroDivisionError
        assert settings.fp32_precision == chosen
    finally:
        settings.fp32_precision = before
