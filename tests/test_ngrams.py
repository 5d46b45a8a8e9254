"""The counting models against a count by hand."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from slmlib.ngrams import Additive, KneserNey, of_beginnings, of_orders

V = 5


def ids(n, seed=0):
    return torch.randint(V, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_nll_is_what_counting_by_hand_gives(order, alpha):
    train, test = ids(60).tolist(), ids(25, seed=1).tolist()
    expected = []
    for i, w in enumerate(test):
        n = min(i + 1, order)  # the first tokens have fewer before them
        grams = Counter(tuple(train[j : j + n]) for j in range(len(train) - n + 1))
        h = tuple(test[i - n + 1 : i])
        c_h = sum(c for gram, c in grams.items() if gram[:-1] == h)
        expected.append(-math.log((grams[(*h, w)] + alpha) / (c_h + alpha * V)))
    got = Additive(order, V, alpha).fit(torch.tensor(train)).nll(torch.tensor(test))
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_large_vocabulary_needs_no_table_of_all_pairs():
    nll = Additive(2, 40_000).fit(torch.tensor([0, 39_999, 0, 39_999])).nll(torch.tensor([0, 39_999]))
    assert nll[1].item() == pytest.approx(-math.log(3 / 40_002))


kinds = pytest.mark.parametrize("kind", [Additive, KneserNey])


@kinds
def test_a_text_shorter_than_the_order_is_scored_by_shorter_ngrams_alone(kind):
    model, text = kind(4, V).fit(ids(40)), ids(9, seed=1)
    for n in range(4):
        torch.testing.assert_close(model.nll(text[:n]), model.nll(text)[:n])


@kinds
def test_what_cannot_be_counted_is_named(kind):
    counted = kind(3, V)
    for bad, message in ((ids(2), "no 3-gram"), (ids(9).view(3, 3), "1-D"), ("abc", "ids must"), ([0, 9], "id 9 at")):
        with pytest.raises(ValueError, match=message):
            counted.fit(bad)
    with pytest.raises(ValueError, match="id -1 at position 1"):
        counted.fit(ids(40)).nll(torch.tensor([0, -1]))
    for order, vocab_size in ((2.5, V), (2, 2.5), ("2", V), (True, V), (0, V), (2, 0)):
        with pytest.raises(ValueError, match="must be an integer"):
            kind(order, vocab_size)
    assert kind(np.int64(2), np.int32(V)).fit([0, 1, 2]).order == 2


def test_additive_smoothing_tends_to_the_uniform_distribution():
    ids = torch.arange(40) % V
    for alpha in (1e9, 1e300, 1e308):
        assert Additive(2, V, alpha).fit(ids).nll(ids).tolist() == pytest.approx([math.log(V)] * 40, rel=1e-7)
    for alpha in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"alpha must be a positive number, got {alpha}"):
            Additive(2, V, alpha)


# --- Kneser-Ney


def by_definition(train: list[int], V: int, order: int):
    """p(w | h) as Chen and Goodman write it, with dictionaries and loops."""
    occurs = [Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1)) for n in range(1, order + 1)]
    count = []
    for n in range(1, order + 1):
        if n == order:
            count.append(occurs[n - 1])
        else:
            before = {gram: set() for gram in occurs[n - 1]}
            for longer in occurs[n]:
                before[longer[1:]].add(longer[0])
            count.append({gram: len(tokens) for gram, tokens in before.items()})

    def discounts(c):
        n = Counter(c.values())
        if any(n[k] == 0 for k in (1, 2, 3, 4)):
            return [0, 0.5, 1, 1.5]
        Y = n[1] / (n[1] + 2 * n[2])
        return [0] + [min(k, max(0.1, k - (k + 1) * Y * n[k + 1] / n[k])) for k in (1, 2, 3)]

    D = [discounts(c) for c in count]

    def p(w, h, n):
        if n == 0:
            return 1 / V
        h = tuple(h[len(h) - (n - 1) :]) if n > 1 else ()
        follow = {gram[-1]: c for gram, c in count[n - 1].items() if gram[:-1] == h}
        total = sum(follow.values())
        if total == 0:
            return p(w, h, n - 1)
        given = sum(D[n - 1][min(c, 3)] for c in follow.values())
        c = follow.get(w, 0)
        return (c - D[n - 1][min(c, 3)] + given * p(w, h, n - 1)) / total

    return lambda w, h: p(w, h, min(order, len(h) + 1))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("V, n", [(3, 60), (9, 400)])
def test_kneser_ney_is_its_definition(order, V, n):
    rng = random.Random(order * V)
    weights = [1 / (i + 1) for i in range(V)]
    train, test = (rng.choices(range(V), weights, k=k) for k in (n, 40))
    model, p = KneserNey(order, V).fit(torch.tensor(train)), by_definition(train, V, order)
    expected = [-math.log(p(w, test[max(0, i - order + 1) : i])) for i, w in enumerate(test)]
    torch.testing.assert_close(model.nll(torch.tensor(test)), torch.tensor(expected, dtype=torch.float64))


def test_several_orders_of_a_text_and_of_its_beginnings_are_each_counted_as_if_alone():
    text, test, lengths = ids(400), ids(40, seed=1), [4, 90, 400]
    several, beginnings = of_orders([3, 1, 4], V, text), of_beginnings([4, 2], V, text, lengths)
    assert list(several) == [3, 1, 4] and of_orders([], V, text) == {}
    for length, models in [(400, several), *zip(lengths, beginnings, strict=True)]:
        for order, model in models.items():
            alone = KneserNey(order, V).fit(text[:length])
            assert torch.equal(model.nll(test), alone.nll(test)) and torch.equal(model.seen(test), alone.seen(test))
            assert model.sizes == alone.sizes or length < 400  # which are those of all the text
    for length in (3, 401):
        with pytest.raises(ValueError, match=f"each length must be an integer of at .* got {length}"):
            next(of_beginnings([4, 2], V, text, [length]))


@kinds
@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_next_token_has_a_distribution_that_agrees_with_the_nll(kind, order):
    V, stream = 7, torch.Generator().manual_seed(0)
    train, test = (torch.randint(V - 1, (n,), generator=stream) for n in (300, 30))  # the last token is never seen
    test[5] = V - 1
    model = kind(order, V).fit(train)
    nll = model.nll(test)
    for i in (0, 1, 2, 3, 5, 6, 7, 8, 29):
        p = model.next_token(test[:i])
        assert p.min() > 0 and p.sum().item() == pytest.approx(1)
        assert -p[test[i]].log().item() == pytest.approx(nll[i].item())


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_many_contexts_at_once_are_those_one_by_one(length):
    ids = torch.randint(5, (200,), generator=torch.Generator().manual_seed(1))
    model = KneserNey(3, 6).fit(ids)
    contexts = torch.randint(6, (20, length), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model.next_tokens(contexts), torch.stack([model.next_token(c) for c in contexts]))
    with pytest.raises(ValueError, match="contexts"):
        model.next_tokens(ids)


def test_kneser_ney_writes_what_it_has_read():
    ids = torch.tensor([0, 1, 2, 3] * 50)
    model = KneserNey(3, 4).fit(ids)
    text = model.generate(ids[:2], 200, torch.Generator().manual_seed(0))
    assert len(text) == 202 and torch.equal(text[:2], ids[:2])
    assert ((text[1:] - text[:-1]) % 4 == 1).double().mean() > 0.9
    again = model.generate(ids[:2], 200, torch.Generator().manual_seed(0))
    assert torch.equal(text, again)


def test_kneser_ney_says_what_is_wrong():
    with pytest.raises(ValueError, match="fit first"):
        KneserNey(2, 5).nll(torch.tensor([1]))
    with pytest.raises(ValueError, match="fit first"):
        KneserNey(2, 5).next_token(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"this Additive .* fit first"):
        Additive(2, 5).nll(torch.tensor([1]))
    with pytest.raises(ValueError, match="at least 0, got -3"):
        KneserNey(2, 5).fit(torch.tensor([1, 2])).generate(torch.tensor([1]), -3)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_how_often_a_history_was_seen_is_what_counting_by_hand_gives(order):
    train, test = ids(60).tolist(), [*ids(20, seed=1).tolist(), 0, 0, 0]
    seen = KneserNey(order, V).fit(torch.tensor(train)).seen(torch.tensor(test))
    assert seen.shape == (len(test), order)
    for n in range(1, order + 1):
        grams = [tuple(train[j : j + n]) for j in range(len(train) - n + 1)]
        if n < order:  # in a lower order an n-gram counts once for each token that it follows
            longer = {tuple(train[j : j + n + 1]) for j in range(len(train) - n)}
            grams = [gram[1:] for gram in longer]
        for i in range(len(test)):
            h = tuple(test[i - n + 1 : i])
            expected = sum(gram[:-1] == h for gram in grams) if i >= n - 1 else 0
            assert seen[i, n - 1] == expected, (i, n)


def test_a_low_temperature_goes_on_with_the_likeliest_token():
    model = KneserNey(3, V).fit(ids(200))
    prompt = ids(5, seed=1)
    text = model.generate(prompt, 10, torch.Generator().manual_seed(0), temperature=1e-3)
    for i in range(len(prompt), len(text)):
        p = model.next_token(text[:i])
        assert p[text[i]] == p.max()
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        model.generate(prompt, 1, temperature=0)
