"""What every chapter does alike: how it starts, trains, tabulates and speaks of what it measured."""

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from statistics import mean, stdev

import pandas as pd
import torch
from IPython.display import HTML, Markdown, display
from torch import Tensor, nn

from . import figures, paper, studies
from .corpora import Corpus, CorpusUnavailable, load_corpus
from .experiments import RESULTS, Experiment, Record, Store
from .models import Config, build, generate, n_parameters
from .ngrams import KneserNey
from .paper import signed
from .training import History, TrainingConfig, budget, evaluate, fit
from .windows import Evaluation, random_stream

STAND_IN = "python-docs"
CONTEXT = 128  # the paper's, in characters: every test scores the tokens that windows of this length score


def seed() -> int:
    """The seed of the chapters' live runs: the environment variable ``SLMLIB_SEED``, 0 if unset."""
    text = os.environ.get("SLMLIB_SEED") or "0"
    if not text.isdecimal():
        raise ValueError(f"SLMLIB_SEED is {text!r}; set it to a non-negative integer, or unset it")
    return int(text)


def start(name: str) -> Corpus:
    """Set the figures' style, say under which conditions the chapter runs, and load its corpus.

    At the ``smoke`` budget a banner says that the numbers mean nothing.
    Where the corpus cannot be had the chapter goes on with ``python-docs``, under a banner that says so.

    Raises:
        CorpusDamaged: if it is there with the wrong bytes; that is for the reader to mend, not to paper over.
    """
    figures.use_style()
    pd.options.display.max_colwidth = None  # no cell of a table is cut short
    try:
        corpus = load_corpus(name)
    except CorpusUnavailable as error:
        corpus = stand_in(name)
        _banner(
            f"This page ran on {STAND_IN}, not on {name}.",
            "The corpus could not be had, so the English text of Python's own documentation stands in for it. "
            "Nothing here may be compared with the paper, and what the prose says of Shakespeare need not hold."
            f"<details><summary>What was tried</summary>{escape(str(error))}</details>",
        )
    if budget() == "smoke":
        _banner(
            "This page ran at the smoke budget:",
            "a few steps, to see that it runs. Its numbers, and what the prose makes of them, mean nothing.",
        )
    print(
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"corpus {corpus.name}, budget {budget()}, seed {seed()}"
    )
    return corpus


def stand_in(name: str) -> Corpus:
    """The embedded corpus, marked as standing in for the one of that name."""
    return replace(load_corpus(STAND_IN), stands_in_for=name)


def _banner(headline: str, text: str) -> None:
    display(HTML(f'<div class="slm-banner" role="note"><strong>{headline}</strong> {text}</div>'))


@dataclass
class LiveRun:
    """A model that a chapter trained, and how it went."""

    label: str
    model: nn.Module
    training: TrainingConfig
    history: History
    test_nll: float  # nats per token


def train(label: str, config: Config, training: TrainingConfig, corpus: Corpus, seed: int) -> LiveRun:
    """Build, fit and test one model.

    The test looks at the test split as ``fit`` looks at the validation split, but scores the same tokens for
    every context up to the paper's 128: those that windows of 128 would score.
    """
    model = build(config, len(corpus.vocabulary), seed=seed)
    history = fit(model, corpus, training, seed=seed)
    first = max(CONTEXT, config.context)
    test_nll = evaluate(model, corpus.test, replace(training.test, first=first))
    return LiveRun(label, model, training, history, test_nll)


def rerun(label: str, corpus: Corpus) -> LiveRun:
    """The paper's run of that label, trained here at the budget in force with the chapters' seed."""
    run = paper.run(label)
    return train(label, run.model, run.training.at(budget()), corpus, seed())


def table(runs: Iterable[LiveRun], corpus: Corpus) -> pd.DataFrame:
    """One row per run: its test NLL in nats, the paper's figure, parameters, windows seen here and there.

    Beside the test windows that the paper uses stand about as many, spread over the whole test split. What is
    the paper's is left out on a stand-in corpus. The last row is the counting yardstick, on the same tokens.
    """
    rows = {}
    for live in runs:
        reported, count = paper.run(live.label), n_parameters(live.model)
        ours, theirs = (f"{t.epochs * t.windows_per_epoch / 1000:g}k" for t in (live.training, reported.training))
        first, spread = max(CONTEXT, live.model.config.context), 11 * live.training.eval_stride  # 11 times as long
        whole = evaluate(live.model, corpus.test, Evaluation(None, spread, first))
        rows[live.label] = {
            "this run": f"{live.test_nll:.3f}",
            "whole split": f"{whole:.3f}",
            "paper's figure": f"{reported.test_nll:.3f}",
            "parameters": f"{count.total:,}",
            "without embeddings": f"{count.without_embeddings:,}",
            "windows seen": f"{ours} of {theirs}",
        }
        if corpus.stands_in_for:
            del rows[live.label]["paper's figure"]
            rows[live.label]["windows seen"] = ours
    name, nll = counted(corpus)
    tested, whole = replace(live.training.test, first=CONTEXT), Evaluation(None, spread, CONTEXT)
    rows[name] = dict.fromkeys(rows[live.label], "")
    rows[name] |= {"this run": f"{tested.mean(nll):.3f}", "whole split": f"{whole.mean(nll):.3f}"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="test NLL")


@cache
def records() -> dict[str, dict[int, Record]]:
    """The published records of the paper's runs at its full budget, by label and seed.

    Raises:
        FileNotFoundError: if there are none where they should be; says where that is and what to do.
    """
    found = paper.records(Store(RESULTS / "paper"))
    if not any(found.values()):
        raise FileNotFoundError(
            f"no records in {(RESULTS / 'paper').absolute()}: clone the book's repository, which holds them, "
            "or make them with: python -m slmlib run paper"
        )
    return found


def study(suite: str, experiment: Callable[[int], Experiment]) -> dict[int, Record]:
    """The published records of one experiment of a study, by seed.

    Args:
        suite: a key of ``studies.SUITES``.
        experiment: the experiment with a seed.

    Raises:
        KeyError: for an unknown suite.
    """
    if suite not in studies.SUITES:
        raise KeyError(f"no study is called {suite!r}; there are {', '.join(studies.SUITES)}")
    store = Store(RESULTS / suite)
    by_seed = {s: store.get(experiment(s)) for s in range(studies.SEEDS)}
    return {s: record for s, record in by_seed.items() if record is not None}


def recorded(label: str) -> list[float]:
    """Test NLL of each published record of a run of the paper, on the paper's windows, in nats, by seed."""
    return [record.test_nll for _, record in sorted(records()[label].items())]


def records_table(labels: Iterable[str]) -> pd.DataFrame:
    """One row per run of the paper: what its published records say at the paper's full budget, and what it reports.

    The column "agrees" is ``paper.Status.agrees``. Below stands the counting yardstick, fitted on the same text and
    scored on the same tokens, where the corpus can be had; a row each where the runs are tested on different numbers of
    windows or different corpora.

    Raises:
        KeyError: for an unknown label.
    """
    rows, labels, yardstick = {}, {paper.run(label).label for label in labels}, {}
    chosen = [r for r in paper.RUNS if r.label in labels]
    for line in paper.status(records()):
        if line.label in labels:
            rows[line.label] = {
                "ours": plus_minus(recorded(line.label)) if line.seeds else "",
                "seeds": f"{line.seeds}",
                "whole split": "" if line.whole is None else f"{line.whole:.3f}",
                "paper's figure": f"{line.paper:.3f}",
                "difference": "" if line.mean is None else f"{line.mean - line.paper:+.3f}",
                "agrees": {None: "", True: "yes", False: "no"}[line.agrees],
            }
    tests = {(r.corpus, r.training.eval_windows): r for r in chosen}  # what is scored, but for the first characters
    for (corpus, windows), run in tests.items():
        if (model := _counted_as(corpus, run.experiment(0).train_tokens)) is not None:
            (name, nll), first = model, run.model.context
            what = "" if len(tests) == 1 else f", {run.label if run.group == 'words' else f'{windows // 1000}k'}"
            yardstick[f"{name}{what}"] = {
                "ours": f"{Evaluation(windows, first=first).mean(nll):.3f}",
                "whole split": f"{Evaluation(None, first=first).mean(nll):.3f}",
            }
    rows |= {name: dict.fromkeys(next(iter(rows.values())), "") | row for name, row in yardstick.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="test NLL ± s.d.")


@cache
def _counted_as(corpus: str, train_tokens: int | None) -> tuple[str, Tensor] | None:
    """``counted`` on the text that a run of the paper reads; None where the corpus cannot be had."""
    try:
        return counted(load_corpus(corpus).head(train=train_tokens))
    except CorpusUnavailable:
        return None


def verdict(claim: str) -> str:
    """What the published records say of a claim of the paper, as Markdown: verdict, test, effects, intervals.

    Raises:
        KeyError: for an unknown claim.
    """
    judgements = {j.claim.id: j for j in paper.judge(records())}
    if claim not in judgements:
        raise KeyError(f"no claim is called {claim!r}; there are {', '.join(judgements)}")
    judged = judgements[claim]
    lines = [
        f"**{claim}, *{judged.claim.statement}*: {judged.verdict}.** Tested: {judged.claim.asks} "
        "{numref}`ch-verdicts` says how verdicts are reached.",
        "",
    ]
    for f in judged.findings:
        theirs = "" if f.contrast.paper is None else f"; the paper's single runs: {signed(f.contrast.paper)}"
        seeds = f"{f.n} seeds {'paired' if f.contrast.paired else 'a side'}"
        lines.append(
            f"- {f.contrast.says}: {signed(f.effect)} nats, 95 % interval {signed(f.low)} to {signed(f.high)}, "
            f"over {seeds}; p = {f.p:.2g} after Holm's correction{theirs}"
            + (", above the interval" if f.below_papers else "")
        )
    return "\n".join(lines)


def change(
    after: dict[int, Record], before: dict[int, Record], loss: Callable[[Record], float] = lambda r: r.test_nll
) -> list[float]:
    """What ``after`` has more than ``before`` of a loss in nats, by the seeds that both have: paired by seed."""
    return [loss(after[s]) - loss(before[s]) for s in sorted(set(after) & set(before))]


def by_epoch(curves: Iterable[Sequence[float]], windows: int = 1) -> dict[int, list[float]]:
    """Losses of several runs after each epoch, by the epoch's number or, given its windows, by the windows seen.

    Args:
        curves: of each run the losses, as many for all.
    """
    return {e * windows: list(losses) for e, losses in enumerate(zip(*curves, strict=True), 1)}


def with_interval(values: Sequence[float]) -> str:
    """Signed mean ± half its 95 % interval (Student's t), as text; the value alone where there is one."""
    half = f" ± {figures.interval(values):.3f}" if len(values) > 1 else ""
    return f"{signed(mean(values))}{half}"


def plus_minus(values: Iterable[float], digits: int = 3) -> str:
    """Mean ± standard deviation, as text; the value alone where there is one."""
    values = list(values)
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


ORDER = {"character": 7, "word": 5}  # of the counting model that stands for all of them: the best on validation


def counted(corpus: Corpus) -> tuple[str, Tensor]:
    """The yardstick that needs no training: modified Kneser-Ney of order 7 on characters, of 5 on words.

    Returns:
        Its name, and its NLL in nats of each token of the test split.
    """
    order = ORDER[corpus.vocabulary.unit]
    model = KneserNey(order, len(corpus.vocabulary)).fit(corpus.train)
    return f"Kneser-Ney {order}", model.nll(corpus.test)


def yardsticks(
    corpus: Corpus, training: TrainingConfig, orders: Iterable[int] = (1, 2, 7)
) -> dict[str, dict[str, float]]:
    """NLL of counting models (modified Kneser-Ney) on the very tokens that a run with ``training`` is scored on.

    Returns:
        ``{"valid": {"unigram": nll, "bigram": nll}, "test": …}``, in nats; higher orders are called "3-gram" and so on.
    """
    levels: dict[str, dict[str, float]] = {"valid": {}, "test": {}}
    for n in orders:
        model = KneserNey(n, len(corpus.vocabulary)).fit(corpus.train)
        for split, by_name in levels.items():
            nll = replace(training.test, first=CONTEXT).mean(model.nll(getattr(corpus, split)))
            by_name[{1: "unigram", 2: "bigram"}.get(n, f"{n}-gram")] = nll
    return levels


def sample(model: nn.Module, corpus: Corpus, n: int = 200) -> str:
    """What the model writes after an opening, a speaker's name in Shakespeare: the opening and n tokens more.

    Test text before the opening fills the window, as in training; temperature 0.8, the chapters' seed.
    """
    opening = corpus.vocabulary.encode("\nThe " if corpus.stands_in_for else "\nROMEO:\n")
    before = corpus.test[: CONTEXT - 8]
    ids = torch.cat((before, opening))
    text = generate(model, ids, n, temperature=0.8, generator=random_stream(seed(), "text"))
    return corpus.vocabulary.decode(text[len(before) + 1 :])  # without the newline before the opening


def say(markdown: str) -> None:
    """Show a paragraph of Markdown: prose that quotes what the run measured."""
    display(Markdown(markdown))


def listed(items: Iterable[object]) -> str:
    """As a list in a sentence: a, b and c."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def quote(key: str, value: object) -> None:
    """Keep a figure or a paragraph of Markdown under a key, for other pages of the built book to show."""
    try:
        from myst_nb import glue
    except ImportError:  # it comes with the book's tools, which a notebook on its own does without
        return
    glue(key, Markdown(value) if isinstance(value, str) else value, display=False)


def findings_apply(corpus: Corpus) -> bool:
    """Whether a chapter asserts its findings: at the ``reduced`` budget, where they were tried, on its own corpus."""
    return budget() == "reduced" and not corpus.stands_in_for
