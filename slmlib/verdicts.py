"""The paper's seven claims, each put to its tests: as the paper ran it, at equal compute, trained otherwise.

A claim is tested through *contrasts*: differences of losses that are above zero if it is true. All is computed from
committed records. Losses are NLL in nats per token.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from . import frontier, paper, recipes, studies
from .experiments import RESULTS, Record, Store
from .flops import flops_per_window
from .frontier import Cells, Found
from .models import TransformerConfig
from .stats import LEVEL, Estimate, Lowest, corrected, equivalence, holm, lowest, paired, student, unpaired
from .studies import every_position, followed

Key = TypeVar("Key")
Reading = Literal["paper", "equal compute", "optimised"]
Word = Literal[
    "holds", "does not hold", "depends on the count", "no effect of that size", "not significant", "too few records"
]

#: Each claim's short name.
CLAIMS = {
    "C1": "nonlinear beats linear",
    "C2": "attention beats MLPs per FLOP",
    "C3": "depth hurts when training is short",
    "C4": "context hurts when training is short",
    "C5": "rotary positions lose when small",
    "C6": "capacity must match compute",
    "C7": "words under a cap overfit early",
}


@dataclass(frozen=True)
class Evidence:
    """All records that verdicts are computed from."""

    paper: paper.Records
    studies: Found  # of longer runs, and of every position scored
    cells: Cells
    today: Mapping[tuple[str, float], list[Record]] = field(default_factory=dict)  # recipes.runs: of today's training
    gain: Found = field(default_factory=dict)  # of the changes that lead there
    shapes: Found = field(default_factory=dict)  # and of its depths, widths and contexts
    adamw: Mapping[tuple[str, float], list[Record]] = field(default_factory=dict)  # recipes.without_muon

    @classmethod
    def read(cls, folder: Path = RESULTS) -> "Evidence":
        """From a folder of stores; of the paper's runs as many seeds as are published."""
        stores = [Store(folder / suite) for suite in ("depth-context", "positions", "words")]
        others = {record.experiment: record for store in stores for record in store}
        cells = frontier.cells(Store(folder / "frontier").found())
        found = Store(folder / "today").found()
        alone = {(a, b): of for a in recipes.ALONE for b, of in recipes.without_muon(a, found)[0].items()}
        adamw = {key: [found[e] for e in of if e in found] for key, of in alone.items()}
        gain, shapes = (Store(folder / suite).found() for suite in ("gain", "shapes"))
        return cls(paper.records(Store(folder / "paper")), others, cells, recipes.runs(found), gain, shapes, adamw)

    def runs(self, label: str) -> Mapping[int, Record]:
        """Records by seed: of a run of the paper by its label, or of another by the label in ``OTHERS``."""
        if label in self.paper:
            return self.paper[label]
        wanted = {seed: OTHERS[label](seed) for seed in range(studies.SEEDS)}
        return {seed: self.studies[run] for seed, run in wanted.items() if run in self.studies}

    @cached_property
    def convolved(self) -> dict[tuple[str, float], list[Record]]:
        """As ``today``: its transformers with short convolutions, at the budgets at which all seeds are there."""
        there, gain = studies.convolved(self.today).items(), self.gain
        return {("blocks", budget): [gain[e] for e in of] for budget, of in there if set(of) <= gain.keys()}

    @cached_property
    def unconvolved(self) -> dict[tuple[str, float], list[Record]]:
        """The same transformers without: of all seeds, at a budget at which ``gain`` has them, else of ``today``'s."""
        there = {}
        for key, records in self.convolved.items():
            same = [replace(r.experiment, model=replace(r.experiment.model, conv=0)) for r in records]
            there[key] = [self.gain[e] for e in same] if all(e in self.gain for e in same) else self.today[key]
        return there

    def without(self, seed: int) -> "Evidence":
        """The same without one seed of the paper's runs."""
        fewer = {label: {s: r for s, r in runs.items() if s != seed} for label, runs in self.paper.items()}
        return replace(self, paper=fewer)


#: Runs beyond the paper's that contrasts are made of, each by seed.
OTHERS: dict[str, Callable[[int], studies.Experiment]] = {
    **{f"Transformer, {T} characters": partial(followed, TransformerConfig(context=T)) for T in studies.CONTEXTS},
    **{f"Transformer, {n} blocks, 80k windows": partial(followed, TransformerConfig(layers=n)) for n in studies.DEPTHS},
    "Learned positions started small, every position scored": partial(every_position, "learned", embed_init="small"),
    "RoPE, every position scored": partial(every_position, "rope"),
    "Penn Treebank, whole text": studies.uncapped,
}


class Read(NamedTuple):
    """What is read off a record, as a word for tables and a function."""

    what: str
    of: Callable[[Record], float]


VALID = Read("validation", lambda record: min(record.valid))
TEST = Read("test", lambda record: record.test_nll)
WHOLE = Read("whole test split", lambda record: record.test_nll_whole)
#: After the last epoch; the kept weights' where a record does not say.
LAST = Read("test, last epoch", lambda r: r.test_nll if r.test_nll_last is None else r.test_nll_last)
KEPT = Read("test, kept epoch", TEST.of)

GAIN = Read("second epoch's gain in validation", lambda record: record.valid[0] - record.valid[1])


def _valid(epoch: int) -> Read:
    return Read(f"validation, epoch {epoch}", lambda record: record.valid[epoch - 1])


@dataclass(frozen=True)
class Contrast:
    """A loss minus another, above zero if a claim is true: of two runs, or of one at two times.

    Runs with the same context draw the same windows for the same seed, epoch by epoch as long as both go on: they,
    and epochs of one run, are compared seed by seed. Others are two groups, compared by Welch's t test.
    """

    worse: tuple[str, Read]  # label of a run, what is read
    better: tuple[str, Read]
    paper: float | None = None  # what the paper's single runs give
    paired: bool = True
    note: str = ""

    @property
    def says(self) -> str:
        (a, read_a), (b, read_b) = self.worse, self.better
        if a == b:
            return f"{a}: {read_a.what} − {read_b.what}"
        reads = {read_a.what, read_b.what}
        if reads == {"test"}:
            return f"{a} − {b}"
        return f"{a} − {b} ({read_a.what})" if len(reads) == 1 else f"{a}, {read_a.what} − {b}, {read_b.what}"

    def measure(self, evidence: Evidence) -> "Measured | None":
        """As the records have it, with an uncorrected p; None with fewer than two seeds."""
        (a, read_a), (b, read_b) = self.worse, self.better
        worse, better = evidence.runs(a), evidence.runs(b)
        if self.paired:
            seeds = sorted(set(worse) & set(better))
            worse, better = ({s: runs[s] for s in seeds} for runs in (worse, better))
        a, b = tuple(map(read_a.of, worse.values())), tuple(map(read_b.of, better.values()))
        one = paired([x - y for x, y in zip(a, b, strict=True)]) if self.paired else unpaired(a, b)
        return one and Measured(self.says, one, self.paper, self.note, (a, b))


def _worse(worse: str, better: str, read: Read = TEST, paired: bool = True) -> Contrast:
    reported = read is TEST and {worse, better} <= {r.label for r in paper.RUNS}
    figure = paper.run(worse).test_nll - paper.run(better).test_nll if reported else None
    return Contrast((worse, read), (better, read), figure, paired)


def cost_ratio(label: str, epochs: int, ledger: str) -> float:
    """FLOPs of so many epochs of a run of the paper's main table, over those of the three of its MLP."""
    one, mlp = (flops_per_window(paper.run(name).model, 65, ledger) for name in (label, "MLP"))
    return epochs * one / (3 * mlp)


def _per_flop(label: str, epochs: int, ledger: str) -> Contrast:
    note = f"at {cost_ratio(label, epochs, ledger):.2f} times the FLOPs, as {ledger}"
    return Contrast(("MLP", _valid(3)), (label, _valid(epochs)), note=note)


#: After which epoch the paper's validation loss of the word-level runs is best.
BEST_EPOCHS = {"Penn Treebank": 2, "WikiText-2": 1}

#: What is asked, claim by claim and reading by reading, of runs that are compared one with one.
CONTRASTS: dict[tuple[str, Reading], tuple[Contrast, ...]] = {
    ("C1", "paper"): tuple(_worse("Linear", label) for label in ("MLP", "Self-attention", "Transformer")),
    ("C2", "paper"): (
        _per_flop("Self-attention", 2, "needed"),
        _per_flop("Self-attention", 1, "written"),
        _per_flop("Transformer", 1, "needed"),
        _per_flop("Transformer", 1, "written"),
    ),
    ("C3", "paper"): (_worse("Transformer L=4", "Transformer L=3"),),
    ("C3", "optimised"): tuple(
        _worse(f"Transformer, {more} blocks, 80k windows", "Transformer, 3 blocks, 80k windows", WHOLE)
        for more in (4, 6)
    ),
    ("C4", "paper"): (
        _worse("Linear T=64", "Linear T=32", paired=False),
        _worse("Linear T=128", "Linear T=64", paired=False),
    ),
    ("C5", "paper"): (_worse("RoPE", "Learned positions"), _worse("RoPE", "Learned positions", WHOLE)),
    ("C5", "optimised"): (
        _worse("RoPE, every position scored", "Learned positions started small, every position scored", WHOLE),
    ),
    ("C6", "paper"): (_worse("MLP h=512", "MLP h=128", GAIN),),
    ("C6", "equal compute"): tuple(
        Contrast((f"MLP h={2 * h}", _valid(1)), (f"MLP h={h}", _valid(2)), note="for the same FLOPs")
        for h in (256, 128)
    ),
    ("C7", "paper"): tuple(
        contrast
        for label, best in BEST_EPOCHS.items()
        for contrast in (
            Contrast((label, _valid(8)), (label, _valid(best))),
            Contrast((label, LAST), (label, KEPT)),
        )
    ),
}  # fmt: skip


class Measured(NamedTuple):
    """One contrast as the records have it; p is corrected over all contrasts of its reading."""

    says: str
    estimate: Estimate
    paper: float | None = None
    note: str = ""
    values: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())  # of the two sides, by seed


@dataclass(frozen=True)
class Verdict:
    """A claim under one reading, and what was found."""

    claim: str
    reading: Reading
    verdict: Word
    contrasts: tuple[Measured, ...]
    flops: float | None = None  # the budget, of C2 at equal compute

    @property
    def weakest(self) -> Estimate | None:
        """Of the contrast with the smallest effect: a claim that holds does so by at least this."""
        return min((m.estimate for m in self.contrasts), key=lambda e: e.effect, default=None)

    def to_dict(self) -> dict:
        """As JSON: the weakest contrast's effect and interval, and all contrasts."""
        found = {"claim": self.claim, "reading": self.reading, "verdict": self.verdict}
        found |= {k: getattr(self.weakest, k, None) for k in ("effect", "low", "high")}
        if self.flops is not None:
            found["flops"] = self.flops
        numbers = ("effect", "low", "high", "p", "n")
        every = [{"says": m.says, **{k: getattr(m.estimate, k) for k in numbers}} for m in self.contrasts]
        return {**found, "contrasts": every}


def _word(found: Sequence[Measured], wanted: int) -> Word:
    """*Holds* if all are significantly above zero; *does not hold* if one is below; *depends* if others are above.

    Where none is, and an equivalence test excludes the paper's own effect, there is *no effect of that size*.
    """
    signs = [m.estimate.sign for m in found]
    if len(found) < wanted:
        return "too few records"
    if min(signs) < 0:
        return "depends on the count" if max(signs) > 0 else "does not hold"
    if min(signs) > 0:
        return "holds"
    if max(signs) == 0 and all(m.paper and equivalence(m.estimate, abs(m.paper)) <= LEVEL for m in found):
        return "no effect of that size"
    return "not significant"


def judge(
    evidence: Evidence,
    correct: Callable[[Mapping], Mapping] = holm,
    contrasts: Mapping[tuple[str, Reading], Sequence[Contrast]] = CONTRASTS,
) -> list[Verdict]:
    """Every verdict, claim by claim; of C2 at equal compute one for each budget.

    ``correct`` makes corrected p values of raw ones, by contrast; Holm's (1979) method. All contrasts of a reading are
    corrected together, those still without records too.
    """
    judged = []
    for reading in ("paper", "optimised", "equal compute"):
        asked = {c: contrast for (c, r), contrast in contrasts.items() if r == reading}
        found = {c: [one.measure(evidence) for one in some] for c, some in asked.items()}
        at_best = _at_best(evidence, reading)
        flat = {(c, i): m for c, some in (found | at_best).items() for i, m in enumerate(some)}
        p = correct({key: 1.0 if m is None else m.estimate.p for key, m in flat.items()})
        for c, some in (found | at_best).items():
            there = [m._replace(estimate=replace(m.estimate, p=p[c, i])) for i, m in enumerate(some) if m is not None]
            judged.append(Verdict(c, reading, _word(there, max(1, len(some))), tuple(there)))
        if reading == "equal compute":
            for c in frontier.mlp_against_attention(evidence.cells):
                one = _compared(c)
                judged.append(Verdict("C2", reading, _word([one], 1), (one,), c.flops))
    return sorted(judged, key=lambda v: (v.claim, ("paper", "equal compute", "optimised").index(v.reading)))


def _compared(c: frontier.Comparison) -> Measured:
    says, values = f"{c.worse.family.name} − {c.better.family.name}", (tuple(c.worse.losses), tuple(c.better.losses))
    return Measured(says, c.estimate, note=f"{c.flops:.0e} FLOPs", values=values)


def _at_best(evidence: Evidence, reading: Reading) -> dict[str, list[Measured]]:
    """What is asked of the best of several models, chosen by validation."""
    cells = evidence.cells
    one, three, linear = frontier.of("Self-attention"), frontier.of("Transformer"), frontier.of("Linear")
    if reading == "equal compute":
        nonlinear = frontier.of("MLP", *frontier.ATTENTION)
        return {
            "C1": [_compared(c) for c in frontier.compare(cells, linear, nonlinear)],
            "C3": [_compared(c) for c in frontier.compare(cells, three, one)],
        }
    if reading == "optimised":
        short, *_, long = linear
        budgets = frontier.budgets_of(cells, [short, long])[-1:]
        c4 = [_compared(c) for c in frontier.compare(cells, [long], [short], budgets)] if budgets else []
        there = mlp_against_blocks(evidence.today)
        return {"C2": [there[max(there)]] if there else [], "C4": c4}
    return {}


def mlp_against_blocks(today: Mapping[tuple[str, float], list[Record]]) -> dict[float, Measured]:
    """With today's training, at each budget: whole test loss of the best MLP within it minus that of the blocks there.

    At budgets that both were given. Welch's test; p values are not corrected. FLOPs are the model's.
    """
    found, largest = {}, max((b for a, b in today if a == "mlp"), default=0.0)
    for budget in sorted(b for a, b in today if a == "blocks" and b <= largest):
        if mlps := [records for (a, b), records in today.items() if a == "mlp" and b <= budget]:
            sides = min(mlps, key=recipes.validation), today["blocks", budget]
            values = tuple(tuple(map(WHOLE.of, records)) for records in sides)
            note = f"{budget:.0e} FLOPs, today's training"
            found[budget] = Measured("best MLP − blocks", unpaired(*values), note=note, values=values)
    return found


def convolutions(evidence: Evidence) -> dict[float, Estimate]:
    """What short convolutions take off the whole test loss of today's transformers, in nats, by budget.

    Welch's tests over seeds; p values after Holm's correction over the budgets.
    """
    return _tested({key[1]: (evidence.unconvolved[key], of) for key, of in evidence.convolved.items()})


def convolved_against_mlp(evidence: Evidence) -> dict[float, Estimate]:
    """``mlp_against_blocks`` for the transformers with short convolutions, p values after Holm's correction."""
    mlps = {key: records for key, records in evidence.today.items() if key[0] == "mlp"}
    return corrected({b: m.estimate for b, m in mlp_against_blocks({**mlps, **evidence.convolved}).items()})


def convolutions_elsewhere() -> dict[tuple[str, float], Estimate]:
    """What short convolutions take off the test loss on other texts, in nats a token, by text and budget.

    Welch's tests over seeds; p values after Holm's correction over all of them.
    """
    found = {e: r for suite in ("words-together", "convolutions") for e, r in Store(RESULTS / suite).found().items()}
    pairs = studies.elsewhere(found).items()
    return _tested({key: [[found[run] for run in of] for of in both] for key, both in pairs}, TEST)


def gains(found: Found, changes: str) -> dict[str, Estimate]:
    """How much each of ``studies.CHANGES`` of that name lowers the loss on the whole test split, in nats.

    In the chain against the one before, else against today's training; where all seeds are there. Welch's tests over
    seeds; p values after Holm's correction over all of them.
    """
    gained = studies.gained(found, changes).items()
    there = {name: [found[e] for e in of] for name, of in gained if set(of) <= found.keys()}
    names = [change.name for change in studies.CHANGES[changes]]
    pairs = pairwise(names) if changes == "chain" else ((names[0], name) for name in names[1:])
    return _tested({new: (there[old], there[new]) for old, new in pairs if {old, new} <= there.keys()})


def _tested(pairs: Mapping[Key, Sequence[Iterable[Record]]], read: Read = WHOLE) -> dict[Key, Estimate]:
    """What the second records of each pair score less than the first: Welch's tests, p after Holm's over all."""
    return corrected({key: unpaired(*([read.of(r) for r in of] for of in pair)) for key, pair in pairs.items()})


def minima(found: Found, read: Callable[[Record], float] = VALID.of) -> dict[tuple[str, float], Lowest | None]:
    """Where each curve of ``studies.shapes`` is lowest, by what varies and the budget, in what is read of a record.

    Of the curves whose runs are all there; None where a curve has no lowest point that is beyond chance.
    """
    there = {}
    for budget, seeds in studies.SHAPE_SEEDS.items():
        for name, curve in studies.curves(budget).items():
            runs = {x: [studies.shaped(budget, *shape, s) for s in range(seeds)] for x, shape in curve.items()}
            if all(run in found for seeds in runs.values() for run in seeds):
                there[name, budget] = lowest({x: [read(found[r]) for r in seeds] for x, seeds in runs.items()})
    return there


def doublings(evidence: Evidence) -> dict[int, Estimate]:
    """What doubling the context of the paper's transformer to each length costs, in the loss on the whole test split.

    Trained on 80,000 windows, as ``studies.depth_context`` does; p values are corrected among themselves.
    """
    runs = {T: evidence.runs(f"Transformer, {T} characters").values() for T in studies.CONTEXTS}
    return _tested({b: (runs[b], runs[a]) for a, b in pairwise(studies.CONTEXTS)})


def spreads(evidence: Evidence) -> dict[str, tuple[float, float]]:
    """Of each contrast that the paper gives a gap for: the gap, and one pair's standard deviation, windows not shared.

    Ours with the same seed share them; the author's notebook seeds once, before all its runs, so that its did not.
    """
    rows = {}
    for (claim, reading), contrasts in CONTRASTS.items():
        for contrast in contrasts if reading == "paper" else ():
            if contrast.paper is not None:
                m = contrast.measure(evidence)
                rows[f"{claim}: {contrast.says}"] = m.paper, unpaired(*m.values).spread
    return rows


def chance(evidence: Evidence) -> float:
    """How far two runs of the models behind C3, were these equally good, are apart at most in 19 cases of 20.

    Trained and tested as in the paper, windows not shared; by Student's t, as the deviation is an estimate.
    """
    (contrast,) = CONTRASTS["C3", "paper"]
    sides = contrast.measure(evidence).values
    return student(sum(map(len, sides)) - 2) * unpaired(*sides).spread
