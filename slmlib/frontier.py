"""Architectures at equal compute: families of models, the search for their learning rates, what a budget buys.

One rule for every choice: of what may be chosen (context, learning rate, how far to train), the one with the lowest
*validation* loss. Test losses are read off what was chosen, never searched.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean

import numpy as np

from . import paper
from .checks import each_seed
from .experiments import Experiment, Record
from .flops import Ledger, Scored, flops_per_window
from .models import Config, LinearConfig, MLPConfig
from .stats import Estimate, PowerLaw, corrected, power_law, unpaired_pooled
from .training import TrainingConfig

#: Records by experiment.
Found = Mapping[Experiment, Record]

SEEDS = 3
_CHARACTERS = 65  # Tiny Shakespeare's vocabulary


@dataclass(frozen=True)
class Family:
    """A model of Tiny Shakespeare that the frontier trains at many budgets."""

    architecture: str
    model: Config
    scored: Scored = "last"  # which positions of a training window the loss is taken at

    @property
    def context(self) -> int:
        return self.model.context

    @property
    def name(self) -> str:
        return f"{self.architecture} T={self.context}"

    def flops(self, ledger: Ledger = "needed") -> int:
        """Of one training window."""
        return flops_per_window(self.model, _CHARACTERS, ledger, scored=self.scored)


def _families() -> Iterable[Family]:
    yield from (Family("Linear", LinearConfig(context=T)) for T in (8, 32, 128))
    yield from (Family("MLP", MLPConfig(context=T)) for T in (4, 8, 16, 32, 128))
    for architecture, label, scored, contexts in (
        ("Self-attention", "Self-attention", "last", (4, 8, 16, 32, 128)),
        ("Transformer", "Transformer", "last", (8, 32, 128)),
        ("Every position", "RoPE", "every", (32, 128)),
    ):
        yield from (Family(architecture, replace(paper.run(label).model, context=T), scored) for T in contexts)


#: The paper's four models and the same with less context, an MLP and a block of attention with the same ones; and its
#: rotary transformer, trained on every position. By name.
FAMILIES: dict[str, Family] = {family.name: family for family in _families()}
ARCHITECTURES = tuple(dict.fromkeys(family.architecture for family in FAMILIES.values()))
ATTENTION = ("Self-attention", "Transformer")  # as in the paper, trained at the last position
BUDGETS = (1e11, 3e11, 1e12, 3e12, 1e13, 3e13)  # needed FLOPs of training
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def of(*architectures: str) -> list[Family]:
    """The families of some architectures; of all if none is named."""
    return [family for family in FAMILIES.values() if family.architecture in (architectures or ARCHITECTURES)]


def at_cost(family: str, budget: float, rate: float, seed: int) -> Experiment:
    """A family trained for so many needed FLOPs, to the nearest window an epoch, at a constant learning rate.

    The budgets up to 1e12 differ in their number of epochs alone, and so do those above: a smaller one is the beginning
    of a larger one.
    """
    return _at_cost(family, budget, rate, seed)


@cache  # the search asks for the same ones again and again
def _at_cost(family: str, budget: float, rate: float, seed: int) -> Experiment:
    epoch, of_family = 1e11 if budget <= 1e12 else 1e12, FAMILIES[family]
    # All windows: neighbouring ones are alike, and one scene need not want the rate that another does.
    looks = {"eval_windows": None, "eval_stride": 64, "eval_from": 128}
    epochs, windows = round(budget / epoch), round(epoch / of_family.flops())
    training = TrainingConfig(epochs, windows, learning_rate=rate, scored=of_family.scored, **looks)
    return Experiment("tiny_shakespeare", of_family.model, training, seed)


def rates_tried(family: str, budget: float, found: Found) -> list[float]:
    """The learning rates to try at a budget with seed 0: more of them, the more is found of what was asked before.

    At the smallest budget all of ``RATES``. At the next ones the best of the budget below and its neighbours (above
    1e12 the lower one), then one more on a side for as long as the best is at that end. None before the budget below is
    settled. As no family's best rate rises up to 1e12, dearer budgets go no higher than the best of the one below; but
    one step where the best MLP or the best attention is chosen from, contexts up to 16 at 3e12 and 1e13.
    """
    i = BUDGETS.index(budget)
    if i == 0:
        return list(RATES)
    if (below := best_rate(family, BUDGETS[i - 1], found)) is None:
        return []
    at, most, of_family = RATES.index(below), len(RATES) - 1, FAMILIES[family]
    if budget > 1e12:
        decides = of_family.architecture in ("MLP", *ATTENTION) and of_family.context <= 16 and budget <= 1e13
        most = min(at + decides, most)
    low, high = max(0, at - 1), min(most, at + (budget <= 1e12))
    while True:
        tried = RATES[low : high + 1]
        best = _best(family, budget, tried, found)
        if best == tried[0] and low > 0:
            low -= 1
        elif best == tried[-1] and high < most:
            high += 1
        else:
            return list(tried)


def best_rate(family: str, budget: float, found: Found) -> float | None:
    """The learning rate with the lowest validation loss at a budget, of those tried; None while some are to be run."""
    return _best(family, budget, rates_tried(family, budget, found), found)


def _best(family: str, budget: float, rates: Sequence[float], found: Found) -> float | None:
    records = {rate: found.get(at_cost(family, budget, rate, 0)) for rate in rates}
    if not records or None in records.values():
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
                wanted += [at_cost(family, budget, rate, seed) for seed in each_seed(seeds, 1)]
    return wanted


@dataclass(frozen=True)
class Cell:
    """A family at a budget, trained over all seeds at the learning rate that validation chose. Losses in nats."""

    family: Family
    budget: float  # needed FLOPs of training
    rate: float
    rates: tuple[float, ...]  # those tried
    records: tuple[Record, ...]  # by seed

    @property
    def valid(self) -> float:
        """Mean validation loss, of each seed's best epoch: what choices are made by."""
        return fmean(min(record.valid) for record in self.records)

    @property
    def losses(self) -> list[float]:
        """Test NLL of each seed, on the whole test split, where contexts score the same text."""
        return [record.test_nll_whole for record in self.records]

    @property
    def loss(self) -> float:
        return fmean(self.losses)

    def cost(self, ledger: Ledger = "needed") -> float:
        """FLOPs of training; in ``needed`` the budget, which is met to half a percent."""
        return self.budget * self.family.flops(ledger) / self.family.flops()


#: By family's name and budget; a cell is there once all its seeds are.
Cells = Mapping[tuple[str, float], Cell]


def cells(found: Found) -> Cells:
    """All that is complete of the frontier."""
    there = {}
    for name, family in FAMILIES.items():
        for budget in BUDGETS:
            rate = best_rate(name, budget, found)
            runs = [at_cost(name, budget, rate, seed) for seed in range(SEEDS)] if rate else []
            if not runs or any(run not in found for run in runs):
                break
            tried = tuple(rates_tried(name, budget, found))
            there[name, budget] = Cell(family, budget, rate, tried, tuple(found[run] for run in runs))
    return there


def best_within(there: Iterable[Cell], flops: float, ledger: Ledger = "needed") -> Cell | None:
    """What validation chooses of all that costs no more than so many FLOPs in a ledger; None if nothing does."""
    paid = [cell for cell in there if cell.cost(ledger) <= flops * 1.001]
    return min(paid, key=lambda cell: cell.valid) if paid else None


def budgets_of(there: Cells, families: Collection[Family]) -> list[float]:
    """The budgets at which all of some families are there."""
    return [b for b in BUDGETS if families and all((family.name, b) in there for family in families)]


@dataclass(frozen=True)
class Comparison:
    """Two architectures at a budget, each by the cell that validation chooses."""

    flops: float
    worse: Cell
    better: Cell
    estimate: Estimate  # test loss of ``worse`` minus that of ``better``


def compare(
    there: Cells,
    worse: Collection[Family],
    better: Collection[Family],
    budgets: Collection[float] | None = None,
    ledger: Ledger = "needed",
) -> list[Comparison]:
    """Loss of the best of some families minus that of the best of others, for equal FLOPs.

    Each side's best is chosen by validation among its families' cells at the budget and below. The interval is of the
    difference between the two that were chosen, by Welch's t with a side's variance pooled over its architecture's
    families at that budget: no minimum is taken of test losses, so it is centred on what is found. It takes the choice
    as given. p values are not corrected for the number of budgets.

    Args:
        there: ``cells``.
        worse, better: the families to choose from; a difference above zero says that ``better`` has the lower loss.
        budgets: where to compare; everywhere that all of these families were run, if None.
        ledger: in which the budgets are FLOPs. In others than ``needed`` a side may spend less than the whole.
    """
    made = []
    for budget in budgets or budgets_of(there, [*worse, *better]):
        sides = [best_within((c for c in there.values() if c.family in f), budget, ledger) for f in (worse, better)]
        if None not in sides:  # else nothing of theirs is so cheap
            like = tuple(
                [c.losses for c in there.values() if c.family in of(s.family.architecture) and c.budget == s.budget]
                for s in sides
            )
            made.append(Comparison(budget, *sides, unpaired_pooled(*(s.losses for s in sides), like)))
    return made


def mlp_against_attention(there: Cells) -> list[Comparison]:
    """The paper's second claim at equal needed FLOPs: loss of the best MLP minus the best attention's, by budget.

    Attention is one block or three, trained at the last position as in the paper. All families of these are compared
    as far as all were run, and at dearer budgets those that were run there. p values are corrected over the budgets.
    """
    made = []
    for budget in BUDGETS:
        sides = [[f for f in of(*some) if (f.name, budget) in there] for some in (("MLP",), ATTENTION)]
        if all(sides):
            names = {f.name for side in sides for f in side}
            made += compare({key: cell for key, cell in there.items() if key[0] in names}, *sides, [budget])
    return at_once(made)


def at_once(made: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons with Holm's p values, over all of them."""
    estimates = corrected({c.flops: c.estimate for c in made})
    return [replace(c, estimate=estimates[c.flops]) for c in made]


def choice_cost(there: Cell, found: Found) -> float:
    """What it costs at the test, in nats, that the rate was chosen by validation: with seed 0, of the rates tried."""
    tested = [found[at_cost(there.family.name, there.budget, rate, 0)].test_nll_whole for rate in there.rates]
    return there.records[0].test_nll_whole - min(tested)


def crossing(there: Cells, one: str, other: str, ledger: Ledger = "needed") -> float | None:
    """The cost in FLOPs from which on an architecture's choice tests below another's, as far as both were run.

    0 where it does so throughout, None where it does not at the last.
    """
    sides = [[c for c in there.values() if c.family.architecture == a] for a in (one, other)]
    first = max(min(c.cost(ledger) for c in side) for side in sides)
    last = min(max(c.cost(ledger) for c in side) for side in sides)
    costs = sorted({c.cost(ledger) for side in sides for c in side if first <= c.cost(ledger) <= last})
    below = [best_within(sides[0], c, ledger).loss < best_within(sides[1], c, ledger).loss for c in costs]
    if not below or not below[-1]:
        return None
    since = max((i for i, it in enumerate(below) if not it), default=-1) + 1
    return costs[since] if since else 0.0


def law(there: Cells, architecture: str) -> PowerLaw:
    """A power law of the cost through the test losses of what validation chooses, at budgets that all families have."""
    families = of(architecture)
    budgets = budgets_of(there, families)
    chosen = [min((there[f.name, b] for f in families), key=lambda cell: cell.valid) for b in budgets]
    free = (SEEDS - 1) * len(families) * len(budgets)
    variance = sum(np.var(there[f.name, b].losses, ddof=1) for f in families for b in budgets)
    error = np.full(len(budgets), (variance / len(families) / len(budgets) / SEEDS) ** 0.5)
    return power_law(np.array(budgets), np.array([cell.loss for cell in chosen]), error, free)
