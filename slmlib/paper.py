"""The paper's runs and claims: S. S. Bhatti, arXiv 2512.20877 (2025); and the test that each claim gets here.

Configurations are read off the paper and its public notebook; parameters, FLOPs and test NLL are its
own figures, one seed each. Its FLOP figure is 2 · parameters · T · windows · epochs for every architecture.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import copysign, inf, isnan, sqrt
from statistics import mean, stdev
from typing import Literal

import numpy as np
from scipy import stats

from .experiments import Experiment, Record, Store
from .flops import flops_per_window
from .models import Config, LinearConfig, MLPConfig, TransformerConfig
from .training import TrainingConfig


@dataclass(frozen=True)
class PaperRun:
    """One of the paper's runs and what it reports of it."""

    group: str  # main, context, width, heads, depth, rope or words
    label: str  # unique
    corpus: str
    model: Config
    training: TrainingConfig
    params: int
    reported_flops: float
    test_nll: float  # nats per token, on the first training.eval_windows windows of the test split

    @property
    def seeds(self) -> int:
        """How many seeds of it the book publishes."""
        return 3 if self.group == "words" else 5

    def experiment(self, seed: int) -> Experiment:
        """The same run by our code, at the paper's full budget."""
        cap = WORD_CAP if self.group == "words" else None
        return Experiment(self.corpus, self.model, self.training, seed, cap)


_MAIN3 = TrainingConfig(epochs=3)
_MAIN4 = TrainingConfig(epochs=4)
_SWEEP = TrainingConfig(epochs=2, windows_per_epoch=30_000, eval_windows=5_000)
_ROPE = TrainingConfig(epochs=8)
_WORDS = TrainingConfig(epochs=8, windows_per_epoch=79_935, eval_windows=19_935, batch=32)

#: How many tokens the paper's word-level runs train on; of validation and test they read the first 20,000.
WORD_CAP = 80_000


def _attention(heads: int) -> TransformerConfig:
    return TransformerConfig(layers=1, ff_width=512, heads=heads)


def _rope_pair(positions: str) -> TransformerConfig:
    return TransformerConfig(norm="pre", positions=positions, dropout_site="residual", qkv_init="linear")


_SHAKESPEARE = [
    ("main", "Linear", LinearConfig(), _MAIN3, 1_073_345, 4.12e13, 3.0549),
    ("main", "MLP", MLPConfig(), _MAIN3, 4_285_377, 1.65e14, 2.3222),
    ("main", "Self-attention", _attention(heads=4), _MAIN4, 231_617, 1.19e13, 2.1335),
    ("main", "Transformer", TransformerConfig(), _MAIN4, 430_785, 2.21e13, 2.0058),
    ("context", "Linear T=32", LinearConfig(context=32), _SWEEP, 274_625, 1.05e12, 2.5135),
    ("context", "Linear T=64", LinearConfig(context=64), _SWEEP, 540_865, 4.15e12, 2.7006),
    ("context", "Linear T=128", LinearConfig(), _SWEEP, 1_073_345, 1.65e13, 3.0496),
    ("width", "MLP h=128", MLPConfig(hidden=128), _SWEEP, 2_130_497, 3.27e13, 2.5482),
    ("width", "MLP h=256", MLPConfig(), _SWEEP, 4_285_377, 6.58e13, 2.5115),
    ("width", "MLP h=512", MLPConfig(hidden=512), _SWEEP, 8_693_441, 1.34e14, 2.5002),
    ("heads", "Self-attention H=1", _attention(heads=1), _SWEEP, 231_617, 3.56e12, 2.3482),
    ("heads", "Self-attention H=2", _attention(heads=2), _SWEEP, 231_617, 3.56e12, 2.4033),
    ("heads", "Self-attention H=4", _attention(heads=4), _SWEEP, 231_617, 3.56e12, 2.3055),
    ("depth", "Transformer L=2", TransformerConfig(layers=2), _SWEEP, 298_305, 4.58e12, 2.3034),
    ("depth", "Transformer L=3", TransformerConfig(), _SWEEP, 430_785, 6.62e12, 2.2795),
    ("depth", "Transformer L=4", TransformerConfig(layers=4), _SWEEP, 563_265, 8.65e12, 2.3078),
    ("rope", "Learned positions", _rope_pair("learned"), _ROPE, 430_785, 2.21e13, 1.9738),
    ("rope", "RoPE", _rope_pair("rope"), _ROPE, 414_401, 2.12e13, 2.0096),
]
_WORD_RUNS = [
    ("Penn Treebank", "ptb", 2_975_631, 2.44e14, 6.1896),
    ("WikiText-2", "wikitext-2", 8_958_077, 7.33e14, 6.8875),
]

#: All 20 runs, in the paper's order.
RUNS: tuple[PaperRun, ...] = (
    *(PaperRun(group, label, "tiny_shakespeare", *rest) for group, label, *rest in _SHAKESPEARE),
    *(PaperRun("words", name, key, TransformerConfig(context=64), _WORDS, *rest) for name, key, *rest in _WORD_RUNS),
)


def run(label: str) -> PaperRun:
    """The paper's run of that label.

    Raises:
        KeyError: for an unknown label; lists the labels there are.
    """
    for r in RUNS:
        if r.label == label:
            return r
    raise KeyError(f"no run is labelled {label!r}; there are {', '.join(r.label for r in RUNS)}")


def experiments(seeds: int | None = None, groups: Iterable[str] | None = None) -> list[Experiment]:
    """The paper's runs at its full budget, seed by seed.

    Args:
        seeds: how many seeds of each; those that the book publishes if None (5 a character-level run, 3 a word-level).
        groups: which groups of runs; all if None.

    Raises:
        ValueError: for a number of seeds below 1, or an unknown group.
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    known = list(dict.fromkeys(r.group for r in RUNS))
    if unknown := set(groups or ()) - set(known):
        raise ValueError(f"no group of runs is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [r for r in RUNS if not groups or r.group in groups]
    most = max(seeds or r.seeds for r in chosen)
    return [r.experiment(s) for s in range(most) for r in chosen if s < (seeds or r.seeds)]


#: Records of the paper's runs at its full budget, by label and seed.
Records = Mapping[str, Mapping[int, Record]]


def records(store: Store, seeds: int | None = None) -> dict[str, dict[int, Record]]:
    """The records that a store holds of the paper's runs, by label and seed.

    Of the first so many seeds; if None of as many as the book publishes, so that a verdict does not depend on when
    one stops.
    """
    found: dict[str, dict[int, Record]] = {}
    for r in RUNS:
        by_seed = {s: store.get(r.experiment(s)) for s in range(seeds or r.seeds)}
        found[r.label] = {s: record for s, record in by_seed.items() if record is not None}
    return found


def differences(found: Records) -> dict[str, list[float]]:
    """Test NLL of each record minus the paper's figure, in nats, by label, in the paper's order."""
    return {r.label: [record.test_nll - r.test_nll for record in found[r.label].values()] for r in RUNS}


AGREE = 0.03  # nats: as far as a mean may be from the paper's figure and agree with it


@dataclass(frozen=True)
class Status:
    """How far one of the paper's runs has been rerun, and how its figure compares."""

    label: str
    group: str
    seeds: int  # records found
    wanted: int
    mean: float | None  # test NLL in nats, on the paper's windows
    sd: float | None  # over seeds; None below two
    whole: float | None  # mean test NLL on the whole test split
    paper: float

    @property
    def agrees(self) -> bool | None:
        """Whether the mean is within ``AGREE``, or 3 s.d., of the paper's figure; None below two seeds."""
        if self.mean is None or self.sd is None:
            return None
        return abs(self.mean - self.paper) <= max(AGREE, 3 * self.sd)


def status(found: Records) -> list[Status]:
    """One line for each of the 20 runs, in the paper's order."""
    lines = []
    for r in RUNS:
        losses = [record.test_nll for record in found[r.label].values()]
        lines.append(
            Status(
                label=r.label,
                group=r.group,
                seeds=len(losses),
                wanted=r.seeds,
                mean=mean(losses) if losses else None,
                sd=stdev(losses) if len(losses) > 1 else None,
                whole=mean(record.test_nll_whole for record in found[r.label].values()) if losses else None,
                paper=r.test_nll,
            )
        )
    return lines


def _test(record: Record) -> float:
    return record.test_nll


def _valid(epoch: int) -> Callable[[Record], float]:
    return lambda record: record.valid[epoch - 1]


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of losses that is positive if a claim is true: the worse minus the better, say.

    Runs with the same context draw the same windows for the same seed, epoch by epoch as long as both go on: they,
    and epochs of one run, are compared seed by seed (a paired t test). Others are compared by Welch's t test.
    """

    says: str
    terms: tuple[tuple[float, str, Callable[[Record], float]], ...]  # weight, label, what is read off a record
    paper: float | None = None  # what the paper's single runs give, where they give it
    paired: bool = True


def _worse(worse: str, better: str, paired: bool = True) -> Contrast:
    figure = run(worse).test_nll - run(better).test_nll
    return Contrast(f"{worse} − {better}", ((1, worse, _test), (-1, better, _test)), figure, paired)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, and the contrasts that must all be above zero if it holds."""

    id: str
    statement: str
    evidence: str  # the paper's own
    contrasts: tuple[Contrast, ...]
    asks: str  # what is tested, and why that is a test of the claim


#: After which epoch the paper's validation loss of the word-level runs is best.
BEST_EPOCHS = {"Penn Treebank": 2, "WikiText-2": 1}

_ATTENTION, _MLP = (flops_per_window(run(label).model, 65) for label in ("Self-attention", "MLP"))
#: What two epochs of the paper's block of attention cost, in those that three of its MLP do; in FLOPs as needed.
TWO_EPOCHS = 2 * _ATTENTION / (3 * _MLP)

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "Nonlinear models dramatically outperform the linear baseline",
        "3.05 → 2.32 → 2.13 → 2.01 nats, linear to transformer",
        tuple(_worse("Linear", label) for label in ("MLP", "Self-attention", "Transformer")),
        "Each of the three nonlinear models of the main table has the lower test loss. (The attention models have a "
        "fourth epoch. How dramatic it is, the effect says.)",
    ),
    Claim(
        "C2",
        "Attention dominates MLPs per FLOP even at small scale",
        "test loss against 2 · parameters · T · windows, for every architecture alike",
        (
            Contrast(
                "MLP after 3 epochs − Self-attention after 2 (validation)",
                ((1, "MLP", _valid(3)), (-1, "Self-attention", _valid(2))),
            ),
        ),
        "One block of attention has the lower validation loss after 2 epochs, which by the FLOPs needed cost "
        f"{TWO_EPOCHS:.0%} of the 3 of the paper's MLP. Not tested: other MLPs, and the cost as written, by which one "
        "epoch of this attention costs more than all three of that MLP.",
    ),
    Claim(
        "C3",
        "More depth without sufficient optimisation degrades",
        "2.280 with three layers, 2.308 with four",
        (_worse("Transformer L=4", "Transformer L=3"),),
        "Four layers have a higher test loss than three after the same 60,000 windows.",
    ),
    Claim(
        "C4",
        "More context without sufficient optimisation degrades",
        "the linear model: 2.51 → 2.70 → 3.05 at 32, 64, 128 characters",
        (_worse("Linear T=64", "Linear T=32", paired=False), _worse("Linear T=128", "Linear T=64", paired=False)),
        "Each doubling of the linear model's context raises its test loss after 60,000 windows.",
    ),
    Claim(
        "C5",
        "Rotary positions underperform learned ones in the small regime",
        "2.010 against 1.974",
        (_worse("RoPE", "Learned positions"),),
        "The model with rotary positions has the higher test loss after the same 400,000 windows.",
    ),
    Claim(
        "C6",
        "Capacity must match compute: more parameters need more optimisation steps",
        "MLPs 128, 256, 512 wide: 2.548 → 2.512 → 2.500",
        (
            Contrast(
                "gain 128 → 256 − gain 256 → 512",
                ((1, "MLP h=128", _test), (-2, "MLP h=256", _test), (1, "MLP h=512", _test)),
                run("MLP h=128").test_nll - 2 * run("MLP h=256").test_nll + run("MLP h=512").test_nll,
            ),
            Contrast(
                "second epoch's gain, h = 512 − h = 128 (validation)",
                (
                    (1, "MLP h=512", _valid(1)),
                    (-1, "MLP h=512", _valid(2)),
                    (-1, "MLP h=128", _valid(1)),
                    (1, "MLP h=128", _valid(2)),
                ),
            ),
        ),
        "Under a fixed number of steps the second doubling of the width buys less than the first, and a second epoch "
        "buys the widest model more (in validation loss) than the narrowest.",
    ),
    Claim(
        "C7",
        "Word-level training under the cap overfits early; early stopping is what holds it",
        "validation is best after epoch 2 (Penn Treebank) and 1 (WikiText-2) of 8",
        tuple(
            Contrast(
                f"{label}: epoch 8 − epoch {best} (validation)", ((1, label, _valid(8)), (-1, label, _valid(best)))
            )
            for label, best in BEST_EPOCHS.items()
        ),
        "On both corpora the validation loss after the last epoch is above that after the paper's best epoch. How "
        "early ours is, the best epochs say.",
    ),
)

Verdict = Literal["holds", "does not hold", "cannot be told apart from noise", "not enough records"]


@dataclass(frozen=True)
class Finding:
    """What the records say of one contrast."""

    contrast: Contrast
    n: int  # seeds
    effect: float  # nats
    low: float  # of the 95 % interval of the effect, not corrected
    high: float
    spread: float  # standard deviation of what one run of each shows; of one seed, where they are paired
    p: float  # two-sided, corrected over all contrasts of all claims

    @property
    def d(self) -> float:
        """The effect over that standard deviation."""
        return self.effect / self.spread if self.spread else copysign(inf, self.effect)

    @property
    def below_papers(self) -> bool:
        """Whether the interval lies below the paper's own figure, where it gives one."""
        return self.contrast.paper is not None and self.high < self.contrast.paper


@dataclass(frozen=True)
class Judgement:
    """A claim, what was found of each of its contrasts, and the verdict."""

    claim: Claim
    findings: tuple[Finding, ...]
    verdict: Verdict


LEVEL = 0.05  # of the tests


def holm(p: Mapping) -> dict:
    """p values after Holm's step-down correction, by the same keys (Holm, 1979); NaN, undefined, counts as 1."""
    adjusted, highest = {}, 0.0
    p = {key: 1.0 if isnan(value) else value for key, value in p.items()}
    for i, (key, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p) - i) * value))
        adjusted[key] = highest
    return adjusted


def judge(
    found: Records, claims: Sequence[Claim] = CLAIMS, correct: Callable[[Mapping], Mapping] = holm
) -> list[Judgement]:
    """A verdict on each claim.

    A claim *holds* if all its contrasts are above zero, *does not hold* if one is below zero, each at ``LEVEL``
    after the correction over all contrasts of all claims. Otherwise it *cannot be told apart from noise*; and where
    a contrast has fewer than two seeds there are *not enough records*.

    Args:
        found: records of the paper's runs.
        claims: what to judge.
        correct: makes corrected p values of raw ones, by contrast; Holm's (1979) method.
    """
    raw = {c: _measure(c, found) for claim in claims for c in claim.contrasts}
    adjusted = correct({c: 1.0 if f is None else f.p for c, f in raw.items()})  # what is still to come counts too
    judged = []
    for claim in claims:
        findings = tuple(replace(raw[c], p=adjusted[c]) for c in claim.contrasts if raw[c] is not None)
        told = [f.p <= LEVEL for f in findings]
        if len(findings) < len(claim.contrasts):
            verdict = "not enough records"
        elif any(f.effect < 0 and t for f, t in zip(findings, told, strict=True)):
            verdict = "does not hold"
        elif all(f.effect > 0 and t for f, t in zip(findings, told, strict=True)):
            verdict = "holds"
        else:
            verdict = "cannot be told apart from noise"
        judged.append(Judgement(claim, findings, verdict))
    return judged


def _measure(contrast: Contrast, found: Records) -> Finding | None:
    """The contrast's effect, interval and uncorrected p; None with fewer than two seeds."""
    if contrast.paired:
        seeds = sorted(set.intersection(*(set(found[label]) for _, label, _ in contrast.terms)))
        values = [sum(w * read(found[label][s]) for w, label, read in contrast.terms) for s in seeds]
        if len(values) < 2:
            return None
        result, effect, spread, n = stats.ttest_1samp(values, 0.0), mean(values), stdev(values), len(values)
    else:
        (w1, worse, read1), (w2, better, read2) = contrast.terms
        a = [w1 * read1(r) for r in found[worse].values()]
        b = [-w2 * read2(r) for r in found[better].values()]
        if min(len(a), len(b)) < 2:
            return None
        result, effect = stats.ttest_ind(a, b, equal_var=False), mean(a) - mean(b)
        spread, n = sqrt(np.var(a, ddof=1) + np.var(b, ddof=1)), min(len(a), len(b))
    if not spread:  # all the same: SciPy divides zero by zero where they are equal to nothing
        return Finding(contrast, n, effect, effect, effect, 0.0, 0.0 if effect else 1.0)
    low, high = result.confidence_interval(0.95)
    return Finding(contrast, n, effect, float(low), float(high), float(spread), float(result.pvalue))


def scoreboard(found: Records, beside: Mapping[str, tuple[str, str, str]] | None = None) -> str:
    """The verdicts as a Markdown table, a row per claim: the claim, the verdict, our evidence, the paper's.

    Where records are still missing, a line below says how many there are of how many.

    Args:
        found: records of the paper's runs.
        beside: for a claim, by its id, what the verdict is of; a further one, from other records; its evidence.
    """
    judged = judge(found)
    lines = ["| | the paper's claim | verdict | ours, nats | the paper's evidence |", "|---|---|---|---|---|"]
    for j in judged:
        ours = "; ".join(f"{f.contrast.says}: {with_ends(f.effect, f.low, f.high)}" for f in j.findings)
        verdict = f"**{j.verdict}**"
        if j.claim.id in (beside or {}):
            of, further, evidence = beside[j.claim.id]
            verdict = f"{of}: {verdict}; {further}"
            ours = "; ".join(filter(None, (ours, evidence)))
        lines.append(f"| {j.claim.id} | {j.claim.statement} | {verdict} | {ours} | {j.claim.evidence} |")
    there, wanted = sum(map(len, found.values())), sum(r.seeds for r in RUNS)
    if there < wanted:
        lines += ["", f"*From {there} of {wanted} runs; the others are still to be made.*"]
    return "\n".join(lines) + "\n"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, as text: −0.012."""
    return f"{value:+.{digits}f}".replace("-", "−")


def with_ends(value: float, low: float, high: float) -> str:
    """A signed number and its interval, as text: +0.062 (−0.008 to +0.132)."""
    return f"{signed(value)} ({signed(low)} to {signed(high)})"
