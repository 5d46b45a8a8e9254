"""What every chapter does alike: how it starts, trains, tabulates and speaks of what it measured."""

import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from html import escape
from statistics import mean, stdev
from typing import NamedTuple

import pandas as pd
import torch
from IPython.display import HTML, Markdown, display
from torch import Tensor, nn

from . import figures, paper, studies, verdicts
from .checks import integer
from .corpora import Corpus, CorpusUnavailable, load_corpus
from .experiments import RESULTS, Experiment, Record, Store, trained
from .frontier import SEEDS, Cells
from .models import Config, generate
from .ngrams import KneserNey, of_orders
from .stats import Estimate, paired
from .training import History, TrainingConfig, budget
from .verdicts import TEST, WHOLE
from .windows import random_stream

__all__ = [  # what a chapter's first cell brings in
    "agreement", "budget", "by_epoch", "cells", "change", "compare", "counted", "evidence", "finding", "gap",
    "judged", "judgement", "mean", "p_value", "pd", "plus_minus", "random_stream", "recorded", "records", "rerun",
    "sample", "say", "seed", "signed", "start", "study", "train", "validation_curves", "verdict", "whole_split",
    "with_interval", "yardsticks",
]  # fmt: skip

Loss = Callable[[Record], float]
STAND_IN = "python-docs"
CONTEXT = 128  # the paper's, in characters: every test scores the tokens that windows of this length score

#: A record's loss on the whole test split, in nats.
whole_split = WHOLE.of

_findings = True  # whether the page may speak of what it measured; start() sets it


def seed() -> int:
    """The seed of the chapters' live runs: the environment variable ``SLMLIB_SEED``, 0 if unset."""
    text = os.environ.get("SLMLIB_SEED") or "0"
    if not text.isdecimal():
        raise ValueError(f"SLMLIB_SEED is {text!r}; set it to a non-negative integer, or unset it")
    return int(text)


_seed = seed  # which a parameter of that name would hide


def start(name: str) -> Corpus:
    """Set the figures' style, say under which conditions the chapter runs, and load its corpus.

    Banners say that the numbers of the ``smoke`` budget mean nothing, and that ``python-docs`` stands in for a corpus
    that cannot be had; then ``say`` and ``finding`` keep silent. A corpus with the wrong bytes is an error
    (``CorpusDamaged``) that the reader must mend.
    """
    global _findings
    figures.use_style()
    pd.options.display.max_colwidth = None  # no cell of a table is cut short
    try:
        corpus = load_corpus(name)
    except CorpusUnavailable as error:
        corpus = replace(load_corpus(STAND_IN), stands_in_for=name)
        _banner(
            f"This page ran on {STAND_IN}, not on {name}.",
            "The corpus could not be had, so the English text of Python's own documentation stands in for it. "
            "Nothing here may be compared with the paper, and what the chapter found of Shakespeare is left out."
            f"<details><summary>What was tried</summary>{escape(str(error))}</details>",
        )
    if budget() == "smoke":
        text = "a few steps, to see that it runs. Its numbers mean nothing, and its findings are left out."
        _banner("This page ran at the smoke budget:", text)
    _findings = budget() != "smoke" and not corpus.stands_in_for
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    print(f"{versions}, corpus {corpus.name}, budget {budget()}, seed {seed()}")
    return corpus


def _banner(headline: str, text: str) -> None:
    display(HTML(f'<div class="slm-banner" role="note"><strong>{escape(headline)}</strong> {text}</div>'))


def say(markdown: str, live: bool = False) -> None:
    """Show Markdown with measured values; nothing on a stand-in corpus or at the smoke budget.

    ``live`` is of runs made on this page: they were tried at the reduced budget alone, and it is silent at others.
    """
    if _findings and not (live and budget() != "reduced"):
        display(Markdown(markdown))


def finding(holds: bool, *values: object, live: bool = False) -> None:
    """Fail where a sentence of the chapter is not so (AssertionError, with the values); silent where ``say`` is."""
    if _findings and not (live and budget() != "reduced"):
        assert holds, values


class Trained(NamedTuple):
    """A model that a chapter trained, how it went, and the record of it."""

    label: str
    model: nn.Module
    history: History
    record: Record

    @property
    def test_nll(self) -> float:
        return self.record.test_nll

    @property
    def training(self) -> TrainingConfig:
        return self.record.experiment.training


def train(label: str, config: Config, training: TrainingConfig, corpus: Corpus, seed: int | None = None) -> Trained:
    """Run an experiment here and now, in memory, with the chapters' seed unless another is given.

    Contexts up to the paper's 128 are validated and tested on the same tokens, those that windows of 128 score; the
    whole split is looked at as thinly.
    """
    same = replace(training, eval_from=max(CONTEXT, config.context), whole_stride=11 * training.eval_stride)
    experiment = Experiment(corpus.name, config, same, _seed() if seed is None else seed)
    return Trained(label, *trained(experiment, corpus))


def rerun(label: str, corpus: Corpus) -> Trained:
    """The paper's run of that label, trained here at the budget in force with the chapters' seed.

    A KeyError for an unknown label lists those there are.
    """
    run = paper.run(label)
    return train(label, run.model, run.training.at(budget()), corpus)


def compare(rows: Mapping[str, Trained | Iterable[Record]]) -> pd.DataFrame:
    """One row a model: its test NLL, live or mean ± s.d. over seeds' records, and what it was trained on.

    Where its name is a label of the paper's runs, the paper's figure stands beside; not on a stand-in corpus.
    """
    table, reported = {}, {r.label: r.test_nll for r in paper.RUNS}
    for name, run in rows.items():
        label, some = (run.label, [run.record]) if isinstance(run, Trained) else (name, list(run))
        training = some[0].experiment.training
        table[name] = {
            "test NLL": plus_minus(r.test_nll for r in some),
            "paper": f"{reported[label]:.3f}" if label in reported and _findings else "",
            "whole split": plus_minus(r.test_nll_whole for r in some),
            "parameters": f"{some[0].parameters:,}",
            "windows": f"{training.epochs * training.windows_per_epoch:,}",
            "seeds": f"{len(some)}",
        }
    return pd.DataFrame.from_dict(table, orient="index")


def agreement(*labels: str) -> pd.DataFrame:
    """A row a run of the paper, all 20 if none is named: our records at its full budget, and its figure.

    A KeyError for an unknown label lists those there are.
    """
    chosen = [paper.run(label).label for label in labels] or [r.label for r in paper.RUNS]
    table = {
        line.label: {
            "ours": plus_minus(recorded(line.label)),
            "paper": f"{line.paper:.3f}",
            "difference": signed(line.difference, 4),
            "seeds": f"{line.seeds}",
            **{rule: "yes" if so else "no" for rule, so in line.agrees().items()},
        }
        for line in paper.status(records())
        if line.label in chosen
    }
    return pd.DataFrame.from_dict(table, orient="index").rename_axis(columns="test NLL")


@cache
def evidence() -> verdicts.Evidence:
    """All published records that the verdicts are computed from; FileNotFoundError says what to do without them."""
    found = verdicts.Evidence.read()
    if not any(found.paper.values()):
        raise FileNotFoundError(
            f"no records in {(RESULTS / 'paper').absolute()}: clone the book's repository, which holds them, "
            "or make them with: python -m slmlib run paper"
        )
    return found


def records() -> paper.Records:
    """The published records of the paper's runs at its full budget, by label and seed."""
    return evidence().paper


def cells() -> Cells:
    """What the frontier's records hold: each family at each budget, over its seeds."""
    return evidence().cells


def study(suite: str, experiment: Callable[[int], Experiment]) -> dict[int, Record]:
    """The published records of one experiment, by seed; KeyError for a suite that is not in ``studies.SUITES``."""
    if suite not in studies.SUITES:
        raise KeyError(f"no study is called {suite!r}; there are {', '.join(studies.SUITES)}")
    store = Store(RESULTS / suite)
    return {s: record for s in range(SEEDS) if (record := store.get(experiment(s)))}


def recorded(label: str) -> list[float]:
    """Test NLL of each published record of a run of the paper, on the paper's windows, in nats, by seed."""
    return [record.test_nll for _, record in sorted(records()[label].items())]


@cache
def judged() -> tuple[verdicts.Verdict, ...]:
    """All verdicts, from the published records."""
    return tuple(verdicts.judge(evidence()))


def judgement(claim: str, reading: verdicts.Reading = "paper") -> verdicts.Verdict:
    """The verdict on a claim under one reading (of C2 at equal compute the first budget's)."""
    return next(v for v in judged() if (v.claim, v.reading) == (claim, reading))


def verdict(claim: str, reading: verdicts.Reading = "paper") -> pd.DataFrame:
    """A row a contrast of a claim: 95 % interval, corrected p. KeyError for a claim or reading that was not tested."""
    chosen = [v for v in judged() if (v.claim, v.reading) == (claim, reading)]
    if not chosen:
        raise KeyError(f"no verdict on {claim!r} as {reading!r}; see slmlib.verdicts.CONTRASTS")
    rows = {
        ", ".join(filter(None, (m.says, m.note))): {
            "effect": signed(m.estimate.effect),
            "95 % interval": f"{signed(m.estimate.low)} to {signed(m.estimate.high)}",
            "p": f"{m.estimate.p:.2g}",
            "seeds": f"{m.estimate.n}",
            "paper": "" if m.paper is None else signed(m.paper),
        }
        for v in chosen
        for m in v.contrasts
    }
    words = {v.verdict for v in chosen}
    heading = f"{claim}: {words.pop()}" if len(words) == 1 else claim
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns=heading)


ORDER = {"character": 7, "word": 5}  # of the counting model that stands for all of them: the best on validation


def counted(corpus: Corpus) -> Tensor:
    """NLL, in nats of each test token, of modified Kneser-Ney of order 7 on characters and of 5 on words."""
    return KneserNey(ORDER[corpus.vocabulary.unit], len(corpus.vocabulary)).fit(corpus.train).nll(corpus.test)


def yardsticks(
    corpus: Corpus, training: TrainingConfig, orders: Iterable[int] = (1, 2, 7), split: str = "test"
) -> dict[str, float]:
    """NLL in nats of counting models (modified Kneser-Ney), by name, on the tokens that a run is scored on."""
    look, levels = replace(training.test, first=CONTEXT), {}
    for n, model in of_orders(orders, len(corpus.vocabulary), corpus.train).items():
        levels[{1: "unigram", 2: "bigram"}.get(n, f"{n}-gram")] = look.mean(model.nll(getattr(corpus, split)))
    return levels


def sample(model: nn.Module, corpus: Corpus, n: int = 200) -> str:
    """An opening, a speaker's name in Shakespeare, and the n tokens that the model writes after it at temperature 0.8.

    Test text before the opening fills the window, as in training; the seed is the chapters'.
    """
    opening = corpus.vocabulary.encode("\nThe " if corpus.stands_in_for else "\nROMEO:\n")
    before = corpus.test[: CONTEXT - len(opening)]
    generator = random_stream(seed(), "text")
    text = generate(model, torch.cat((before, opening)), n, temperature=0.8, generator=generator)
    return corpus.vocabulary.decode(text[len(before) + 1 :])  # without the newline before the opening


def change(after: dict[int, Record], before: dict[int, Record], loss: Loss = TEST.of) -> list[float]:
    """What ``after`` has more than ``before`` of a loss in nats, by the seeds that both have: paired by seed."""
    return [loss(after[s]) - loss(before[s]) for s in sorted(set(after) & set(before))]


def gap(after: dict[int, Record], before: dict[int, Record], loss: Loss = TEST.of) -> Estimate | None:
    """``change`` with its mean, 95 % interval and p; None for fewer than two seeds."""
    return paired(change(after, before, loss))


def validation_curves(runs: Mapping[str, Mapping[int, Record]], windows: int = 1) -> dict[str, dict[int, list[float]]]:
    """Of records by name and seed: the validation loss of each seed ``by_epoch``."""
    return {name: by_epoch((r.valid for r in by_seed.values()), windows) for name, by_seed in runs.items()}


def by_epoch(curves: Iterable[Sequence[float]], windows: int = 1) -> dict[int, list[float]]:
    """Losses of several runs, all as long, by the epoch's number or, given an epoch's windows, by the windows seen."""
    return {e * windows: list(losses) for e, losses in enumerate(zip(*curves, strict=True), 1)}


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, as text: −0.012."""
    return f"{value:+.{integer('digits', digits, 0, 100)}f}".replace("-", "−")


def p_value(p: float) -> str:
    """A p value as text: 0.028, < 0.001."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def with_interval(of: Estimate) -> str:
    """An estimate and its 95 % interval, as text: +0.062 (−0.008 to +0.132)."""
    return f"{signed(of.effect)} ({signed(of.low)} to {signed(of.high)})"


def plus_minus(values: Iterable[float], digits: int = 3) -> str:
    """Mean ± standard deviation, as text; the value alone where there is one."""
    values, digits = list(values), integer("digits", digits, 0, 100)
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"
