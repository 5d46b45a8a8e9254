"""What buys speed computes what PyTorch's own operations do."""

import pytest
import torch
from torch import nn

from slmlib import speed
from slmlib.windows import random_stream


def test_small_products_are_left_to_mkl(monkeypatch):
    monkeypatch.setattr(speed, "_onednn_is_exact", lambda: True)
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    with speed.fast_matmul(torch.device("cpu"), speed.LARGE - 1):
        assert matmul.fp32_precision == before
    with speed.fast_matmul(torch.device("cpu"), speed.LARGE):
        assert matmul.fp32_precision == ("bf16" if before == "none" else before)


@pytest.mark.parametrize("there", [False, True])
def test_muon_on_stacks_is_pytorchs(there, monkeypatch):
    monkeypatch.setattr(speed, "bfloat16_products", lambda: there)
    shapes, stream = [(40, 90), (90, 40), (40, 90), (30, 30), (1, 5)], random_stream(0, "weights")
    start = [torch.randn(shape, generator=stream) for shape in shapes]
    ours, theirs = ([nn.Parameter(W.clone()) for W in start] for _ in range(2))
    optimisers = speed.Muon(ours, 0.01, 0.1), torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1)
    for _ in range(3):
        for W, same in zip(ours, theirs, strict=True):
            W.grad = torch.randn(W.shape, generator=stream)
            same.grad = W.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for W, same, was in zip(ours, theirs, start, strict=True):
        assert W.dtype == torch.float32
        assert (W - same).norm() < 0.02 * (same - was).norm()  # bfloat16's rounding
