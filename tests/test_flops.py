"""The ledgers: closed forms against PyTorch's counter, exactly, and against the products of the paper's own layout."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from slmlib import LinearConfig, MLPConfig, TransformerConfig, build, models, n_parameters
from slmlib.experiments import RESULTS, Store
from slmlib.flops import as_text, count_flops, flops_per_window, forward_flops, muon_flops
from slmlib.models import MLP, hidden_matrices

V = {"tiny_shakespeare": 65, "ptb": 9_999, "wikitext-2": 33_277, "ptb-eos": 10_000, "wikitext-2-eos": 33_278}
V["python-docs-2a95af4a"] = 103  # of Python 3.11
SMALL = TransformerConfig(context=12, d_model=16, heads=2, layers=2, ff_width=24)
VARIANTS = [
    replace(SMALL, norm=norm, positions=positions, layers=layers)
    for norm in ("post", "pre", "none")
    for positions in ("learned", "rope", "none")
    for layers in (1, 3)
] + [
    replace(SMALL, ff_width=0),
    replace(SMALL, residual=False),
    replace(SMALL, dropout_site="residual"),
    replace(SMALL, heads=1),
    replace(SMALL, context=1),
    replace(SMALL, dropout=0.0),
    replace(SMALL, ff_kind="relu2", norm_kind="rms", qk_norm=True, tied=True, zero_init=True, positions="rope"),
    replace(SMALL, previous=2),
    replace(SMALL, conv=3),
    replace(SMALL, conv=3, ff_width=0),
    replace(SMALL, conv=11),
    replace(SMALL, norm="pre", ff_width=0),
    replace(SMALL, norm="pre", positions="rope", conv=3),
    replace(SMALL, norm="pre", positions="none", conv=3, ff_width=0),
]


def counted(config, scored, batch=1, backward=True):
    model = build(config, 7, seed=0)
    tokens = torch.zeros(batch, config.context, dtype=torch.int64)
    return count_flops(model, tokens, tokens if scored == "every" else tokens[:, 0], backward)


COUNTED = [(config, scored) for config in VARIANTS for scored in ("last", "every")]
COUNTED += [(LinearConfig(5, 6), "last"), (MLPConfig(5, 6, 8), "last")]


@pytest.mark.parametrize(("config", "scored"), COUNTED, ids=str)
def test_every_kind_and_variant_is_counted_exactly(config, scored):
    assert flops_per_window(config, 7, scored=scored) == counted(config, scored)
    assert 3 * sum(forward_flops(config, 7, scored=scored).values()) == counted(config, scored, 3, backward=False)


def absorbed(attention, x):
    """Attention at the last position, (B, T, C) -> (B, 1, C), its products regrouped as the ledger says."""
    H, T = attention.heads, x.size(1)
    W_q, W_k, W_v = attention.qkv.weight.chunk(3)
    b_q, b_k, b_v = attention.qkv.bias.chunk(3)
    q = F.linear(x[:, -1:], W_q, b_q).unflatten(-1, (H, -1)).transpose(1, 2)  # (B, H, 1, D)
    D = q.size(-1)
    if attention.rotary is None:
        asked = (q[:, :, 0].transpose(0, 1) @ W_k.unflatten(0, (H, D))).transpose(0, 1)  # (B, H, C)
        scores = asked @ x.transpose(1, 2)
    else:
        k = F.linear(x, W_k, b_k).unflatten(-1, (H, -1)).transpose(1, 2)
        q, k = (  # positions come before heads there
            attention.rotary(t.transpose(1, 2), places).transpose(1, 2)
            for t, places in ((q, slice(T - 1, T)), (k, slice(0, T)))
        )
        scores = (q @ k.transpose(2, 3))[:, :, 0]
    answer = ((scores / D**0.5).softmax(-1) @ x).transpose(0, 1)  # (H, B, C)
    y = answer @ W_v.unflatten(0, (H, D)).transpose(1, 2)
    return attention.out(y.transpose(0, 1).flatten(1) + b_v)[:, None]


@pytest.mark.parametrize("positions", ["learned", "rope", "none"])
@pytest.mark.parametrize("shape", [{}, {"heads": 1}, {"context": 1}, {"context": 40, "heads": 4}], ids=str)
@pytest.mark.parametrize("backward", [True, False], ids=["training", "forward"])
def test_absorbed_is_what_regrouped_products_cost(positions, shape, backward):
    config = replace(SMALL, positions=positions, layers=1, **shape)
    attention = build(config, 7, seed=0).blocks[0].attention.eval()
    nn.init.normal_(attention.qkv.bias)  # zero at first, which would hide what becomes of it
    x = 1 * torch.randn(3, config.context, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = attention(x, slice(-1, None))
    with FlopCounterMode(display=False) as counter:
        y = absorbed(attention, x)
        if backward:
            torch.autograd.grad(y.sum(), [x, *attention.parameters()], allow_unused=True)
    torch.testing.assert_close(y, expected)
    parts = forward_flops(config, 7, "absorbed")
    of_attention = sum(parts.values()) - parts["feed-forward"] - parts["head"]
    assert counter.get_total_flops() == 3 * (3 if backward else 1) * of_attention


def test_only_the_last_layer_of_a_transformer_scored_at_one_position_absorbs():
    deep = replace(SMALL, layers=3)
    saved = [
        flops_per_window(config, 7, "needed") - flops_per_window(config, 7, "absorbed")
        for config in (replace(deep, layers=1), deep)
    ]
    assert saved[0] == saved[1] > 0
    assert flops_per_window(deep, 7, "absorbed", scored="every") == flops_per_window(deep, 7, "needed", scored="every")
    for config in (LinearConfig(), MLPConfig()):  # which need all that is written, too
        needed = forward_flops(config, 7, "needed")
        assert forward_flops(config, 7, "absorbed") == needed == forward_flops(config, 7, "written")


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_written_is_every_position_but_for_the_head(config):
    every = {ledger: forward_flops(config, 7, ledger, "every") for ledger in ("needed", "written")}
    last = {ledger: forward_flops(config, 7, ledger) for ledger in ("needed", "written")}
    assert every["needed"] == every["written"] == last["written"] | {"head": config.context * last["needed"]["head"]}
    needed, written = (sum(of.values()) for of in last.values())
    assert needed <= written and (needed < written) == (config.context > 1)


def test_a_kind_of_ones_own_costs_what_is_counted(monkeypatch):
    @dataclass(frozen=True)
    class TwiceConfig(MLPConfig):
        pass

    class Twice(MLP):
        def forward(self, tokens):
            return super().forward(tokens) + super().forward(tokens)

    monkeypatch.setitem(models.KINDS, "twice", (TwiceConfig, Twice))
    shape = {"context": 4, "d_model": 6, "hidden": 8}
    mlp = sum(forward_flops(MLPConfig(**shape), 7).values())
    assert forward_flops(TwiceConfig(**shape), 7) == {"counted": 2 * mlp}


def test_the_papers_figure_is_named_for_what_it_is():
    figure = 2 * n_parameters(build(SMALL, 7)).total * 12
    assert 3 * sum(forward_flops(SMALL, 7).values()) == flops_per_window(SMALL, 7)
    assert forward_flops(SMALL, 7, "paper") == {"2 · parameters · T": figure}
    assert flops_per_window(SMALL, 7, "paper") == figure  # which knows no backward pass


def test_counting_leaves_no_trace():
    model = build(SMALL, 7, seed=0).train()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    before = torch.get_rng_state()
    tokens = torch.zeros(2, 12, dtype=torch.int64)
    assert count_flops(model, tokens, tokens[:, 0]) == 2 * flops_per_window(SMALL, 7)
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "arguments", "named"),
    [
        (SMALL, {"ledger": "exact"}, "ledger"),
        (SMALL, {"scored": "all"}, "scored"),
        *((config, {"scored": "every"}, "every") for config in (LinearConfig(), MLPConfig())),
    ],
    ids=str,
)
def test_an_unknown_ledger_and_positions_that_a_model_does_not_score_are_named(config, arguments, named):
    with pytest.raises(ValueError, match=named):
        flops_per_window(config, 7, **arguments)


def test_the_committed_records_counted_what_the_closed_form_says():
    for record in (r for folder in RESULTS.iterdir() if folder.is_dir() for r in Store(folder)):
        e = record.experiment
        closed = flops_per_window(e.model, V[e.corpus], "needed", scored=e.training.scored)
        assert record.flops["counted"] == closed * e.training.epochs * e.training.windows_per_epoch, e.name


def test_flops_as_text():
    said = ", ".join(map(as_text, (1e11, 3e12, 2.54e13, 9.96e9, 250)))
    assert said == "10¹¹, 3 · 10¹², 2.5 · 10¹³, 10¹⁰, 2.5 · 10²".replace(" · ", "\xa0·\xa0")


@pytest.mark.parametrize("config", [MLPConfig(4, 8, 32), *VARIANTS[-16:]], ids=repr)  # the others have the same ones
def test_muons_own_products_are_those_that_pytorch_makes(config):
    matrices = hidden_matrices(build(config, 65, seed=0))
    for p in matrices:
        p.grad = torch.ones_like(p)
    with FlopCounterMode(display=False) as counter:
        torch.optim.Muon(matrices).step()
    assert counter.get_total_flops() == muon_flops(config) > 0
