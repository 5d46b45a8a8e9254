"""What buys speed computes what PyTorch's own operations do."""

import pytest
import torch
from torch.optim import _muon

from slmlib import speed
from slmlib.models import LinearConfig, MLPConfig, build
from slmlib.windows import random_stream


def test_small_products_are_left_to_mkl(monkeypatch):
    monkeypatch.setattr(speed, "_onednn_is_exact", lambda: True)
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    with speed.fast_matmul(torch.device("cpu"), speed.LARGE - 1):
        assert matmul.fp32_precision == before
    with speed.fast_matmul(torch.device("cpu"), speed.LARGE):
        assert matmul.fp32_precision == ("bf16" if before == "none" else before)


@pytest.mark.parametrize("config", [LinearConfig(5, 4), MLPConfig(5, 4, 6)], ids=lambda c: type(c).__name__)
def test_a_table_of_the_first_layer_gives_the_same_logits(config):
    model, tokens = build(config, 7, seed=0).eval(), torch.randint(7, (9, 5), generator=random_stream(0, "windows"))
    with torch.no_grad():
        torch.testing.assert_close(model.tabulated()(tokens), model(tokens), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_muons_products_in_float32_are_those_in_bfloat16(shape, monkeypatch):
    speed.spare_muon_bfloat16()
    gradient, found = torch.randn(shape, generator=random_stream(0, "gradient")), {}
    for there in (False, True):
        monkeypatch.setattr(speed, "bfloat16_products", lambda there=there: there)
        found[there] = _muon._zeropower_via_newtonschulz(gradient, (3.4445, -4.775, 2.0315), 5, 1e-7)
    ours, theirs = found.values()
    assert (ours.dtype, theirs.dtype) == (torch.float32, torch.bfloat16)
    apart = (ours - theirs.float()).abs()
    assert apart.max() < 0.01 and apart.mean() < 2e-4  # the last bit of bfloat16, here and there
