"""The paper's 20 runs: S. S. Bhatti, arXiv 2512.20877 (2025); and how ours compare with them.

Configurations are read off the paper and its public notebook; parameters, FLOPs and test NLL are its
own figures, one seed each. Its FLOP figure is 2 · parameters · T · windows · epochs for every architecture.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean, stdev

from .checks import MOST_SEEDS, each_seed, integer, short
from .experiments import Experiment, Record, Store
from .models import Config, LinearConfig, MLPConfig, TransformerConfig
from .stats import prediction_half
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
#:
#: :meta hide-value:
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
        ValueError: for a number of seeds below 1 or above ``MOST_SEEDS``, or an unknown group.
    """
    if seeds is not None:
        integer("seeds", seeds, most=MOST_SEEDS)
    known, groups = list(dict.fromkeys(r.group for r in RUNS)), set(groups or ())
    if unknown := groups - set(known):
        raise ValueError(f"groups must be of {', '.join(known)}, got {short(sorted(unknown))}")
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
    most = {run: run.seeds if seeds is None else seeds for run in RUNS}
    asked = {run.label: {s: run.experiment(s) for s in each_seed(n)} for run, n in most.items()}
    return {label: {s: r for s, e in of.items() if (r := store.get(e))} for label, of in asked.items()}


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
    def difference(self) -> float | None:
        """Our mean minus the paper's figure; None without records."""
        return None if self.mean is None else self.mean - self.paper

    def agrees(self) -> dict[str, bool]:
        """By three rules, each alone: ``AGREE`` nats, three s.d., the 95 % prediction interval for one further run.

        Empty below two seeds.
        """
        if self.sd is None:
            return {}
        predicted = prediction_half(self.sd, self.seeds)
        within = {f"{AGREE} nats": AGREE, "3 s.d.": 3 * self.sd, "95 % prediction": predicted}
        return {rule: abs(self.difference) <= limit for rule, limit in within.items()}


def agreement(found: Records) -> dict[str, int]:
    """How many of the 20 runs agree with the paper's figures, by rule."""
    by_run = [line.agrees() for line in status(found)]
    return {rule: sum(run.get(rule, False) for run in by_run) for rule in next(filter(None, by_run), {})}


def status(found: Records) -> list[Status]:
    """One line for each of the 20 runs, in the paper's order."""
    lines = []
    for r in RUNS:
        of = found[r.label].values()
        losses, whole = [record.test_nll for record in of], [record.test_nll_whole for record in of]
        ours = mean(losses) if of else None, stdev(losses) if len(of) > 1 else None, mean(whole) if of else None
        lines.append(Status(r.label, r.group, len(of), r.seeds, *ours, r.test_nll))
    return lines
