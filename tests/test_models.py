import math
import re
from dataclasses import replace

import pytest
import torch
from conftest import close, same, stream
from torch import nn
from torch.nn import functional as F

from slmlib import LinearConfig, MLPConfig, TransformerConfig, build, generate, n_parameters, paper
from slmlib.models import attention_weights, hidden_matrices
from slmlib.speed import Dropout, dropping_by

V, T, B = 11, 8, 3
SMALL = TransformerConfig(context=T, d_model=16, heads=4, layers=2, ff_width=24)
TODAY = replace(
    SMALL,
    **{"norm": "pre", "norm_kind": "rms", "positions": "rope", "qk_norm": True, "ff_kind": "relu2"},
    **{"dropout_site": "residual", "qkv_init": "linear", "zero_init": True, "previous": 2, "conv": 3},
)
VOCABULARY = {"tiny_shakespeare": 65, "ptb": 9_999, "wikitext-2": 33_277}
ARCHITECTURES = (LinearConfig(context=T, d_model=6), MLPConfig(context=T, d_model=6, hidden=10), SMALL)
kinds = pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda c: type(c).__name__)
norms = pytest.mark.parametrize("norm", ["post", "pre", "none"])
positions = pytest.mark.parametrize("positions", ["learned", "rope", "none"])
bases = pytest.mark.parametrize("base", [SMALL, TODAY], ids=["paper", "today"])


def make(config, seed=0, scale=0.1):
    """A model in evaluation mode, moved off its initialisation so that biases and LayerNorms count."""
    model, g = build(config, V, seed=seed).eval(), stream(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return model


def constant(bias, config=SMALL):
    """A model that gives the same logits after every prompt."""
    model = make(config)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(bias)
    return model


def ids(*shape, seed=0):
    return torch.randint(V, shape, generator=stream(seed))


# Parameter counts


@pytest.mark.parametrize("run", paper.RUNS, ids=lambda run: run.label)
def test_parameter_counts_are_the_papers(run):
    vocab_size = VOCABULARY[run.corpus]
    count = n_parameters(build(run.model, vocab_size))
    assert count.total == run.params
    tables = vocab_size + (run.model.context if getattr(run.model, "positions", None) == "learned" else 0)
    assert count.without_embeddings == run.params - tables * run.model.d_model


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
    assert same(small, {name: t * 0.02 if name in tables else t for name, t in unit.items()})


@pytest.mark.parametrize("qkv_init", ["xavier", "linear"])
def test_layers_start_as_the_paper_initialises_them(qkv_init):
    C, model = 128, build(TransformerConfig(layers=1, qkv_init=qkv_init), 65, seed=0)
    block, attention = model.blocks[0], model.blocks[0].attention
    by_fan_in = 1 / math.sqrt(C)  # nn.Linear's default, for weights and biases
    if qkv_init == "xavier":
        assert_uniform(attention.qkv.weight, math.sqrt(6 / (C + 3 * C)))
        assert_uniform(nn.MultiheadAttention(C, 4).in_proj_weight, math.sqrt(6 / (C + 3 * C)))
        assert not attention.qkv.bias.any() and not attention.out.bias.any()
    else:  # three separate projections from C to C
        for part in attention.qkv.weight.chunk(3):
            assert_uniform(part, by_fan_in)
        for layer in (attention.qkv, attention.out):
            assert 0.9 * by_fan_in < layer.bias.abs().max() <= by_fan_in
    for embedding in (model.embed, model.positions):
        assert embedding.weight.std().item() == pytest.approx(1, rel=0.05)
    for layer in (attention.out, block.feed_forward.up, block.feed_forward.down, model.head):
        assert_uniform(layer.weight, 1 / math.sqrt(layer.in_features))
    for norm in (block.norm1, block.norm2, model.norm):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()


def test_blocks_that_start_at_zero_start_as_the_identity():
    model, other = (build(replace(TODAY, zero_init=zero), V, seed=0) for zero in (True, False))
    x = torch.randn(B, T, 16)
    assert torch.equal(model.blocks[0](x), x)
    assert not torch.equal(other.blocks[0](x), x)


def test_tokens_before_are_embedded_too_from_nothing_on():
    model, other = (build(replace(TODAY, previous=n), V, seed=0) for n in (2, 0))
    tokens = ids(B, T)
    assert torch.equal(model(tokens), other(tokens))
    assert n_parameters(model).without_embeddings == n_parameters(other).without_embeddings
    model, none = make(replace(TODAY, previous=2)), torch.zeros(16)
    one, two = (table.weight for table in model.before)
    for b, t in ((0, 0), (1, 1), (2, 5)):
        seen = [table[tokens[b, t - n]] if t >= n else none for n, table in enumerate((model.embed.weight, one, two))]
        close(model._embed(tokens)[b, t], sum(seen), 1e-6)
    close(model._embed(tokens[:, :1])[:, 0], model.embed.weight[tokens[:, 0]], 1e-6)


def test_convolutions_start_as_nothing():
    with_, without = (build(replace(TODAY, conv=n, zero_init=False), V, seed=0).eval() for n in (3, 0))
    tokens = ids(B, T)
    assert same(without.state_dict(), {k: v for k, v in with_.state_dict().items() if ".conv" not in k})
    close(with_(tokens), without(tokens), 1e-5)


def test_a_tied_head_is_the_embedding_and_counted_once():
    model, other = (build(replace(TODAY, tied=tied), V, seed=0) for tied in (True, False))
    assert model.head.weight is model.embed.weight
    assert n_parameters(other).total - n_parameters(model).total == V * 16
    assert n_parameters(other).without_embeddings == n_parameters(model).without_embeddings


@pytest.mark.parametrize("config", [*ARCHITECTURES, TODAY, replace(TODAY, tied=True)])
def test_hidden_matrices_lie_between_embedding_and_head(config):
    model = build(config, V)
    inner = [(n, p) for n, p in model.named_parameters() if n.startswith(("hidden", "blocks"))]
    inner = [(n, p) for n, p in inner if ".norm" not in n and ".conv" not in n]
    assert {id(p) for p in hidden_matrices(model)} == {id(p) for n, p in inner if n.endswith("weight")}


# Dropout


def drop(p, x, seed=0):
    """What dropout makes of x with a generator of its own."""
    layer = Dropout(p)
    with dropping_by(stream(seed)):
        return layer(x)


@pytest.mark.parametrize("p", [0.001, 0.01, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share_keeps_the_mean_and_each_value_by_itself(p):
    n = 100_000
    y = drop(p, torch.ones(n, 4)).double()  # the four draws of a random number stand side by side
    out = (y == 0).double()
    for lane in out.T:
        assert lane.mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))
    assert y.mean().item() == pytest.approx(1, abs=5 * math.sqrt(p / (1 - p) / (4 * n)))
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-4)
    neighbours = torch.cat((out[:-1], out[1:]), dim=1).T  # a word's four and the next word's
    assert p < 0.01 or (neighbours.corrcoef() - torch.eye(8)).abs().max() < 5 / math.sqrt(n)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (2**-18, True), (0.0, False), (0.5, False), (0.999, False)])
def test_dropout_that_drops_nothing_gives_back_its_input(p, training, generator_left):
    x = torch.ones(7)
    assert Dropout(p).train(training)(x) is x


@pytest.mark.parametrize("p", [1 - 2**-15, 1 - 1e-12, math.nextafter(1, 0)])
def test_dropout_of_nearly_everything_is_finite(p):
    y = drop(p, torch.ones(2**20))  # a few are kept, times 2^15 or 2^16
    assert y.isfinite().all()
    assert 0 < (y != 0).sum() < 100


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2,), (3,), (5,), (3, 5, 7), (2, 0, 3), (4, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_keeps_shape_and_type_whatever_the_size_and_its_mask_is_the_gradient(shape, dtype):
    contiguous = 1 + torch.rand(shape, dtype=dtype, generator=stream())
    for x in (contiguous, contiguous.mT.contiguous().mT if contiguous.dim() > 1 else contiguous):
        x = x.clone(memory_format=torch.preserve_format).requires_grad_()
        drops = []
        for seed in range(30):
            y = drop(0.5, x, seed)
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
            [mask] = torch.autograd.grad(y.sum(), x)
            assert ((mask == 0) | (mask == 2)).all() and torch.equal(x * mask, y)
            drops.append(mask == 0)
        assert torch.stack(drops).any(0).all()  # each of them now and then
        assert not torch.stack(drops).all(0).any()


def test_dropout_follows_its_generator_and_without_one_the_global(generator_left):
    x = torch.ones(99)
    assert torch.equal(drop(0.5, x), drop(0.5, x)) and not torch.equal(drop(0.5, x), drop(0.5, x, seed=1))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.5)(x), drop(0.5, x))  # the same stream
    assert not torch.equal(Dropout(0.5)(x), drop(0.5, x))  # its next numbers
    torch.set_rng_state(state)


def test_dropout_at_the_attention_site_drops_attention_weights():
    """With equal values everywhere each head's output is its value times the sum of the weights it kept."""
    config = replace(SMALL, dropout=0.5, dropout_site="attention")
    attention = build(config, V, seed=0).blocks[0].attention
    with torch.no_grad():
        attention.out.weight.copy_(torch.eye(config.d_model))
    x = torch.randn(1, 1, config.d_model, generator=stream()).expand(50, T, -1)
    value = F.linear(x, attention.qkv.weight[-config.d_model :])
    with dropping_by(stream()):
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
    x = torch.randn(200, T, 16, generator=stream())
    with dropping_by(stream()):
        assert (block(x) == 0).float().mean().item() == pytest.approx(1 - 0.5**copies, abs=0.02)
        block.feed_forward = None
        assert (block(x) == 0).float().mean().item() == pytest.approx(0.5 * (copies - 1), abs=0.02)
        once, again = block.attention(x), block.attention(x)
    assert torch.equal(once, again) == (site == "residual")
    block.eval()
    assert torch.equal(block(x), block.attention(x))


def test_the_mlp_drops_out_each_hidden_layer():
    model, zeros = make(replace(ARCHITECTURES[1], dropout=0.9)).train(), []
    for module in model.hidden:
        module.register_forward_hook(lambda _m, _i, out: zeros.append((out == 0).float().mean()))
    model(ids(200, T))
    assert zeros[2] > 0.85 > zeros[1]  # after the first ReLU
    assert zeros[5] > 0.85 > zeros[4]  # after the second


# Causality, and scoring the last position only


@norms
@positions
@bases
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
@bases
def test_scoring_the_last_position_equals_scoring_every_position(norm, positions, length, base):
    site = "residual" if norm == "pre" else "attention"
    model = make(replace(base, norm=norm, positions=positions, dropout=0.0, dropout_site=site))
    tokens, targets, grads = ids(B, length), ids(B, seed=1), []
    last, every = model(tokens), model(tokens, every_position=True)
    assert (last.shape, every.shape) == ((B, V), (B, length, V))
    close(last, every[:, -1], 1e-5)
    for logits in (last, every[:, -1]):
        grads.append(torch.autograd.grad(F.cross_entropy(logits, targets), model.parameters()))
    for a, b in zip(*grads, strict=True):
        close(a, b, 1e-5)


@positions
def test_attention_depends_on_relative_positions_alone_unless_positions_are_learned(positions):
    model = make(replace(SMALL, layers=1, positions=positions), scale=0.5)
    tokens, shift = ids(B, 5), 3
    here = model.attention_maps(tokens)
    there = model.attention_maps(torch.cat((ids(B, shift, seed=1), tokens), 1))[..., shift:, shift:]
    there = there / there.sum(-1, keepdim=True)  # what went to the tokens in front, left out
    difference = (here - there).abs().max()
    assert difference > 0.01 if positions == "learned" else difference < 1e-5
    of_one_token = model.attention_maps(torch.zeros(1, T, dtype=torch.long))[..., -1, :]  # the same content everywhere
    assert (of_one_token.std() > 1e-3) == (positions != "none")


@positions
def test_attention_maps_are_the_weights_of_evaluation(positions):
    model, used = make(replace(SMALL, dropout=0.5, positions=positions)), []
    for block in model.blocks:
        block.attention.dropout.register_forward_pre_hook(lambda module, inputs: used.append(inputs[0]))
    maps = model.attention_maps(ids(B, 5))
    model(ids(B, 5), every_position=True)
    assert torch.equal(maps, torch.stack(used[-2:]))
    assert maps.shape == (2, B, 4, 5, 5) and not maps.requires_grad
    assert torch.equal(model.train().attention_maps(ids(B, 5)), maps) and model.training


@pytest.mark.parametrize("S", [1, 2, 5, T])
def test_attention_weights_are_those_of_pytorch(S):
    """With one value a position, a unit vector, what attention gives are its weights."""
    H, D, g = 2, 6, stream()
    q, k = torch.randn(B, H, S, D, generator=g), torch.randn(B, H, T, D, generator=g)
    v, past = torch.eye(T).expand(B, H, T, T), torch.arange(T) <= torch.arange(T - S, T)[:, None]
    close(attention_weights(q, k), F.scaled_dot_product_attention(q, k, v, attn_mask=past), 1e-6)


@pytest.mark.parametrize("scored", [slice(None), slice(-1, None)])
def test_many_windows_are_attended_to_as_by_pytorch_gradients_too(scored):
    """Enough of them that the products of queries and keys have a gradient of their own."""
    attention = build(TransformerConfig(context=64, d_model=64, layers=1), 5, seed=0).blocks[0].attention.eval()
    x = torch.randn(65, 64, 64, generator=stream()).requires_grad_()
    q, k, v = attention.project(x, scored)
    y = attention.out(F.scaled_dot_product_attention(q, k, v, is_causal=q.size(2) > 1).transpose(1, 2).flatten(2))
    found = [[of, *torch.autograd.grad(of.sum(), [x, *attention.parameters()])] for of in (attention(x, scored), y)]
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def test_attention_weights_stand_large_scores():
    q = torch.tensor([300.0, -300.0]).expand(1, 1, 4, 2)
    close(attention_weights(q, q), torch.ones(4, 4).tril().div(torch.arange(1, 5)[:, None])[None, None], 1e-6)


@kinds
def test_tokens_of_the_wrong_shape_are_refused(config):
    model = make(config)
    for shape in [(T,), (B, T + 1), (B, 0)] + ([] if config is SMALL else [(B, T - 1)]):
        with pytest.raises(ValueError, match=rf"tokens must be .*{T}.*got \({shape[0]},"):
            model(ids(*shape))


# Configs and build


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"d_model": 16, "heads": 3}, "heads=3, d_model=16"),
        ({"d_model": 12, "heads": 4, "positions": "rope"}, "positions='rope'.* 12 / 4 = 3"),
        *(({"context": 8, n: 8}, f"{n} must be below context, got {n}=8, context=8") for n in ("previous", "conv")),
    ],
)
def test_fields_that_do_not_fit_each_other_are_named(fields, named):
    with pytest.raises(ValueError, match=named):
        TransformerConfig(**fields)


@kinds
def test_build_depends_on_its_seed_alone_and_without_one_on_the_global_generator(config, generator_left):
    first, state = build(config, V, seed=5), torch.get_rng_state()
    torch.manual_seed(2)
    assert same(build(config, V, seed=5), first) and not same(build(config, V, seed=6), first)
    unseeded, second = build(config, V), build(config, V)
    torch.manual_seed(2)
    assert same(build(config, V), unseeded) and not same(unseeded, second)
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    ("config", "vocab_size", "error", "named"),
    [
        *((c, V, TypeError, "LinearConfig, MLPConfig, Tr") for c in (LinearConfig, {"context": 8}, None)),
        *((SMALL, n, ValueError, f"vocab_size .*got {n!r}") for n in (0, -1, 65.0, True, "65", None)),
    ],
)
def test_build_refuses_bad_arguments(config, vocab_size, error, named):
    with pytest.raises(error, match=named):
        build(config, vocab_size)


# generate


@kinds
@pytest.mark.parametrize("length", [0, 3, T, T + 5])
def test_greedy_text_equals_a_naive_loop(config, length):
    model, prompt = make(config).train(), ids(length, seed=2)
    out = generate(model, prompt, 12, temperature=0, pad=1)
    assert model.training
    expected = prompt.tolist()
    for _ in range(12):
        window = ([1] * T + expected)[-T:]
        expected.append(int(model.eval()(torch.tensor([window])).argmax()))
    assert out.tolist() == expected
    assert (out.dtype, out.dim()) == (torch.int64, 1)
    for temperature in (1e-40, 1e-60):
        assert torch.equal(generate(model, prompt, 12, temperature, pad=1), out)
    assert torch.equal(generate(model, prompt, 0), prompt)
    assert not model.training
    model(torch.cat((out, out))[None, :T]).sum().backward()  # what was written can be trained on


@pytest.mark.parametrize("config", [SMALL, TODAY], ids=["paper", "today"])
@pytest.mark.parametrize("cuts", [(T,), (3, 5), (1,) * T, (2, 4, 1)])
def test_a_window_that_comes_in_pieces_gives_the_logits_of_the_whole(config, cuts):
    model, tokens, pasts, at = make(config), ids(B, T), [{} for _ in range(config.layers)], 0
    whole = model(tokens, every_position=True)
    for length in cuts:
        at += length
        close(model.extend(tokens[:, :at], pasts), whole[:, at - 1], 1e-5)
    with pytest.raises(ValueError, match=re.escape(f"1 <= t <= {T}, got ({B}, {T + 1})")):
        model.extend(ids(B, T + 1), pasts)


@pytest.mark.parametrize("config", [SMALL, TODAY], ids=["paper", "today"])
@pytest.mark.parametrize("length", [0, 1, 5, T, 20])
def test_with_a_cache_the_window_grows_and_begins_anew_with_its_half(config, length):
    model, prompt = make(config), ids(length, seed=2)
    expected, window = prompt.tolist(), prompt[-T:].tolist() or [1]
    for _ in range(2 * T):
        expected.append(int(model(torch.tensor([window])).argmax()))
        window = (window if len(window) < T else window[-T // 2 + 1 :]) + expected[-1:]
    assert generate(model, prompt, 2 * T, temperature=0, pad=1, cache=True).tolist() == expected


@kinds
def test_sampling_follows_its_generator_and_keeps_the_prompt(config, generator_left):
    model, prompt, state = make(config), ids(5), torch.get_rng_state()
    first, again, other = (generate(model, prompt, 40, generator=stream(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first[:5], prompt) and len(first) == 45
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert torch.equal(generate(model, prompt, 40), first)
    torch.set_rng_state(state)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_sampling_follows_the_temperature(temperature):
    bias = torch.linspace(-1, 1, V)[torch.randperm(V, generator=stream())]
    model = constant(bias, LinearConfig(context=2, d_model=2))
    text = generate(model, ids(1), 3000, temperature, stream())
    close(text[1:].bincount(minlength=V) / 3000, (bias / temperature).softmax(0), 0.03)


@pytest.mark.parametrize(
    ("prompt", "options", "named"),
    [
        (ids(2, 3), {}, "got shape (2, 3)"),
        (ids(3), {"n": -1}, "n must be an integer of at least 0, got -1"),
        (ids(3), {"temperature": -0.5}, "temperature must be a positive number or 0, got -0.5"),
        *((ids(3), {"temperature": t}, f"got {t}") for t in (math.nan, math.inf)),
        (torch.tensor([V, *range(T)]), {}, f"id {V} at position 0 of prompt"),  # before the last T tokens
        (torch.tensor([0.5]), {}, "prompt must be integers"),
        (ids(3), {"pad": V}, f"id {V} at position 0 of pad"),
        (ids(3), {"model": constant(torch.full((V,), math.nan))}, "logits are NaN"),
        (ids(3), {"model": make(LinearConfig(T, 4)), "cache": True}, "cache must be False for a Linear"),
    ],
)
def test_generate_refuses_bad_arguments(prompt, options, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        generate(**{"model": make(SMALL), "prompt": prompt, "n": 3, **options})
