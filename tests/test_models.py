import math
import re
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from slmlib import paper
from slmlib.models import (
    Dropout,
    LinearConfig,
    MLPConfig,
    TransformerConfig,
    attention_weights,
    build,
    generate,
    hidden_matrices,
    n_parameters,
)

V, T, B = 11, 8, 3
SMALL = TransformerConfig(context=T, d_model=16, heads=4, layers=2, ff_width=24)
VOCABULARY = {"tiny_shakespeare": 65, "ptb": 9_999, "wikitext-2": 33_277}
ARCHITECTURES = (LinearConfig(context=T, d_model=6), MLPConfig(context=T, d_model=6, hidden=10), SMALL)
kinds = pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda c: type(c).__name__)
norms = pytest.mark.parametrize("norm", ["post", "pre", "none"])
positions = pytest.mark.parametrize("positions", ["learned", "rope", "none"])


def make(config, seed=0, scale=0.1):
    """A model in evaluation mode, moved off its initialisation so that biases and LayerNorms count."""
    model = build(config, V, seed=seed).eval()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return model


def ids(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# Parameter counts


@pytest.mark.parametrize("run", paper.RUNS, ids=lambda run: run.label)
def test_parameter_counts_are_the_papers(run):
    vocab_size = VOCABULARY[run.corpus]
    count = n_parameters(build(run.model, vocab_size))
    assert count.total == run.params
    tables = vocab_size + (run.model.context if getattr(run.model, "positions", None) == "learned" else 0)
    assert count.without_embeddings == run.params - tables * run.model.d_model


def test_all_of_the_papers_runs_are_there():
    groups = {"main": 4, "context": 3, "width": 3, "heads": 3, "depth": 3, "rope": 2, "words": 2}
    assert {group: sum(run.group == group for run in paper.RUNS) for group in groups} == groups
    assert len({run.label for run in paper.RUNS}) == len(paper.RUNS) == 20


# The same function as a model of PyTorch's own layers


class Reference(nn.Module):
    """What TransformerConfig describes, from PyTorch's layers; RoPE as a turn of complex numbers."""

    def __init__(self, c):
        super().__init__()

        def each(make_layer):
            return nn.ModuleList(make_layer() for _ in range(c.layers))

        def norm():
            return nn.Identity() if c.norm == "none" else nn.LayerNorm(c.d_model)

        self.c, ff = c, c.ff_width > 0
        self.embed = nn.Embedding(V, c.d_model)
        self.positions = nn.Embedding(c.context, c.d_model) if c.positions == "learned" else None
        self.attention = each(lambda: nn.MultiheadAttention(c.d_model, c.heads, batch_first=True))
        self.norm1 = each(norm)
        self.norm2 = each(norm) if ff else None
        self.up = each(lambda: nn.Linear(c.d_model, c.ff_width)) if ff else None
        self.gate = each(lambda: nn.Linear(c.d_model, c.ff_width)) if ff and c.ff_kind == "swiglu" else None
        self.down = each(lambda: nn.Linear(c.ff_width, c.d_model)) if ff else None
        self.norm = norm()
        self.head = nn.Linear(c.d_model, V)

    def forward(self, tokens):
        """Logits at every position, and every layer's attention weights."""
        x, maps = self.embed(tokens), []
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.size(1)))
        for layer in range(self.c.layers):
            x = self.branch(x, self.norm1[layer], lambda z, layer=layer: self.attend(z, self.attention[layer], maps))
            if self.up is not None:
                x = self.branch(x, self.norm2[layer], lambda z, layer=layer: self.feed_forward(z, layer))
        return self.head(self.norm(x)), torch.stack(maps)

    def branch(self, x, norm, sublayer):
        y = sublayer(norm(x) if self.c.norm == "pre" else x) + (x if self.c.residual else 0)
        return y if self.c.norm == "pre" else norm(y)

    def feed_forward(self, x, layer):
        h = self.up[layer](x)
        h = h.relu() if self.gate is None else h * (g := self.gate[layer](x)) * g.sigmoid()
        return self.down[layer](h)

    def attend(self, x, attention, maps):
        future = torch.full((x.size(1), x.size(1)), -torch.inf).triu(1)
        if self.c.positions != "rope":
            y, weights = attention(x, x, x, attn_mask=future, average_attn_weights=False)
        else:
            D = self.c.d_model // self.c.heads
            qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
            q, k, v = qkv.view(*x.shape[:2], 3, self.c.heads, D).permute(2, 0, 3, 1, 4)
            angle = torch.arange(x.size(1))[:, None] * 10_000.0 ** (-2 * torch.arange(D // 2) / D)
            turn = torch.polar(torch.ones_like(angle), angle)
            q, k = (torch.complex(z[..., : D // 2], z[..., D // 2 :]) * turn for z in (q, k))
            scores = torch.einsum("bhsd,bhtd->bhst", q, k.conj()).real / math.sqrt(D)
            weights = (scores + future).softmax(-1)
            y = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
        maps.append(weights)
        return y

    def twin(self, name):
        """This module's parameter for the name of one of ours."""
        name = re.sub(r"blocks\.(\d+)\.attention\.(qkv\.|out\.)", r"attention.\1.\2", name)
        name = name.replace("qkv.", "in_proj_").replace("out.", "out_proj.")
        return self.get_parameter(re.sub(r"blocks\.(\d+)\.(?:feed_forward\.)?(\w+)\.", r"\2.\1.", name))


def pair(config):
    model, reference = make(config), Reference(config).eval()
    theirs = {name: reference.twin(name) for name, _ in model.named_parameters()}
    assert {id(p) for p in theirs.values()} == {id(p) for p in reference.parameters()}  # all of them, each once
    with torch.no_grad():
        for name, p in model.named_parameters():
            theirs[name].copy_(p)
    return model, reference, theirs


GRID = [
    replace(SMALL, norm=norm, positions=where, ff_kind=ff_kind, layers=layers)
    for norm in ("post", "pre")
    for where in ("learned", "rope", "none")
    for ff_kind in ("relu", "swiglu")
    for layers in (1, 3)
]
PARTS_TAKEN_OUT = [
    replace(SMALL, **change)
    for change in ({"norm": "none"}, {"residual": False}, {"ff_width": 0}, {"heads": 1}, {"norm": "pre", "ff_width": 0})
]


@pytest.mark.parametrize(
    "config", GRID + PARTS_TAKEN_OUT, ids=lambda c: f"{c.norm}-{c.positions}-{c.ff_kind}-{c.layers}"
)
def test_transformer_equals_pytorchs_own_layers(config):
    model, reference, theirs = pair(config)
    tokens, targets = ids(B, T), ids(B, seed=1)
    expected, maps = reference(tokens)
    F.cross_entropy(expected[:, -1], targets).backward()
    for every_position in (False, True):
        model.zero_grad()
        logits = model(tokens, every_position=every_position)
        close(logits, expected if every_position else expected[:, -1], 1e-5)
        F.cross_entropy(logits[:, -1] if every_position else logits, targets).backward()
        for name, p in model.named_parameters():
            close(p.grad, theirs[name].grad, 1e-4)
    close(model.attention_maps(tokens), maps, 1e-5)


@pytest.mark.parametrize("config", ARCHITECTURES[:2], ids=lambda c: type(c).__name__)
def test_linear_and_mlp_equal_their_formulas(config):
    model, tokens = make(config), ids(B, T)
    p = dict(model.named_parameters())
    x = p["embed.weight"][tokens].reshape(B, -1)
    if isinstance(config, MLPConfig):
        for layer in (0, 3):
            x = (x @ p[f"hidden.{layer}.weight"].T + p[f"hidden.{layer}.bias"]).clamp(min=0)
    expected = x @ p["head.weight"].T + p["head.bias"]
    close(model(tokens), expected, 1e-5)
    ours, theirs = (torch.autograd.grad(z.logsumexp(-1).sum(), p.values()) for z in (model(tokens), expected))
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-4)


# Initialisation


def assert_uniform(weight, bound):
    assert 0.98 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_small_embeddings_are_the_same_draws_made_smaller(positions):
    unit, small = (
        build(TransformerConfig(layers=1, positions=positions, embed_init=init), V, seed=0).state_dict()
        for init in ("unit", "small")
    )
    tables = {"embed.weight", "positions.weight"} & set(unit)
    assert len(tables) == 1 + (positions == "learned")
    for name in unit:
        assert torch.equal(small[name], unit[name] * 0.02 if name in tables else unit[name]), name


@pytest.mark.parametrize("qkv_init", ["xavier", "linear"])
def test_attention_starts_as_the_paper_initialises_it(qkv_init):
    C = 128
    a = build(TransformerConfig(layers=1, qkv_init=qkv_init), V, seed=0).blocks[0].attention
    by_fan_in = 1 / math.sqrt(C)  # nn.Linear's default, for weights and biases
    assert_uniform(a.out.weight, by_fan_in)
    if qkv_init == "xavier":
        assert_uniform(a.qkv.weight, math.sqrt(6 / (C + 3 * C)))
        assert_uniform(nn.MultiheadAttention(C, 4).in_proj_weight, math.sqrt(6 / (C + 3 * C)))
        assert not a.qkv.bias.any()
        assert not a.out.bias.any()
    else:  # three separate projections from C to C
        for part in a.qkv.weight.chunk(3):
            assert_uniform(part, by_fan_in)
        assert 0.9 * by_fan_in < a.qkv.bias.abs().max() <= by_fan_in
        assert 0.9 * by_fan_in < a.out.bias.abs().max() <= by_fan_in


def test_the_other_layers_start_at_pytorchs_defaults():
    model = build(TransformerConfig(layers=1), 65, seed=0)
    block = model.blocks[0]
    for embedding in (model.embed, model.positions):
        assert embedding.weight.std().item() == pytest.approx(1, rel=0.05)
    for layer in (block.feed_forward.up, block.feed_forward.down, model.head):
        assert_uniform(layer.weight, 1 / math.sqrt(layer.in_features))
        assert layer.bias.any()
    for norm in (block.norm1, block.norm2, model.norm):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


# Dropout


def dropped(p, *shape, seed=0):
    """What is left of ones."""
    torch.manual_seed(seed)
    return Dropout(p)(torch.ones(shape))


def about(expected, std):
    return pytest.approx(expected, abs=5 * std)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    n = 400_003
    y = dropped(p, n)
    assert (y == 0).double().mean().item() == about(p, math.sqrt(p * (1 - p) / n))
    assert y.double().mean().item() == about(1, math.sqrt(p / (1 - p) / n))
    (kept,) = y[y != 0].unique().tolist()
    assert kept == pytest.approx(1 / (1 - p), rel=1e-4)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_four_draws_of_a_random_number_are_independent(p):
    n = 100_000
    out = (dropped(p, n, 4) == 0).double()
    for lane in out.T:
        assert lane.mean().item() == about(p, math.sqrt(p * (1 - p) / n))
    neighbours = torch.cat((out[:-1], out[1:]), dim=1).T  # a word's four and the next word's
    assert (neighbours.corrcoef() - torch.eye(8)).abs().max() < 5 / math.sqrt(n)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (2**-18, True), (0.0, False), (0.5, False), (0.999, False)])
def test_dropout_that_drops_nothing_gives_back_its_input(p, training):
    x = torch.ones(7)
    before = torch.get_rng_state()
    assert Dropout(p).train(training)(x) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [1 - 2**-15, 1 - 1e-12, math.nextafter(1, 0)])
def test_dropout_of_nearly_everything_is_finite(p):
    y = dropped(p, 2**20)  # a few are kept, times 2^15 or 2^16
    assert y.isfinite().all()
    assert 0 < (y != 0).sum() < 100


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2,), (3,), (5,), (3, 5, 7), (2, 0, 3), (4, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_keeps_shape_and_type_whatever_the_size(shape, dtype):
    torch.manual_seed(0)
    x = 1 + torch.rand(shape, dtype=dtype)
    y = Dropout(0.5)(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert ((y == 0) | (y == 2 * x)).all()
    drops = torch.stack([Dropout(0.5)(x) == 0 for _ in range(30)])
    assert drops.any(0).all()  # each of them now and then
    assert not drops.all(0).any()


def test_dropout_takes_what_is_not_contiguous():
    x = torch.rand(6, 5).T[::2] + 1
    assert not x.is_contiguous()
    torch.manual_seed(0)
    y = Dropout(0.5)(x)
    assert ((y == 0) | (y == 2 * x)).all()


def test_the_gradient_of_dropout_is_its_mask():
    x = torch.randn(1001, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.manual_seed(0)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert torch.equal(x * x.grad, y)
    assert len(x.grad.unique()) == 2


def test_dropout_follows_the_default_generator():
    assert torch.equal(dropped(0.5, 99), dropped(0.5, 99))
    assert not torch.equal(dropped(0.5, 99), dropped(0.5, 99, seed=1))
    assert not torch.equal(dropped(0.5, 99), Dropout(0.5)(torch.ones(99)))  # the second call after one seed


def test_dropout_at_the_attention_site_drops_attention_weights():
    """With equal values everywhere each head's output is its value times the sum of the weights it kept."""
    config = replace(SMALL, dropout=0.5, dropout_site="attention")
    attention = build(config, V, seed=0).blocks[0].attention
    with torch.no_grad():
        attention.out.weight.copy_(torch.eye(config.d_model))
    x = torch.randn(1, 1, config.d_model, generator=torch.Generator().manual_seed(0)).expand(50, T, -1)
    value = F.linear(x, attention.qkv.weight[-config.d_model :])
    torch.manual_seed(0)
    kept = (attention(x) / value).unflatten(-1, (config.heads, -1))
    close(kept, kept[..., :1].expand_as(kept), 1e-4)  # one number a head and position: no coordinate is dropped alone
    first = kept[:, 0, :, 0]  # position 0 has one weight: dropped, or kept and doubled
    close(first, 2 * first.div(2).round(), 1e-4)
    assert 0.3 < (first > 1).float().mean() < 0.7
    assert kept.mean().item() == pytest.approx(1, abs=0.1)
    attention.eval()
    close(attention(x), value, 1e-5)


@pytest.mark.parametrize(("site", "copies"), [("attention", 1), ("residual", 2)])
def test_dropout_at_the_residual_site_drops_branch_outputs(site, copies):
    """The feed-forward branch is dropped out once by itself, once more at the residual site; attention's as it says."""
    config = replace(SMALL, dropout=0.5, dropout_site=site, norm="none", residual=False)
    block = build(config, V, seed=0).blocks[0]
    x = torch.randn(200, T, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    assert (block(x) == 0).float().mean().item() == pytest.approx(1 - 0.5**copies, abs=0.02)
    block.feed_forward = None
    assert (block(x) == 0).float().mean().item() == pytest.approx(0.5 * (copies - 1), abs=0.02)
    once, again = block.attention(x), block.attention(x)
    assert torch.equal(once, again) == (site == "residual")
    block.eval()
    assert torch.equal(block(x), block.attention(x))


@pytest.mark.parametrize("config", ARCHITECTURES[1:], ids=lambda c: type(c).__name__)
def test_dropout_is_on_in_training_and_off_in_evaluation(config):
    model, tokens = make(replace(config, dropout=0.5)), ids(B, T)
    assert torch.equal(model(tokens), model(tokens))
    close(model(tokens), make(replace(config, dropout=0.0)).train()(tokens), 1e-6)
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_the_mlp_drops_out_each_hidden_layer():
    model = make(replace(ARCHITECTURES[1], dropout=0.9)).train()
    zeros = []
    for layer, module in enumerate(model.hidden):
        module.register_forward_hook(lambda _m, _i, out, layer=layer: zeros.append((layer, (out == 0).float().mean())))
    model(ids(200, T))
    share = dict(zeros)
    assert share[2] > 0.85 > share[1]  # after the first ReLU
    assert share[5] > 0.85 > share[4]  # after the second


# What is built today

TODAY = replace(
    SMALL,
    **{"norm": "pre", "norm_kind": "rms", "positions": "rope", "qk_norm": True, "ff_kind": "relu2"},
    **{"dropout_site": "residual", "qkv_init": "linear", "zero_init": True},
)


def test_a_block_of_today_equals_its_formula():
    model = make(replace(TODAY, layers=1, positions="none"))
    block, x = model.blocks[0], model.embed(ids(B, T))
    attention, ff = block.attention, block.feed_forward

    def rms(x, gain=1.0):
        return x / x.square().mean(-1, keepdim=True).add(torch.finfo(x.dtype).eps).sqrt() * gain

    q, k, v = attention.qkv(rms(x, block.norm1.weight)).view(B, T, 3, 4, 4).permute(2, 0, 3, 1, 4)
    scores = rms(q) @ rms(k).transpose(-1, -2) / 4**0.5
    mixed = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1) @ v
    y = x + attention.out(mixed.transpose(1, 2).flatten(2))
    y = y + ff.down(ff.up(rms(y, block.norm2.weight)).clamp(min=0) ** 2)
    close(model(ids(B, T), every_position=True), model.head(rms(y, model.norm.weight)), 1e-5)


def test_blocks_that_start_at_zero_start_as_the_identity():
    model, other = (build(replace(TODAY, zero_init=zero), V, seed=0) for zero in (True, False))
    x = torch.randn(B, T, 16)
    assert torch.equal(model.blocks[0](x), x)
    assert not torch.equal(other.blocks[0](x), x)


def test_a_tied_head_is_the_embedding_and_counted_once():
    model, other = (build(replace(TODAY, tied=tied), V, seed=0) for tied in (True, False))
    assert model.head.weight is model.embed.weight
    assert n_parameters(other).total - n_parameters(model).total == V * 16
    assert n_parameters(other).without_embeddings == n_parameters(model).without_embeddings


@pytest.mark.parametrize("config", [*ARCHITECTURES, TODAY, replace(TODAY, tied=True)])
def test_hidden_matrices_lie_between_embedding_and_head(config):
    model = build(config, V)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for p in hidden_matrices(model)}
    assert found == {n for n in names.values() if n.endswith("weight") and n.startswith(("hidden", "blocks"))} - {
        n for n in names.values() if ".norm" in n
    }


# Causality, and scoring the last position only


@norms
@positions
@pytest.mark.parametrize("base", [SMALL, TODAY], ids=["paper", "today"])
def test_no_position_sees_its_future(norm, positions, base):
    model = make(replace(base, norm=norm, positions=positions))
    leaf = model.embed(ids(B, T)).detach().requires_grad_()
    model.embed.register_forward_hook(lambda *_: leaf)
    logits = model(ids(B, T), every_position=True)
    for t in range(T):
        [grad] = torch.autograd.grad(logits[:, t].square().sum(), leaf, retain_graph=True)
        assert (grad[:, t + 1 :] == 0).all()
        assert (grad[:, : t + 1] != 0).any(-1).all()  # and it sees all of its past


@norms
@positions
@pytest.mark.parametrize("length", [1, 5, T])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("base", [SMALL, TODAY], ids=["paper", "today"])
def test_scoring_the_last_position_equals_scoring_every_position(norm, positions, length, mode, base):
    site = "residual" if norm == "pre" else "attention"
    model = make(replace(base, norm=norm, positions=positions, dropout=0.0, dropout_site=site)).train(mode == "train")
    tokens, targets, grads = ids(B, length), ids(B, seed=1), []
    last, every = model(tokens), model(tokens, every_position=True)
    assert (last.shape, every.shape) == ((B, V), (B, length, V))
    close(last, every[:, -1], 1e-5)
    for logits in (last, every[:, -1]):
        grads.append(torch.autograd.grad(F.cross_entropy(logits, targets), model.parameters()))
    for a, b in zip(*grads, strict=True):
        close(a, b, 1e-5)


def test_the_last_block_computes_only_what_the_scored_position_needs():
    model, C, W = make(replace(SMALL, layers=1)), SMALL.d_model, SMALL.ff_width
    for every_position, scored in ((False, 1), (True, T)):
        with FlopCounterMode(display=False) as counter:
            model(ids(B, T), every_position=every_position)
        per_scored = C * C + C * C + 2 * C * W + C * V  # query, attention output, feed-forward, head
        projections = 2 * B * (scored * per_scored + T * 2 * C * C)  # and keys and values everywhere
        attention = 2 * 2 * B * scored * T * C  # scores and weighted sum, where the counter counts them
        assert counter.get_total_flops() in (projections, projections + attention)


@pytest.mark.parametrize("positions", ["rope", "none", "learned"])
def test_attention_depends_on_relative_positions_alone_unless_positions_are_learned(positions):
    model = make(replace(SMALL, layers=1, positions=positions), scale=0.5)
    tokens, shift = ids(B, 5), 3
    here = model.attention_maps(tokens)
    there = model.attention_maps(torch.cat((ids(B, shift, seed=1), tokens), 1))[..., shift:, shift:]
    there = there / there.sum(-1, keepdim=True)  # what went to the tokens in front, left out
    difference = (here - there).abs().max()
    assert difference > 0.01 if positions == "learned" else difference < 1e-5


def test_rope_depends_on_the_distance():
    one_token = torch.zeros(1, T, dtype=torch.long)  # the same content everywhere
    for positions, varies in (("none", False), ("rope", True)):
        row = make(replace(SMALL, layers=1, positions=positions), scale=0.5).attention_maps(one_token)[..., -1, :]
        assert (row.std() > 1e-3) == varies


@pytest.mark.parametrize("length", [1, 5, T])
def test_attention_maps_are_causal_distributions(length):
    maps = make(replace(SMALL, layers=3)).attention_maps(ids(B, length))
    assert maps.shape == (3, B, SMALL.heads, length, length)
    close(maps.sum(-1), torch.ones(maps.shape[:-1]), 1e-5)
    assert (maps.triu(1) == 0).all()
    assert (maps.tril() == maps).all()
    assert not maps.requires_grad


def test_attention_maps_are_those_of_evaluation_whatever_the_mode():
    model = make(replace(SMALL, dropout=0.5))
    maps = model.attention_maps(ids(B, T))
    assert torch.equal(model.train().attention_maps(ids(B, T)), maps)
    assert model.training


@pytest.mark.parametrize("S", [1, 2, 5, T])
def test_attention_weights_are_those_of_pytorch(S):
    """With one value a position, a unit vector, what attention gives are its weights."""
    H, D, g = 2, 6, torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(B, H, S, D, generator=g),
        torch.randn(B, H, T, D, generator=g),
        torch.eye(T).expand(B, H, T, T),
    )
    past = torch.arange(T) <= torch.arange(T - S, T)[:, None]
    a = attention_weights(q, k)
    close(a, F.scaled_dot_product_attention(q, k, v, attn_mask=past), 1e-6)
    if S == T:
        close(a, F.scaled_dot_product_attention(q, k, v, is_causal=True), 1e-6)
    assert (a[..., ~past] == 0).all()
    assert (a[..., past] > 0).all()
    close(a.sum(-1), torch.ones(B, H, S), 1e-6)
    close(a, attention_weights(torch.cat((torch.randn(B, H, T - S, D), q), 2), k)[..., -S:, :], 1e-6)


def test_attention_weights_stand_large_scores():
    q = torch.tensor([300.0, -300.0]).expand(1, 1, 4, 2)
    close(attention_weights(q, q), torch.ones(4, 4).tril().div(torch.arange(1, 5)[:, None])[None, None], 1e-6)


@kinds
def test_tokens_of_the_wrong_shape_are_refused(config):
    model = make(config)
    shapes = [(T,), (B, T + 1), (B, 0)] + ([] if config is SMALL else [(B, T - 1)])
    for shape in shapes:
        with pytest.raises(ValueError, match=rf"tokens must be .*{T}.*got \({shape[0]},"):
            model(ids(*shape))


# Configs


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        *((LinearConfig, "context", value) for value in (0, -1, 1.5, 8.0, True, "8", None)),
        (LinearConfig, "d_model", 0),
        (MLPConfig, "hidden", 0),
        *((MLPConfig, "dropout", value) for value in (1.0, 1, -0.1, math.nan, "0.1", None)),
        *((TransformerConfig, field, 0) for field in ("context", "d_model", "heads", "layers")),
        (TransformerConfig, "ff_width", -1),
        (TransformerConfig, "ff_kind", "gelu"),
        (TransformerConfig, "dropout", 1.5),
        (TransformerConfig, "dropout_site", "everywhere"),
        (TransformerConfig, "norm", None),
        (TransformerConfig, "positions", "RoPE"),
        (TransformerConfig, "residual", 1),
        (TransformerConfig, "qkv_init", ["xavier"]),
        (TransformerConfig, "embed_init", 0.02),
        *((TransformerConfig, name, 1) for name in ("qk_norm", "tied", "zero_init")),
        (TransformerConfig, "norm_kind", "batch"),
    ],
)
def test_a_bad_field_is_named_with_its_value(config, field, value):
    with pytest.raises(ValueError) as error:
        config(**{field: value})
    assert f"{config.__name__}.{field}" in str(error.value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"d_model": 16, "heads": 3}, ("heads=3", "d_model=16")),
        ({"d_model": 12, "heads": 4, "positions": "rope"}, ("positions='rope'", "12 / 4 = 3")),
    ],
)
def test_fields_that_do_not_fit_each_other_are_named(fields, named):
    with pytest.raises(ValueError) as error:
        TransformerConfig(**fields)
    assert all(words in str(error.value) for words in named)


@kinds
def test_configs_are_frozen_and_hashable(config):
    twin, other = replace(config), replace(config, context=T + 1)
    assert twin == config != other
    assert hash(twin) == hash(config)
    assert {config, twin, other} == {config, other}
    with pytest.raises(FrozenInstanceError):
        config.context = 3


# build


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@kinds
def test_build_depends_on_its_seed_alone_and_leaves_the_global_generator(config):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(build(config, V, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(weights(build(config, V, seed=5)), first)
    assert not torch.equal(weights(build(config, V, seed=6)), first)


@kinds
def test_build_without_a_seed_uses_the_global_generator(config):
    torch.manual_seed(1)
    first, second = weights(build(config, V)), weights(build(config, V))
    torch.manual_seed(1)
    assert torch.equal(weights(build(config, V)), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("config", [LinearConfig, {"context": 8}, None])
def test_build_refuses_what_is_not_a_config(config):
    with pytest.raises(TypeError, match="LinearConfig, MLPConfig or TransformerConfig"):
        build(config, V)


@pytest.mark.parametrize("vocab_size", [0, -1, 65.0, True, "65", None])
def test_build_refuses_a_bad_vocabulary_size(vocab_size):
    with pytest.raises(ValueError, match=re.escape(f"vocab_size must be an integer of at least 1, got {vocab_size!r}")):
        build(LinearConfig(), vocab_size)


# generate


@kinds
@pytest.mark.parametrize("length", [0, 3, T, T + 5])
def test_greedy_text_equals_a_naive_loop(config, length):
    model, prompt = make(config).train(), ids(length, seed=2)
    out = generate(model, prompt, 12, temperature=0, pad=1)
    assert model.training
    model.eval()
    expected = prompt.tolist()
    for _ in range(12):
        window = ([1] * T + expected)[-T:]
        expected.append(int(model(torch.tensor([window])).argmax()))
    assert out.tolist() == expected
    assert (out.dtype, out.dim()) == (torch.int64, 1)
    assert torch.equal(generate(model, prompt, 12, top_k=1, pad=1), out)
    assert torch.equal(generate(model, prompt, 0), prompt)
    assert not model.training


@kinds
def test_sampling_follows_its_generator_and_keeps_the_prompt(config):
    model, prompt = make(config), ids(5)

    def sample(seed, **options):
        return generate(model, prompt, 40, generator=torch.Generator().manual_seed(seed), **options)

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = sample(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(sample(0), first)
    assert not torch.equal(sample(1), first)
    assert torch.equal(first[:5], prompt)
    assert len(first) == 45
    unseeded = generate(model, prompt, 40)
    torch.manual_seed(3)
    assert torch.equal(generate(model, prompt, 40), unseeded)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, None), (2.0, V + 5), (1.5, 4), (1.0, 1)])
def test_sampling_follows_temperature_and_top_k(temperature, top_k):
    model = build(LinearConfig(context=2, d_model=2), V, seed=0)
    bias = torch.linspace(-1, 1, V)[torch.randperm(V, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():  # the same distribution after every prompt
        model.head.weight.zero_()
        model.head.bias.copy_(bias)
    text = generate(model, ids(1), 3000, temperature, top_k, torch.Generator().manual_seed(0))
    kept = bias.argsort(descending=True)[:top_k]
    expected = torch.zeros(V)
    expected[kept] = (bias[kept] / temperature).softmax(0)
    counts = text[1:].bincount(minlength=V)
    assert set(counts.nonzero().flatten().tolist()) <= set(kept.tolist())
    close(counts / 3000, expected, 0.03)


@pytest.mark.parametrize(
    ("prompt", "options", "named"),
    [
        (ids(2, 3), {}, "got shape (2, 3)"),
        (ids(3), {"n": -1}, "n must be an integer of at least 0, got -1"),
        (ids(3), {"temperature": -0.5}, "temperature must be a number of at least 0, got -0.5"),
        (ids(3), {"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
        (ids(3), {"temperature": math.nan}, "got nan"),
        (torch.tensor([V, *range(T)]), {}, f"id {V} at position 0 of prompt"),  # before the last T tokens
        (torch.tensor([0.5]), {}, "prompt must be integers"),
        (ids(3), {"pad": V}, f"id {V} at position 0 of pad"),
    ],
)
def test_generate_refuses_bad_arguments(prompt, options, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        generate(make(SMALL), prompt, **{"n": 3, **options})


def test_generated_ids_can_be_trained_on():
    model = make(SMALL).train()
    model(generate(model, ids(3), 4)[None]).sum().backward()


def test_top_k_keeps_k_tokens_where_logits_tie():
    model = make(ARCHITECTURES[0])
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    assert len(set(generate(model, ids(3), 50, top_k=2)[3:].tolist())) <= 2


def test_a_tiny_temperature_is_greedy():
    model = make(SMALL)
    assert torch.equal(generate(model, ids(3), 5, temperature=1e-40), generate(model, ids(3), 5, temperature=0))
    assert torch.equal(generate(model, ids(3), 5, temperature=1e-60), generate(model, ids(3), 5, temperature=0))


def test_generate_restores_the_mode_after_an_error():
    model = make(SMALL).train()
    model.head = None
    with pytest.raises(TypeError):
        generate(model, ids(3), 1)
    assert model.training


def test_a_model_whose_logits_are_not_finite_writes_nothing():
    model = make(SMALL)
    with torch.no_grad():
        model.head.bias[0] = math.nan
    with pytest.raises(ValueError, match="logits are NaN"):
        generate(model, ids(3), 1)
