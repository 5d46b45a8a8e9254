"""Statistics of a few seeds: intervals, tests, corrections. Nothing here knows what the numbers are of."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import copysign, isnan, sqrt
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy.special import fdtrc, stdtr, stdtrit  # scipy.stats takes a second to import

LEVEL = 0.05  # of every test


@dataclass(frozen=True)
class Estimate:
    """A difference, its 95 % interval, and the p value of its being zero (two-sided)."""

    effect: float
    low: float
    high: float
    p: float
    n: int  # seeds, of the smaller side
    spread: float  # standard deviation of what one run of each shows; of one seed, where they are paired
    free: float  # degrees of freedom of the interval

    @property
    def sign(self) -> int:
        """1 or -1 where it is significantly above or below zero, else 0."""
        return int(copysign(1, self.effect)) if self.p <= LEVEL else 0


def student(free: float) -> float:
    """Student's t, of so many degrees of freedom, that 2.5 % exceed: two such are within it 19 times in 20."""
    return float(stdtrit(free, 0.975))


def paired(differences: Sequence[float]) -> Estimate | None:
    """The mean of differences, seed by seed, by the one-sample t test; None for fewer than two."""
    if len(differences) < 2:
        return None
    spread = float(np.std(differences, ddof=1))
    return _estimate(fmean(differences), spread / sqrt(len(differences)), len(differences) - 1, spread, differences)


def unpaired(worse: Sequence[float], better: Sequence[float]) -> Estimate | None:
    """The difference of two groups' means by Welch's t test (1947); None where one has fewer than two."""
    if min(len(worse), len(better)) < 2:
        return None
    return unpaired_pooled(worse, better, ([worse], [better]))


def unpaired_pooled(
    worse: Sequence[float], better: Sequence[float], like: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]
) -> Estimate:
    """``unpaired``, each side's variance pooled over groups that are taken to scatter alike.

    Three seeds alone tell a standard deviation badly. The degrees of freedom are Satterthwaite's (1946); where both
    sides have the same groups there is one variance, with its own.

    Args:
        worse, better: a loss of each seed.
        like: for each side the groups, its own among them.
    """
    parts = []
    for group, groups in zip((worse, better), like, strict=True):
        free = sum(len(g) - 1 for g in groups)
        parts.append((sum(np.var(g) * len(g) for g in groups) / free / len(group), free))
    (a, free_a), (b, free_b) = parts
    free = (a + b) ** 2 / (a**2 / free_a + b**2 / free_b) if a + b else 1.0
    free = free_a if len(like[0]) > 1 and like[0] == like[1] else free
    spread = sqrt(a * len(worse) + b * len(better))
    return _estimate(fmean(worse) - fmean(better), sqrt(a + b), free, spread, min(worse, better, key=len))


def _estimate(effect: float, error: float, free: float, spread: float, seeds: Sequence[float]) -> Estimate:
    if not error:  # all the same: equals are no evidence, and any other difference is beyond doubt
        return Estimate(effect, effect, effect, 0.0 if effect else 1.0, len(seeds), 0.0, free)
    half = student(free) * error
    p = float(2 * stdtr(free, -abs(effect) / error))
    return Estimate(effect, float(effect - half), float(effect + half), p, len(seeds), float(spread), float(free))


def equivalence(of: Estimate, margin: float) -> float:
    """p of two one-sided t tests (Schuirmann, 1987): small if what is estimated is within ± ``margin``."""
    error, beyond = (of.high - of.low) / 2 / student(of.free), abs(of.effect) - margin
    return float(stdtr(of.free, beyond / error)) if error else float(beyond >= 0)


def holm(p: Mapping[Hashable, float]) -> dict:
    """p values after Holm's step-down correction, by the same keys (Holm, 1979); NaN, undefined, counts as 1."""
    adjusted, highest = {}, 0.0
    p = {key: 1.0 if isnan(value) else value for key, value in p.items()}
    for i, (key, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p) - i) * value))
        adjusted[key] = highest
    return adjusted


def corrected(estimates: Mapping[Hashable, Estimate]) -> dict:
    """Estimates with Holm's p values, over all of them, by the same keys."""
    adjusted = holm({key: e.p for key, e in estimates.items()})
    return {key: replace(e, p=adjusted[key]) for key, e in estimates.items()}


def prediction_half(sd: float, n: int) -> float:
    """Half the 95 % prediction interval for one further value, around the mean of n with that s.d."""
    return student(n - 1) * sd * sqrt(1 + 1 / n)


@dataclass(frozen=True)
class Lowest:
    """Where a curve is lowest, on the scale of x, with its 95 % interval, which is even in log x."""

    at: float
    low: float
    high: float
    loss: float

    @property
    def half(self) -> float:
        """Half the interval of log2(at)."""
        return float(np.log2(self.high / self.at))


def lowest(curve: Mapping[float, Sequence[float]]) -> Lowest | None:
    """The vertex of a parabola in log2(x), fitted to the losses of each seed by least squares.

    So do the isoFLOP curves of Hoffmann et al. (2022) find the best size. The interval is the delta method's, with
    Student's t; the noise is what the parabola leaves. None where it opens downwards or that is not beyond chance.

    Args:
        curve: ``{x: loss of each seed}``, three or more x and four or more losses.
    """
    x = np.log2(np.repeat(list(curve), [len(seeds) for seeds in curve.values()]))
    y = np.concatenate([np.asarray(seeds, dtype=float) for seeds in curve.values()])
    middle, t = x.mean(), student(len(x) - 3)
    (c, b, a), covariance = np.polyfit(x - middle, y, 2, cov=True)
    if c <= t * covariance[0, 0] ** 0.5:
        return None
    vertex = -b / (2 * c)
    slope = np.array([-vertex / c, -1 / (2 * c), 0])
    half = t * float(slope @ covariance @ slope) ** 0.5
    ends = (float(2 ** (middle + vertex + k * half)) for k in (0, -1, 1))
    return Lowest(*ends, loss=float(a - b**2 / (4 * c)))


@dataclass(frozen=True)
class Growth:
    """By what power of a budget the lowest point moves, and where it is expected at a third one; 95 % intervals."""

    power: tuple[float, float, float]  # itself, low, high
    expected: tuple[float, float, float]


def growth(lowest: Mapping[float, Lowest], budget: float) -> Growth:
    """The power law through the lowest points at two budgets, carried to another; their errors are independent."""
    (first, a), (second, b) = lowest.items()
    doublings = np.log2(second / first)
    share = np.log2(budget / first) / doublings
    power, its_half = np.log2(b.at / a.at) / doublings, np.hypot(a.half, b.half) / doublings
    half = np.hypot((1 - share) * a.half, share * b.half)
    at = np.log2(a.at) + share * np.log2(b.at / a.at)
    ways = (0, -1, 1)
    return Growth(tuple(float(power + k * its_half) for k in ways), tuple(float(2 ** (at + k * half)) for k in ways))


class PowerLaw(NamedTuple):
    """A fitted loss = a · FLOPs^(−b)."""

    exponent: tuple[float, float, float]  # b, with the ends of its 95 % interval
    p: float  # the probability of deviations at least as large as these if it is the law; nan for two costs


def power_law(costs: np.ndarray, losses: np.ndarray, errors: np.ndarray, free: int) -> PowerLaw:
    """Fit a power law of the cost (Kaplan et al., 2020, without a floor) to losses.

    By least squares in the logarithm of the loss, each deviation in units of its standard error. The sum of their
    squares, over n − 2, is held against an F distribution, as for independent deviations.

    Args:
        costs: (n,) in FLOPs, at least two.
        losses: (n,) in nats.
        errors: (n,) their standard errors.
        free: the degrees of freedom of these.
    """
    x, weights = np.log(costs), losses / errors  # these are of the logarithm
    fitted, covariance = np.polyfit(x, np.log(losses), 1, w=weights, cov="unscaled")
    deviation = (np.log(losses) - np.polyval(fitted, x)) * weights
    over = len(costs) - 2
    p = float(fdtrc(over, free, (deviation**2).sum() / over)) if over else float("nan")
    b, half = -float(fitted[0]), float(student(free) * covariance[0, 0] ** 0.5)
    return PowerLaw((b, b - half, b + half), p)
