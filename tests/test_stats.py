"""Statistics of a few seeds, against SciPy and by simulation."""

from statistics import mean, stdev

import numpy as np
import pytest
from scipy import stats as scipy

from slmlib import stats

A, B = [2.30, 2.35, 2.28, 2.41], [2.29, 2.30, 2.27, 2.35]


def test_pairs_are_compared_by_a_t_test_of_their_differences():
    differences = [a - b for a, b in zip(A, B, strict=True)]
    got, expected = stats.paired(differences), scipy.ttest_rel(A, B)
    assert got.p == pytest.approx(expected.pvalue) and got.n == 4
    assert (got.low, got.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert got.effect == pytest.approx(mean(A) - mean(B))
    assert got.spread == pytest.approx(stdev(differences))
    assert stats.paired([0.1]) is None


def test_groups_are_compared_by_welchs():
    got, expected = stats.unpaired(A, B[:3]), scipy.ttest_ind(A, B[:3], equal_var=False)
    assert got.p == pytest.approx(expected.pvalue) and got.n == 3
    assert (got.low, got.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert stats.unpaired(A, [1.0]) is None


def test_with_the_same_groups_on_both_sides_there_is_one_variance():
    got, expected = stats.unpaired_pooled(A, B, ([A, B], [A, B])), scipy.ttest_ind(A, B)
    assert got.p == pytest.approx(expected.pvalue)
    assert (got.low, got.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_a_pooled_interval_covers_the_truth_in_19_cases_of_20():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(500):
        sides = [rng.normal(0, s, (4, 3)).tolist() for s in (1.0, 0.3)]
        got = stats.unpaired_pooled(*(side[0] for side in sides), tuple(sides))
        covered += got.low < 0 < got.high
    assert 0.92 < covered / 500 < 0.98


@pytest.mark.parametrize("effect, p, sign", [(0.0, 1.0, 0), (0.5, 0.0, 1), (-0.5, 0.0, -1)])
def test_what_does_not_scatter_is_beyond_doubt_and_equals_are_no_evidence(effect, p, sign):
    for got in (stats.paired([effect] * 3), stats.unpaired([1 + effect] * 3, [1.0] * 3)):
        assert (got.p, got.sign, got.low, got.high) == (p, sign, effect, effect)


def test_holm_is_the_step_down_method():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert stats.holm(p) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})  # monotone: b is not 0.04
    assert stats.holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0} and stats.holm({}) == {}
    assert stats.holm({"b": 0.01, "n": float("nan"), "a": 0.001}) == pytest.approx({"a": 0.003, "b": 0.02, "n": 1.0})


def test_equivalence_is_two_one_sided_tests():
    values = [0.01, -0.01, 0.005, 0.0]
    expected = max(
        scipy.ttest_1samp(values, -0.03, alternative="greater").pvalue,
        scipy.ttest_1samp(values, 0.03, alternative="less").pvalue,
    )
    assert stats.equivalence(stats.paired(values), 0.03) == pytest.approx(expected) and expected < 0.01
    assert stats.equivalence(stats.paired([0.03, 0.029, 0.031]), 0.03) == pytest.approx(0.5)
    others = [0.02, 0.03, 0.01]  # a group of another size, by Welch's test
    expected = scipy.ttest_ind(values, [x - 0.05 for x in others], equal_var=False, alternative="less").pvalue
    assert stats.equivalence(stats.unpaired(values, others), 0.05) == pytest.approx(1 - expected)


def test_the_interval_is_students_and_one_more_run_falls_into_the_prediction():
    low, high = scipy.t.interval(0.95, df=3, loc=mean(A), scale=scipy.sem(A))
    assert stats.paired(A).high - stats.paired(A).effect == pytest.approx((high - low) / 2)
    runs = np.random.default_rng(0).normal(0, 2, (2000, 6))
    half = [stats.prediction_half(stdev(some), 5) for some in runs[:, :5].tolist()]
    assert 0.93 < np.mean(abs(runs[:, 5] - runs[:, :5].mean(1)) < half) < 0.97


def powers(exponent, bend=0.0, noise=0.02, n=6, seed=0):
    """Costs, means of three on a power law with a bend and noise, and their standard errors."""
    costs, generator = np.geomspace(1e11, 3e13, n), np.random.default_rng(seed)
    x = np.log(costs / 1e12)
    seeds = 2 * np.exp(-exponent * x + bend * x**2) + generator.normal(0, noise, (3, n))
    return costs, seeds.mean(axis=0), np.full(n, (seeds.var(axis=0, ddof=1).mean() / 3) ** 0.5), 2 * n


def test_a_power_law_is_found_and_a_bend_is_told_from_one():
    assert stats.power_law(*powers(0.05, noise=1e-6)).exponent == pytest.approx((0.05, 0.05, 0.05), abs=1e-5)
    assert stats.power_law(*powers(0.05, bend=0.02)).p < 1e-3
    costs, losses, errors, free = powers(0.05, n=2)
    assert np.isnan(stats.power_law(costs, losses, errors, free).p)  # through two points: nothing to judge by


def test_the_interval_of_an_exponent_covers_it_and_p_is_uniform_when_the_law_is_true():
    laws = [stats.power_law(*powers(0.05, seed=s)) for s in range(400)]
    covered = np.mean([low < 0.05 < high for _, low, high in (law.exponent for law in laws)])
    assert 0.9 < covered < 0.98
    assert 0.02 < np.mean([law.p < 0.05 for law in laws]) < 0.09


def test_where_a_curve_is_lowest_is_found_and_its_interval_covers_it():
    x = np.array([16, 32, 64, 128, 256.0])
    generator = np.random.default_rng(0)

    def curve(noise, bend=0.05):
        return {k: 2 + bend * np.log2(k / 48) ** 2 + noise * generator.normal(size=3) for k in x}

    exact = stats.lowest(curve(1e-9))
    assert (exact.at, exact.low, exact.high, exact.loss) == pytest.approx((48, 48, 48, 2), rel=1e-6)
    covered = [low.low < 48 < low.high for low in (stats.lowest(curve(0.01)) for _ in range(400))]
    assert 0.92 < np.mean(covered) < 0.98
    assert stats.lowest(curve(1e-3, bend=-0.05)) is None
    assert np.mean([stats.lowest(curve(0.01, bend=0.0)) is None for _ in range(200)]) > 0.95


def test_what_two_lowest_points_say_of_a_third_covers_it():
    x = np.array([16, 32, 64, 128, 256.0])
    generator = np.random.default_rng(1)

    def at(best):
        return stats.lowest({k: 2 + 0.05 * np.log2(k / best) ** 2 + 0.01 * generator.normal(size=3) for k in x})

    found = [stats.growth({1e10: at(32), 1e11: at(32 * 10**0.3)}, 1e12) for _ in range(400)]
    assert 0.92 < np.mean([low < 0.3 < high for _, low, high in (g.power for g in found)]) < 0.99
    assert 0.92 < np.mean([low < 32 * 10**0.6 < high for _, low, high in (g.expected for g in found)]) < 0.99
