"""The search for what to train, on losses that are made up; and the text that it is chosen on."""

from collections import Counter
from dataclasses import replace

import pytest

from slmlib import recipes
from slmlib.corpora import CorpusUnavailable, load_corpus
from slmlib.experiments import Record
from slmlib.flops import flops_per_window
from slmlib.models import TransformerConfig
from slmlib.windows import Evaluation

BEST = {
    **{"context": 16, "width": 32, "hidden": 128, "batch": 64, "tokens": 512, "layers": 2},
    **{"rate": 2e-3, "muon_rate": 0.01, "dropout": 0.1, "weight_decay": 0.1},
}


def record(experiment, loss):
    empty = {"parameters": 1, "parameters_without_embeddings": 1, "flops": {}, "seconds": {}}
    return Record(experiment, [1.0], [1e9, loss], 2, 0.0, 0.0, **empty, machine={}, versions={})


def bowl(point):
    """A loss that is lowest at ``BEST``."""
    return sum(abs(value - BEST[name]) for name, value in {"layers": 1, **point}.items())


@pytest.fixture
def losses(monkeypatch):
    """What an experiment of the search would score, by the point that it is of."""
    points, make = {}, recipes.experiment

    def remember(architecture, point, budget, seed):
        made = make(architecture, point, budget, seed)
        points[made] = point
        return made

    monkeypatch.setattr(recipes, "experiment", remember)
    return lambda e: bowl(points[e]) + e.seed


@pytest.mark.parametrize("architecture", recipes.LADDERS)
def test_the_search_walks_to_the_lowest_validation_loss(architecture, losses):
    found = {}
    for _ in range(200):
        point, asked = recipes.search(architecture, 3e10, found)
        if point:
            break
        missing = [e for e in asked if e not in found]
        assert missing and all(e.seed == 0 for e in missing)
        found |= {e: record(e, losses(e)) for e in missing}
    assert bowl(point) == (0.0 if "layers" in point else 1.0)
    assert set(found) == set(asked)


def test_the_suite_asks_until_each_choice_has_its_seeds(losses, monkeypatch):
    monkeypatch.setattr(recipes, "LARGEST", dict.fromkeys(recipes.LARGEST, 3e10))
    found = {}
    while missing := [e for e in recipes.today(3, found) if e not in found]:
        found |= {e: record(e, losses(e)) for e in missing}
    assert set(recipes.today(3, found)) == set(found)
    seeds = Counter(replace(e, seed=0) for e in found)
    assert Counter(seeds.values())[3] == 8  # four architectures at two budgets
    assert set(seeds.values()) == {1, 3}


@pytest.mark.parametrize("architecture", recipes.LADDERS)
@pytest.mark.parametrize("budget", recipes.BUDGETS)
def test_a_point_costs_its_budget_and_is_chosen_on_the_next_play(architecture, budget):
    e = recipes.experiment(architecture, recipes._FIRST[architecture], budget, 7)
    every = isinstance(e.model, TransformerConfig)
    window = flops_per_window(e.model, 65, scored="every" if every else "last")
    assert e.training.epochs * e.training.windows_per_epoch * window == pytest.approx(budget, rel=0.01)
    assert e.training.scored == ("every" if every else "last")
    assert e.training.validation == Evaluation(None, 4, recipes.NEXT_PLAY)
    assert e.training.test == Evaluation(10_000, 1, 128)
    assert e.seed == 7


def test_the_next_play_begins_where_it_is_said_to():
    try:
        corpus = load_corpus("tiny_shakespeare")
    except CorpusUnavailable:
        pytest.skip("Tiny Shakespeare cannot be had here")
    text = corpus.vocabulary.decode(corpus.valid)
    assert text[recipes.NEXT_PLAY :].startswith("SLY:\nI'll pheeze you, in faith.")
    assert "PETRUCHIO" not in text[: recipes.NEXT_PLAY] and "DUKE VINCENTIO" not in text[recipes.NEXT_PLAY :]
    assert "DUKE VINCENTIO" in corpus.vocabulary.decode(corpus.train)[-20_000:]
    assert "PETRUCHIO" in corpus.vocabulary.decode(corpus.test)
