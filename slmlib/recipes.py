"""What today's training makes of small budgets: four architectures, each at its best as validation chooses it.

An architecture's settings lie on ladders. At each budget they are chosen by coordinate descent with seed 0, from the
best of the budget below; the validation text begins where the play that training ends in is over.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from math import ceil, log
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from .checks import choice, each_seed
from .corpora import Corpus
from .experiments import RESULTS, Experiment, Record, Store
from .flops import Scored, flops_per_window, muon_flops
from .frontier import SEEDS, Found
from .models import Config, LinearConfig, MLPConfig, TransformerConfig
from .training import TrainingConfig
from .training import budget as in_force

#: A setting by name.
Point = dict[str, Any]

BUDGETS = (1e10, 3e10, 1e11, 3e11, 1e12, 3e12, 1e13, 3e13)  # FLOPs of training's matrix products
#: The first character of Tiny Shakespeare's validation split that is not of *Measure for Measure*, which training ends
#: in: there *The Taming of the Shrew* begins, of which the test split is a later part.
NEXT_PLAY = 74_015
#: And the test split's token with which its last play begins, *The Tempest*.
LAST_PLAY = 76_959

#: The first token of a test or validation split that is scored, whatever the context: all models meet the same ones.
FIRST_SCORED = 128
#: What all of this is validated and tested on: the test is the paper's first 10,000 windows, whatever the context.
LOOKS = {"eval_from": FIRST_SCORED, "valid_from": NEXT_PLAY, "valid_stride": 4, "whole_stride": 8}

_RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
_MUON = (0.005, 0.01, 0.02, 0.05)
_REGULAR = {"dropout": (0.0, 0.1, 0.2, 0.3), "weight_decay": (0.0, 0.1, 0.3)}
_BLOCKS = {
    "width": (16, 32, 48, 64, 96, 128, 160, 192, 256),
    "context": (8, 16, 32, 64, 128),
    "tokens": (64, 128, 256, 512, 1024, 2048, 4096),  # a batch
    "rate": _RATES,
    "muon_rate": _MUON,
    **_REGULAR,
}
#: By architecture the settings that are chosen, in the order in which they are, each with its ladder. A ``muon_rate``
#: of 0 stands for AdamW alone.
LADDERS: dict[str, dict[str, tuple[float, ...]]] = {
    "linear": {
        "context": (2, 4, 8, 16, 32),
        "width": (8, 16, 32, 64, 128),
        "batch": (16, 32, 64, 128, 256),
        "rate": _RATES,
        "weight_decay": _REGULAR["weight_decay"],
    },
    "mlp": {
        "context": (4, 6, 8, 12, 16, 24, 32),
        "width": (8, 16, 32, 64),
        "hidden": (32, 64, 128, 256, 512, 1024),
        "batch": (16, 32, 64, 128, 256, 512),
        "rate": _RATES,
        "muon_rate": (0, *_MUON),
        **_REGULAR,
    },
    "one block": _BLOCKS,
    "blocks": {"layers": (1, 2, 3, 4, 5, 6, 8), **_BLOCKS},
}
_START = {"rate": 5e-3, "dropout": 0.0, "weight_decay": 0.0}
_FIRST: dict[str, Point] = {  # where the search begins at the smallest budget
    "linear": {"context": 4, "width": 16, "batch": 64, "rate": 5e-3, "weight_decay": 0.0},
    "mlp": _START | {"context": 4, "width": 8, "hidden": 64, "batch": 64, "muon_rate": 0},
    "one block": _START | {"width": 32, "context": 16, "tokens": 256, "muon_rate": 0.02},
}
_FIRST["blocks"] = {"layers": 1, **_FIRST["one block"]}
#: Where a search begins anew: the best of the budget below is so small, in so small batches, that one run would take
#: most of an hour. It stays in the race as it is.
_ANEW: dict[tuple[str, float], Point] = {
    ("one block", 3e12): _START | {"width": 128, "context": 64, "tokens": 1024, "muon_rate": 0.01, "weight_decay": 0.1},
}
_ANEW["blocks", 3e12] = {"layers": 4, **_ANEW["one block", 3e12], "width": 96}
#: Where a run takes half an hour: what is still chosen there, by one step at most.
_LATE = {("mlp", 1e13): "hidden", ("blocks", 3e13): "layers"}
#: The largest budget that each architecture was given.
LARGEST = {"linear": 1e12, "mlp": 1e13, "one block": 3e12, "blocks": 3e13}
#: How many positions before each a short convolution reaches, where one is in use (``models.ShortConvolution``).
REACH = 3
#: How often a run for a text of the reader's own may pass over it: about as often as the longest of the networks did.
PASSES = 12
#: Where a choice is what others are compared with, seed by seed.
_MORE_SEEDS = {("blocks", 1e13): 5}
_MOST_SEEDS = 5


def model(architecture: str, point: Point) -> Config:
    """The model of a point: the linear model, the MLP, or pre-norm blocks as they are built today."""
    context, width = int(point["context"]), int(point["width"])
    if architecture == "linear":
        return LinearConfig(context, width)
    if architecture == "mlp":
        return MLPConfig(context, width, int(point["hidden"]), point["dropout"])
    return TransformerConfig(
        context=context,
        d_model=width,
        heads=max(1, width // (16 if width < 96 else 32)),
        layers=int(point.get("layers", 1)),
        ff_width=4 * width,
        ff_kind="relu2",
        dropout=point["dropout"],
        dropout_site="residual",
        norm="pre",
        positions="rope",
        qkv_init="linear",
        norm_kind="rms",
        qk_norm=True,
        zero_init=True,
        conv=point.get("conv", 0),
    )


def experiment(architecture: str, point: Point, budget: float, seed: int) -> Experiment:
    """A point trained for so many FLOPs on Tiny Shakespeare, to the nearest window an epoch."""
    return _experiment(architecture, tuple(point.items()), budget, seed)


@cache  # the search asks for the same ones again and again
def _experiment(architecture: str, settings: tuple, budget: float, seed: int) -> Experiment:
    point = dict(settings)
    config = model(architecture, point)
    return Experiment("tiny_shakespeare", config, _training(config, point, budget, 65), seed)


def _training(config: Config, point: Point, budget: float, vocab_size: int) -> TrainingConfig:
    scored: Scored = "every" if isinstance(config, TransformerConfig) else "last"
    epochs = 2 if budget < 1e13 else 4
    muon = point.get("muon_rate")
    return TrainingConfig(
        epochs=epochs,
        windows_per_epoch=max(1, round(budget / epochs / flops_per_window(config, vocab_size, scored=scored))),
        **LOOKS,
        batch=int(point["batch"]) if "batch" in point else max(1, int(point["tokens"]) // config.context),
        learning_rate=point["rate"],
        scored=scored,
        optimiser="muon" if muon else "adamw",
        **({"muon_rate": muon} if muon else {}),
        weight_decay=point["weight_decay"],
        schedule="cosine",
        warmup=0.02,
    )


def search(architecture: str, found: Found) -> Iterator[tuple[float, Point | None, list[Experiment]]]:
    """Budget by budget, the settings that validation chooses, None while that is not known, and the runs it asks for.

    Coordinate descent: one setting after the other moves to the better of its neighbours on the ladder for as long as
    that lowers seed 0's validation loss; twice through all of them up to 10¹² FLOPs, once above. At an architecture's
    last budget its size alone moves, by a step, where a run takes half an hour: an MLP's units, a transformer's blocks.
    """
    point: Point | None = _FIRST[architecture]
    for budget in BUDGETS[: BUDGETS.index(LARGEST[architecture]) + 1]:
        asked: list[Experiment] = []
        starts = [p for p in (_ANEW.get((architecture, budget)), point) if p]
        late, of = _LATE.get((architecture, budget)), partial(experiment, architecture, budget=budget, seed=0)
        ladders = {name: ladder for name, ladder in LADDERS[architecture].items() if late in (None, name)}
        rounds = 2 if budget <= 1e12 else 1
        ends = [descend(of, ladders, starts[0], found, asked, rounds, once=bool(late)), *starts[1:]]
        runs = [experiment(architecture, p, budget, 0) for p in ends if p]
        asked += runs
        if None in ends or any(run not in found for run in runs):
            yield budget, None, asked
            return
        point = ends[min(range(len(runs)), key=lambda k: min(found[runs[k]].valid))]
        yield budget, point, asked


def descend(
    of: Callable[[Point], Experiment],
    ladders: Mapping[str, tuple],  # by setting, in the order in which they move, the values that it may have
    point: Point,  # where it begins
    found: Found,
    asked: list[Experiment],
    rounds: int,  # how often it goes through all settings at most
    once: bool = False,  # each setting moves by one step at most
) -> Point | None:
    """Where coordinate descent on validation ends, None while that is not known; it adds to what is asked."""
    for _ in range(rounds):
        before = point
        for name, ladder in ladders.items():
            while True:
                at = ladder.index(point[name])
                near = [point, *({**point, name: ladder[j]} for j in (at - 1, at + 1) if 0 <= j < len(ladder))]
                runs = [of(p) for p in near]
                asked += runs
                if any(run not in found for run in runs):
                    return None
                best = min(range(len(near)), key=lambda k: min(found[runs[k]].valid))
                point = near[best]
                if best == 0 or once:
                    break
        if point == before:
            break
    return point


def today(seeds: int = SEEDS, found: Found | None = None) -> list[Experiment]:
    """Each architecture at each budget: the runs by which its settings are chosen, then other seeds of the choice.

    What is asked depends on what is found, as in ``frontier.frontier``.
    """
    found, wanted = found or {}, []
    for architecture in LARGEST:
        for budget, point, asked in search(architecture, found):
            wanted += asked
            if point is None:
                break
            runs = max(seeds, _MORE_SEEDS.get((architecture, budget), 0))
            wanted += [experiment(architecture, point, budget, seed) for seed in each_seed(runs, 1)]
    wanted += [run for runs in lower(found).values() for run in runs]
    for architecture in ALONE:
        spared, asked = without_muon(architecture, found)
        wanted += [*asked, *(run for of in spared.values() for run in of[:seeds])]
    return list(dict.fromkeys(wanted))


#: Less than the lowest rate on Muon's ladder.
LOWER = 0.002
#: What a search with ``LOWER`` on that ladder ends at, beside it, where that is elsewhere.
_LOWER_ENDS: dict[float, Point] = {1e11: {"weight_decay": 0.1}, 3e11: {"layers": 3, "tokens": 64}}


def lower(found: Found) -> dict[float, list[Experiment]]:
    """The blocks of seed 0 at ``LOWER``, by budget, where validation chose the lowest rate on Muon's ladder.

    Where a search with ``LOWER`` on that ladder ends elsewhere, at 10¹¹ and 3·10¹¹ FLOPs, ``SEEDS`` seeds of its end
    come after; it was followed no further.
    """
    there = {}
    for budget, point, _ in search("blocks", found):
        if point and point["muon_rate"] == _MUON[0]:
            point = {**point, "muon_rate": LOWER}
            there[budget] = [experiment("blocks", point, budget, 0)]
            if budget in _LOWER_ENDS:
                end = point | _LOWER_ENDS[budget]
                there[budget] += [experiment("blocks", end, budget, seed) for seed in range(SEEDS)]
    return there


#: What a transformer for 10¹³ FLOPs costs with Muon's own products; what AdamW trains alone is given as much.
CHARGED = 1.6e13
#: What is chosen anew by AdamW alone, the rate and then the size, and the largest budget at which it is.
ALONE = {"mlp": (("rate", "hidden"), 1e13), "blocks": (("rate", "layers", "width"), 3e11)}


def without_muon(architecture: str, found: Found) -> tuple[dict[float, list[Experiment]], list[Experiment]]:
    """What AdamW trains alone, by budget, ``SEEDS`` seeds each as far as it is chosen; and the runs asked for.

    Rate and size are chosen by coordinate descent from the choice that may have Muon; at 10¹³ FLOPs the size alone, by
    a step, from what was chosen at 3·10¹², and what is chosen there is trained for ``CHARGED`` instead.
    """
    there: dict[float, list[Experiment]] = {}
    asked: list[Experiment] = []
    point: Point | None = None
    names, largest = ALONE[architecture]
    for budget, settled, _ in search(architecture, found):
        if settled is None or budget > largest:
            break
        last = budget == 1e13
        ladders = {name: LADDERS[architecture][name] for name in names[last:]}
        start = point if last else {**settled, "muon_rate": 0}
        of = partial(experiment, architecture, budget=budget, seed=0)
        point = start and descend(of, ladders, start, found, asked, rounds=1, once=last)
        if point:
            flops = CHARGED if last else budget
            there[flops] = [experiment(architecture, point, flops, seed) for seed in range(SEEDS)]
    return there, asked


def published(folder: Path = RESULTS) -> Found:
    """The published records of today's training, and of its transformers with short convolutions."""
    gain = Store(folder / "gain").found()
    return {**Store(folder / "today").found(), **{e: r for e, r in gain.items() if getattr(e.model, "conv", 0)}}


def chosen(found: Found) -> dict[tuple[str, float], Point]:
    """The settings that validation chose, by architecture and budget, where the search is at its end.

    They have short convolutions where these were tried with them and lowered the validation loss, in the mean over
    ``SEEDS`` seeds or more that both have.
    """
    points = {}
    for architecture in LARGEST:
        for budget, point, _ in search(architecture, found):
            if point is None:
                break
            mixed = {**point, "conv": REACH}
            without, with_ = (_seeds(found, architecture, p, budget) for p in (point, mixed))
            both = without.keys() & with_.keys()
            if len(both) >= SEEDS and validation([with_[s] for s in both]) < validation([without[s] for s in both]):
                point = mixed
            points[architecture, budget] = point
    return points


def _seeds(found: Found, architecture: str, point: Point, budget: float) -> dict[int, Record]:
    """The records of a point, by seed."""
    of = {seed: experiment(architecture, point, budget, seed) for seed in range(_MOST_SEEDS)}
    return {seed: found[run] for seed, run in of.items() if run in found}


def runs(found: Found, seeds: int = SEEDS) -> dict[tuple[str, float], list[Record]]:
    """The records of each choice, by architecture and budget, where there are so many seeds at least."""
    there = {key: [*_seeds(found, key[0], point, key[1]).values()] for key, point in chosen(found).items()}
    return {key: records for key, records in there.items() if len(records) >= seeds}


def losses(found: Found, kept: Store) -> dict[tuple[str, float], list[dict[str, Tensor]]]:
    """The token losses of each choice, seed by seed, as far as a store keeps them."""
    there = {key: [r.experiment for r in of if r.experiment in kept] for key, of in runs(found, 1).items()}
    return {key: [kept.losses(e)[0] for e in of] for key, of in there.items() if of}


def validation(records: list[Record]) -> float:
    """What choices are made by: the mean over seeds of the best epoch's validation loss."""
    return fmean(min(record.valid) for record in records)


def with_optimiser(record: Record) -> float:
    """FLOPs of training, Muon's own products among them."""
    e = record.experiment
    steps = e.training.epochs * e.training.steps_per_epoch
    muon = muon_flops(e.model) if e.training.optimiser == "muon" else 0
    return record.flops["counted"] + steps * muon


def envelope(found: Found, kinds: tuple[type[Config], ...], cost: Callable[[Record], float]) -> dict[float, Record]:
    """Of all runs of some kinds of model those that no cheaper one beats on validation, by what they cost."""
    of = [record for e, record in found.items() if isinstance(e.model, kinds)]
    front: dict[float, Record] = {}
    for record in sorted(of, key=lambda r: (cost(r), min(r.valid))):
        if not front or min(record.valid) < min(min(r.valid) for r in front.values()):
            front[cost(record)] = record
    return front


def best(flops: float, found: Found | None = None) -> list[Record]:
    """Of all with ``SEEDS`` trained seeds or more, within a budget to a thousandth: the best by validation, by seed.

    They are the published ones that look at the same text (``LOOKS``) unless others are given.

    Raises:
        ValueError: if there is none within that budget.
    """
    if found is None:
        stores = [Store(RESULTS / suite).found() for suite in ("today", "gain", "shapes")]
        found = {e: r for of in stores for e, r in of.items() if e.training == replace(e.training, **LOOKS)}
    by_seed: dict[Experiment, list[Record]] = {}
    for experiment in sorted(found, key=lambda e: e.seed):
        by_seed.setdefault(replace(experiment, seed=0), []).append(found[experiment])
    there = [of for of in by_seed.values() if len(of) >= SEEDS and max(r.flops["counted"] for r in of) <= 1.001 * flops]
    if not there:
        raise ValueError(f"no recorded choice costs {flops:.3g} FLOPs or less; the smallest budget is {BUDGETS[0]:.0e}")
    return min(there, key=validation)


def best_under(
    flops: float, corpus: Corpus, architecture: str | None = None, found: Found | None = None, seed: int = 0
) -> Experiment:
    """What to train on a text for so many FLOPs: the settings that validation chose on Tiny Shakespeare, or between.

    Between two budgets each setting lies between theirs, so far up its ladder; there are short convolutions if there
    are at the lower one. Without an ``architecture`` of ``LADDERS`` it is that with the lowest mean validation loss at
    the nearest budget; without ``found`` the published records are chosen by.
    Validation and test see the whole splits of the text from token 128 on, through 2,500 and 10,000 windows at most.

    Raises:
        ValueError: for an unknown architecture, for FLOPs beyond the budgets that were searched, where no choice is
            known, or for a text whose splits are shorter than what is left out of them.
    """
    found = published() if found is None else found
    if architecture is not None:
        choice("architecture", architecture, tuple(LADDERS))
    points = {k: p for k, p in chosen(found).items() if architecture in (None, k[0])}
    budgets = sorted({budget for _, budget in points})
    if not budgets:
        raise ValueError("found must be the records of today's training: what there is settles no choice")
    if not budgets[0] / 1.001 <= flops <= budgets[-1] * 1.001:
        known = f"from {budgets[0]:.0e} to {budgets[-1]:.0e}"
        raise ValueError(f"flops must be {known}, where the best settings are known, got {flops:.3g}")
    nearest = min(budgets, key=lambda budget: abs(log(budget / flops)))
    if architecture is None:
        reach = {a: max(b for other, b in points if other == a) for a, _ in points}
        of_nearest = {a: p for (a, b), p in points.items() if b == nearest and flops <= reach[a] * 1.001}
        architecture = min(of_nearest, key=lambda a: validation([*_seeds(found, a, of_nearest[a], nearest).values()]))
    mine = sorted(budget for a, budget in points if a == architecture)
    low = max(b for b in mine if b <= flops * 1.001)
    high = min((b for b in mine if b >= flops / 1.001), default=None)
    point = points[architecture, low]
    if high is not None and high > low:
        point = _between(architecture, point, points[architecture, high], log(flops / low) / log(high / low))
    config = model(architecture, point)
    training = on_all_of(_training(config, point, flops, len(corpus.vocabulary)), corpus)
    return Experiment(corpus.name, config, training, seed)


def on_all_of(training: TrainingConfig, corpus: Corpus) -> TrainingConfig:
    """Validated and tested on the whole splits of a text, through 2,500 and 10,000 windows at most."""
    for split, ids in (("valid", corpus.valid), ("test", corpus.test)):
        if len(ids) <= FIRST_SCORED:
            raise ValueError(
                f"the {split} split of {corpus.name} holds {len(ids)} tokens, and scoring begins at number "
                f"{FIRST_SCORED}: give a longer text"
            )
    test = ceil(len(corpus.test) / 10_000)
    valid = {"valid_from": None, "valid_stride": ceil(len(corpus.valid) / 2_500)}
    return replace(training, eval_windows=None, eval_stride=test, whole_stride=test, **valid)


def small(architecture: str, corpus: Corpus, seed: int = 0) -> Experiment:
    """``best_under`` for 10¹⁰ FLOPs, which a chapter trains live; at the ``smoke`` budget a few steps of it."""
    run = best_under(1e10, corpus, architecture, seed=seed)
    return replace(run, training=run.training.at(in_force(), sized_for="reduced"))


def _between(architecture: str, low: Point, high: Point, share: float) -> Point:
    point = {"conv": low.get("conv", 0)}
    for name, ladder in LADDERS[architecture].items():
        a, b = ladder.index(low[name]), ladder.index(high[name])
        point[name] = ladder[round(a + share * (b - a))]
    return point


def best_within(
    seconds: float, corpus: Corpus, architecture: str, found: Found | None = None, seed: int = 0
) -> tuple[Experiment, float]:
    """What to train on a text in so many seconds of a core as fast as the records', and the seconds its record took.

    Of all runs of an ``mlp`` or of ``blocks`` that took no longer, validation's best, by the published records if none
    are given. A run counts if it would pass over this text ``PASSES`` times at most: a short text is learned by heart
    where a long one is not.

    Raises:
        ValueError: for an unknown architecture, too little time, or a text that is too short.
    """
    kind = {"mlp": MLPConfig, "blocks": TransformerConfig}[choice("architecture", architecture, ("mlp", "blocks"))]
    found = published() if found is None else found
    there = [r for e, r in found.items() if isinstance(e.model, kind) and e.corpus == "tiny_shakespeare"]
    short = [r for r in there if passes(r.experiment, len(corpus.train)) <= PASSES]
    if not short:
        least = ceil(min(passes(r.experiment, 1) for r in there) / PASSES)
        raise ValueError(
            f"{corpus.name} has {len(corpus.train):,} {corpus.vocabulary.unit}s to train on, after a fifth is kept for "
            f"validation and test, and the smallest {architecture} needs {least:,}: give a longer text"
        )
    fast = [r for r in short if r.seconds["training"] <= seconds]
    if not fast:
        least = min(r.seconds["training"] for r in short)
        text = f"{architecture} on {len(corpus.train):,} tokens"
        raise ValueError(f"seconds must be {ceil(10 * least) / 10:g} at least for {text}, got {seconds:.2g}")
    best = min(fast, key=lambda r: min(r.valid))
    training = on_all_of(best.experiment.training, corpus)
    return Experiment(corpus.name, best.experiment.model, training, seed), best.seconds["training"]


def passes(experiment: Experiment, tokens: int) -> float:
    """How often training predicts each of so many tokens, in the mean."""
    training = experiment.training
    each = experiment.model.context if training.scored == "every" else 1
    return training.epochs * training.windows_per_epoch * each / tokens
