"""Counting and networks together: the gate learns whom to believe, from validation alone."""

import math

import pytest
import torch

from slmlib import mixing
from slmlib.corpora import read_corpus
from slmlib.experiments import Experiment, RecordDamaged, Store, run
from slmlib.models import MLPConfig, build
from slmlib.ngrams import KneserNey
from slmlib.training import TrainingConfig
from slmlib.windows import random_stream


@pytest.fixture(scope="module")
def corpus(file):
    return read_corpus(file)


def orders(corpus, *numbers):
    return [KneserNey(n, len(corpus.vocabulary)).fit(corpus.train) for n in numbers]


LOOKS = TrainingConfig(eval_windows=300, eval_from=20, valid_from=30, valid_stride=2, whole_stride=3)


def test_a_gate_learns_after_which_history_which_model_is_right():
    histories = torch.eye(2).repeat(2_000, 1)  # two kinds of history in turn
    right, wrong = -math.log(0.9), -math.log(0.1)
    nll = torch.where(histories.bool(), right, wrong)  # each model is right after one of them
    gate = mixing.Gate(histories, nll)
    assert gate(torch.eye(2)).diagonal().min() > 0.95
    assert gate(histories).sum(1).allclose(torch.ones(4_000, dtype=torch.float64))
    assert gate.nll(histories, nll).mean() < right + 0.05
    by_hand = -((gate(histories) * (-nll).exp()).sum(1)).log()
    torch.testing.assert_close(gate.nll(histories, nll), by_hand)


def test_a_gate_of_a_few_tokens_stays_near_the_plain_mean():
    nll = torch.tensor([[0.1, 3.0]])
    assert 0.5 < mixing.Gate(torch.ones(1, 1), nll)(torch.ones(1, 1))[0, 0] < 0.9
    with pytest.raises(ValueError, match="features of 2 tokens, losses of 1"):
        mixing.Gate(torch.ones(2, 1), nll)
    with pytest.raises(ValueError, match="one at least"):
        mixing.Gate(torch.ones(0, 1), nll[:0])


def test_what_was_counted_stands_beside_the_tokens_that_are_scored(corpus):
    there = mixing.counted(corpus, LOOKS, 8, orders(corpus, 1, 3))
    V = len(corpus.vocabulary)
    for name, ids, look in (
        ("valid", corpus.valid, LOOKS.validation),
        ("test", corpus.test, LOOKS.test),
        ("whole", corpus.test, LOOKS.whole_test),
    ):
        scored = list(look.scored(len(ids), 8))
        assert there[name].nll.shape == (len(scored), 2) and there[name].features.shape == (len(scored), 6)
        for column, order in enumerate((1, 3)):
            nll = KneserNey(order, V).fit(corpus.train).nll(ids)
            torch.testing.assert_close(there[name].nll[:, column], nll[scored])
        seen = KneserNey(3, V).fit(corpus.train).seen(ids)[scored]
        torch.testing.assert_close(there[name].features[:, 3:], seen.log1p() / 3)
        assert (there[name].features[:, :3].argmax(1) == (seen > 0).sum(1) - 1).all()


def test_an_ensemble_predicts_the_mean_of_probabilities():
    one, other = torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.1])
    mean = -(((-one).exp() + (-other).exp()) / 2).log()
    torch.testing.assert_close(mixing.averaged([{"test": one}, {"test": other}])["test"].float(), mean)


def test_the_gate_is_learnt_on_validation_alone(corpus):
    counting = mixing.counted(corpus, LOOKS, 8, orders(corpus, 1, 3))
    sure = {name: torch.full((len(of.nll),), 0.01) for name, of in counting.items()}
    fooled = {**sure, "valid": torch.full_like(sure["valid"], 9.0)}  # a network that is right in the test alone
    alone, good, bad = (mixing.together(networks, counting) for networks in ([], [sure], [fooled]))
    assert good["test"].mean() < 0.1 < alone["test"].mean()
    assert bad["test"].mean() == pytest.approx(alone["test"].mean().item(), rel=0.1)


@pytest.mark.parametrize("by_history", [True, False])
def test_without_regard_to_the_history_all_weights_are_the_same(corpus, by_history):
    counting = mixing.counted(corpus, LOOKS, 8, orders(corpus, 3))
    other = {name: of.nll[:, 0] + torch.linspace(-0.5, 0.5, len(of.nll)) for name, of in counting.items()}
    mixed = mixing.together([other], counting, by_history)["test"]
    p, q, both = ((-of).exp().double() for of in (other["test"], counting["test"].nll[:, 0], mixed))
    told_apart = (p - q).abs() > 0.01
    weight = ((both - q) / (p - q))[told_apart]
    assert bool(weight.std() < 1e-6) is not by_history and 0 < weight.mean() < 1


def test_a_mixture_predicts_what_its_parts_and_their_weights_say(corpus):
    """Token by token, as it generates, against all at once, as it scores."""
    V, counts = len(corpus.vocabulary), orders(corpus, 1, 4)
    network = build(MLPConfig(3, 4, 8), V, seed=0).eval()
    gate = mixing.Gate.of(torch.randn(8, 3, generator=random_stream(0, "text")))
    mixture, ids = mixing.Mixture(network, counts, gate, corpus.train), corpus.test[:40]
    alone, nll = mixture.nll(ids)
    with torch.no_grad():
        logp = [mixture.next_token(network(ids[i - 3 : i][None])[0], ids[:i]) for i in range(3, 40)]
    torch.testing.assert_close(nll, torch.stack([-p[y] for p, y in zip(logp, ids[3:], strict=True)]))
    torch.testing.assert_close(torch.stack(logp).exp().sum(1), torch.ones(37, dtype=torch.float64))
    assert not alone.allclose(nll.float())
    start = mixture.next_token(torch.zeros(V), ids[:0])
    assert start.exp().sum() == pytest.approx(1.0)  # with nothing before it


def test_a_store_that_keeps_losses_has_them_beside_each_record(tmp_path):
    training = TrainingConfig(epochs=1, windows_per_epoch=64, eval_windows=400, eval_stride=7, whole_stride=50)
    experiment = Experiment("python-docs", MLPConfig(4, 4, 8), training, 0)
    plain, store = Store(tmp_path), Store(tmp_path, keeps_losses=True)
    run(experiment, plain)
    assert store.get(experiment) is None  # a record alone is not enough
    with pytest.raises(RecordDamaged, match="run its experiment again"):
        store.losses(experiment)
    record = run(experiment, store)
    assert store.get(experiment) == record
    kept, text = store.losses(experiment)
    assert len(text) == 300
    assert kept["test"].mean().item() == pytest.approx(record.test_nll, abs=2e-3)
    assert kept["whole"].mean().item() == pytest.approx(record.test_nll_whole, abs=2e-3)
    assert kept["valid"].mean().item() == pytest.approx(record.valid[0], abs=2e-3)
