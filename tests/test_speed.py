"""What buys speed computes what PyTorch's own operations do."""

import pytest
import torch
from torch import nn

from slmlib import recipes, speed
from slmlib.experiments import machine
from slmlib.models import build
from slmlib.training import Run, TrainingConfig
from slmlib.windows import random_stream


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


def test_a_compiled_step_has_the_loss_and_gradients_of_the_step_dropout_and_all(monkeypatch):
    inductor = pytest.importorskip("torch._inductor.config")
    monkeypatch.setattr(inductor, "cpp_cache_precompile_headers", False)  # which takes longer than it saves here
    monkeypatch.setattr(inductor.cpp, "vec_isa_ok", True)  # what the processor says is taken as read, not compiled
    config = recipes.model("blocks", {"width": 16, "layers": 1, "context": 8, "dropout": 0.5, "conv": 2})
    training = TrainingConfig(batch=4, scored="every")
    windows = torch.randint(65, (4, 9), generator=random_stream(0, "windows"))
    found, before = [], torch.random.get_rng_state()
    for asked in ("0", "1"):
        monkeypatch.setenv("SLMLIB_COMPILE", asked)
        assert machine().get("compiled", False) == (asked == "1")
        try:
            run = Run(build(config, 65, seed=0), training, seed=0)
        except ValueError as error:
            pytest.skip(str(error))
        for p in run.model.parameters():  # nothing at zero, where a branch would hide
            nn.init.normal_(p, std=0.1, generator=random_stream(p.numel(), "initialisation"))
        losses = [run.loss(windows), run.loss(windows[:3]), run.loss(windows)]
        assert losses[0] != losses[2]  # other units are dropped
        sum(losses).backward()
        found.append([*losses, *(p.grad for p in run.model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not all(torch.equal(*both) for both in zip(*found, strict=True))  # it was compiled
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_cannot_be_compiled_is_said(monkeypatch):
    def compile_(of):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", compile_)
    assert speed.compiled(len) is len
    monkeypatch.setenv("SLMLIB_COMPILE", "1")
    with pytest.raises(ValueError, match=r"SLMLIB_COMPILE is 1, but .* install a C"):
        speed.compiled(len)
    monkeypatch.setenv("SLMLIB_COMPILE", "yes")
    with pytest.raises(ValueError, match="SLMLIB_COMPILE is 'yes'"):
        speed.compiled(len)
