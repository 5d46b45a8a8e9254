"""The experiments beyond the paper's: that they are what they are said to be."""

from dataclasses import replace
from math import log10
from typing import get_args

import numpy as np
import pytest
from scipy import stats
from test_paper import made_up

from slmlib import paper, studies
from slmlib.experiments import RESULTS, Store
from slmlib.flops import Ledger, flops_per_window
from slmlib.models import MLPConfig, build


@pytest.mark.parametrize("suite", sorted(studies.SUITES))
def test_every_record_is_one_that_its_study_asks_for(suite):
    found = Store(RESULTS / suite).found()
    assert set(found) <= set(studies.SUITES[suite](studies.SEEDS, found))


@pytest.mark.parametrize("suite", sorted(set(studies.SUITES) - {"frontier", "today"}))
def test_a_suite_lists_each_experiment_once_for_each_seed(suite):
    one, three = studies.SUITES[suite](1, {}), studies.SUITES[suite](3, {})
    assert len(set(three)) == len(three) == 3 * len(one)
    assert {e.seed for e in three} == {0, 1, 2}
    assert {replace(e, seed=0) for e in three} == set(one)
    for experiment in one:
        build(experiment.model, 65, seed=0)


def test_depth_and_context_are_swept_at_equal_windows_from_the_papers_transformer():
    experiments = studies.depth_context(1)
    assert len({e.training for e in experiments}) == 1
    assert {e.model.context for e in experiments if e.model.layers == 3} == {32, 64, 128, 256}
    assert {e.model.layers for e in experiments if e.model.context == 128} == {1, 2, 3, 4, 6}
    assert {replace(e.model, context=128, layers=3) for e in experiments} == {paper.run("Transformer").model}


def test_what_changes_is_what_is_said_to():
    pair = paper.run("RoPE").experiment(1)
    assert replace(studies.unplaced(1), model=pair.model) == pair and studies.unplaced(1).model.positions == "none"
    assert (
        studies.every_position("rope", 1).model == pair.model
        and studies.every_position("rope", 1).training.scored == "every"
    )
    longer = studies.further("RoPE", 1)
    assert replace(longer, training=pair.training) == pair and longer.training == replace(pair.training, epochs=12)
    capped = paper.run("Penn Treebank").experiment(2)
    assert replace(studies.uncapped(2), train_tokens=80_000) == capped


# --- the frontier


@pytest.mark.parametrize("family", studies.FAMILIES)
def test_a_budget_is_met_and_is_the_beginning_of_the_next(family):
    one_window = studies.FAMILIES[family].flops()
    for budgets in (studies.BUDGETS[:3], studies.BUDGETS[3:]):
        runs = [studies.at_cost(family, budget, 1e-3, 1) for budget in budgets]
        for run, budget in zip(runs, budgets, strict=True):
            cost = run.training.epochs * run.training.windows_per_epoch * one_window
            assert cost == pytest.approx(budget, rel=0.005)
        assert len({replace(run, training=replace(run.training, epochs=1)) for run in runs}) == 1


def answer(asked, loss):
    """Records as if runs had been made whose validation loss is that function of family, budget, rate and seed."""
    about = {
        studies.at_cost(family, budget, rate, seed): (family, budget, rate, seed)
        for family in studies.FAMILIES
        for budget in studies.BUDGETS
        for rate in studies.RATES
        for seed in range(3)
    }
    return {e: made_up(e, 3.0, [loss(*about[e])] * e.training.epochs) for e in asked}


def complete(loss, seeds=3):
    found, rounds = {}, 0
    while missing := set(studies.frontier(seeds, found)) - set(found):
        found |= answer(missing, loss)
        rounds += 1
        assert rounds < 60
    return found


@pytest.mark.parametrize("speed", [0.0, 0.2, 1.1, -1.1], ids=["still", "slow", "fast", "upwards"])
def test_the_best_rate_is_found_wherever_it_wanders(speed):
    def loss(family, budget, rate, seed):
        trend = log10(min(budget, 1e12) if speed < 0 else budget) - 11  # dearer budgets look for no higher rate
        best = -2.5 - speed * trend  # a valley whose bottom moves with the budget
        return abs(log10(rate) - max(-4.6, min(-2, best))) + 1 + seed  # other seeds must not matter to the choice

    found, others = complete(loss), set()
    for family in studies.FAMILIES:
        for budget in studies.BUDGETS:
            chosen = studies.best_rate(family, budget, found)
            assert chosen == min(studies.RATES, key=lambda rate: loss(family, budget, rate, 0))
            others |= {studies.at_cost(family, budget, chosen, seed) for seed in (1, 2)}
    assert {e for e in found if e.seed} == others


def at(family, budget, found):
    """What was found of a family at a budget."""
    some = studies.at_cost(family, budget, 1e-3, 0)
    return {e for e in found if replace(e, seed=0, training=replace(e.training, learning_rate=1e-3)) == some}


def test_fewer_rates_are_tried_than_there_are():
    found = complete(lambda family, budget, rate, seed: abs(log10(rate) + 3))
    tried = [e for e in at("MLP T=8", 3e13, found) if e.seed == 0]
    assert sorted(e.training.learning_rate for e in tried) == [3e-4, 1e-3]
    assert len(at("MLP T=8", 1e11, found)) == len(studies.RATES) + 2


def test_no_best_rate_rose_where_higher_ones_were_tried():
    found = Store(RESULTS / "frontier").found()
    for family in studies.FAMILIES:
        best = [studies.best_rate(family, budget, found) for budget in studies.BUDGETS[:3]]
        settled = [rate for rate in best if rate is not None]
        assert settled == sorted(settled, reverse=True), family


def test_nothing_is_asked_before_what_it_depends_on():
    first = studies.frontier(3, {})
    assert {e.seed for e in first} == {0} and len(first) == len(studies.FAMILIES) * len(studies.RATES)
    assert {e.training.epochs for e in first} == {1}


def test_points_are_of_the_best_rate_over_seeds_at_the_ledgers_cost():
    def loss(family, budget, rate, seed):
        return abs(log10(rate) + 3) + 1 + seed / 10

    found = complete(loss)
    last = studies.at_cost("MLP T=8", 1e13, 1e-3, 2)
    del found[studies.at_cost("MLP T=8", 3e13, 1e-3, 1)]  # a budget counts when all its seeds are in
    for ledger in get_args(Ledger):
        points = studies.frontier_points(found, ledger, lambda record: min(record.valid))
        assert list(points) == list(studies.FAMILIES)
        costs, seeds = zip(*points["MLP T=8"].items(), strict=True)
        window = flops_per_window(MLPConfig(context=8), 65, ledger)
        windows = last.training.epochs * last.training.windows_per_epoch
        assert costs[-1] == pytest.approx(windows * window, rel=0.005)
        assert ledger != "needed" or costs == studies.BUDGETS[:-1]
        assert all(losses == [1.0, 1.1, 1.2] for losses in seeds)
    assert studies.frontier_points({}) == {}
    some = {e: r for e, r in found.items() if e in studies.frontier(3, {})}  # the first budget's rates, of seed 0
    assert studies.frontier_points(some) == {}


def test_the_envelope_is_the_best_that_a_cost_buys():
    cheap, dear = {1.0: 3.0, 100.0: 2.0, 1e4: 2.5}, {10.0: 4.0, 1000.0: 1.0, 1e5: 1.2}
    got = studies.envelope([cheap, dear], np.array([0.5, 1.0, 10.0, 100.0, 1000.0, 1e4, 1e5, 1e6]))
    np.testing.assert_allclose(got, [np.nan, 3.0, 2.5, 2.0, 1.0, 1.0, 1.0, np.nan])
    np.testing.assert_allclose(studies.envelope([cheap], np.array([1e4, 1e5])), [2.0, np.nan])  # worse is not taken
    np.testing.assert_allclose(studies.envelope([cheap], np.array([100.0, 1e4]), carried=False), [2.0, 2.5])


def test_the_envelope_is_not_known_where_a_family_that_was_not_run_might_be_lower():
    late = {50.0: 2.9, 100.0: 1.5}  # where it begins it is better than what cheaper runs of another gave
    np.testing.assert_allclose(
        studies.envelope([{1.0: 3.0, 90.0: 2.95}, late], np.array([1, 9, 50.0])), [np.nan, np.nan, 2.9]
    )
    ahead, behind = {1.0: 2.0, 10.0: 1.0}, {1.0: 3.0, 100.0: 1.5}  # the one that was ahead stops
    np.testing.assert_allclose(studies.envelope([ahead, behind], np.array([10, 11, 100.0])), [1.0, np.nan, np.nan])
    ahead[10.0] = 2.6  # it stops once it has been overtaken
    np.testing.assert_allclose(studies.envelope([ahead, behind], np.array([10, 100.0]), carried=False), [2.25, 1.5])


def test_the_envelope_of_draws_is_that_of_each_where_the_means_envelope_is_known():
    generator, costs = np.random.default_rng(0), np.array([5.0, 20.0, 100.0, 3000.0])
    drawn = [{c: generator.normal(2, 1, 50) for c in paid} for paid in ((1.0, 10.0, 1e4), (10.0, 100.0))]
    for carried in (True, False):
        each = [studies.lowest([{c: v[i] for c, v in f.items()} for f in drawn], costs, carried) for i in range(50)]
        np.testing.assert_allclose(studies.lowest(drawn, costs, carried), each)
    points = {
        "A T=1": {1.0: [3.0, 3.2], 10.0: [2.0, 2.2], 1e4: [1.9, 2.1]},
        "A T=2": {10.0: [3.5, 3.5]},
        "B": {5.0: [1.0]},
    }
    middle, draws = studies.envelopes(points, "A", np.array([0.5, 1.0, 10.0, 1e4, 1e5]), draws=200)
    np.testing.assert_array_equal(np.isfinite(middle), [False, True, True, True, False])
    assert draws.shape == (200, 5) and (np.isfinite(draws) == np.isfinite(middle)).all()


@pytest.mark.parametrize("asked, expected", [("MLP T=3", 3.0), ("MLP T=32", 2.0), ("MLP", 2.0), ("M", None)])
def test_a_family_is_not_another_whose_name_begins_so(asked, expected):
    points = {"MLP T=3": {1.0: [3.0, 3.0]}, "MLP T=32": {1.0: [2.0, 2.0]}, "MLPs T=3": {1.0: [1.0, 1.0]}}
    if expected is None:
        with pytest.raises(ValueError):
            studies.envelopes(points, asked, np.array([1.0]))
    else:
        assert studies.envelopes(points, asked, np.array([1.0]))[0] == [expected]


def test_redrawn_means_scatter_as_the_means_of_seeds_do():
    half = 0.3 / 2**0.5  # of two seeds, for a standard deviation of 0.3
    points = {
        "a": {1.0: [2.0, 2.2, 2.4]},
        "b": {1.0: [1.0, 1.1, 1.2], 2.0: [5.0 - half, 5.0 + half]},
        "c": {1.0: [4.0]},
    }
    drawn = studies.redraw(points, 20_000, np.random.default_rng(0))
    for family, cost, centre, spread, n, free in (
        ("a", 1.0, 2.2, 0.2, 3, 2),
        ("b", 1.0, 1.1, (0.1**2 * 2 + 0.3**2) ** 0.5 / 3**0.5, 3, 3),
        ("b", 2.0, 5.0, (0.1**2 * 2 + 0.3**2) ** 0.5 / 3**0.5, 2, 3),
        ("c", 1.0, 4.0, 0.0, 1, 1),
    ):
        values = drawn[family][cost]
        low, middle, high = np.percentile(values, [2.5, 50, 97.5])
        assert middle == pytest.approx(centre, abs=0.01)
        assert high - low == pytest.approx(2 * stats.t.ppf(0.975, free) * spread / n**0.5, rel=0.08)


@pytest.mark.parametrize("attention, verdict", [(0.0, "does not hold"), (1.8, "holds"), (1.0, "cannot be told")])
def test_c2_is_asked_again_at_equal_compute(attention, verdict):
    def loss(family, budget, rate, seed):
        lead = attention if family.startswith("Self") else 0.0
        return 4 + abs(log10(rate) + 3) + seed / 100 + (family[:3] != "MLP") - lead

    found = {e: replace(r, test_nll_whole=r.valid[0]) for e, r in complete(loss).items()}
    _, said, evidence = studies.again_at_equal_compute(found)["C2"]
    assert f"**{verdict}" in said and evidence.count(" at 10") + evidence.count(" at 3\xa0·\xa010") == len(
        studies.BUDGETS
    )
    assert {-1.0: "−1.000", 0.8: "+0.800", 0.0: "0.000"}[attention - 1.0] in evidence
    some = {e: r for e, r in found.items() if e.model.context != 128 or e.training.epochs == 1}
    few = studies.again_at_equal_compute(some)["C2"][2]  # as far as all families have come
    assert few.count(" at 10") == 1 and studies.again_at_equal_compute({}) == {}


def test_hindsight_takes_off_what_the_choice_of_the_rate_cost():
    """Validation is best at 1e-3, the test at 3e-4 for the first seed: by 0.25 nats, of the rates tried."""

    def tested(record):
        rate = record.experiment.training.learning_rate
        return {1e-3: 2.25, 3e-4: 2.0, 1e-4: 1.0}.get(rate, 3.0) + record.experiment.seed / 10

    found = complete(lambda family, budget, rate, seed: abs(log10(rate) + 3))
    found = {e: replace(r, test_nll_whole=tested(r)) for e, r in found.items()}
    # At the smallest budget all rates are tried, at the next ones the best and its neighbours.
    assert studies.choice_cost("MLP T=8", 1e11, found) == 1.25
    assert studies.choice_cost("MLP T=8", 3e11, found) == 0.25
    after = studies.in_hindsight(found)["MLP T=8"]
    assert after[1e11] == pytest.approx([1.0, 1.1, 1.2]) and after[3e11] == pytest.approx([2.0, 2.1, 2.2])
    assert studies.in_hindsight({}) == {}
    assert studies.equal_compute_verdict({}) == ("not enough records", "")


def test_curves_cross_where_a_difference_begins_to_stay_above_zero():
    costs = np.array([1.0, 10.0, 100.0, 1000.0])
    differences = np.array(
        [[-1, -1, 1, 1], [-1, -3, 1, 2], [1, -1, 1, 1], [1, 1, 1, 1], [-1, 1, 1, -1], [-1, -1, -1, 0], [0, 2, 2, 2]]
    )
    crossed = studies.above_from(costs, differences)
    np.testing.assert_allclose(crossed, [10**1.5, 10**1.75, 10**1.5, 0, np.inf, np.inf, 1])


def powers(exponent, bend=0.0, noise=0.02, n=6, draws=4000, seed=0):
    """Costs, means of three on a power law with a bend and noise, and what other seeds would have given."""
    costs, generator = np.geomspace(1e11, 3e13, n), np.random.default_rng(seed)
    x = np.log(costs / 1e12)
    seeds = 2 * np.exp(-exponent * x + bend * x**2) + generator.normal(0, noise, (3, n))
    losses, spread = seeds.mean(axis=0), (seeds.var(axis=0, ddof=1).mean() / 3) ** 0.5
    return costs, losses, losses + spread * generator.standard_t(2 * n, (draws, n)), 2 * n


def test_a_power_law_is_found_and_says_what_it_would_at_other_costs():
    costs, losses, drawn, known = powers(0.05, noise=1e-6)
    law = studies.power_law(costs, losses, drawn, known)
    assert law.exponent() == pytest.approx((0.05, 0.05, 0.05), abs=1e-5)
    said, drawn_too = law.loss(1e15)
    assert said == pytest.approx(2 * 1000**-0.05, abs=1e-4) and drawn_too.shape == (4000,) and law.p > 0.01
    line = studies.power_law(costs[:2], losses[:2], drawn[:, :2], known)  # through two points: nothing to judge by
    assert line.loss(costs[1])[0] == pytest.approx(losses[1]) and np.isnan(line.p)
    np.testing.assert_allclose(line.loss(costs[1])[1], drawn[:, 1])


def test_the_interval_of_an_exponent_covers_it_and_p_is_uniform_when_the_law_is_true():
    laws = [studies.power_law(*powers(0.05, draws=400, seed=s)) for s in range(400)]
    covered = np.mean([low < 0.05 < high for _, low, high in (law.exponent() for law in laws)])
    assert 0.88 < covered < 0.98
    assert 0.02 < np.mean([law.p < 0.05 for law in laws]) < 0.09


def test_a_bend_is_told_from_a_power_law():
    assert studies.power_law(*powers(0.05, bend=0.02)).p < 1e-3
