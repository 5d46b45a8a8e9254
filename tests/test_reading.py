"""Models that go on learning: a part is learnt after it was predicted, never before."""

import pytest
import torch
from conftest import stream

from slmlib import mixing, reading
from slmlib.corpora import Corpus, Vocabulary
from slmlib.models import MLPConfig, TransformerConfig, build
from slmlib.ngrams import KneserNey
from slmlib.training import TrainingConfig, token_nll
from slmlib.windows import Evaluation

V, PART = 7, 100
LETTERS = Vocabulary(tuple("abcdefg"), "character")
LOOK = Evaluation(None, stride=3, first=20)
MODELS = [
    (MLPConfig(context=4, d_model=8, hidden=8, dropout=0.1), TrainingConfig(batch=8)),
    (TransformerConfig(context=16, d_model=8, heads=2, layers=1, ff_width=8), TrainingConfig(batch=2, scored="every")),
]


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(reading, "PART", PART)


def text(tokens=450):
    return torch.randint(V, (tokens,), generator=stream())


@pytest.mark.parametrize(("config", "training"), MODELS)
def test_a_part_is_predicted_before_it_is_learnt(config, training, generator_left):
    model = build(config, V, seed=0).eval()
    frozen, ids = token_nll(model, text(), LOOK), text()
    losses = reading.read_on(model, ids, LOOK, training, 1e-2)
    of_part = torch.tensor([(t - 20) // PART for t in LOOK.scored(len(ids), config.context)])
    assert torch.equal(losses[of_part == 0], frozen[of_part == 0])
    assert not torch.isclose(losses, frozen)[of_part > 0].any()
    assert torch.equal(token_nll(model, ids, LOOK), frozen)  # it was a copy that learnt
    ids[20 + 2 * PART :] = (ids[20 + 2 * PART :] + 1) % V  # what comes later is not known before
    other = reading.read_on(model, ids, LOOK, training, 1e-2)
    assert torch.equal(other[of_part < 2], losses[of_part < 2])
    assert not torch.equal(other[of_part > 2], losses[of_part > 2])


def test_what_recurs_is_learnt():
    model, training = build(MODELS[0][0], V, seed=0).eval(), MODELS[0][1]
    losses = reading.read_on(model, torch.arange(V).repeat(100), LOOK, training, 1e-2)
    assert losses[-30:].mean() < losses[:30].mean() - 1


def test_validation_chooses_the_rate():
    model, training = build(MODELS[0][0], V, seed=0).eval(), TrainingConfig(batch=8, eval_windows=None, eval_from=20)
    corpus = Corpus("made-up", *[torch.arange(V).repeat(100)] * 3, LETTERS)
    there = reading.losses(model, corpus, training)
    tried = {r: reading.read_on(model, corpus.valid, training.validation, training, r) for r in reading.RATES}
    best = min(tried, key=lambda r: tried[r].mean())
    assert there["rate"].item() == pytest.approx(best) and torch.equal(there["valid, read on"], tried[best])
    of = reading.read_on(model, corpus.test, training.whole_test, training, best)
    assert torch.equal(there["whole, read on"], of)


def test_counts_take_in_what_they_have_predicted():
    corpus = Corpus("made-up", text(900), text(300), text(450), LETTERS)
    training = TrainingConfig(eval_windows=None, eval_from=20, valid_from=50, valid_stride=2, whole_stride=3)
    there = reading.counted(corpus, training, 16)
    for name, ids, look in (("valid", corpus.valid, training.validation), ("whole", corpus.test, training.whole_test)):
        first = look.first
        assert len(there[name].nll) == len(look.scored(len(ids), 16))
        known = torch.cat((corpus.train, ids[first : first + PART]))
        for column, order in enumerate(mixing.ORDERS["character"]):
            by_hand = KneserNey(order, V).fit(known).nll(ids)[first + PART : first + 2 * PART]
            at = [t - first - PART for t in look.scored(len(ids), 16) if 0 <= t - first - PART < PART]
            mine = there[name].nll[[t in range(first + PART, first + 2 * PART) for t in look.scored(len(ids), 16)]]
            torch.testing.assert_close(mine[:, column], by_hand[at])
