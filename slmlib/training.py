"""Training and evaluation: the loop that every result in the book comes from."""

import ctypes
import json
import math
import os
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from .corpora import Corpus
from .models import Transformer, changed, evaluating
from .windows import Windows, random_stream

#: How much of the paper's training each budget gets: the fraction of its windows per epoch.
BUDGETS = {"smoke": 0.002, "reduced": 0.06, "paper": 1.0}
_EVAL_STRIDE = {"smoke": 96, "reduced": 8, "paper": 1}  # and how thinly validation and test look at their windows


def budget() -> str:
    """The budget in force: the environment variable ``SLMLIB_BUDGET``, ``reduced`` if unset.

    Raises:
        ValueError: if it is set to something else than ``smoke``, ``reduced`` or ``paper``.
    """
    name = os.environ.get("SLMLIB_BUDGET") or "reduced"
    if name not in BUDGETS:
        raise ValueError(f"SLMLIB_BUDGET is {name!r}; set it to one of {', '.join(BUDGETS)}, or unset it")
    return name


class Diverged(FloatingPointError):
    """The training or validation loss became NaN or infinite."""

    def __init__(self, step: int, loss: float, learning_rate: float, of: str = "loss"):
        super().__init__(
            f"{of} is {loss} at step {step}, with learning rate {learning_rate:g}; lower the learning rate"
        )
        self.step, self.loss, self.learning_rate, self.of = step, loss, learning_rate, of

    def __reduce__(self):  # so that it reaches another process whole
        return type(self), (self.step, self.loss, self.learning_rate, self.of)


@dataclass(frozen=True)
class TrainingConfig:
    """Adam with default betas, no weight decay, no schedule; an epoch is a number of windows drawn at random."""

    epochs: int = 3
    windows_per_epoch: int = 50_000
    eval_windows: int | None = 10_000  # validation uses the first so many of its split; None: all
    eval_stride: int = 1  # and of these every eval_stride-th
    batch: int = 64
    learning_rate: float = 3e-4
    scored: Literal["last", "every"] = "last"  # which positions of a training window the loss is taken at
    eval_from: int | None = None  # the first token scored, the same for all contexts; None: the first there is

    def __post_init__(self):
        for name in ("epochs", "windows_per_epoch", "eval_windows", "eval_stride", "batch", "eval_from"):
            value, may_be_none = getattr(self, name), name in ("eval_windows", "eval_from")
            if not ((type(value) is int and value >= 1) or (may_be_none and value is None)):
                raise ValueError(f"TrainingConfig.{name} must be an integer of at least 1, got {value!r}")
        if self.scored not in ("last", "every"):
            raise ValueError(f"TrainingConfig.scored must be 'last' or 'every', got {self.scored!r}")
        if not (type(self.learning_rate) in (int, float) and 0 < self.learning_rate < math.inf):
            raise ValueError(f"TrainingConfig.learning_rate must be a positive number, got {self.learning_rate!r}")
        object.__setattr__(self, "learning_rate", float(self.learning_rate))  # 1 and 1.0 are one config

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.windows_per_epoch / self.batch)

    def at(self, budget: str, sized_for: str = "paper") -> "TrainingConfig":
        """The same training at a smaller budget than the one that it is sized for.

        An epoch keeps that fraction of its windows, at least one batch; validation looks at the same text
        through fewer windows. At the budget it is sized for, and above, nothing changes.

        Raises:
            ValueError: for an unknown budget.
        """
        for name in (budget, sized_for):
            if name not in BUDGETS:
                raise ValueError(f"unknown budget {name!r}; there are {', '.join(BUDGETS)}")
        fraction = BUDGETS[budget] / BUDGETS[sized_for]
        if fraction >= 1:
            return self
        windows = min(self.windows_per_epoch, max(self.batch, round(self.windows_per_epoch * fraction)))
        return replace(
            self,
            windows_per_epoch=windows,
            eval_stride=self.eval_stride * _EVAL_STRIDE[budget] // _EVAL_STRIDE[sized_for],
        )


@dataclass
class History:
    """What a run of ``fit`` leaves, at least one epoch of it. Losses are NLL in nats per token."""

    step_losses: list[float] = field(default_factory=list)  # training, one per step
    train: list[float] = field(default_factory=list)  # mean over each epoch's windows, dropout on
    valid: list[float] = field(default_factory=list)  # after each epoch
    seconds: float = 0.0  # of training and validation together

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, whose weights the model has now."""
        return min(range(len(self.valid)), key=self.valid.__getitem__) + 1


def fit(
    model: nn.Module,
    corpus: Corpus,
    training: TrainingConfig,
    seed: int,
    progress: bool = True,
    checkpoint: Path | None = None,
) -> History:
    """Train ``model`` in place on windows of ``corpus.train``.

    It ends with the weights of its best-validation epoch, in evaluation mode, without gradients.

    It trains where its parameters are. The same model, corpus, training and seed give the same weights,
    bit for bit, on the same machine with the same number of threads. The global random state is borrowed and
    given back as it was, so only one call may run at a time in a process.

    Args:
        model: a module with a ``config.context``, (B, T) ids -> (B, V) logits.
        corpus: trains on its train split, validates on its valid split.
        training: how long, how fast, on what batches.
        seed: which windows are drawn, and which units dropout drops.
        progress: show a bar (the environment variable ``TQDM_DISABLE=1`` hides it everywhere).
        checkpoint: a file to which the run's whole state goes after each epoch. Where it is there already, of this
            run or of the same with fewer epochs, the run goes on from it, to the same bits as if it had never
            stopped. The caller deletes it.

    Raises:
        ValueError: if a split is too short for the context or for ``training.eval_windows``, if ``training.eval_from``
            lies within the context, if every position is to be scored of a model that scores the last alone, or if
            ``checkpoint`` is of another run or none.
        Diverged: if the loss becomes NaN or infinite; names the step, the loss and the learning rate.
    """
    keep_freed_memory()
    device = next(model.parameters()).device
    windows = Windows(corpus.train.to(device), model.config.context)
    check_windows(corpus.valid, "validation", model.config.context, training)
    if training.scored == "every" and not isinstance(model, Transformer):
        raise ValueError(
            f"TrainingConfig.scored is 'every', which a {type(model).__name__} cannot be: it scores the last"
        )
    draws = random_stream(seed, "windows")
    optimiser = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    history, best, began = History(), {}, time.perf_counter()
    hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))  # tqdm's notebook bars do not read it themselves
    bar = tqdm(total=training.epochs * training.steps_per_epoch, unit="step", leave=False, disable=hidden)
    with bar, fast_matmul(device), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Dropout reads the global generator of its device: seed that one alone, for the run alone.
        dropout = random_stream(seed, "dropout").initial_seed()
        torch.default_generator.manual_seed(dropout)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(dropout)
        state = _State(model, optimiser, draws, history, best, device)
        if checkpoint is not None:
            run = (
                f"{type(model).__name__} {changed(model.config)} on {len(corpus.train)} tokens of {corpus.name}, "
                f"{changed(replace(training, epochs=1))} an epoch, seed {seed}, PyTorch {torch.__version__}"
            ) + (f" on {device.type}" if device.type != "cpu" else "")  # whose dropout has another stream
            if checkpoint.exists():
                state.restore(checkpoint, run, training.epochs)
                bar.update(len(history.step_losses))
                began -= history.seconds
        for _ in range(len(history.valid), training.epochs):
            model.train()
            starts = windows.draw(training.windows_per_epoch, draws).to(device)
            losses = []
            for chosen in starts.split(training.batch):
                loss = _loss(model, windows.view[chosen], training.scored)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.detach())
                bar.update()
                if len(losses) % 100 == 0:
                    _check(losses[-100:], len(history.step_losses) + len(losses) - 100, training)
            _check(losses, len(history.step_losses), training)
            history.step_losses += torch.stack(losses).tolist()
            sizes = torch.tensor([len(c) for c in starts.split(training.batch)], device=device)
            history.train.append((torch.stack(losses) * sizes).sum().item() / len(starts))
            history.valid.append(
                evaluate(model, corpus.valid, training.eval_windows, training.eval_stride, first=training.eval_from)
            )
            if not math.isfinite(history.valid[-1]):  # the epoch's last update has shown in no training loss yet
                raise Diverged(len(history.step_losses), history.valid[-1], training.learning_rate, "validation loss")
            bar.set_postfix(valid=f"{history.valid[-1]:.3f}")
            if history.best_epoch == len(history.valid):
                best |= {k: v.clone() for k, v in model.state_dict().items()}  # a copy: later steps update in place
            history.seconds = time.perf_counter() - began
            if checkpoint is not None:
                state.save(checkpoint, run)
    model.load_state_dict(best)
    model.zero_grad()
    model.eval()
    return history


@dataclass
class _State:
    """All that the rest of a run of ``fit`` depends on, to and from one file of named tensors."""

    model: nn.Module
    optimiser: torch.optim.Adam
    draws: torch.Generator
    history: History
    best: dict[str, Tensor]
    device: torch.device

    def save(self, path: Path, run: str) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for i, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v for k, v in moments.items()}
        tensors |= {"random.windows": self.draws.get_state(), "random.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        metadata = {"run": run, "history": json.dumps(asdict(self.history))}
        data = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}, metadata)
        write_whole(path, path.with_name(f"{path.name}.partial"), data)

    def restore(self, path: Path, run: str, epochs: int) -> None:
        metadata = _read_metadata(path)
        tensors = safetensors.torch.load_file(path)
        if metadata.get("run") != run:
            raise ValueError(
                f"checkpoint {path} is of another run, {metadata.get('run')!r}, not of {run!r}; "
                "delete it to start this run anew"
            )
        history = json.loads(metadata["history"])
        if len(history["valid"]) > epochs:
            raise ValueError(
                f"checkpoint {path} is {len(history['valid'])} epochs into a run of {epochs}; "
                "delete it to start this run anew"
            )
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}, "random": {}}
        for name, tensor in tensors.items():
            group, _, key = name.partition(".")
            groups[group][key] = tensor
        self.model.load_state_dict(groups["model"])
        self.best |= {k: v.to(self.device) for k, v in groups["best"].items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["adam"].items():
            i, _, key = name.partition(".")
            moments.setdefault(int(i), {})[key] = tensor
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})
        for name, value in history.items():
            setattr(self.history, name, value)
        self.draws.set_state(groups["random"]["windows"])
        torch.set_rng_state(groups["random"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(groups["random"]["cuda"], self.device)


def write_whole(path: Path, partial: Path, data: bytes) -> None:
    """Write a file whole or not at all, by way of another on the same disk, whatever happens in between."""
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
    os.replace(partial, path)


def epochs_done(checkpoint: Path) -> int:
    """How many epochs a checkpoint of ``fit`` is into its run; 0 where there is none.

    Raises:
        ValueError: if the file is no checkpoint.
    """
    if not checkpoint.exists():
        return 0
    return len(json.loads(_read_metadata(checkpoint)["history"])["valid"])


def _read_metadata(checkpoint: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(checkpoint, "pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{checkpoint} is no checkpoint ({error}); delete it to start this run anew") from error
    if "history" not in metadata:
        raise ValueError(f"{checkpoint} is no checkpoint of this package; delete it to start this run anew")
    return metadata


@cache
def keep_freed_memory():
    """Ask the C library to reuse the memory of freed tensors instead of giving it back to the system.

    glibc gives blocks of megabytes back. The next training step gets them anew, page by page and zeroed, which takes
    as long as a third of a small transformer's arithmetic. No other C library is asked.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim the heap
            mallopt(-3, 2**30) or mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: tensors from the heap; older glibc takes less


@contextmanager
def fast_matmul(device: torch.device):
    """Inside, float32 matrix products on a CPU go to oneDNN, where its results are as exact as those by default.

    PyTorch multiplies by MKL, which on AMD's processors reaches less than half of oneDNN's speed. oneDNN is asked
    only where it may use bfloat16. A CPU with bfloat16 units would do so: there the default is kept.
    """
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    if device.type == "cpu" and before == "none" and _onednn_is_exact():
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@cache
def _onednn_is_exact() -> bool:
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    stream = torch.Generator().manual_seed(0)
    a, b = torch.randn(512, 256, generator=stream), torch.randn(256, 256, generator=stream)
    exact, error = a.double() @ b.double(), {}
    try:
        for precision in (before, "bf16"):
            matmul.fp32_precision = precision
            products = (a @ b, (b.T @ a.T).T, torch.bmm(a.view(4, 128, 256), b.expand(4, -1, -1)).flatten(0, 1))
            error[precision] = max((p - exact).abs().max().item() for p in products)
    finally:
        matmul.fp32_precision = before
    return error["bf16"] <= 4 * error[before]


def _loss(model: nn.Module, batch: Tensor, scored: str) -> Tensor:
    """Mean NLL in nats per token of a batch of windows, each with the token that follows it: (B, T + 1) ids."""
    if scored == "last":
        return F.cross_entropy(model(batch[:, :-1]), batch[:, -1])
    logits = model(batch[:, :-1], every_position=True)  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def _check(losses: list[Tensor], done: int, training: TrainingConfig):
    values = torch.stack(losses)
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        first = int(bad[0])
        raise Diverged(done + first + 1, values[first].item(), training.learning_rate)


def _evaluated(ids: Tensor, context: int, first: int | None) -> Windows:
    """The windows of an evaluation: from the one that predicts token number ``first`` on."""
    if first is not None and first < context:
        raise ValueError(f"the first token scored is {first}, but a context of {context} tokens comes before it")
    if first is not None and first >= len(ids):
        raise ValueError(f"the first token scored is {first}, but there are {len(ids)}, numbered from 0")
    return Windows(ids[(first or context) - context :], context)


def check_windows(ids: Tensor, split: str, context: int, training: TrainingConfig) -> None:
    """See that a split holds the windows that an evaluation with ``training`` looks at.

    Raises:
        ValueError: if it does not; names the split.
    """
    try:
        there = len(_evaluated(ids, context, training.eval_from))
    except ValueError as error:
        raise ValueError(f"the {split} split: {error}") from error
    if training.eval_windows is not None and training.eval_windows > there:
        raise ValueError(
            f"TrainingConfig.eval_windows is {training.eval_windows}, but the {split} split holds {there} windows"
        )


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    ids: Tensor,
    n_windows: int | None = None,
    stride: int = 1,
    batch: int = 64,
    first: int | None = None,
) -> float:
    """Mean NLL in nats per token over the first ``n_windows`` windows of ``ids``, all of them if None.

    With a ``stride`` only every ``stride``-th of these is scored: the same text, at less cost. The first token
    that is scored is number ``first``, so that models of different contexts can score the same ones; the first that a
    window can predict if None.
    Runs in evaluation mode, where the model's parameters are, and leaves the model in the mode it was in.

    Raises:
        ValueError: if ``ids`` holds fewer windows than asked for, ``stride`` or ``batch`` is below 1, or ``first``
            within the context or beyond the end.
    """
    device = next(model.parameters()).device
    windows = _evaluated(ids.to(device), model.config.context, first)
    n = len(windows) if n_windows is None else n_windows
    if not 1 <= n <= len(windows):
        raise ValueError(f"n_windows must be from 1 to the {len(windows)} there are, got {n_windows!r}")
    for name, value in (("stride", stride), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    starts = torch.arange(0, n, stride, device=device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model), fast_matmul(device):
        for chosen in starts.split(batch):
            inputs, targets = windows[chosen]
            total += F.cross_entropy(model(inputs), targets, reduction="sum").double()
    return total.item() / len(starts)
