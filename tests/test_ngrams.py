"""The counting models against a count by hand."""

import math
from collections import Counter

import pytest
import torch

from slmlib.ngrams import Additive

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


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_probabilities_of_all_next_tokens_sum_to_one(order):
    model = Additive(order, V).fit(ids(40))
    history = ids(order - 1, seed=2)
    p = [model.nll(torch.cat((history, torch.tensor([w]))))[-1].neg().exp() for w in range(V)]
    assert float(sum(p)) == pytest.approx(1, abs=1e-12)


def test_a_large_vocabulary_needs_no_table_of_all_pairs():
    nll = Additive(2, 40_000).fit(torch.tensor([0, 39_999, 0, 39_999])).nll(torch.tensor([0, 39_999]))
    assert nll[1].item() == pytest.approx(-math.log(3 / 40_002))


@pytest.mark.parametrize(
    "arguments", [(0, V), (2, 0), (2, V, 0.0), (2, V, math.nan), (5, 10_000)], ids=str
)  # the last: 10,000^5 keys do not fit 63 bits
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="order"):
        Additive(*arguments)
