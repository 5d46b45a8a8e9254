"""The search for what to train, on losses that are made up; and the text that it is chosen on."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import made_up

from slmlib import recipes
from slmlib.corpora import Corpus, Vocabulary
from slmlib.flops import flops_per_window
from slmlib.models import MLPConfig, TransformerConfig
from slmlib.windows import Evaluation

BEST = {
    **{"context": 16, "width": 32, "hidden": 128, "batch": 64, "tokens": 512, "layers": 2},
    **{"rate": 2e-3, "muon_rate": 0.01, "dropout": 0.1, "weight_decay": 0.1},
}


def bowl(point):
    """A loss that is lowest at ``BEST``."""
    return sum(abs(value - BEST[name]) for name, value in {"layers": 1, **point}.items() if name in BEST)


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
def test_the_search_walks_to_the_lowest_validation_loss(architecture, losses, monkeypatch):
    monkeypatch.setitem(recipes.LARGEST, architecture, 3e10)
    found, searched = {}, [*recipes.search(architecture, {})]
    while missing := [e for *_, asked in searched for e in asked if e not in found]:
        assert all(e.seed == 0 for e in missing)
        found |= {e: made_up(e, valid=[1e9, losses(e)]) for e in missing}
        searched = [*recipes.search(architecture, found)]
    budget, point, _ = searched[-1]
    assert budget == 3e10 and bowl(point) == (0.0 if "layers" in point else 1.0)
    assert set(found) == {e for *_, asked in searched for e in asked}


@pytest.mark.parametrize("architecture", recipes.LADDERS)
@pytest.mark.parametrize("budget", recipes.BUDGETS)
def test_a_point_costs_its_budget_and_is_chosen_on_the_next_play(architecture, budget):
    e = recipes.experiment(architecture, recipes._FIRST[architecture], budget, 7)
    every = isinstance(e.model, TransformerConfig)
    window = flops_per_window(e.model, 65, scored="every" if every else "last")
    assert e.training.epochs * e.training.windows_per_epoch * window == pytest.approx(budget, rel=0.01)
    assert e.training.scored == ("every" if every else "last")
    assert e.training.validation.first == recipes.NEXT_PLAY


@pytest.fixture
def searched(losses, monkeypatch):
    """The records of a search that is at its end, and a text."""
    monkeypatch.setattr(recipes, "LARGEST", dict.fromkeys(recipes.LARGEST, 1e11))
    found = {}
    while missing := [e for e in recipes.today(3, found) if e not in found]:
        for e in missing:
            flops, loss = e.flops(), losses(e) - e.flops() / 1e13  # more compute, a little less loss
            seconds = {"training": flops / 1e9, "testing": 0.0}
            found[e] = made_up(e, float(e.seed), [1e9, loss], flops={"counted": flops}, seconds=seconds)
    return found


def test_the_suite_asks_until_each_choice_has_its_seeds(searched):
    assert set(recipes.today(3, searched)) == set(searched)
    seeds = Counter(replace(e, seed=0) for e in searched)
    assert Counter(seeds.values())[3] == 18  # four architectures at three budgets, two by AdamW alone
    for architecture in recipes.ALONE:
        spared = [of[0].training for of in recipes.without_muon(architecture, searched)[0].values()]
        assert [(t.optimiser, t.learning_rate) for t in spared] == [("adamw", BEST["rate"])] * 3
    assert set(seeds.values()) == {1, 3}


def text(tokens):
    ids = torch.arange(tokens) % 65
    vocabulary = Vocabulary(tuple(chr(48 + i) for i in range(65)), "character")
    return Corpus("mine", ids, ids[: tokens // 8], ids[: tokens // 8], vocabulary)


def test_the_best_is_the_lowest_mean_validation_loss_within_the_flops(searched):
    records = recipes.best(5e10, searched)
    assert [r.experiment.seed for r in records] == [0, 1, 2]
    assert all(r.flops["counted"] == pytest.approx(3e10, rel=0.01) for r in records)
    means = {
        key: sum(min(searched[recipes.experiment(key[0], p, key[1], s)].valid) for s in range(3)) / 3
        for key, p in recipes.chosen(searched).items()
        if key[1] <= 5e10
    }
    assert recipes.validation(records) == min(means.values())
    assert recipes.best(3e10, searched) == records  # though a whole number of windows may cost a little more
    with pytest.raises(ValueError, match=r"costs 1e\+09 FLOPs or less.*1e\+10"):
        recipes.best(1e9, searched)
    with pytest.raises(ValueError, match="no recorded choice"):
        recipes.best(5e10, {e: r for e, r in searched.items() if e.seed < 2})


@pytest.mark.parametrize("architecture", ["mlp", "blocks"])
def test_what_is_trained_under_a_budget_is_what_was_chosen_there(architecture, searched):
    corpus = text(400_000)
    e = recipes.best_under(3e10, corpus, architecture, searched, seed=5)
    point = recipes.chosen(searched)[architecture, 3e10]
    assert (e.model, e.seed, e.corpus) == (recipes.model(architecture, point), 5, "mine")
    assert e.flops() == pytest.approx(3e10, rel=0.01)
    assert e.training.test == e.training.whole_test == Evaluation(None, 5, 128)
    assert e.training.validation == Evaluation(None, 20, 128)


def test_short_convolutions_are_chosen_where_they_were_tried_and_lower_the_validation_loss(searched):
    points = recipes.chosen(searched)
    for budget, less in ((3e10, 0.01), (1e11, -0.01)):
        for seed in range(3):  # by the mean: the seed that chose the settings is a lucky one without them
            e = recipes.experiment("blocks", {**points["blocks", budget], "conv": recipes.REACH}, budget, seed)
            loss = min(searched[replace(e, model=replace(e.model, conv=0))].valid) - less
            searched[e] = made_up(e, valid=[1e9, loss + (0.03, -0.02, -0.01)[seed]])
    added = {**points["blocks", 3e10], "conv": recipes.REACH}
    assert recipes.chosen(searched) == {**points, ("blocks", 3e10): added}
    assert recipes.best_under(3e10, text(40_000), "blocks", searched).model.conv == recipes.REACH


def test_a_small_run_is_that_of_the_smallest_budget_but_for_smoke(monkeypatch):
    monkeypatch.delenv("SLMLIB_BUDGET", raising=False)
    whole = recipes.small("mlp", text(40_000), 1)
    assert whole == recipes.best_under(1e10, text(40_000), "mlp", seed=1)
    monkeypatch.setenv("SLMLIB_BUDGET", "smoke")
    few = recipes.small("mlp", text(40_000), 1).training
    assert few == whole.training.at("smoke", "reduced") and few.windows_per_epoch < whole.training.windows_per_epoch


def test_between_two_budgets_each_setting_lies_between_theirs(searched, monkeypatch):
    low, high = {"width": 16, "rate": 1e-3, "muon_rate": 0}, {"width": 64, "rate": 1e-2, "muon_rate": 0.02}
    ladders = {"width": (16, 32, 64), "rate": (1e-3, 3e-3, 1e-2), "muon_rate": (0, 0.01, 0.02)}
    monkeypatch.setitem(recipes.LADDERS, "made up", ladders)
    middle = {"width": 32, "rate": 3e-3, "muon_rate": 0.01, "conv": 3}
    assert recipes._between("made up", {**low, "conv": 3}, high, 0.5) == middle
    assert recipes._between("made up", low, {**high, "conv": 3}, 0.1) == {**low, "conv": 0}
    assert recipes._between("made up", low, high, 0.9) == {**high, "conv": 0}
    for flops in (2e10, 5e10):
        assert recipes.best_under(flops, text(40_000), found=searched).flops() == pytest.approx(flops, rel=0.01)


def test_nothing_is_trained_beyond_what_was_searched(searched):
    for flops in (9e9, 2e11):
        with pytest.raises(ValueError, match=r"flops must be from 1e\+10 to 1e\+11"):
            recipes.best_under(flops, text(40_000), found=searched)
    with pytest.raises(ValueError, match="architecture must be"):
        recipes.best_under(3e10, text(40_000), "cnn", searched)
    with pytest.raises(ValueError, match="found must be the records"):
        recipes.best_under(3e10, text(40_000), found={})
    with pytest.raises(ValueError, match="the valid split of mine holds 125 tokens"):
        recipes.best_under(3e10, text(1_000), found=searched)


def test_in_a_time_the_best_run_is_chosen_that_was_no_longer(searched):
    corpus = text(900_000)
    for kind, architecture in ((MLPConfig, "mlp"), (TransformerConfig, "blocks")):
        e, seconds = recipes.best_within(40.0, corpus, architecture, searched)
        there = [r for r in searched.values() if isinstance(r.experiment.model, kind)]
        best = min((r for r in there if r.seconds["training"] <= 40), key=lambda r: min(r.valid))
        assert seconds <= 40 and e.model == best.experiment.model
    with pytest.raises(ValueError, match="seconds must be 10 at least for mlp on 900,000 tokens, got 2"):
        recipes.best_within(2.0, corpus, "mlp", searched)


def test_a_short_text_is_passed_over_only_so_often(searched):
    few, many = (recipes.best_within(1e9, text(tokens), "mlp", searched)[0] for tokens in (9_000, 900_000))
    assert recipes.passes(few, 9_000) <= recipes.PASSES < recipes.passes(many, 9_000)


def test_the_next_play_begins_where_it_is_said_to(shakespeare):
    train, valid, test = map(shakespeare.vocabulary.decode, (shakespeare.train, shakespeare.valid, shakespeare.test))
    assert valid[recipes.NEXT_PLAY :].startswith("SLY:\nI'll pheeze you, in faith.")
    assert "PETRUCHIO" not in valid[: recipes.NEXT_PLAY] and "DUKE VINCENTIO" not in valid[recipes.NEXT_PLAY :]
    assert "DUKE VINCENTIO" in train[-20_000:] and "PETRUCHIO" in test
