"""What buys speed computes what PyTorch's own operations do, gradients included."""

import pytest
import torch
from torch.nn import functional as F

from slmlib import speed
from slmlib.models import LinearConfig, MLPConfig, attention_weights, build
from slmlib.windows import random_stream

B, T, H, D = 5, 6, 2, 4


def double(*shape, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=stream).requires_grad_()


def dropping(p):
    layer = speed.Dropout(p)
    layer.generator = random_stream(0, "dropout")
    return layer.train()


@pytest.mark.parametrize(("stacked", "S"), [((3,), T), ((2, 1), T), ((1, 2), 1), ((1, 2), 2), ((1, 2), T)])
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("group", [1, 2, B])  # windows at a time
def test_attend_is_attention_written_out(stacked, S, p, group, monkeypatch):
    monkeypatch.setattr(speed, "_parts", lambda windows, _: [slice(i, i + group) for i in range(0, windows, group)])
    stacks = [double(B, S if stacked == (1, 2) and not i else T, n, H, D, seed=i) for i, n in enumerate(stacked)]
    q, k, v = (t.transpose(1, 2) for stack in stacks for t in stack.unbind(2))
    expected = (dropping(p)(attention_weights(q, k)) @ v).transpose(1, 2)
    y = speed.Attend.apply(dropping(p), *stacks)
    torch.testing.assert_close(y, expected)
    by = double(*y.shape, seed=9)
    for mine, theirs in zip(*(torch.autograd.grad(out, stacks, by) for out in (y, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("weighted", [True, False])
def test_root_mean_square_is_that_of_pytorch(weighted):
    x, weight = double(B, T, D), double(D, seed=1) if weighted else None
    given = [x, weight] if weighted else [x]
    expected, y = F.rms_norm(x, (D,), weight), speed.RootMeanSquare.apply(*given)
    torch.testing.assert_close(y, expected)
    by = double(*y.shape, seed=9)
    for mine, theirs in zip(*(torch.autograd.grad(out, given, by) for out in (y, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_squared_relu_has_the_gradient_of_a_square_of_a_relu():
    x = double(B, T)
    y, expected = speed.SquaredReLU.apply(x), F.relu(x).square()
    torch.testing.assert_close(y, expected)
    for mine, theirs in zip(*(torch.autograd.grad(out, x, double(B, T)) for out in (y, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


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
