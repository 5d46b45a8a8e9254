"""Training and evaluation: the loop that every result in the book comes from."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from . import checkpoints
from .checks import Checked, choice, integer, token_ids
from .corpora import Corpus
from .models import MLP, Linear, Transformer, changed, evaluating, hidden_matrices, n_parameters
from .speed import Muon, compiled, compiling, dropping_by, fast_matmul, keep_freed_memory
from .windows import WHOLE, Evaluation, Windows, random_stream

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
    weight_decay: float = 0.0  # of all but vectors, decoupled from the gradient; not with "adam"
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up; one step more would be at zero
    warmup: float = 0.0  # the share of the steps in which the rate rises linearly, to all of it at their end
    clip: float | None = None  # the largest norm that the gradient may have; it is scaled down to it
    average: float = 0.0  # validated and kept are the weights' moving average with this decay a step; 0: as they are
    reads_on: bool = False  # once trained it is tested again, learning what it has been tested on: reading.losses

    _positive = ("learning_rate", "muon_rate", "clip", "weight_decay")
    _may_be_zero = ("weight_decay",)

    def __post_init__(self):
        super().__post_init__()
        if self.weight_decay and self.optimiser == "adam":
            given = f"got {self.weight_decay!r}; use 'adamw'"
            raise ValueError(f"TrainingConfig.weight_decay must be 0 with optimiser='adam', {given}")

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
    def test(self) -> Evaluation:
        """What the test looks at."""
        return Evaluation(self.eval_windows, self.eval_stride, self.eval_from)

    @property
    def whole_test(self) -> Evaluation:
        """What the test on the whole split looks at."""
        return Evaluation(None, self.whole_stride or min(8, self.eval_stride), self.eval_from)

    @property
    def validation(self) -> Evaluation:
        """What validation looks at."""
        looks_at = self.test if self.valid_from is None else Evaluation(None, first=self.valid_from)
        return replace(looks_at, stride=self.valid_stride or self.eval_stride)

    def at(self, budget: str, sized_for: str = "paper") -> "TrainingConfig":
        """The same training at a smaller budget than the one that it is sized for.

        An epoch keeps that fraction of its windows, at least one batch; validation looks at the same text
        through fewer windows. At the budget it is sized for, and above, nothing changes.

        Raises:
            ValueError: for an unknown budget.
        """
        choice("budget", budget, tuple(BUDGETS))
        choice("sized_for", sized_for, tuple(BUDGETS))
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
        return self.valid.index(min(self.valid)) + 1


class Run:
    """All that the rest of a training run depends on."""

    def __init__(self, model: nn.Module, training: TrainingConfig, seed: int):
        self.model, self.training, self.device = model, training, next(model.parameters()).device
        self.optimisers = _optimisers(model, training)
        decay = training.average
        self.mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
        self.kept = self.mean.module if self.mean else model  # whose weights are validated and kept
        self.draws, dropout = random_stream(seed, "windows"), random_stream(seed, "dropout")
        self.dropout = torch.Generator(self.device).manual_seed(dropout.initial_seed())
        self.history, self.best = History(), {}
        self._loss = compiled(_loss)

    def loss(self, batch: Tensor) -> Tensor:
        """Of a batch of windows, each with the token that follows it, (B, T + 1) ids: what ``step`` lowers."""
        of = self._loss if len(batch) == self.training.batch else _loss  # the last of an epoch may be smaller
        with dropping_by(self.dropout):
            return of(self.model, batch, self.training.scored)

    def step(self, number: int) -> None:
        """One update of the weights by their gradient; ``number`` counts from 0."""
        if self.training.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        for optimiser in self.optimisers:
            full = "muon_rate" if isinstance(optimiser, Muon) else "learning_rate"
            for group in optimiser.param_groups:
                group["lr"] = getattr(self.training, full) * self.training.rate(number)
            optimiser.step()
        if self.mean:
            self.mean.update_parameters(self.model)

    def state(self) -> dict[str, Tensor]:
        """All of it as named tensors, the history aside."""
        groups = {"model": self.model.state_dict(), "best": self.best}
        groups |= {"mean": self.mean.state_dict()} if self.mean else {}
        for n, optimiser in enumerate(self.optimisers):
            groups |= {f"optimiser.{n}.{i}": moments for i, moments in optimiser.state_dict()["state"].items()}
        groups["random"] = {"windows": self.draws.get_state(), self.device.type: self.dropout.get_state()}
        return {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}

    def put_back(self, state: dict[str, Tensor], history: dict[str, object]) -> None:
        """Stand where the run stood that had this state and this history."""
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p)
        self.step(0)  # makes the tensors that the optimisers keep
        self.best = {name: tensor.clone() for name, tensor in self.kept.state_dict().items()}
        for name, tensor in self.state().items():
            tensor.copy_(state.get(name, tensor))
        self.draws.set_state(state["random.windows"])
        self.dropout.set_state(state[f"random.{self.device.type}"])
        self.history.__dict__.update(history)


def epochs(run: Run, corpus: Corpus, each_step: Callable[[], object], each_epoch: Callable[[], object]) -> None:
    """Train from where ``run`` stands to the last epoch; ``run.best`` are the weights of the best by validation."""
    model, training, history = run.model, run.training, run.history
    windows = Windows(corpus.train.to(run.device).long(), model.config.context)
    while len(history.valid) < training.epochs:
        model.train()
        began, losses = time.perf_counter(), None
        batches = windows.draw(training.windows_per_epoch, run.draws).to(run.device).split(training.batch)
        for i, starts in enumerate(batches):
            step = len(history.step_losses) + i
            loss = run.loss(windows.whole(starts))
            model.zero_grad()
            loss.backward()
            run.step(step)
            losses = loss.new_empty(len(batches)) if losses is None else losses  # one tensor: see _losses
            losses[i] = loss.detach()
            if i % 100 == 99 or i == len(batches) - 1:
                _see_that_finite(losses[i - i % 100 : i + 1], step, training)
            each_step()
        sizes = torch.tensor([len(starts) for starts in batches], device=run.device)
        history.step_losses += losses.tolist()
        history.train.append((losses * sizes).sum().item() / training.windows_per_epoch)
        history.valid.append(evaluate(run.kept, corpus.valid, training.validation))
        _see_that_finite(torch.tensor(history.valid[-1:]), step, training, "validation loss")  # after the last update
        if history.best_epoch == len(history.valid):
            run.best = {name: tensor.clone() for name, tensor in run.kept.state_dict().items()}
        history.seconds += time.perf_counter() - began
        each_epoch()


def fit(
    model: nn.Module,
    corpus: Corpus,
    training: TrainingConfig,
    seed: int,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    at_end: Callable[[nn.Module, History], None] | None = None,
    each_epoch: Callable[[History], object] | None = None,
) -> History:
    """Train ``model`` in place, where its parameters are, on windows of ``corpus.train``: ``epochs`` is the loop.

    It ends with the weights of its best-validation epoch, in evaluation mode, without gradients. The same model,
    corpus, training and seed give the same weights, bit for bit, on the same machine with the same number of threads
    and ``SLMLIB_COMPILE``: the global random state is neither read nor written, and others may train in other threads.
    (That is so of the package's models. A module's own ``nn.Dropout`` draws from the global generator.)

    Args:
        model: a module with a ``config.context``, (B, T) ids -> (B, V) logits.
        corpus: trains on its train split, validates on its valid split.
        training: how long, how fast, on what batches.
        seed: which windows are drawn, and which units dropout drops.
        progress: show a bar (the environment variable ``TQDM_DISABLE=1`` hides it everywhere).
        checkpoint: a file to which the run's whole state goes after each epoch. Where it is there already, of this run
            or of the same with fewer epochs, the run goes on from it, to the same bits. The caller deletes it.
        at_end: called once with the last epoch's weights, before those of the best epoch come back.
        each_epoch: called after each epoch, once the checkpoint is written; what it raises ends the run there.

    Raises:
        ValueError: if a split has an id outside the vocabulary or does not hold what ``training`` asks for, if the
            model cannot score every position or has no matrix for Muon, or if ``checkpoint`` is damaged or of another
            run: of another text, other initial weights, another training, seed, device or version of PyTorch.
        FileNotFoundError: before anything is trained, if the folder of ``checkpoint`` is missing.
        Diverged: if the loss becomes NaN or infinite; names the step, the loss and the learning rate.
    """
    keep_freed_memory()
    for split in (corpus.train, corpus.valid):
        _in_vocabulary(split, model)
    training.validation.scored(len(corpus.valid), model.config.context, "validation split")
    if training.scored == "every" and not isinstance(model, Transformer):
        kind = type(model).__name__
        raise ValueError(f"TrainingConfig.scored is 'every', which a {kind} cannot be: it scores the last")
    run, path = Run(model, training, seed), None if checkpoint is None else Path(checkpoint)
    if path and not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of the checkpoint {path} is missing: make it first")
    name = _name(run, corpus, seed) if path else ""
    if path and path.exists():
        run.put_back(*checkpoints.load(path, name, training.epochs))
    hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))  # tqdm's notebook bars do not read it themselves
    steps = {"initial": len(run.history.step_losses), "total": training.epochs * training.steps_per_epoch}
    bar = tqdm(**steps, unit="step", leave=False, disable=hidden)

    def after_an_epoch():
        bar.set_postfix(valid=f"{run.history.valid[-1]:.3f}")
        if path:
            history = json.dumps(asdict(run.history))
            checkpoints.save_tensors(path, run.state(), {"run": name, "history": history})
        if each_epoch is not None:
            each_epoch(run.history)

    with bar, fast_matmul(run.device, n_parameters(model).total * training.batch):
        epochs(run, corpus, bar.update, after_an_epoch)
    if at_end is not None:
        at_end(run.kept, run.history)
    model.load_state_dict(run.best)
    model.zero_grad()
    model.eval()
    return run.history


def _name(run: Run, corpus: Corpus, seed: int) -> str:
    """Which run it is, by all that determines its result, before its first step."""
    text = checkpoints.digest({"train": corpus.train, "valid": corpus.valid})
    what = replace(run.training, epochs=1) if run.training.begins_longer_runs else run.training
    weights = checkpoints.digest(run.model.state_dict())
    return (
        f"{type(run.model).__name__} {changed(run.model.config)}, initial weights {weights}, "
        f"on {len(corpus.train)} tokens of {corpus.name}, text {text}, "
        f"{changed(what)} {'in all' if what is run.training else 'an epoch'}, seed {seed}, PyTorch {torch.__version__}"
        f"{', compiled' if compiling() else ''}"
    ) + (f" on {run.device.type}" if run.device.type != "cpu" else "")  # whose dropout has another stream


def _optimisers(model: nn.Module, training: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Adam; AdamW (Loshchilov and Hutter, 2019); or that and Muon (Jordan et al., 2024), each for its parameters."""
    adam = {"lr": training.learning_rate, "betas": (0.9, training.beta2), "fused": True}
    if training.optimiser == "adam":
        return [torch.optim.Adam(model.parameters(), **adam)]
    decay = training.weight_decay
    matrices = hidden_matrices(model) if training.optimiser == "muon" else []
    if training.optimiser == "muon" and not matrices:
        kind = type(model).__name__
        raise ValueError(f"TrainingConfig.optimiser is 'muon', but a {kind} has no matrix between embedding and head")
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    tables, vectors = [p for p in others if p.dim() > 1], [p for p in others if p.dim() < 2]
    groups = [{"params": tables, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    muon = [Muon(matrices, lr=training.muon_rate, weight_decay=decay)] if matrices else []
    return [torch.optim.AdamW([g for g in groups if g["params"]], **adam), *muon]


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


def _see_that_finite(values: Tensor, step: int, training: TrainingConfig, of: str = "loss") -> None:
    """Of losses in a row, of which the last is that of a step, counted from 0."""
    for i in (~values.isfinite()).nonzero()[:1, 0].tolist():
        at = f"step {step + 2 - len(values) + i}, with learning rate {training.learning_rate:g}"
        raise Diverged(f"{of} is {values[i].item()} at {at}; lower the learning rate")


def _in_vocabulary(ids: Tensor, model: nn.Module) -> Tensor:
    embed = getattr(model, "embed", None)
    return token_ids(ids, 2**62 if embed is None else embed.num_embeddings)


def evaluate(model: nn.Module, ids: Tensor, evaluation: Evaluation = WHOLE, batch: int = 64) -> float:
    """Mean NLL in nats per token over the tokens of ``ids`` that are scored: of all that a window predicts, as it is.

    Runs in evaluation mode, where the model's parameters are, and leaves the model in the mode it was in.

    Raises:
        ValueError: if ``ids`` holds an id outside the vocabulary or not what is to be scored, or ``batch`` is below 1.
    """
    sums = _losses(model, ids, evaluation, batch, "sum")
    return sums.sum().item() / len(evaluation.scored(len(ids), model.config.context))


def token_nll(model: nn.Module, ids: Tensor, evaluation: Evaluation = WHOLE) -> Tensor:
    """NLL of each token that ``evaluate`` averages, in nats, on the CPU: float32 at least. It raises the same."""
    return _losses(model, ids, evaluation, 64, "none").cpu()


def token_losses(model: nn.Module, corpus: Corpus, training: TrainingConfig) -> dict[str, Tensor]:
    """What a training's looks take the mean of: NLL of each token of "valid", "test" and "whole", as ``token_nll``."""
    looks = {"test": training.test, "whole": training.whole_test}
    test = {name: token_nll(model, corpus.test, look) for name, look in looks.items()}
    return {"valid": token_nll(model, corpus.valid, training.validation), **test}


@torch.inference_mode()
def _losses(model: nn.Module, ids: Tensor, evaluation: Evaluation, batch: int, reduction: Literal["sum", "none"]):
    """Of each batch the sum of its losses, in float64, or the loss of each token, (N,).

    All go into one tensor. If each batch's stayed by itself it would lie in a hole that the batch's logits have left,
    and the next ones, no longer fitting, would take new memory: gigabytes in time (``keep_freed_memory``).
    """
    device, context, batch = next(model.parameters()).device, model.config.context, integer("batch", batch)
    ids = _in_vocabulary(ids, model)  # a label of -100, say, would be passed over
    windows = Windows(ids.to(device), context)
    scored = evaluation.scored(len(ids), context)
    starts = torch.arange(scored.start, scored.stop, scored.step, device=device) - context
    size, out = 1 if reduction == "sum" else batch, None
    with evaluating(model), fast_matmul(device, n_parameters(model).total * batch):
        forward = model
        if type(model) in (Linear, MLP) and len(starts) > 4 * model.embed.num_embeddings:
            forward = model.tabulated() if model.embed.weight.element_size() > 2 else model  # sums of short types err
        for i, chosen in enumerate(starts.split(batch)):
            inputs, targets = windows[chosen]
            part = _nll(forward(inputs), targets, reduction).reshape(-1)
            if reduction == "sum":
                part = part.double()
            if out is None:
                out = part.new_empty(-(-len(starts) * size // batch))
            out[i * size : i * size + len(part)] = part
    return out
