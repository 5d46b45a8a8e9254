"""A text of one's own: counting, an MLP and a transformer within a budget, side by side, and the best of them kept."""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from . import mixing, reading, recipes
from .checkpoints import load_tensors, save_tensors
from .checks import integer, number, plain
from .corpora import Corpus, Vocabulary
from .experiments import Experiment, LaterVersion, Record, process_pool, trained
from .models import Transformer, build, generate, n_parameters
from .ngrams import of_orders
from .speed import fast_matmul, one_thread
from .training import Run, TrainingConfig, epochs, evaluate, token_nll
from .windows import random_stream

#: Which orders of counting are tried, by unit.
ORDERS = {"character": range(1, 10), "word": range(1, 6)}
FEW_STEPS = 100  # of training, below which a network is said to have had too little time
LITTLE = 0.005  # nats, below which it is said to add little to the counts
_NETWORKS = {"mlp": "MLP", "blocks": "transformer"}
_SPLITS = ("train", "valid", "test")
_ABOUT = ("experiment", "unit", "vocabulary")  # the texts beside a kept model's weights
_MIXTURE = ("mixture.text", "mixture.orders", "mixture.gate")  # and the tensors, if it was mixed with counts


@dataclass(frozen=True)
class Row:
    """What one model made of a text."""

    model: str
    test_nll: float  # nats per token of the test split, from token 128 on; of 10,000 of them at most, evenly spread
    seconds: float  # of choosing and training, validation included, of all that is mixed
    flops: float  # of training's matrix products, without what reading on takes; counting has none
    parameters: int  # of counting, the n-grams remembered
    sample: str  # what it writes after the test split's first tokens


class Tried(NamedTuple):
    """All rows, the experiment whose network has the lowest validation loss, and that network mixed with counts."""

    rows: list[Row]
    experiment: Experiment
    mixture: mixing.Mixture


class Kept(NamedTuple):
    """What a file holds: a network, its vocabulary, and the mixture with counts, if there is one."""

    network: nn.Module
    vocabulary: Vocabulary
    mixture: mixing.Mixture | None


class _Network(NamedTuple):
    """What a worker sends back."""

    weights: dict[str, Any]  # as arrays: tensors would travel by shared memory, of which a container has little
    record: Record
    valid: Any  # NLL of each validation token, and of each test token
    test: Any
    seconds: float


def attempt(
    corpus: Corpus,
    seconds: float | None = None,
    flops: float | None = None,
    workers: int = 2,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Tried:
    """Count, train an MLP and a transformer within a budget, and mix the better of them with the counts.

    Everything is chosen by validation: counting's order, the networks' settings (on Tiny Shakespeare, in
    ``recipes``), which epoch's weights are kept, and whom the mixture believes where (``mixing.Gate``).

    Args:
        corpus: the text, as ``read_corpus`` gives it.
        seconds: for all of it, about; give either this or
        flops: of each network's training, as far as the records go.
        workers: processes. With one the networks are trained one after the other, each for half of the time.
        seed: of the networks.
        say: is told what is going on, a line each time.

    Raises:
        ValueError: if not exactly one budget is given, or it is too small or too large; names the bounds.
    """
    began = time.perf_counter()
    if (seconds is None) == (flops is None):
        raise ValueError(f"give seconds or flops, one of the two, got seconds={seconds!r} and flops={flops!r}")
    budget = number(*(("seconds", seconds) if flops is None else ("flops", flops)), positive=True)
    workers = min(integer("workers", workers), len(_NETWORKS))
    plans: dict[str, Experiment | float] = {}
    if flops is not None:
        # The MLP is trained as far as more compute helped it, the transformer for all of the budget or not at all. It
        # is asked for first, since its bounds are the budget's.
        most = {"blocks": budget, "mlp": recipes.LARGEST["mlp"]}
        plans = {name: recipes.best_under(min(budget, m), corpus, name, seed=seed) for name, m in most.items()}
    else:
        records = recipes.published()
        for name in _NETWORKS:
            recipes.best_within(inf, corpus, name, records)  # refuses a text that is too short before it is counted
    prompt = corpus.test[: recipes.FIRST_SCORED]
    looks = recipes.on_all_of(TrainingConfig(eval_from=recipes.FIRST_SCORED), corpus)
    valid, test = looks.validation, looks.test

    def sample(write: Callable[..., Tensor]) -> str:
        n = 200 if corpus.vocabulary.unit == "character" else 40
        ids = write(prompt=prompt, n=n, generator=random_stream(seed, "text"))
        return corpus.vocabulary.decode(ids[len(prompt) :])

    say(f"counting {len(corpus.train):,} {corpus.vocabulary.unit}s")
    unit, V = corpus.vocabulary.unit, len(corpus.vocabulary)
    counts = of_orders(sorted({*ORDERS[unit], *mixing.ORDERS[unit]}), V, corpus.train)
    counting = min((counts[n] for n in ORDERS[unit]), key=lambda model: valid.mean(model.nll(corpus.valid)))
    nll, chosen = test.mean(counting.nll(corpus.test)), time.perf_counter() - began
    rows = [Row(f"counting, order {counting.order}", nll, chosen, 0.0, sum(counting.sizes), sample(counting.generate))]
    some = [counts[n] for n in sorted({*mixing.ORDERS[unit], counting.order})]
    counted = mixing.counted(corpus, looks, recipes.FIRST_SCORED, some)
    counted = {split: counted[split] for split in ("valid", "test")}
    gated, size = mixing.together([], counted), sum(some[-1].sizes)  # the lower orders' n-grams among the highest's
    nll = gated["test"].mean().item()
    rows.append(Row(f"counting, {len(some)} orders mixed", nll, time.perf_counter() - began, 0.0, size, ""))
    if flops is None:
        # What is left, less what is not training: a second start of Python, the test, the samples.
        spent, turns = time.perf_counter() - began + 5, len(_NETWORKS) / workers
        if budget < spent + 2 * turns:
            least = ceil(spent + 2 * turns)
            raise ValueError(
                f"seconds must be {least} at least for this text here, or minutes {ceil(least / 6) / 10}, "
                f"got {seconds!r} seconds; "
                + " and ".join(f"{row.model} scores {row.test_nll:.3f} nats" for row in rows)
            )
        budget = (budget - spent) * 0.92 / turns
        say(f"training {' and '.join(_NETWORKS.values())}, {budget:.0f} seconds each")
    plain = replace(corpus, **{split: getattr(corpus, split).numpy() for split in _SPLITS})
    tasks = {name: (plain, name, plans.get(name, budget), seed) for name in _NETWORKS}
    if workers == 1:
        with one_thread():
            found = {name: _network(*task) for name, task in tasks.items()}
    else:
        with process_pool(workers) as pool:
            futures: dict[str, Future] = {name: pool.submit(_network, *task) for name, task in tasks.items()}
            found = {name: future.result() for name, future in futures.items()}
    networks = {}
    for name, of in found.items():
        model = networks[name] = build(of.record.experiment.model, len(corpus.vocabulary)).eval()
        model.load_state_dict({key: torch.from_numpy(value) for key, value in of.weights.items()})
        write, nll = partial(generate, model, cache=isinstance(model, Transformer)), float(of.test.mean())
        made, tokens = of.record, len(corpus.train)
        seen = made.experiment
        rows.append(Row(_NETWORKS[name], nll, of.seconds, made.flops["counted"], made.parameters, sample(write)))
        steps = seen.training.epochs * seen.training.steps_per_epoch
        if steps < FEW_STEPS:
            say(f"the {_NETWORKS[name]} was trained for {steps} steps only: give more minutes, or FLOPs")
        if (often := recipes.passes(seen, tokens)) > 1.001 * recipes.PASSES:
            say(f"the {_NETWORKS[name]} passed over the text {often:.0f} times, perhaps too often: give more text")
    best, began = min(found, key=lambda name: found[name].valid.mean()), time.perf_counter()
    both = {split: of.beside(torch.from_numpy(getattr(found[best], split))) for split, of in counted.items()}
    gate = mixing.Gate(counted["valid"].features, both["valid"])
    mixture = mixing.Mixture(networks[best], some, gate, corpus.train)
    nll = gate.nll(counted["test"].features, both["test"]).mean().item()
    gained = gated["valid"].mean() - gate.nll(counted["valid"].features, both["valid"]).mean()
    if gained < LITTLE:
        say(f"on validation text the {_NETWORKS[best]} adds less than {LITTLE} nats to the counts")
    better = next(r for r in rows if r.model == _NETWORKS[best])
    took = rows[1].seconds + better.seconds + time.perf_counter() - began
    remembered = size + better.parameters
    write = partial(generate, mixture, cache=isinstance(mixture.network, Transformer))
    rows.append(Row(f"{better.model} and counting", nll, took, better.flops, remembered, sample(write)))
    return Tried(rows, found[best].record.experiment, mixture)


def reading_on(found: Tried, corpus: Corpus, say: Callable[[str], None] = lambda text: None) -> list[Row]:
    """Rows of the mixed counts and of the mixture once more, as models that learn each part they read (``reading``).

    The network's rate is the one of ``reading.RATES`` with the lowest loss in reading the validation split on, the
    smallest where that is a single part. Counts are made anew for each part, in a time that grows with the square of
    the text.

    Args:
        found: what ``attempt`` gave.
        corpus: for that text.
        say: is told how much there is to read.
    """
    unit, training = corpus.vocabulary.unit, found.experiment.training
    n = [ceil((len(ids) - recipes.FIRST_SCORED) / reading.PART) for ids in (corpus.valid, corpus.test)]
    say(f"reading on, {reading.PART:,} {unit}s at a time: {n[0]} parts of validation and {n[1]} of test text")
    rows, began = [], time.perf_counter()
    with one_thread():
        orders = [model.order for model in found.mixture.counts]
        taken_in = reading.counted(corpus, training, recipes.FIRST_SCORED, orders)
        for of, networks in ((found.rows[1], []), (found.rows[4], [found.mixture.network])):
            learnt = [reading.read(reading.losses(model, corpus, training)) for model in networks]
            nll = mixing.together(learnt, taken_in)["whole"].mean().item()
            took = of.seconds + time.perf_counter() - began
            rows.append(replace(of, model=f"{of.model}, reading on", test_nll=nll, seconds=took, sample=""))
    return rows


def _network(plain: Corpus, architecture: str, plan: Experiment | float, seed: int) -> _Network:
    """One network as planned, or within so many seconds, in a process of its own."""
    began = time.perf_counter()
    corpus = replace(plain, **{split: torch.from_numpy(getattr(plain, split)) for split in _SPLITS})
    experiment = plan if isinstance(plan, Experiment) else _fitted(corpus, architecture, plan, seed)
    model, _, record = trained(experiment, corpus, progress=False)
    seen = experiment.training
    losses = [token_nll(model, ids, e) for ids, e in ((corpus.valid, seen.validation), (corpus.test, seen.test))]
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return _Network(weights, record, *(nll.numpy() for nll in losses), time.perf_counter() - began)


def _fitted(corpus: Corpus, architecture: str, seconds: float, seed: int) -> Experiment:
    """The experiment for so many seconds here: chosen by the records' times, corrected by how long its steps take."""
    until = time.perf_counter() + seconds
    experiment, took = recipes.best_within(seconds, corpus, architecture, seed=seed)
    needed = expected(experiment, corpus)
    if needed > 1.25 * took:  # slower than where the records were made, by its processor or by its vocabulary
        with suppress(ValueError):  # where none is as fast, that one, cut short
            experiment, took = recipes.best_within(seconds * took / needed, corpus, architecture, seed=seed)
            needed = expected(experiment, corpus)
    more = (until - time.perf_counter()) / needed
    most = recipes.PASSES / recipes.passes(experiment, len(corpus.train))
    training = experiment.training
    windows = max(training.batch, round(training.windows_per_epoch * min(more, most)))
    return replace(experiment, training=replace(training, windows_per_epoch=windows))


def expected(experiment: Experiment, corpus: Corpus) -> float:
    """How many seconds its training will take here, by some steps and a little of its validation."""
    training, stamps = experiment.training, []
    model = build(experiment.model, len(corpus.vocabulary), seed=experiment.seed)
    few = replace(training, epochs=1, windows_per_epoch=40 * training.batch, valid_stride=len(corpus.valid))
    with fast_matmul(torch.device("cpu"), n_parameters(model).total * training.batch):
        epochs(Run(model, few, 0), corpus, lambda: stamps.append(time.perf_counter()), lambda: None)
    step = median(b - a for a, b in pairwise(stamps))
    began = time.perf_counter()
    some = replace(training.validation, stride=8 * training.validation.stride)
    evaluate(model, corpus.valid, some)
    return training.epochs * (training.steps_per_epoch * step + 8 * (time.perf_counter() - began))


def keep(
    path: str | os.PathLike, model: nn.Module | mixing.Mixture, experiment: Experiment, vocabulary: Vocabulary
) -> None:
    """Write a trained network, or its mixture with counts, with its experiment and its vocabulary, as safetensors.

    Of a mixture the gate, the orders of the counts, and the text that they are of go along.

    Raises:
        NotWritten: if the file system refuses.
    """
    about = json.dumps(experiment.spec()), vocabulary.unit, json.dumps(vocabulary.tokens)
    mixed = isinstance(model, mixing.Mixture)
    tensors = dict((model.network if mixed else model).state_dict())
    if mixed:
        orders = torch.tensor([of.order for of in model.counts])
        text = model.text.to(torch.int16 if len(vocabulary) <= 2**15 else torch.int32)
        tensors |= dict(zip(_MIXTURE, (text, orders, model.gate.weights), strict=True))
    save_tensors(Path(path), tensors, dict(zip(_ABOUT, about, strict=True)))


def load(path: str | os.PathLike) -> Kept:
    """What ``keep`` wrote, the network in evaluation mode; the counts are made anew, in a second or so.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not one that ``keep`` wrote, or damaged.
    """
    try:
        tensors, about = load_tensors(path, _ABOUT)
        vocabulary = Vocabulary(tuple(json.loads(about["vocabulary"])), about["unit"])
        model = build(Experiment.from_spec(json.loads(about["experiment"])).model, len(vocabulary))
        text, orders, weights = (tensors.pop(name, None) for name in _MIXTURE)
        model.load_state_dict(tensors)
        mixture = None
        if text is not None:
            counts = of_orders(orders.tolist(), len(vocabulary), text.long()).values()
            mixture = mixing.Mixture(model.eval(), list(counts), mixing.Gate.of(weights), text)
    except LaterVersion as error:
        raise ValueError(f"{plain(path)}: {error}, or put its kind of model into slmlib.models.KINDS") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"no model at {plain(path)}: python -m slmlib try writes one") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        what = " ".join(str(error).split())[:200]
        made = "python -m slmlib try writes another"
        raise ValueError(f"{plain(path)} is no model that this package wrote, or damaged ({what}): {made}") from error
    return Kept(model.eval(), vocabulary, mixture)
