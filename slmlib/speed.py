"""What buys speed on a CPU: each trick says what a training step takes without it, as a multiple of what it takes.

Measured in pairs, one thread on an AMD EPYC, PyTorch 2.13, batches of 64 windows.
"""

import ctypes
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014), with p rounded to a multiple of 2^-16.

    In training each value is zeroed with probability p, the others are multiplied by 1 / (1 - p), as ``nn.Dropout``
    does, but four draws share one 64-bit random number. With ``nn.Dropout`` a step of the paper's transformer takes
    1.13 times as long (1.08 to 1.17); its MLP, which drops out little, gains nothing.
    The numbers come from ``generator``, on the model's device, or from that device's default one where it is None.
    """

    generator: torch.Generator | None = None

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors(self.draws(x.shape, x.device), x.dtype) if self.drops else x

    @property
    def _dropped(self) -> int:
        return min(round(self.p * 2**16), 2**16 - 1)

    @property
    def drops(self) -> bool:
        """Whether anything is dropped now."""
        return self.training and self._dropped > 0

    def draws(self, shape: torch.Size, device: torch.device) -> Tensor:
        """An int16 number for each value, from -2^15 to 2^15 - 1."""
        n = shape.numel()
        words = torch.empty(-(-n // 4), dtype=torch.int64, device=device)
        return words.random_(-(2**63), None, generator=self.generator).view(torch.int16)[:n].view(shape)

    def factors(self, draws: Tensor, dtype: torch.dtype) -> Tensor:
        """What each value is multiplied by: 0 or 1 / (1 - p)."""
        return (draws >= self._dropped - 2**15).to(dtype).mul_(2**16 / (2**16 - self._dropped))


class Attend(torch.autograd.Function):
    """dropout(softmax(q kᵀ / √D)) v of causal heads, and its gradients, a few windows at a time.

    So few that what one operation leaves is in the processor's cache for the next, and with gradients written where
    the projections' own look for them. Written out with PyTorch's operations a step of the paper's transformer takes
    RATIO times as long.
    """

    @staticmethod
    def forward(ctx, dropout: Dropout, *stacks: Tensor) -> Tensor:
        """(B, S, H, D) from q (B, S, H, D), of the last S of T positions, and k and v (B, T, H, D).

        They come in tensors that stack one, two or all three of them along a dimension before the heads.
        """
        q, k, v = (t for stack in stacks for t in stack.unbind(2))
        (B, S, H, D), T = q.shape, k.size(1)
        ctx.dropout, ctx.parts = dropout, _parts(B, H * T * max(S, D))
        draws = dropout.draws(torch.Size((B * H, S, T)), q.device).view(B, H * S, T) if dropout.drops else None
        mask = torch.full((S, T), -torch.inf, dtype=q.dtype, device=q.device).triu(T - S + 1)
        weights, y = q.new_empty(B, H * S, T), q.new_empty(B, S, H, D)
        for i in ctx.parts:
            a = weights[i].view(-1, S, T)
            scores = torch.baddbmm(mask, _heads(q[i]), _heads(k[i]).mT, alpha=D**-0.5)
            torch.softmax(scores, -1, out=a)
            if draws is not None:
                a = torch.mul(a, dropout.factors(draws[i], a.dtype).view_as(a), out=scores)
            y[i] = (a @ _heads(v[i])).view(-1, H, S, D).transpose(1, 2)
        ctx.save_for_backward(weights, draws, *stacks)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        weights, draws, *stacks = ctx.saved_tensors
        gradients = [torch.empty_like(stack) for stack in stacks]
        (q, k, v), (dq, dk, dv) = ((t for s in of for t in s.unbind(2)) for of in (stacks, gradients))
        (_, S, H, D), T = q.shape, k.size(1)

        def put(gradient: Tensor, i: slice, value: Tensor):
            gradient[i] = value.view(-1, H, value.size(1), D).transpose(1, 2)

        for i in ctx.parts:
            a, d = weights[i].view(-1, S, T), _heads(dy[i])
            da = d @ _heads(v[i]).mT
            if draws is None:
                put(dv, i, a.mT @ d)
            else:
                factors = ctx.dropout.factors(draws[i], a.dtype).view_as(a)
                da *= factors
                put(dv, i, factors.mul_(a).mT @ d)
            ds = torch.ops.aten._softmax_backward_data(da, a, -1, a.dtype).mul_(D**-0.5)
            put(dq, i, ds @ _heads(k[i]))
            put(dk, i, ds.mT @ _heads(q[i]))
        return None, *gradients


def _parts(windows: int, numbers: int) -> list[slice]:
    """Windows of so many numbers each, in groups of two megabytes, which a core's cache about holds."""
    size = max(1, 2**19 // numbers)
    return [slice(start, start + size) for start in range(0, windows, size)]


def _heads(x: Tensor) -> Tensor:
    """(B, T, H, D) -> (B·H, T, D)."""
    return x.transpose(1, 2).flatten(0, 1)


class RootMeanSquare(torch.autograd.Function):
    """x to root mean square 1 along its last dimension, times a weight if there is one: ``F.rms_norm``.

    PyTorch makes that of a dozen operations on a CPU. With it a step of a tiny transformer takes RATIO times as long.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None = None) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).rsqrt_()
        y = x * scale
        ctx.save_for_backward(y, scale, weight)
        return y if weight is None else y * weight

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        y, scale, weight = ctx.saved_tensors
        along, dw = dy * y, None
        if weight is not None:
            dw = along.flatten(0, -2).sum(0)
            along, dy = along.mul_(weight), dy * weight
        return torch.addcmul(dy, y, along.mean(-1, keepdim=True), value=-1).mul_(scale), dw


class SquaredReLU(torch.autograd.Function):
    """max(x, 0)², whose gradient is 2 max(x, 0). PyTorch's own of the two takes RATIO times as long a step."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        h = x.relu()
        ctx.save_for_backward(h)
        return h * h

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        return (dy * ctx.saved_tensors[0]).mul_(2)


def look_up(embed: nn.Embedding, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """A linear layer on a window's embeddings side by side, (B, T) ids -> (B, out), as a sum of T rows of a table.

    The table holds a row for each position and token, so it costs as much as V windows by the layer itself. With
    matrix products the evaluation of the paper's MLP takes RATIO times as long.
    """
    V, C = embed.weight.shape
    with torch.no_grad():
        W = layer.weight.unflatten(1, (-1, C))  # (out, T, C)
        table = (embed.weight @ W.permute(1, 2, 0)).flatten(0, 1)  # (T·V, out)
    rows = torch.arange(W.size(1), device=W.device) * V
    return lambda tokens: F.embedding_bag(tokens + rows, table, mode="sum") + layer.bias


@contextmanager
def dropping_by(generator: torch.Generator, model: nn.Module):
    """Inside, the model's dropout draws from that generator."""
    layers = [part for part in model.modules() if isinstance(part, Dropout)]
    for layer in layers:
        layer.generator = generator
    try:
        yield
    finally:
        for layer in layers:
            layer.generator = None


@cache
def keep_freed_memory():
    """Ask the C library to reuse the memory of freed tensors instead of giving it back to the system.

    glibc gives blocks of megabytes back. The next training step gets them anew, page by page and zeroed: a step of the
    paper's transformer then takes 1.06 times as long (1.05 to 1.08). No other C library is asked.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim the heap
            mallopt(-3, 2**30) or mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: tensors from the heap; older glibc takes less


LARGE = 4_000_000
_found: list[str] = []  # the setting that each one inside fast_matmul met, whatever its thread
_lock = threading.Lock()


@contextmanager
def fast_matmul(device: torch.device, work: int):
    """Inside, float32 matrix products on a CPU go to oneDNN, where its results are as exact as those by default.

    ``work``, parameters times windows a batch, must be ``LARGE``: in small products MKL is ahead.

    PyTorch multiplies by MKL, which is slower on AMD's processors: a step of the paper's transformer takes 1.10 times
    as long (1.03 to 1.14), of its MLP 1.15 times. oneDNN is asked only where it may use bfloat16. A CPU with bfloat16
    units would do so: there the default is kept. The setting is the process's: the last thread to leave restores it.
    """
    matmul = torch.backends.mkldnn.matmul
    with _lock:
        _found.append(matmul.fp32_precision)
        if work >= LARGE and device.type == "cpu" and _found[-1] == "none" and _onednn_is_exact():
            matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        with _lock:
            matmul.fp32_precision = _found.pop()  # the last to leave gets what the first found


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
