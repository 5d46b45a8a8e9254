"""Experiments beyond the paper's, whose records chapters quote beside it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import NamedTuple

import numpy as np
from scipy import stats

from . import paper, recipes
from .experiments import Experiment, Record
from .flops import Ledger, Scored, as_text, flops_per_window
from .models import Config, LinearConfig, MLPConfig, TransformerConfig
from .paper import with_ends
from .training import TrainingConfig

#: Records by experiment.
Found = Mapping[Experiment, Record]

SEEDS = 3

#: Contexts at three blocks, and depths at 128 characters, of the paper's transformer: equal windows for all.
CONTEXTS = (32, 64, 128, 256)
DEPTHS = (1, 2, 3, 4, 6)
#: A third more windows than the paper's sweeps, looked at eight times on the way.
FOLLOWED = TrainingConfig(epochs=8, windows_per_epoch=10_000, eval_stride=8)


def followed(model: TransformerConfig, seed: int) -> Experiment:
    """A model trained on 80,000 windows of Tiny Shakespeare, its validation loss taken after every 10,000."""
    return Experiment("tiny_shakespeare", model, FOLLOWED, seed)


def depth_context(seeds: int = SEEDS) -> list[Experiment]:
    """The paper's transformer over contexts and depths, with the validation loss followed over the steps."""
    models = [TransformerConfig(context=T) for T in CONTEXTS] + [TransformerConfig(layers=n) for n in DEPTHS]
    return [followed(model, seed) for seed in range(seeds) for model in dict.fromkeys(models)]


POSITIONS = ("learned", "rope", "none")


def unplaced(seed: int) -> Experiment:
    """The paper's RoPE pair has a third: the same model told nothing of positions."""
    experiment = paper.run("RoPE").experiment(seed)
    return replace(experiment, model=replace(experiment.model, positions="none"))


def every_position(positions: str, seed: int, embed_init: str = "unit") -> Experiment:
    """The paper's RoPE pair and its third, the training loss taken at every position, on an eighth of the windows."""
    model = replace(paper.run("RoPE").model, positions=positions, embed_init=embed_init)
    training = TrainingConfig(epochs=4, windows_per_epoch=12_500, eval_stride=8, scored="every")
    return Experiment("tiny_shakespeare", model, training, seed)


def further(label: str, seed: int) -> Experiment:
    """One of the paper's RoPE pair, for half as many epochs again; its first eight are the paper's run."""
    experiment = paper.run(label).experiment(seed)
    return replace(experiment, training=replace(experiment.training, epochs=3 * experiment.training.epochs // 2))


def positions(seeds: int = SEEDS) -> list[Experiment]:
    """What the paper's RoPE pair does not ask."""
    return [
        *(every_position(kind, seed) for seed in range(seeds) for kind in POSITIONS),
        *(every_position("learned", seed, "small") for seed in range(seeds)),
        *(unplaced(seed) for seed in range(seeds)),
        *(further(label, seed) for seed in range(seeds) for label in ("Learned positions", "RoPE")),
    ]


def uncapped(seed: int) -> Experiment:
    """The paper's Penn Treebank run on the whole train split."""
    return replace(paper.run("Penn Treebank").experiment(seed), train_tokens=None)


def words(seeds: int = SEEDS) -> list[Experiment]:
    """What the cap on the training text does."""
    return [uncapped(seed) for seed in range(seeds)]


class Family(NamedTuple):
    """A model of Tiny Shakespeare that the frontier trains at many budgets."""

    model: Config
    scored: Scored = "last"  # which positions of a training window the loss is taken at

    def flops(self, ledger: Ledger = "needed") -> int:
        """Of one training window."""
        return flops_per_window(self.model, _CHARACTERS, ledger, scored=self.scored)


_CHARACTERS = 65  # Tiny Shakespeare's vocabulary


def _with(run: paper.PaperRun, context: int) -> Config:
    return replace(run.model, context=context)


#: The paper's four models and the same with less context, an MLP and a block of attention with the same ones; and its
#: rotary transformer, trained on every position.
FAMILIES: dict[str, Family] = {
    **{f"Linear T={T}": Family(LinearConfig(context=T)) for T in (8, 32, 128)},
    **{f"MLP T={T}": Family(MLPConfig(context=T)) for T in (4, 8, 16, 32, 128)},
    **{f"Self-attention T={T}": Family(_with(paper.run("Self-attention"), T)) for T in (4, 8, 16, 32, 128)},
    **{f"Transformer T={T}": Family(_with(paper.run("Transformer"), T)) for T in (8, 32, 128)},
    **{f"Every position T={T}": Family(_with(paper.run("RoPE"), T), "every") for T in (32, 128)},
}
BUDGETS = (1e11, 3e11, 1e12, 3e12, 1e13, 3e13)  # needed FLOPs of training
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def at_cost(family: str, budget: float, rate: float, seed: int) -> Experiment:
    """A family trained for so many needed FLOPs, to the nearest window an epoch, at a constant learning rate.

    The budgets up to 1e12 differ in their number of epochs alone, and so do those above: a smaller one is the beginning
    of a larger one.
    """
    epoch = 1e11 if budget <= 1e12 else 1e12
    training = TrainingConfig(
        epochs=round(budget / epoch),
        windows_per_epoch=round(epoch / FAMILIES[family].flops()),
        eval_windows=None,  # neighbouring windows are alike, and one scene need not want the rate that another does
        eval_stride=64,
        eval_from=128,
        learning_rate=rate,
        scored=FAMILIES[family].scored,
    )
    return Experiment("tiny_shakespeare", FAMILIES[family].model, training, seed)


def rates_tried(family: str, budget: float, found: Found) -> list[float]:
    """The learning rates to try at a budget with seed 0: more of them, the more is found of what was asked before.

    At the smallest budget all of ``RATES``. At the next ones, up to 1e12 FLOPs, the best of the budget below and its
    two neighbours, then one more on a side for as long as the best is at that end. As no family's best rate rose there
    (a test holds the records to it), the dearer budgets look downwards alone. None before the budget below is settled.
    """
    i = BUDGETS.index(budget)
    if i == 0:
        return list(RATES)
    if (below := best_rate(family, BUDGETS[i - 1], found)) is None:
        return []
    at, last = RATES.index(below), len(RATES) - 1
    low, high = max(0, at - 1), min(last, at + 1) if budget <= 1e12 else at
    while True:
        tried = RATES[low : high + 1]
        best = _best(family, budget, tried, found)
        if best == tried[0] and low > 0:
            low -= 1
        elif best == tried[-1] and at < high < last:
            high += 1
        else:
            return list(tried)


def best_rate(family: str, budget: float, found: Found) -> float | None:
    """The learning rate with the lowest validation loss at a budget, of those tried; None while some are to be run."""
    tried = rates_tried(family, budget, found)
    return _best(family, budget, tried, found) if tried else None


def _best(family: str, budget: float, rates: Sequence[float], found: Found) -> float | None:
    records = {rate: found.get(at_cost(family, budget, rate, 0)) for rate in rates}
    if None in records.values():
        return None
    return min(records, key=lambda rate: min(records[rate].valid))


def frontier(seeds: int = SEEDS, found: Found | None = None) -> list[Experiment]:
    """Each family at each budget: learning rates tried with seed 0, then the other seeds at the best of them.

    What is asked depends on what is found; when all that is asked is found, it is complete. The cheap ones come first.
    """
    found = found or {}
    wanted = []
    for budget in BUDGETS:
        for family in FAMILIES:
            wanted += [at_cost(family, budget, rate, 0) for rate in rates_tried(family, budget, found)]
        for family in FAMILIES:
            if (rate := best_rate(family, budget, found)) is not None:
                wanted += [at_cost(family, budget, rate, seed) for seed in range(1, seeds)]
    return wanted


Losses = float | np.ndarray

#: For each family a loss of each seed in nats, by the FLOPs that it was trained for.
Points = Mapping[str, Mapping[float, Sequence[float]]]


def frontier_points(
    found: Found, ledger: Ledger = "needed", loss: Callable[[Record], float] = lambda record: record.test_nll_whole
) -> Points:
    """What is found of each family, at each budget with the best of its learning rates, as far as all seeds have come.

    Args:
        found: records of ``frontier``.
        ledger: in which the cost is counted. In ``needed`` it is the budget (met to half a percent).
        loss: what is read off a record; the test NLL on the whole test split, where contexts score the same text.
    """
    points: dict[str, dict[float, list[float]]] = {}
    for family in FAMILIES:
        for budget in BUDGETS:
            rate = best_rate(family, budget, found)
            runs = [at_cost(family, budget, rate, seed) for seed in range(SEEDS)] if rate else []
            if not runs or any(run not in found for run in runs):
                break
            cost = budget * FAMILIES[family].flops(ledger) / FAMILIES[family].flops()
            points.setdefault(family, {})[cost] = [loss(found[run]) for run in runs]
    return points


def choice_cost(family: str, budget: float, found: Found) -> float:
    """What it costs at the test, in nats, that the rate was chosen by validation: with seed 0, of the rates tried."""
    tested = {
        rate: found[at_cost(family, budget, rate, 0)].test_nll_whole for rate in rates_tried(family, budget, found)
    }
    return tested[best_rate(family, budget, found)] - min(tested.values())


def in_hindsight(found: Found) -> Points:
    """``frontier_points`` less what the choice of rates cost seed 0, taken off all seeds."""
    return {
        family: {b: [loss - choice_cost(family, b, found) for loss in seeds] for b, seeds in by_budget.items()}
        for family, by_budget in frontier_points(found).items()
    }


def lowest(families: Collection[Mapping[float, Losses]], costs: np.ndarray, carried: bool = True) -> np.ndarray:
    """The lowest loss that one of some families reached for a cost: (n,) for costs (n,); NaN below all of their runs.

    Between its runs a family's loss is interpolated linearly in the logarithm of the cost. Beyond its last run, and
    where more training made it worse, its best so far stands.

    Args:
        families: ``{cost: loss}`` each; or ``{cost: losses (draws,)}``, for (draws, n).
        costs: positive, in FLOPs.
        carried: False to take what was found at a cost even where less training gave better.
    """
    curves = []
    for family in families:
        paid = sorted(family)
        best = np.stack([family[cost] for cost in paid], axis=-1)
        best = np.minimum.accumulate(best, axis=-1) if carried else best
        weights = [np.interp(np.log(costs), np.log(paid), one, left=np.nan) for one in np.eye(len(paid))]
        curves.append(best @ np.array(weights))
    return np.fmin.reduce(curves)


def envelope(families: Collection[Mapping[float, float]], costs: np.ndarray, carried: bool = True) -> np.ndarray:
    """The lowest loss that one of some families reaches for a cost: ``lowest``, and NaN where that is not known.

    It is not known where nothing was run; nor where a family that has its first run only at a higher cost does better
    there: it might here; nor beyond the last run of a family that was the lowest when it stopped: it might be still.
    """
    least = lowest(families, costs, carried)
    for family in families:
        first, last = min(family), max(family)
        end = np.array([last])
        was_lowest = lowest([family], end, carried) <= lowest(families, end, carried)
        might_be_lower = ((costs < first) & (family[first] < least)) | (was_lowest & (costs > last * (1 + 1e-9)))
        least = np.where(might_be_lower, np.nan, least)
    return least


def redraw(points: Points, draws: int, generator: np.random.Generator) -> dict[str, dict[float, np.ndarray]]:
    """Means over seeds as other seeds might have given them, (draws,) each: a parametric bootstrap.

    Each mean is drawn around the one found from Student's t, with the standard deviation between seeds, pooled over
    the costs of its family (few seeds tell it badly one by one), over the square root of their number. As that
    deviation is itself an estimate, a draw has a scale of its own, the same for all means of a family.
    """
    drawn = {}
    for family, by_cost in points.items():
        groups = by_cost.values()
        free = max(1, sum(len(seeds) - 1 for seeds in groups))
        spread = sum(np.var(seeds) * len(seeds) for seeds in groups) / free
        scale = (spread * free / generator.chisquare(free, draws)) ** 0.5
        drawn[family] = {
            cost: mean(seeds) + scale * generator.standard_normal(draws) / len(seeds) ** 0.5
            for cost, seeds in by_cost.items()
        }
    return drawn


def _is_of(family: str, architectures: Collection[str]) -> bool:
    """Whether a family is one of these, or of these architectures: "MLP T=3" is of "MLP", and "MLP T=32" not of it."""
    return family in architectures or family.rpartition(" T=")[0] in architectures


def envelopes(
    points: Points, architecture: str, costs: np.ndarray, carried: bool = True, draws: int = 1_000
) -> tuple[np.ndarray, np.ndarray]:
    """The envelope of an architecture's families, or of one, at costs (n,): of the means (n,), and redrawn (draws, n).

    Each architecture is redrawn from a random stream of its own, the same at every call.
    """
    families = {name: by_cost for name, by_cost in points.items() if _is_of(name, (architecture,))}
    means = [{cost: mean(seeds) for cost, seeds in by_cost.items()} for by_cost in families.values()]
    drawn = redraw(families, draws, np.random.default_rng(list(architecture.encode())))
    middle = envelope(means, costs, carried)
    return middle, np.where(np.isfinite(middle), lowest(drawn.values(), costs, carried), np.nan)


def minus_best(
    one: tuple[np.ndarray, np.ndarray], others: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """An envelope minus the lowest of some others, each as ``envelopes`` gives it; NaN where any is not known."""
    middle, drawn = (
        mine - np.minimum.reduce(theirs) for mine, theirs in zip(one, zip(*others, strict=True), strict=True)
    )
    return middle, drawn


def above_from(costs: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """The cost from which on a difference stays above zero: for costs (n,) and differences (m, n), (m,).

    Interpolated between costs, linearly in their logarithm; 0 where it is above zero throughout, infinity where it
    is not at the last cost. No difference may be NaN.
    """
    below = ~(differences > 0)
    last = differences.shape[1] - 1 - below[:, ::-1].argmax(axis=1)  # the last cost at which it is not above
    found = []
    for row, i, ever in zip(differences, last, below.any(axis=1), strict=True):
        if not ever or i + 1 == len(costs):
            found.append(np.inf if ever else 0.0)
        else:
            found.append(np.exp(np.interp(0, row[i : i + 2], np.log(costs[i : i + 2]))))
    return np.array(found)


@dataclass(frozen=True)
class PowerLaw:
    """A fitted loss = a · (FLOPs / 10¹²)^(−b), and what other seeds might have made of it."""

    fitted: np.ndarray  # (2,): log a and −b
    drawn: np.ndarray  # (draws, 2)
    p: float  # the probability of deviations at least as large as these if it is the law; nan for two costs

    def exponent(self) -> tuple[float, float, float]:
        """b, with the ends of its 95 % interval."""
        return (-self.fitted[1], *np.percentile(-self.drawn[:, 1], [2.5, 97.5]))

    def loss(self, cost: float) -> tuple[float, np.ndarray]:
        """What it says for a cost in FLOPs, and over the draws, (draws,)."""
        x = np.array([1, np.log(cost / 1e12)])
        return np.exp(self.fitted @ x), np.exp(self.drawn @ x)


def power_law(costs: np.ndarray, losses: np.ndarray, drawn: np.ndarray, known_from: int) -> PowerLaw:
    """Fit a power law of the cost (Kaplan et al., 2020, without a floor) to losses.

    By least squares in the logarithm of the loss, each deviation in units of the standard deviation between seeds. The
    sum of their squares, over n − 2, is held against an F distribution, as for independent deviations.

    Args:
        costs: (n,) in FLOPs, at least two.
        losses: (n,) in nats.
        drawn: (draws, n), the losses as other seeds might have given them, scattered by Student's t.
        known_from: its degrees of freedom, more than two.
    """
    spread = drawn.std(axis=0) * (1 - 2 / known_from) ** 0.5 / losses  # of the logarithm; t is wider than normal
    design = np.stack([np.ones(len(costs)), np.log(costs / 1e12)], axis=1)
    solve = np.linalg.pinv(design / spread[:, None]) / spread  # (2, n): from log losses to coefficients
    fitted = solve @ np.log(losses)
    deviation = (np.log(losses) - design @ fitted) / spread
    free = len(costs) - 2
    p = float(stats.f.sf((deviation**2).sum() / free, free, known_from)) if free else float("nan")
    return PowerLaw(fitted, np.log(drawn) @ solve.T, p)


ATTENTION = ("Self-attention", "Transformer")  # as in the paper, trained at the last position


def mlp_minus_attention(
    points: Points, families: Collection[str] = tuple(FAMILIES)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The loss of the best MLP minus that of the best attention, at the budgets that all of their families have.

    Args:
        points: as ``frontier_points`` gives them.
        families: the ones to choose from; others are left out of account.

    Returns:
        Budgets (n,), the difference of the means (n,) and redrawn (draws, n). None, n = 0, while there are no records.
    """
    asked = [family for family in families if _is_of(family, ("MLP", *ATTENTION))]
    costs = np.array(BUDGETS)[: min(len(points.get(family, {})) for family in asked)]
    if not len(costs):
        return costs, costs, np.empty((0, 0))
    mlp, *others = (envelopes({f: points[f] for f in asked}, a, costs) for a in ("MLP", *ATTENTION))
    return costs, *minus_best(mlp, others)


def equal_compute_verdict(points: Points) -> tuple[paper.Verdict, str]:
    """C2's verdict on the best MLP against the best attention, and the evidence.

    The claim says "dominates": it holds if attention has the lower loss at every budget, and does not if the MLP has at
    one, each beyond the 95 % interval.
    """
    costs, middle, drawn = mlp_minus_attention(points)
    if not len(costs):
        return "not enough records", ""
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    evidence = ", ".join(
        f"{with_ends(m, a, b)} at {as_text(cost)}" for cost, m, a, b in zip(costs, middle, low, high, strict=True)
    )
    if (high < 0).any():
        return "does not hold", evidence
    return "holds" if (low > 0).all() else "cannot be told apart from noise", evidence


def again_at_equal_compute(found: Found) -> dict[str, tuple[str, str, str]]:
    """For ``paper.scoreboard``: C2's second verdict, from the frontier. Nothing while there are no records."""
    points = frontier_points(found)
    costs, *_ = mlp_minus_attention(points)
    if not len(costs):
        return {}
    verdict, evidence = equal_compute_verdict(points)
    first = f"the paper's two models, attention at {paper.TWO_EPOCHS:.0%} of the MLP's needed FLOPs"
    second = (
        "best MLP against best attention, trained on a window's last position, at the best contexts and rates tried, "
        f"{as_text(costs[0])} to {as_text(costs[-1])} needed FLOPs: **{verdict}**"
    )
    return {"C2": (first, second, f"best MLP − best attention at equal FLOPs: {evidence}")}


#: By name: the experiments for a number of seeds, given the records that there are. Their records lie in a folder of
#: that name under ``results/``.
SUITES: dict[str, Callable[[int, Found], list[Experiment]]] = {
    "depth-context": lambda seeds, found: depth_context(seeds),
    "positions": lambda seeds, found: positions(seeds),
    "words": lambda seeds, found: words(seeds),
    "frontier": frontier,
    "today": recipes.today,
}
