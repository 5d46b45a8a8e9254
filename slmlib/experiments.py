"""Experiments and the records that they leave: what was run, what came out, on which machine.

A store is a folder with one JSON file a record. What is in it is not run again.
"""

import hashlib
import json
import math
import multiprocessing
import os
import platform
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor, nn
from tqdm import tqdm

from . import reading
from .checkpoints import NotWritten, epochs_done, load_tensors, save_tensors, write_whole, writing
from .checks import Checked, UnknownChoice, short
from .corpora import Corpus, exact_name, load_corpus
from .flops import flops_per_window
from .models import KINDS, Config, Transformer, build, changed, generate, n_parameters
from .speed import bfloat16_products, compiling
from .training import History, TrainingConfig, evaluate, fit, token_losses
from .windows import random_stream


def _kept(name: str) -> Path:
    """A folder beside the package in a clone, inside it where it was installed."""
    here = Path(__file__).parent
    return next((folder for folder in (here / name, here.parent / name) if folder.is_dir()), Path(name))


#: Where the published records are, a folder a suite; and the benchmark with what it measured.
RESULTS, BENCHMARKS = _kept("results"), _kept("benchmarks")


@dataclass(frozen=True)
class Experiment(Checked):
    """One training run, completely described: the same experiment on the same machine gives the same record.

    The corpus is kept by its exact name (``corpora.exact_name``).

    Raises:
        ValueError: for a field of the wrong type, a ``corpus`` that is no plain name, a negative seed or a
            ``train_tokens`` below 1; names it.
    """

    corpus: str
    model: Config
    training: TrainingConfig
    seed: int
    train_tokens: int | None = None  # only so many tokens of the train split are read; None: all

    _may_be_zero = ("seed",)

    def __post_init__(self):
        super().__post_init__()
        if not re.fullmatch(r"\w[\w-]*", self.corpus):  # it is part of its record's file name
            raise ValueError(f"Experiment.corpus must be letters, digits, _ and -, got {short(self.corpus)}")
        object.__setattr__(self, "corpus", exact_name(self.corpus))

    @property
    def kind(self) -> str:
        """Its model's, of ``models.KINDS``."""
        return next(kind for kind, (cls, _) in KINDS.items() if type(self.model) is cls)

    def spec(self, whole: bool = True) -> dict[str, Any]:
        """All that there is to say of it, as JSON would hold it; of model and training only what is no default."""
        of = asdict if whole else changed
        model, training = {"kind": self.kind, **of(self.model)}, of(self.training)
        text = {"corpus": self.corpus, "train_tokens": self.train_tokens}
        return {**text, "model": model, "training": training, "seed": self.seed}

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "Experiment":
        """The experiment that ``spec()`` describes; fields that it lacks have their defaults.

        Raises:
            LaterVersion: for a field, a choice or a kind of model that there is not.
            ValueError: for anything else that is no spec.
        """
        try:
            model, training = dict(spec["model"]), dict(spec["training"])
            named = model.pop("kind")
            kind = KINDS[named][0] if isinstance(named, str) and named in KINDS else None
            parts = (spec, cls), (model, kind or Config), (training, TrainingConfig)
            unknown = [name for part, of in parts if kind for name in set(part) - {f.name for f in fields(of)}]
            if unknown or not kind:
                raise LaterVersion(
                    f"its experiment has what this version of slmlib does not know ({', '.join(unknown) or named}): "
                    "it may be of a later version; leave it, and update slmlib to read it"
                )
            return cls(**{**spec, "model": kind(**model), "training": TrainingConfig(**training)})
        except UnknownChoice as error:  # a later version's, or one of an earlier that nothing uses any more
            raise LaterVersion(f"{error}: it may be of another version of slmlib; leave it") from error
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the spec of an experiment ({error}): {spec!r}") from error

    @cached_property
    def key(self) -> str:
        """Ten hexadecimal digits of the SHA-256 of its canonical JSON.

        Fields at their defaults are left out of that, so that a field added later, whose default means what
        was always done, changes no key.
        """
        text = json.dumps(self.spec(whole=False), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def flops(self, vocab_size: int = 65) -> float:
        """Of its training, as PyTorch counts them; for comparisons the number of tokens need not be its corpus's."""
        window = flops_per_window(self.model, vocab_size, scored=self.training.scored)
        return float(window * self.training.epochs * self.training.windows_per_epoch)

    @property
    def name(self) -> str:
        """What it is, in short, and its key: the name of its record's file."""
        return f"{self.corpus}-{self.kind}-T{self.model.context}-s{self.seed}-{self.key}"


@dataclass(frozen=True)
class Record:
    """What a run of an experiment leaves. Losses are NLL in nats per token."""

    experiment: Experiment
    train: list[float]  # each epoch's mean over its windows, dropout on
    valid: list[float]  # after each epoch, on the windows that training.eval_windows names
    best_epoch: int  # from 1; the test is of its weights
    test_nll: float  # on the first training.eval_windows windows of the test split
    test_nll_whole: float  # on the whole test split, each window that training.whole_test names
    parameters: int
    parameters_without_embeddings: int
    flops: dict[str, float]  # of training: "paper", 2 · parameters · T · windows; "counted", as PyTorch counts
    seconds: dict[str, float]  # "training", validation included, and "testing"
    machine: dict[str, Any]
    versions: dict[str, str]
    test_nll_last: float | None = None  # as test_nll, with the last epoch's weights; not kept by earlier versions
    more: dict[str, Any] = field(default_factory=dict)  # fields of a later version, kept as they are

    def to_json(self) -> str:
        values = {"key": self.experiment.key, **vars(self), "experiment": self.experiment.spec()}
        values |= values.pop("more")
        return json.dumps({**values, "sha256": _checksum(values)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """The record that ``to_json`` wrote; fields that this version does not know are kept.

        Raises:
            LaterVersion: if its experiment has fields that this version does not know.
            ValueError: if it is no record, a value cannot be right, its key is not that of its experiment, or its
                checksum, which those of earlier versions lack, not that of what it holds.
        """
        try:
            values = json.loads(text)
            if (checksum := values.pop("sha256", None)) not in (None, _checksum(values)):
                raise ValueError("its checksum is not that of what it holds")
            key, spec = values.pop("key"), values.pop("experiment")
            known = {f.name for f in fields(cls)} - {"experiment", "more"}
            more = {name: values.pop(name) for name in sorted(set(values) - known)}
            record = cls(Experiment.from_spec(spec), **values, more=more)
            if more and checksum is None:  # a later version writes one
                raise ValueError(f"it has no checksum, but fields that no earlier version had: {', '.join(more)}")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a record: {error!r}") from error
        if key != record.experiment.key:
            raise ValueError(f"the key {key} is not its experiment's, {record.experiment.key}")
        record._see_to_its_values()
        return record

    def _see_to_its_values(self):
        epochs = self.experiment.training.epochs

        def loss(value: object) -> bool:
            return type(value) in (int, float) and 0 <= value < math.inf

        def numbers(value: object, *names: str) -> bool:
            return isinstance(value, dict) and set(names) <= set(value) and all(map(loss, value.values()))

        def losses(value: object) -> bool:
            return isinstance(value, list) and len(value) == epochs and all(map(loss, value))

        for names, right, what in (
            ("train valid", losses, f"{epochs} losses, one an epoch"),
            ("best_epoch", lambda v: type(v) is int and 1 <= v <= epochs, f"an epoch from 1 to {epochs}"),
            ("test_nll test_nll_whole", loss, "a loss"),
            ("test_nll_last", lambda v: v is None or loss(v), "a loss or null"),
            ("parameters parameters_without_embeddings", lambda v: type(v) is int and v >= 1, "a positive integer"),
            ("flops", lambda v: numbers(v, "paper", "counted"), "numbers by ledger"),
            ("seconds", lambda v: numbers(v, "training", "testing"), "numbers by what they went to"),
            ("machine", lambda v: isinstance(v, dict), "an object"),
            ("versions", lambda v: isinstance(v, dict) and all(isinstance(x, str) for x in v.values()), "texts"),
        ):
            for name in names.split():
                if not right(getattr(self, name)):
                    raise ValueError(f"{name} must be {what}, got {getattr(self, name)!r}")


def _checksum(values: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of what a record's JSON holds, however it is laid out."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class LaterVersion(ValueError):
    """A record of an experiment that this version cannot describe."""


class RecordDamaged(ValueError):
    """A file in a store is not the record that it should be."""


_RECORD = re.compile(r"\w[\w-]*-T\d+-s\d+-[0-9a-f]{10}")  # the name of a record's file, as Experiment.name makes it


class Store:
    """A folder of records, one JSON file each, named by ``Experiment.name``; written whole or not at all.

    Files of runs that are under way lie in its hidden folder ``.running``; an empty lock stays there, and the last
    checkpoint of a run that was killed just after its record was written. If it keeps losses, each record has the
    run's token losses beside it, as safetensors of float16, and a sample of what its model writes.
    """

    def __init__(self, folder: str | os.PathLike, keeps_losses: bool = False):
        self.folder, self.keeps_losses = Path(folder), keeps_losses

    def path(self, experiment: Experiment) -> Path:
        return self.folder / f"{experiment.name}.json"

    def _losses_path(self, experiment: Experiment) -> Path:
        return self.path(experiment).with_suffix(".safetensors")

    def __contains__(self, experiment: Experiment) -> bool:
        return self.path(experiment).exists() and (not self.keeps_losses or self._losses_path(experiment).exists())

    def get(self, experiment: Experiment) -> Record | None:
        """The record of that experiment, None where there is none, or not the losses that belong to it.

        Raises:
            RecordDamaged: if the file there is not its record; names the file.
        """
        return self._read(self.path(experiment)) if experiment in self else None

    def found(self) -> dict[Experiment, Record]:
        """All records by experiment."""
        return {record.experiment: record for record in self}

    def __iter__(self) -> Iterator[Record]:
        """All records, by file name. Files that are not named as records are passed over.

        Raises:
            RecordDamaged: as ``get`` does. A record of a later version's experiment is warned of and passed over.
        """
        for path in sorted(self.folder.glob("*.json")):
            if _RECORD.fullmatch(path.stem):
                try:
                    yield self._read(path)
                except RecordDamaged as error:
                    if not isinstance(error.__cause__, LaterVersion):
                        raise
                    warnings.warn(str(error), stacklevel=2)

    @staticmethod
    def _read(path: Path) -> Record:
        try:
            record = Record.from_json(path.read_text(encoding="utf-8"))
        except LaterVersion as error:
            raise RecordDamaged(f"{path}: {error}") from error
        except ValueError as error:
            raise RecordDamaged(f"{path}: {error}. Move the file away and run its experiment again") from error
        except OSError as error:
            raise RecordDamaged(f"{path} cannot be read ({error.strerror}): let yourself read it") from error
        if record.experiment.name != path.stem:
            raise RecordDamaged(f"{path} holds another experiment's record, {record.experiment.name}; move it away")
        return record

    def put(self, record: Record) -> None:
        """Keep a record, or raise ``NotWritten``."""
        partial = self.running(record.experiment, "json.partial")
        write_whole(self.path(record.experiment), record.to_json().encode(), partial)

    def put_losses(self, experiment: Experiment, losses: Mapping[str, Tensor], sample: str) -> None:
        """Keep what ``token_losses`` gave, and a text, or raise ``NotWritten``."""
        halves, partial = {name: nll.half() for name, nll in losses.items()}, self.running(experiment, "losses.partial")
        save_tensors(self._losses_path(experiment), halves, {"sample": sample}, experiment.key, partial=partial)

    def losses(self, experiment: Experiment) -> tuple[dict[str, Tensor], str]:
        """The losses that were kept, as float64, and the text.

        Raises:
            RecordDamaged: if there are none, or the file is damaged or another experiment's; names it.
        """
        path = self._losses_path(experiment)
        try:
            tensors, texts = load_tensors(path, ("sample",), experiment.key)
            return {name: nll.double() for name, nll in tensors.items()}, texts["sample"]
        except (OSError, safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
            raise RecordDamaged(f"{path}: {error}. Move the file away and run its experiment again") from error

    def running(self, experiment: Experiment, what: str) -> Path:
        """Where a run under way keeps its lock, its checkpoint or its unfinished record.

        Runs that differ in their number of epochs alone share these, unless a schedule knows its end: the longer goes
        on where the shorter ended.
        """
        folder = self.folder / ".running"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if experiment.training.begins_longer_runs:
            experiment = replace(experiment, training=replace(experiment.training, epochs=1))
        return folder / f"{experiment.name}.{what}"


@contextmanager
def _want_of_memory_is_said() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):  # PyTorch has no kind of its own for it
            raise
        remedy = "free some, run fewer at once, or choose a smaller model or batch"
        raise MemoryError(f"there is not enough memory ({error}): {remedy}") from error


@_want_of_memory_is_said()
def trained(
    experiment: Experiment,
    corpus: Corpus,
    device: str | torch.device | None = "cpu",
    progress: bool = True,
    checkpoint: Path | None = None,
    each_epoch: Callable[[History], object] | None = None,
) -> tuple[nn.Module, History, Record]:
    """Build, fit and test, all in memory: the model with its best epoch's weights, how it went, the record.

    Args:
        experiment: what to run.
        corpus: its text, whole, or another that stands in for it: the record names the one that was read.
        device: ``cpu`` or ``cuda``, as text or as PyTorch's; None for the CPU.
        progress, checkpoint, each_epoch: as in ``fit``.

    Raises:
        ValueError, Diverged: as ``fit`` does; also for a test split that is too short or an unknown device.
        MemoryError: if there is too little; says what to do.
    """
    config, training, device = experiment.model, experiment.training, _device(device)
    of_this = replace(experiment, corpus=corpus.name)  # first: a text may have no name for a record
    training.test.scored(len(corpus.test), config.context, "test split")  # fit sees to the others
    model = build(config, len(corpus.vocabulary), seed=experiment.seed).to(device)
    last = []  # the test loss with the last epoch's weights, where these are not the best

    def at_end(model: nn.Module, history: History):
        if history.best_epoch < training.epochs:
            last.append(evaluate(model, corpus.test, training.test))

    text = corpus.head(experiment.train_tokens)
    history = fit(model, text, training, experiment.seed, progress, checkpoint, at_end, each_epoch)
    began = time.perf_counter()
    test_nll = whole = evaluate(model, corpus.test, training.test)
    if training.whole_test != training.test:
        whole = evaluate(model, corpus.test, training.whole_test)
    testing = time.perf_counter() - began
    count = n_parameters(model)
    record = Record(
        experiment=of_this,
        train=history.train,
        valid=history.valid,
        best_epoch=history.best_epoch,
        test_nll=test_nll,
        test_nll_whole=whole,
        test_nll_last=last[0] if last else test_nll,
        parameters=count.total,
        parameters_without_embeddings=count.without_embeddings,
        flops={
            "paper": 2.0 * count.total * config.context * (training.epochs * training.windows_per_epoch),
            "counted": experiment.flops(len(corpus.vocabulary)),
        },
        seconds={"training": history.seconds, "testing": testing},
        machine=machine(device),
        versions={"python": platform.python_version(), "torch": torch.__version__},
    )
    return model, history, record


_corpus = lru_cache(maxsize=2)(load_corpus)
Losses = tuple[Mapping[str, Tensor], str]  # what ``Store.put_losses`` keeps of a run


def work(
    experiment: Experiment,
    device: str,
    checkpoint: Path,
    losses: bool,
    keep: bool = True,
    each_epoch: Callable[[History], object] | None = None,
) -> tuple[Record, Losses | None]:
    """What ``run`` does for a record that is not there: the record and, if asked for, the losses to keep beside it.

    ``keep`` says whether the last checkpoint is wanted, for who works elsewhere and would have to send it.
    """
    corpus = _corpus(experiment.corpus)
    model, _, record = trained(experiment, corpus, device, False, checkpoint, each_epoch)
    if not losses:
        return record, None
    kept = token_losses(model, corpus, experiment.training)
    if experiment.training.reads_on:
        kept |= reading.losses(model, corpus, experiment.training)
    return record, (kept, sample(model, corpus))


def run(
    experiment: Experiment,
    store: Store | None = None,
    device: str | torch.device | None = "cpu",
    keep_checkpoint: bool = False,
    by: Callable[..., tuple[Record, Losses | None]] = work,
) -> Record:
    """The record of an experiment: out of the store, or by ``trained`` and kept there; without a store, by ``trained``.

    A run that was stopped, in whatever way, goes on from its last finished epoch and ends in the same record, its
    times aside. Where another process or thread runs the same experiment, this one waits for that record. The last
    checkpoint is kept if asked for: the same experiment with more epochs goes on from it. (One that a longer run left
    when it was stopped earlier than this one's end serves this one, and goes with it.) ``by`` does the work, here or
    elsewhere.

    Raises:
        CorpusUnavailable, CorpusDamaged: if the corpus cannot be had.
        ValueError, Diverged: as ``trained`` does.
        NotWritten: if the store's disk is full, say, or may not be written to.
        RecordDamaged: if the file that the store has is not its record.
        MemoryError: as ``trained`` does.
    """
    if store is None:
        return trained(experiment, _corpus(experiment.corpus), device, progress=False)[-1]
    if (record := store.get(experiment)) is not None:
        return record
    lock = store.running(experiment, "lock")
    with writing(lock):
        held = FileLock(lock).acquire()
    with held:
        if (record := store.get(experiment)) is not None:  # another was at it
            return record
        checkpoint = store.running(experiment, "safetensors")
        if epochs_done(checkpoint) > experiment.training.epochs:  # kept by a longer run: leave it alone
            checkpoint = store.running(experiment, f"{experiment.training.epochs}.safetensors")
        record, losses = by(experiment, device, checkpoint, store.keeps_losses, keep_checkpoint)
        if losses:
            store.put_losses(experiment, *losses)
        store.put(record)
        checkpoint.with_name(f"{checkpoint.name}.partial").unlink(missing_ok=True)  # of a run killed while it wrote
        if not keep_checkpoint:
            checkpoint.unlink(missing_ok=True)
    return record


def sample(model: nn.Module, corpus: Corpus, n: int = 300) -> str:
    """What a model writes at temperature 0.8 after the test split's first 128 tokens: n characters, or n / 5 words."""
    cache, prompt = isinstance(model, Transformer), corpus.test[:128]
    n = n if corpus.vocabulary.unit == "character" else n // 5
    ids = generate(model, prompt, n, 0.8, random_stream(0, "text"), cache=cache)
    return corpus.vocabulary.decode(ids[len(prompt) :])


def _device(device: str | torch.device | None) -> str:
    try:
        found = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {short(device)}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be cpu or a GPU that PyTorch finds here, got {short(device)}")
    return str(found)


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a record says of where it was made: the processor, the device that trained, threads and system."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    device = _device(device)
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    system = f"{platform.system()} {platform.machine()}"
    how = {"threads": torch.get_num_threads(), "bfloat16": bfloat16_products()}  # the last: what Muon multiplies in
    how |= {"compiled": True} if compiling() else {}
    return {"processor": processor, "device": where, "system": system, **how}


def run_all(
    experiments: Iterable[Experiment],
    executor: Executor | None = None,
    store: Store | str | os.PathLike = "results",
    device: str = "cpu",
    keep_checkpoints: bool = False,
    done: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Run what the store lacks; the records of all, in the order of the experiments.

    It may be stopped at any point, by a signal or a power cut: called again, it goes on where it was. Where
    experiments fail the others are run first, and their records kept.

    Args:
        experiments: what to run; repeats are run once.
        executor: a ``cluster.Cluster``, any other ``concurrent.futures.Executor``, a process pool say, or None to run
            one after the other here.
        store: a ``Store`` or its folder, which the executor's workers must see too, a cluster's excepted.
        device, keep_checkpoints: as in ``run``; with checkpoints, list shorter experiments before longer ones.
        done: called with each record as it comes, those already there first.

    Raises:
        ExceptionGroup: if experiments failed; each error names its experiment.
        RecordDamaged: if a file of the store is not its record.
        BrokenExecutor, NotWritten: if the executor lost a worker, for want of memory, say, or the store cannot be
            written to, which no other experiment would change; a note names what is not done.
    """
    store = store if isinstance(store, Store) else Store(store)
    wanted = list(experiments)
    records = {e: record for e in dict.fromkeys(wanted) if (record := store.get(e)) is not None}
    for record in records.values():
        done(record)
    missing, errors, futures = [e for e in dict.fromkeys(wanted) if e not in records], [], {}

    def results() -> Iterator[tuple[Experiment, Callable[[], Record]]]:
        if executor is None:
            yield from ((e, lambda e=e: run(e, store, device, keep_checkpoints)) for e in missing)
            return
        futures.update({executor.submit(run, e, store, device, keep_checkpoints): e for e in missing})
        executor.submit(int)  # a process pool looks for lost workers among those that it had at the submission before
        yield from ((futures[future], future.result) for future in as_completed(futures))

    try:
        for experiment, result in results():
            try:
                records[experiment] = result()
            except (BrokenExecutor, NotWritten):  # of all that are left, not of this experiment
                raise
            except Exception as error:
                error.add_note(f"in experiment {experiment.name}")
                errors.append(error)
            else:
                done(records[experiment])
    except BaseException as error:
        if isinstance(error, (BrokenExecutor, NotWritten)):
            left = [e.name for e in missing if e not in records]
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            error.add_note("not done: " + ", ".join(left[:5]) + more)
        for future in futures:
            future.cancel()
        raise
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(missing)} experiments failed", errors)
    return [records[e] for e in wanted]


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """An executor of so many processes, one thread each, which end with this process, however that ends.

    An error or Ctrl-C inside ends what they are at: a run under way goes on from its last finished epoch.
    """
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as pool:
        try:
            yield pool
        except BaseException:
            for worker in list((pool._processes or {}).values()):  # as kill_workers() does, from Python 3.14 on
                worker.kill()
            pool.shutdown(cancel_futures=True)  # waits: the interpreter's exit may not meet a pool that is ending
            raise


def _start_worker():
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a worker that is killed would leave
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent sees to its workers
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
