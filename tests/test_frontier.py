"""Architectures at equal compute: the search for rates, the one rule of choice, what is compared."""

from dataclasses import replace
from itertools import product
from math import log10
from typing import get_args
from zlib import crc32

import numpy as np
import pytest
from conftest import made_up

from slmlib import frontier
from slmlib.experiments import RESULTS, Store
from slmlib.flops import Ledger, flops_per_window
from slmlib.models import MLPConfig


@pytest.mark.parametrize("family", frontier.FAMILIES)
def test_a_budget_is_met_and_is_the_beginning_of_the_next(family):
    one_window = frontier.FAMILIES[family].flops()
    for budgets in (frontier.BUDGETS[:3], frontier.BUDGETS[3:]):
        runs = [frontier.at_cost(family, budget, 1e-3, 1) for budget in budgets]
        for run, budget in zip(runs, budgets, strict=True):
            cost = run.training.epochs * run.training.windows_per_epoch * one_window
            assert cost == pytest.approx(budget, rel=0.005)
        assert len({replace(run, training=replace(run.training, epochs=1)) for run in runs}) == 1


EVERY = product(frontier.FAMILIES, frontier.BUDGETS, frontier.RATES, range(3))
ABOUT = {frontier.at_cost(*of): of for of in EVERY}


def complete(loss):
    """Records as if all runs had been made, with that validation loss of a family, a budget, a rate and a seed."""
    found = {}
    while missing := set(frontier.frontier(3, found)) - set(found):
        found |= {e: made_up(e, 3.0, [loss(*ABOUT[e])] * e.training.epochs) for e in missing}
    return found


@pytest.mark.parametrize("speed", [0.0, 0.2, 1.1, -1.1], ids=["still", "slow", "fast", "upwards"])
def test_the_best_rate_is_found_wherever_it_wanders(speed):
    def loss(family, budget, rate, seed):
        trend = log10(min(budget, 1e12) if speed < 0 else budget) - 11  # dearer budgets look little higher
        best = -2.5 - speed * trend  # a valley whose bottom moves with the budget
        return abs(log10(rate) - max(-4.6, min(-2, best))) + 1 + seed  # other seeds must not matter to the choice

    found, others = complete(loss), set()
    for family in frontier.FAMILIES:
        for budget in frontier.BUDGETS:
            chosen = frontier.best_rate(family, budget, found)
            assert chosen == min(frontier.RATES, key=lambda rate: loss(family, budget, rate, 0))
            others |= {frontier.at_cost(family, budget, chosen, seed) for seed in (1, 2)}
    assert {e for e in found if e.seed} == others


def at(family, budget, found):
    """What was found of a family at a budget."""
    some = frontier.at_cost(family, budget, 1e-3, 0)
    return {e for e in found if replace(e, seed=0, training=replace(e.training, learning_rate=1e-3)) == some}


def test_fewer_rates_are_tried_than_there_are():
    found = complete(lambda family, budget, rate, seed: abs(log10(rate) + 3))
    tried = [e for e in at("MLP T=8", 3e13, found) if e.seed == 0]
    assert sorted(e.training.learning_rate for e in tried) == [3e-4, 1e-3]
    decides = [e for e in at("MLP T=8", 1e13, found) if e.seed == 0]  # there one rate higher than the best is tried
    assert sorted(e.training.learning_rate for e in decides) == [3e-4, 1e-3, 3e-3]
    assert len(at("MLP T=8", 1e11, found)) == len(frontier.RATES) + 2


def test_no_best_rate_rose_where_higher_ones_were_tried():
    found = Store(RESULTS / "frontier").found()
    for family in frontier.FAMILIES:
        best = [frontier.best_rate(family, budget, found) for budget in frontier.BUDGETS[:3]]
        settled = [rate for rate in best if rate is not None]
        assert settled == sorted(settled, reverse=True), family


def test_nothing_is_asked_before_what_it_depends_on():
    first = frontier.frontier(3, {})
    assert {e.seed for e in first} == {0} and len(first) == len(frontier.FAMILIES) * len(frontier.RATES)
    assert {e.training.epochs for e in first} == {1}


def test_families_are_told_by_architecture_and_context_not_by_how_a_name_begins():
    assert [f.name for f in frontier.of("Linear")] == ["Linear T=8", "Linear T=32", "Linear T=128"]
    assert {f.context for f in frontier.of("MLP")} == {4, 8, 16, 32, 128} and frontier.of("ML") == []
    assert len(frontier.of()) == len(frontier.FAMILIES) == 18


def test_a_cell_is_of_the_best_rate_over_all_seeds_at_the_ledgers_cost():
    found = complete(lambda family, budget, rate, seed: abs(log10(rate) + 3) + 1 + seed / 10)
    last = frontier.at_cost("MLP T=8", 1e13, 1e-3, 2)
    del found[frontier.at_cost("MLP T=8", 3e13, 1e-3, 1)]  # a budget counts when all its seeds are in
    there = frontier.cells(found)
    assert ("MLP T=8", 3e13) not in there and ("MLP T=16", 3e13) in there
    cell = there["MLP T=8", 1e13]
    assert cell.rate == 1e-3 and cell.valid == pytest.approx(1.1) and cell.cost() == 1e13
    windows = last.training.epochs * last.training.windows_per_epoch
    for ledger in get_args(Ledger):
        cost = windows * flops_per_window(MLPConfig(context=8), 65, ledger)
        assert cell.cost(ledger) == pytest.approx(cost, rel=0.005)
    assert frontier.cells({}) == {} == frontier.cells({e: found[e] for e in frontier.frontier(3, {})})


def test_what_is_chosen_is_chosen_by_validation_and_more_training_is_not_taken_for_better():
    """The test says the opposite of validation: the choice must not follow it."""

    def loss(family, budget, rate, seed):
        return 5 - log10(budget) / 10 + frontier.FAMILIES[family].context / 1e3 + abs(log10(rate) + 3) + seed / 1e3

    found = {e: replace(r, test_nll_whole=10 - r.valid[0]) for e, r in complete(loss).items()}
    there = frontier.cells(found)
    mlps = [c for c in there.values() if c.family.architecture == "MLP"]
    chosen = frontier.best_within(mlps, 2e12)
    assert (chosen.family.context, chosen.budget) == (4, 1e12)
    assert frontier.best_within(mlps, 1e10) is None
    assert frontier.best_within(mlps, 1e13, "paper").cost("paper") <= 1e13
    worse = {e: replace(r, valid=[9.0] * len(r.valid)) if len(r.valid) > 10 else r for e, r in found.items()}
    kept = frontier.best_within([c for c in frontier.cells(worse).values() if c.family.architecture == "MLP"], 3e13)
    assert kept.budget == 1e13  # by validation the dearest runs were in vain


@pytest.mark.parametrize("lead, sign", [(-1.8, -1), (1.8, 1), (0.0, 0)])
def test_two_architectures_are_compared_at_every_budget_that_both_have(lead, sign):
    def loss(family, budget, rate, seed):
        noise = np.random.default_rng(crc32(f"{family[:3]} {budget} {seed}".encode())).normal(0, 0.05)
        return 4 + abs(log10(rate) + 3) + (seed > 0) * noise - (family[:3] == "Lin") * lead / 2

    found = {e: replace(r, test_nll_whole=r.valid[0]) for e, r in complete(loss).items()}
    made = frontier.compare(frontier.cells(found), frontier.of("Linear"), frontier.of("MLP"))
    assert [c.flops for c in made] == list(frontier.BUDGETS)
    assert {c.estimate.sign for c in made} <= {0, -sign} and (sign == 0 or made[0].estimate.sign == -sign)
    assert all(c.estimate.low <= c.estimate.effect <= c.estimate.high for c in made)


def test_crossings_and_laws_are_of_what_validation_chose():
    def loss(family, budget, rate, seed):
        steep = 0.3 if family.startswith("Every") else 0.1
        start = 4.0 if family.startswith("Every") else 3.6
        return start - steep * (log10(budget) - 11) + abs(log10(rate) + 3) + seed / 1e4

    found = {e: replace(r, test_nll_whole=r.valid[0]) for e, r in complete(loss).items()}
    there = frontier.cells(found)
    assert frontier.crossing(there, "Every position", "MLP") == 3e13  # level at 1e13
    assert frontier.crossing(there, "MLP", "Every position") is None
    assert frontier.crossing(there, "MLP", "MLP") is None
    assert frontier.law(there, "Every position").exponent[0] > frontier.law(there, "MLP").exponent[0] > 0
    cell = there["MLP T=8", 1e11]
    assert frontier.choice_cost(cell, found) == 0  # test and validation agree here


def test_a_budget_that_buys_one_side_nothing_is_passed_over():
    there = frontier.cells(Store(RESULTS / "frontier").found())
    assert frontier.compare(there, frontier.of("MLP"), frontier.of("Every position"), [1e9, 1e10]) == []
