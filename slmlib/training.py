"""Training and evaluation: the loop that every result in the book comes from."""

import ctypes
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from .checks import Checked, integer, token_ids
from .corpora import Corpus
from .models import Transformer, changed, evaluating, hidden_matrices
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
class TrainingConfig(Checked):
    """How long, how fast, on what; an epoch is a number of windows drawn at random.

    The defaults are the paper's: Adam with default betas, no weight decay, no schedule. Test and validation look at
    the same windows of their splits unless told otherwise.
    """

    epochs: int = 3
    windows_per_epoch: int = 50_000
    eval_windows: int | None = 10_000  # validation uses the first so many of its split; None: all
    eval_stride: int = 1  # and of these every eval_stride-th
    batch: int = 64
    learning_rate: float = 3e-4
    scored: Literal["last", "every"] = "last"  # which positions of a training window the loss is taken at
    eval_from: int | None = None  # the first token scored, the same for all contexts; None: the first there is
    valid_from: int | None = None  # validation scores from this token of its split to the end; None: as the test does
    valid_stride: int | None = None  # every so many-th window of these; None: eval_stride
    whole_stride: int | None = None  # and every so many-th of the whole test split; None: eval_stride, at most 8
    optimiser: Literal["adam", "adamw", "muon"] = "adam"  # muon: for the matrices between embedding and head
    muon_rate: float = 0.02  # Muon's learning rate; all else is AdamW's, at learning_rate
    beta2: float = 0.999  # Adam's decay of the squared gradient
    weight_decay: float = 0.0  # of matrices, decoupled from the gradient; not with "adam"
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up, down to zero at the last step
    warmup: float = 0.0  # the share of the steps in which the rate rises linearly from zero
    clip: float | None = None  # the largest norm that the gradient may have; it is scaled down to it
    average: float = 0.0  # validated and kept are the weights' moving average with this decay a step; 0: as they are

    _positive = ("learning_rate", "muon_rate", "clip")

    def __post_init__(self):
        super().__post_init__()
        if self.weight_decay and self.optimiser == "adam":
            raise ValueError(
                f"TrainingConfig.weight_decay must be 0 with optimiser='adam', got {self.weight_decay!r}; use 'adamw'"
            )

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.windows_per_epoch / self.batch)

    @property
    def begins_longer_runs(self) -> bool:
        """Whether the same training with more epochs begins as this one: not where a schedule knows its end."""
        return self.schedule == "constant" and not self.warmup

    def rate(self, step: int) -> float:
        """The factor of the learning rates at a step, counted from 0: the warm-up, then the schedule."""
        steps = self.epochs * self.steps_per_epoch
        rise = round(self.warmup * steps)
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / (steps - rise)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.schedule]

    @property
    def test(self) -> dict[str, int | None]:
        """What the test looks at, as arguments of ``evaluate``."""
        return {"n_windows": self.eval_windows, "stride": self.eval_stride, "first": self.eval_from}

    @property
    def whole_test(self) -> dict[str, int | None]:
        """What the test on the whole split looks at, likewise."""
        return {"n_windows": None, "stride": self.whole_stride or min(8, self.eval_stride), "first": self.eval_from}

    @property
    def validation(self) -> dict[str, int | None]:
        """What validation looks at, likewise."""
        looks_at = self.test if self.valid_from is None else {"n_windows": None, "first": self.valid_from}
        return {**looks_at, "stride": self.valid_stride or self.eval_stride}

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
        strides = {n: getattr(self, n) for n in ("eval_stride", "valid_stride", "whole_stride")}
        strides = {n: s and s * _EVAL_STRIDE[budget] // _EVAL_STRIDE[sized_for] for n, s in strides.items()}
        return replace(self, windows_per_epoch=windows, **strides)


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
    checkpoint: str | os.PathLike | None = None,
    at_end: Callable[[nn.Module, History], None] | None = None,
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
        at_end: called once with the last epoch's weights, before those of the best epoch come back.

    Raises:
        ValueError: if a split has an id outside the vocabulary or is too short for the context or for
            ``training.eval_windows``, if ``training.eval_from`` lies within the context, if every position is to be
            scored of a model that scores the last alone, if Muon has no matrix between embedding and head to update, or
            if ``checkpoint`` is damaged or of another run: of another text, other initial weights, another training,
            seed, device or version of PyTorch.
        FileNotFoundError: before anything is trained, if the folder of ``checkpoint`` is missing.
        Diverged: if the loss becomes NaN or infinite; names the step, the loss and the learning rate.
    """
    keep_freed_memory()
    device = next(model.parameters()).device
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise FileNotFoundError(f"the folder of the checkpoint {checkpoint} is missing: make it first")
    for split in (corpus.train, corpus.valid):
        _in_vocabulary(split, model)
    windows = Windows(corpus.train.to(device), model.config.context)
    check_windows(corpus.valid, "validation", model.config.context, training.validation)
    if training.scored == "every" and not isinstance(model, Transformer):
        raise ValueError(
            f"TrainingConfig.scored is 'every', which a {type(model).__name__} cannot be: it scores the last"
        )
    draws = random_stream(seed, "windows")
    optimisers = _optimisers(model, training)
    mean = _moving_average(model, training.average) if training.average else None
    kept = mean.module if mean else model  # whose weights are validated and kept
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
        if checkpoint is not None:
            state = _State(Path(checkpoint), model, mean, optimisers, draws, history, best)
            state.begin(corpus, training, seed)
            bar.update(len(history.step_losses))
            began -= history.seconds
        for _ in range(len(history.valid), training.epochs):
            model.train()
            starts = windows.draw(training.windows_per_epoch, draws).to(device)
            losses = []
            for chosen in starts.split(training.batch):
                loss = _loss(model, windows.view[chosen], training.scored)
                _step(model, loss, optimisers, training, len(history.step_losses) + len(losses))
                if mean:
                    mean.update_parameters(model)
                losses.append(loss.detach())
                bar.update()
                if len(losses) % 100 == 0:
                    _check(losses[-100:], len(history.step_losses) + len(losses) - 100, training)
            _check(losses, len(history.step_losses), training)
            history.step_losses += torch.stack(losses).tolist()
            sizes = torch.tensor([len(c) for c in starts.split(training.batch)], device=device)
            history.train.append((torch.stack(losses) * sizes).sum().item() / len(starts))
            history.valid.append(evaluate(kept, corpus.valid, **training.validation))
            if not math.isfinite(history.valid[-1]):  # the epoch's last update has shown in no training loss yet
                raise Diverged(len(history.step_losses), history.valid[-1], training.learning_rate, "validation loss")
            bar.set_postfix(valid=f"{history.valid[-1]:.3f}")
            if history.best_epoch == len(history.valid):
                best |= {k: v.clone() for k, v in kept.state_dict().items()}  # a copy: later steps update in place
            history.seconds = time.perf_counter() - began
            if checkpoint is not None:
                state.save()
    if at_end is not None:
        at_end(kept, history)
    model.load_state_dict(best)
    model.zero_grad()
    model.eval()
    return history


def _optimisers(model: nn.Module, training: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Adam; AdamW (Loshchilov and Hutter, 2019); or that and Muon (Jordan et al., 2024), each for its parameters."""
    adam = {"lr": training.learning_rate, "betas": (0.9, training.beta2), "fused": True}
    if training.optimiser == "adam":
        return [torch.optim.Adam(model.parameters(), **adam)]
    decay = training.weight_decay
    matrices = hidden_matrices(model) if training.optimiser == "muon" else []
    if training.optimiser == "muon" and not matrices:
        raise ValueError(
            f"TrainingConfig.optimiser is 'muon', but a {type(model).__name__} has no matrix between embedding and head"
        )
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    tables, vectors = [p for p in others if p.dim() > 1], [p for p in others if p.dim() < 2]
    groups = [{"params": tables, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    muon = [torch.optim.Muon(matrices, lr=training.muon_rate, weight_decay=decay)] if matrices else []
    return [torch.optim.AdamW([g for g in groups if g["params"]], **adam), *muon]


def _moving_average(model: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def _step(
    model: nn.Module, loss: Tensor, optimisers: list[torch.optim.Optimizer], training: TrainingConfig, step: int
) -> None:
    """One update of the weights; ``step`` counts from 0."""
    model.zero_grad()
    loss.backward()
    if training.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), training.clip)
    for optimiser in optimisers:
        if not training.begins_longer_runs:
            full = training.muon_rate if isinstance(optimiser, torch.optim.Muon) else training.learning_rate
            for group in optimiser.param_groups:
                group["lr"] = full * training.rate(step)
        optimiser.step()


@dataclass
class _State:
    """All that the rest of a run of ``fit`` depends on, to and from one file of named tensors."""

    path: Path
    model: nn.Module
    mean: AveragedModel | None
    optimisers: list[torch.optim.Optimizer]
    draws: torch.Generator
    history: History
    best: dict[str, Tensor]
    run: str = ""  # which run it is, by all that determines its result

    def begin(self, corpus: Corpus, training: TrainingConfig, seed: int) -> None:
        """Take up the run where the file left it, if there is one."""
        text = {"train": corpus.train, "valid": corpus.valid}
        what = replace(training, epochs=1) if training.begins_longer_runs else training
        device = next(self.model.parameters()).device.type
        self.run = (
            f"{type(self.model).__name__} {changed(self.model.config)}, initial weights "
            f"{_digest(self.model.state_dict())}, on {len(corpus.train)} tokens of {corpus.name}, "
            f"text {_digest(text)}, "
            f"{changed(what)} {'an epoch' if what is not training else 'in all'}, seed {seed}, "
            f"PyTorch {torch.__version__}"
        ) + (f" on {device}" if device != "cpu" else "")  # whose dropout has another stream
        if self.path.exists():
            self.restore(training.epochs)

    def save(self) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        if self.mean:
            tensors |= {f"mean.{k}": v for k, v in self.mean.state_dict().items()}
        for n, optimiser in enumerate(self.optimisers):
            for i, moments in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{n}.{i}.{k}": v for k, v in moments.items()}
        tensors |= {"random.windows": self.draws.get_state(), "random.cpu": torch.get_rng_state()}
        device = next(self.model.parameters()).device
        if device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(device)
        tensors = {k: v.clone() for k, v in tensors.items()}  # tied weights are one tensor, which the format refuses
        metadata = {"run": self.run, "history": json.dumps(asdict(self.history))}
        metadata["sha256"] = _digest(tensors, metadata["run"], metadata["history"])
        write_whole(
            self.path, self.path.with_name(f"{self.path.name}.partial"), safetensors.torch.save(tensors, metadata)
        )

    def restore(self, epochs: int) -> None:
        metadata = _read_metadata(self.path)
        anew = "delete it to start this run anew"
        if metadata["run"] != self.run:
            raise ValueError(f"checkpoint {self.path} is of another run, {metadata['run']!r}, not {self.run!r}; {anew}")
        tensors = safetensors.torch.load_file(self.path)
        if metadata["sha256"] != _digest(tensors, metadata["run"], metadata["history"]):
            raise ValueError(f"checkpoint {self.path} is damaged: its checksum is not that of what it holds; {anew}")
        history = json.loads(metadata["history"])
        if len(history["valid"]) > epochs:
            raise ValueError(f"checkpoint {self.path} is {len(history['valid'])} epochs into a run of {epochs}; {anew}")
        groups: dict[str, dict[str, Tensor]] = {k: {} for k in ("model", "best", "mean", "optimiser", "random")}
        for name, tensor in tensors.items():
            group, _, key = name.partition(".")
            groups[group][key] = tensor
        self.model.load_state_dict(groups["model"])
        device = next(self.model.parameters()).device
        self.best |= {k: v.to(device) for k, v in groups["best"].items()}
        if self.mean:
            self.mean.load_state_dict(groups["mean"])
        for n, optimiser in enumerate(self.optimisers):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in groups["optimiser"].items():
                of, i, key = name.split(".", 2)
                if int(of) == n:
                    moments.setdefault(int(i), {})[key] = tensor
            optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
        for name, value in history.items():
            setattr(self.history, name, value)
        self.draws.set_state(groups["random"]["windows"])
        torch.set_rng_state(groups["random"]["cpu"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(groups["random"]["cuda"], device)


def _digest(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of named tensors, shapes and types included, and of texts."""
    digest = hashlib.sha256(repr(texts).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def write_whole(path: Path, partial: Path, data: bytes) -> None:
    """Write a file whole or not at all, by way of another on the same disk, whatever happens in between."""
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        os.replace(partial, path)
    except BaseException:  # on a full disk, what was written would keep it full
        Path(partial).unlink(missing_ok=True)
        raise


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
    if not metadata.keys() >= {"run", "history", "sha256"}:
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
        return _nll(model(batch[:, :-1]), batch[:, -1])
    logits = model(batch[:, :-1], every_position=True)  # (B, T, V)
    return _nll(logits.flatten(0, 1), batch[:, 1:].flatten())


def _nll(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """In float32 at least: in a shorter type the sum would lose digits."""
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return F.cross_entropy(logits.float() if half else logits, targets, reduction=reduction)


def _check(losses: list[Tensor], done: int, training: TrainingConfig):
    values = torch.stack(losses)
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        first = int(bad[0])
        raise Diverged(done + first + 1, values[first].item(), training.learning_rate)


def _in_vocabulary(ids: Tensor, model: nn.Module) -> Tensor:
    embed = getattr(model, "embed", None)
    return token_ids(ids, 2**62 if embed is None else embed.num_embeddings)


def _evaluated(ids: Tensor, context: int, first: int | None) -> Windows:
    """The windows of an evaluation: from the one that predicts token number ``first`` on."""
    if first is not None and first < context:
        raise ValueError(f"the first token scored is {first}, but a context of {context} tokens comes before it")
    if first is not None and first >= len(ids):
        raise ValueError(f"the first token scored is {first}, but there are {len(ids)}, numbered from 0")
    return Windows(ids[(first or context) - context :], context)


def check_windows(ids: Tensor, split: str, context: int, looks_at: Mapping[str, int | None]) -> None:
    """See that a split holds the windows that an evaluation looks at: ``TrainingConfig.test`` or ``.validation``.

    Raises:
        ValueError: if it does not; names the split.
    """
    try:
        there = len(_evaluated(ids, context, looks_at["first"]))
    except ValueError as error:
        raise ValueError(f"the {split} split: {error}") from error
    if looks_at["n_windows"] is not None and looks_at["n_windows"] > there:
        raise ValueError(
            f"TrainingConfig.eval_windows is {looks_at['n_windows']}, but the {split} split holds {there} windows"
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
        ValueError: if ``ids`` holds an id outside the vocabulary or fewer windows than asked for, ``stride`` or
            ``batch`` is below 1, or ``first`` within the context or beyond the end.
    """
    device = next(model.parameters()).device
    ids = _in_vocabulary(ids, model)  # a label of -100, say, would be passed over
    windows = _evaluated(ids.to(device), model.config.context, first)
    n = len(windows) if n_windows is None else integer("n_windows", n_windows)
    if n > len(windows):
        raise ValueError(f"n_windows must be at most the {len(windows)} there are, got {n_windows!r}")
    stride, batch = integer("stride", stride), integer("batch", batch)
    starts = torch.arange(0, n, stride, device=device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model), fast_matmul(device):
        for chosen in starts.split(batch):
            inputs, targets = windows[chosen]
            total += _nll(model(inputs), targets, "sum").double()
    return total.item() / len(starts)
