"""What a run costs here, beside what a textbook's code costs: in alternating pairs, one process, one thread."""

import multiprocessing
import os
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import plain
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from slmlib import models, paper, recipes, speed, verdicts
from slmlib.corpora import CorpusUnavailable, load_corpus
from slmlib.experiments import RESULTS, Store, machine
from slmlib.flops import flops_per_window
from slmlib.models import Config, build, generate
from slmlib.ngrams import KneserNey
from slmlib.training import Run, TrainingConfig, evaluate
from slmlib.windows import Evaluation, Windows, random_stream

V = 65  # characters of Tiny Shakespeare; which of them is drawn at random, which changes no time
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    config: Config
    batch: int = 64
    scored: str = "last"
    optimiser: str = "adam"

    @property
    def every(self) -> bool:
        return self.scored == "every"

    @property
    def flops(self) -> float:
        """Of a step, as needed."""
        return float(self.batch * flops_per_window(self.config, V, scored=self.scored))


def _tiny(width: int, layers: int, batch: int) -> Case:
    point = {"width": width, "layers": layers, "context": 32, "dropout": 0.1}
    return Case(recipes.model("blocks", point), batch, "every")


CASES = {
    **{name: Case(paper.run(label).model) for name, label in zip(
        ("linear", "mlp", "attention", "transformer"),
        ("Linear", "MLP", "Self-attention", "Transformer"), strict=True)},
    "every position": Case(paper.run("Learned positions").model, scored="every"),
    "tiny, width 48": _tiny(48, 1, 8),
    "tiny, width 64": _tiny(64, 2, 16),
}  # fmt: skip
MAIN = ("linear", "mlp", "attention", "transformer")
#: Training steps that are compiled as well.
COMPILED = {
    **{name: CASES[name] for name in ("mlp", "transformer", "tiny, width 48", "tiny, width 64")},
    "five blocks, width 96": Case(
        recipes.model("blocks", {"width": 96, "layers": 5, "context": 128, "dropout": 0.0, "conv": recipes.REACH}),
        batch=4,
        scored="every",
    ),
}


@dataclass(frozen=True)
class Ratio:
    """Of one time to another, in pairs: the median and the quartiles of the pairs' ratios, and both median times."""

    ratio: float
    low: float
    high: float
    seconds: float
    other_seconds: float

    def each(self, count: int) -> "Ratio":
        """With the times of one of so many."""
        return replace(self, seconds=self.seconds / count, other_seconds=self.other_seconds / count)


def pairs(one: Callable[[], object], other: Callable[[], object], seconds: float, most: int = 1000) -> Ratio:
    """How many times as long the other takes, in alternation for so many seconds, three pairs at least."""
    one(), other()
    times, until = [], time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < until and len(times) < most):
        times.append((timed(one), timed(other)))
    low, ratio, high = statistics.quantiles([b / a for a, b in times], n=4)
    return Ratio(ratio, low, high, *(statistics.median(t) for t in zip(*times, strict=True)))


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def text(tokens: int = 200_000) -> torch.Tensor:
    return torch.randint(V, (tokens,), generator=random_stream(0, "benchmark"))


class Steps:
    """Training steps of a case, by ``slmlib``."""

    def __init__(self, case: Case):
        self.case, self.model = case, build(case.config, V, seed=0).train()
        self.training = TrainingConfig(batch=case.batch, scored=case.scored, optimiser=case.optimiser)
        self.run = Run(self.model, self.training, 0)
        self.windows, self.done = Windows(text(), case.config.context), 0

    def __call__(self, steps: int) -> None:
        work = sum(p.numel() for p in self.model.parameters()) * self.case.batch
        starts = self.windows.draw(steps * self.case.batch, self.run.draws).split(self.case.batch)
        with speed.fast_matmul(CPU, work):
            for chosen in starts:
                loss = self.run.loss(self.windows.whole(chosen))
                self.model.zero_grad()
                loss.backward()
                self.run.step(0)


def _plain_steps(case: Case, like: nn.Module) -> Callable[[int], None]:
    model = plain.build(case.config, V, like, case.every).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-4)
    items = plain.WindowItems(text(), case.config.context, case.every)
    batches = iter(DataLoader(items, batch_size=case.batch, shuffle=True))

    def steps(count: int) -> None:
        nonlocal batches
        for _ in range(count):
            inputs, targets = next(batches)
            loss = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return steps


def step(case: Case, seconds: float) -> dict[str, float]:
    """A training step: plain ÷ ours, and the shares of its time that its two phases need at the least.

    First come the products, at the rate of the fastest; then Adam's pass over all parameters, at the rate of a copy.
    """
    ours = Steps(case)
    theirs = _plain_steps(case, ours.model)
    count = max(1, round(0.1 / timed(partial(ours, 1))))
    found = pairs(partial(ours, count), partial(theirs, count), seconds).each(count)
    products, bytes_ = matmul_rate(), copy_rate()
    share = {"products": case.flops / products / found.seconds, "memory": moved(case) / bytes_ / found.seconds}
    return {**asdict(found), **share, "matmul_rate": products, "copy_rate": bytes_}


def matmul_rate() -> float:
    """FLOPs a second of this machine's fastest product of 8192 × 128 × 384, as PyTorch is set and by oneDNN."""
    a, b = torch.randn(8192, 128), torch.randn(128, 384)
    flops, rates = 2.0 * 8192 * 128 * 384, []
    for work in (0, speed.LARGE):
        with speed.fast_matmul(CPU, work):
            rates.append(flops / min(timed(lambda: a @ b) for _ in range(20)))
    return max(rates)


def copy_rate() -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    a = torch.randn(2**24)
    b = torch.empty_like(a)
    return 2 * 4 * 2**24 / min(timed(lambda: b.copy_(a)) for _ in range(5))


def moved(case: Case) -> float:
    """Bytes of Adam's pass: of each parameter four float32 numbers are read and three written."""
    return 7.0 * 4 * sum(p.numel() for p in build(case.config, V, seed=0).parameters())


def windows(seconds: float) -> dict[str, float]:
    """Windows a second, T = 128 in batches of 64: a ``DataLoader`` over items ÷ ours."""
    ids = text()
    view, stream = Windows(ids, 128), random_stream(0, "windows")

    def ours():
        for chosen in view.draw(64 * 20, stream).split(64):
            view[chosen]

    def theirs():
        for i, _ in enumerate(DataLoader(plain.WindowItems(ids, 128), batch_size=64, shuffle=True)):
            if i == 19:
                break

    found = pairs(ours, theirs, seconds)
    return {**asdict(found), "windows_per_second": 64 * 20 / found.seconds}


def evaluation(case: Case, seconds: float, count: int = 10_000) -> dict[str, float]:
    """The mean loss over so many windows, plain ÷ ours."""
    ids, model = text(count + case.config.context), build(case.config, V, seed=0).eval()
    other = plain.build(case.config, V, model).eval()

    @torch.no_grad()
    def theirs() -> float:
        total = 0.0
        for inputs, targets in DataLoader(plain.WindowItems(ids, case.config.context), batch_size=64):
            total += F.cross_entropy(other(inputs), targets, reduction="sum").item()
        return total / count

    ours = partial(evaluate, model, ids, Evaluation(count))
    if abs(ours() - theirs()) > 1e-5:
        raise AssertionError("the plain model's loss is another")
    return asdict(pairs(ours, theirs, seconds))


def generation(seconds: float, context: int = 128) -> dict[str, float]:
    """A window of tokens by the transformer: without a cache ÷ with one, and tokens a second of both."""
    model = build(replace(CASES["every position"].config, context=context), V, seed=0).eval()
    prompt = text(1)

    def tokens(cache: bool):
        generate(model, prompt, context - 1, generator=random_stream(0, "sample"), cache=cache)

    found = pairs(partial(tokens, True), partial(tokens, False), seconds)
    n = context - 1
    return {**asdict(found), "with_cache": n / found.seconds, "without": n / found.other_seconds}


def _grown(case: Case, threads: int) -> tuple[float, int]:
    torch.set_num_threads(threads)
    speed.keep_freed_memory()
    before = _peak()
    steps = Steps(case)
    steps(1)
    took = statistics.median(timed(partial(steps, 1)) for _ in range(3))
    return took, _peak() - before


def _peak() -> int:
    """Bytes that this process has had at most; by getrusage it would be its parent's too."""
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def growth(quick: bool = False) -> list[dict[str, float]]:
    """A step of the paper's transformer as one thing grows: seconds, FLOPs, its peak memory in bytes."""
    base = CASES["transformer"]
    ladders = {
        "context": ((32, 64, 128) if quick else (32, 64, 128, 256, 512, 1024), lambda n: {"context": n}),
        "layers": ((1, 3) if quick else (1, 2, 3, 4, 6, 8), lambda n: {"layers": n}),
        "d_model": ((64, 128) if quick else (64, 128, 256, 512), lambda n: {"d_model": n, "ff_width": 2 * n}),
        "batch": ((16, 64) if quick else (16, 32, 64, 128, 256), None),
        "threads": ((1, 2), None),
    }
    spawn, rows = multiprocessing.get_context("spawn"), []
    for name, (values, change) in ladders.items():
        for value in values:
            case = replace(base, config=replace(base.config, **change(value))) if change else base
            case = replace(case, batch=value) if name == "batch" else case
            with ProcessPoolExecutor(1, spawn) as pool:
                took, peak = pool.submit(_grown, case, value if name == "threads" else 1).result()
            rows.append({"what": name, "value": value, "seconds": took, "flops": case.flops, "peak_bytes": peak})
    return rows


def _dropout(self: speed.Dropout, x: torch.Tensor) -> torch.Tensor:
    return F.dropout(x, self.p, self.training)


def _whole_last_block(self: models.Transformer, tokens: torch.Tensor, every_position: bool = False) -> torch.Tensor:
    x = self._embed(tokens)
    for block in self.blocks:
        x = block(x)
    logits = self.head(self.norm(x))
    return logits if every_position else logits[:, -1]


#: What is put in a trick's place, and the cases that it is meant for.
_WITHOUT = {
    "Dropout": (speed.Dropout, "forward", _dropout, ("mlp", "transformer", "tiny, width 64")),
    "fast_matmul": (speed, "LARGE", 10**18, ("linear", "mlp", "transformer")),
    "fast_matmul for large products only": (speed, "LARGE", 0, ("tiny, width 48", "tiny, width 64")),
    "products": (models, "products", lambda q, k: q @ k.mT, MAIN[2:]),
    "the last block at the last position": (models.Transformer, "forward", _whole_last_block, MAIN[2:]),
}


def tricks(seconds: float) -> list[dict[str, object]]:
    """Of each trick of ``speed.py``, and the pruned last block: the work without it ÷ with it.

    The work is a training step; for ``look_up`` an evaluation.
    """
    rows = [
        {"trick": trick, "case": name, **asdict(_without(owner, attribute, instead, CASES[name], seconds))}
        for trick, (owner, attribute, instead, names) in _WITHOUT.items()
        for name in names
    ]
    by_muon = {name: replace(CASES[name], optimiser="muon") for name in ("tiny, width 48", "tiny, width 64")}
    rows += [
        {"trick": "Muon", "case": name, **asdict(_without(speed.Muon, "step", torch.optim.Muon.step, case, seconds))}
        for name, case in by_muon.items()
    ]
    rows += [{"trick": "look_up", "case": name, **asdict(_not_looked_up(CASES[name], seconds))} for name in MAIN[:2]]
    return [*rows, {"trick": "keep_freed_memory", "case": "transformer", **asdict(_memory_given_back(seconds))}]


def _not_looked_up(case: Case, seconds: float) -> Ratio:
    model, ids = build(case.config, V, seed=0), text(10_000 + case.config.context)

    def without():
        with patch.object(type(model), "tabulated", lambda model: model):
            evaluate(model, ids)

    return pairs(partial(evaluate, model, ids), without, seconds)


def _without(owner: object, name: str, instead: object, case: Case, seconds: float) -> Ratio:
    steps = Steps(case)
    count = max(1, round(0.1 / timed(partial(steps, 1))))

    def without():
        with patch.object(owner, name, instead):
            steps(count)

    return pairs(partial(steps, count), without, seconds).each(count)


def _memory_given_back(seconds: float) -> Ratio:
    """Two processes in turn, one of which never asks the C library to keep what is freed."""
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawn, _set_up, (True,)) as keeping,
        ProcessPoolExecutor(1, spawn, _set_up, (False,)) as giving_back,
    ):
        ways = (lambda of=of: of.submit(_some_steps).result() for of in (keeping, giving_back))
        return pairs(*ways, seconds).each(3)


def _set_up(keep: bool) -> None:
    global _steps
    torch.set_num_threads(1)
    if keep:
        speed.keep_freed_memory()
    _steps = Steps(CASES["transformer"])


def _some_steps() -> None:
    _steps(3)


def compiled(case: Case, seconds: float) -> dict[str, float]:
    """A training step as it is ÷ compiled, and the seconds until the first compiled one is done.

    Raises:
        ValueError: if PyTorch cannot compile here.
    """
    with patch.dict(os.environ, SLMLIB_COMPILE="0"):
        steps = Steps(case)
    with (
        tempfile.TemporaryDirectory() as cache,
        patch.dict(os.environ, SLMLIB_COMPILE="1", TORCHINDUCTOR_CACHE_DIR=cache),
    ):
        began = time.perf_counter()
        fast = Steps(case)
        fast(1)
        warm_up = time.perf_counter() - began
        count = max(1, round(0.1 / timed(partial(steps, 1))))
        found = pairs(partial(fast, count), partial(steps, count), seconds).each(count)
    return {**asdict(found), "warm_up": warm_up}


def counting() -> dict[str, Any]:
    """Kneser-Ney on Tiny Shakespeare, or on the embedded text where it cannot be had: which; seconds to fit and score.

    Where NLTK is installed, also its ``KneserNeyInterpolated`` ÷ ours, order 5, on the first 50,000 characters.
    """
    try:
        corpus = load_corpus("tiny_shakespeare")
    except CorpusUnavailable:
        corpus = load_corpus("python-docs")
    found: dict[str, Any] = {"corpus": corpus.name}
    for order in (5, 7):
        model = KneserNey(order, len(corpus.vocabulary))
        found[str(order)] = {
            "fit": timed(partial(model.fit, corpus.train)),
            "score": timed(partial(model.nll, corpus.test)),
        }
    with suppress(ImportError):
        found["NLTK ÷ ours"] = _beside_nltk(corpus.train[:50_000], corpus.test[:2_000], len(corpus.vocabulary))
    return found


def _beside_nltk(train: torch.Tensor, test: torch.Tensor, vocab_size: int, order: int = 5) -> dict[str, float]:
    from nltk.lm import KneserNeyInterpolated, Vocabulary
    from nltk.util import everygrams

    words, tested = ([str(i) for i in ids.tolist()] for ids in (train, test))
    theirs = KneserNeyInterpolated(order, vocabulary=Vocabulary(words))
    ours = KneserNey(order, vocab_size)
    fits = timed(lambda: theirs.fit([list(everygrams(words, max_len=order))])), timed(partial(ours.fit, train))

    def score():
        for i in range(order, len(tested)):
            theirs.score(tested[i], tested[i - order + 1 : i])

    scores = timed(score), timed(partial(ours.nll, test))
    return {"fit": fits[0] / fits[1], "score": scores[0] / scores[1]}


def store(count: int = 1000) -> dict[str, float]:
    """Seconds to read so many records, and for the book's status and verdicts."""
    record = next(iter(Store(RESULTS / "paper")))
    with tempfile.TemporaryDirectory() as folder:
        many = Store(folder)
        for seed in range(count):
            many.put(replace(record, experiment=replace(record.experiment, seed=seed)))
        read = timed(lambda: list(many))
    status = timed(lambda: paper.status(paper.records(Store(RESULTS / "paper"), seeds=100)))
    return {"read": read, "status": status, "verdicts": timed(lambda: verdicts.judge(verdicts.Evidence.read(RESULTS)))}


def measure(quick: bool = False, show: Callable[[str], None] = lambda line: None) -> dict[str, object]:
    """All of it: about ten minutes; with ``quick`` the main models' steps alone, under a minute."""
    seconds, began = (6.0 if quick else 15.0), time.perf_counter()
    found: dict[str, object] = {
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "steps": {},
    }
    speed.keep_freed_memory()  # as in every run of the book
    with speed.one_thread():
        for name in MAIN if quick else CASES:
            show(f"a training step, {name}")
            found["steps"][name] = step(CASES[name], seconds)
        of = found["steps"].items()
        found["step_ratio"] = {name: row["ratio"] for name, row in of}
        found["of_limit"] = {name: row["products"] + row["memory"] for name, row in of}
        if not quick:
            show("windows, evaluation, generation")
            found["windows"] = windows(5)
            found["evaluation"] = {name: evaluation(CASES[name], 10) for name in MAIN}
            found["generation"] = {str(T): generation(10, T) for T in (64, 128, 256)}
            show("each trick of slmlib.speed")
            found["tricks"] = tricks(8)
            show("compiled steps")
            with suppress(ValueError):  # no compiler
                found["compiled"] = {name: compiled(case, 10) for name, case in COMPILED.items()}
            show("growth")
            found["growth"] = growth()
            show("counting, the store")
            found["counting"] = counting()
            found["store"] = store()
    found["seconds"] = time.perf_counter() - began
    return found


def rows(found: dict[str, object]) -> list[dict[str, str]]:
    """A table of the steps."""
    return [
        {
            "a training step": name,
            "plain ÷ ours": f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            "ms": f"{1e3 * row['seconds']:.1f}",
            "GFLOP/s": f"{row['products'] * row['matmul_rate'] / 1e9:.0f}",
            "products": f"{row['products']:.0%}",
            "Adam's pass": f"{row['memory']:.0%}",
            "of the limit": f"{row['products'] + row['memory']:.0%}",
        }
        for name, row in found["steps"].items()
    ]
