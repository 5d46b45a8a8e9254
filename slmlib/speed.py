"""What buys speed on a CPU: each trick says what a training step takes without it, as a multiple of what it takes.

Measured by ``benchmarks/measure.py`` in pairs, one thread on an AMD EPYC, PyTorch 2.13; quartiles in parentheses.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from functools import cache
from types import FunctionType

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014), with p rounded to a multiple of 2^-16.

    In training each value is zeroed with probability p, the others are multiplied by 1 / (1 - p), as ``nn.Dropout``
    does, but four draws share one 64-bit random number. With ``nn.Dropout`` a step of the paper's transformer takes
    1.14 times as long (1.12 to 1.16); its MLP, which drops out little, gains nothing.
    The numbers come from the generator of ``dropping_by``, elsewhere from the device's default one.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        if not (self.training and dropped):
            return x
        draws = torch.ops.slmlib.draws(x) if torch.compiler.is_compiling() else _draws(x)
        return x * (draws[: x.numel()].view(x.shape) >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))


_drops = threading.local()


def _draws(like: Tensor) -> Tensor:
    """Integers from -2^15 to 2^15 - 1, as many as ``like`` has elements or up to three more."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    return words.random_(-(2**63), None, generator=getattr(_drops, "by", None)).view(torch.int16)


# Generators cannot be compiled, operators need not be.
_operator = torch.library.custom_op("slmlib::draws", _draws, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
_operator.register_fake(lambda like: like.new_empty(4 * -(-like.numel() // 4), dtype=torch.int16))


def products(q: Tensor, k: Tensor) -> Tensor:
    """Of queries (…, S, D) and keys (…, T, D), (…, S, T).

    By ``q @ k.mT`` alone, which is ahead for few keys, a step of the paper's one block takes 1.07 times as long (1.05
    to 1.09), of its transformer as long.
    """
    return q @ k.mT if k.numel() < 2**18 else _Products.apply(q, k.contiguous())


class _Products(torch.autograd.Function):
    """Autograd by itself forms the gradient of the keys the other way up, and has to turn it."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        return q @ k.mT

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        q, k = ctx.saved_tensors
        return gradient @ k, gradient.mT @ q


def look_up(embed: nn.Embedding, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """A linear layer on a window's embeddings side by side, (B, T) ids -> (B, out), as a sum of T rows of a table.

    The table holds a row for each position and token, so it costs as much as V windows by the layer itself. With
    matrix products the evaluation of the paper's MLP takes 11 times as long, of its linear model 16 times. Where it
    would hold more than 2^26 numbers, as of many words, they remain.
    """
    V, C = embed.weight.shape
    if layer.weight.numel() // C * V > 2**26:
        return lambda tokens: layer(embed(tokens).flatten(1))
    with torch.no_grad():
        W = layer.weight.unflatten(1, (-1, C))  # (out, T, C)
        table = (embed.weight @ W.permute(1, 2, 0)).flatten(0, 1)  # (T·V, out)
    rows = torch.arange(W.size(1), device=W.device) * V
    return lambda tokens: F.embedding_bag(tokens + rows, table, mode="sum") + layer.bias


@contextmanager
def dropping_by(generator: torch.Generator):
    """Inside, dropout draws from that generator, which is on the model's device, where this thread computes it."""
    before, _drops.by = getattr(_drops, "by", None), generator
    try:
        yield
    finally:
        _drops.by = before


@contextmanager
def one_thread():
    """Inside, PyTorch has one thread: two stall each other on a busy machine, and may change the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def keep_freed_memory():
    """Ask the C library to reuse the memory of freed tensors instead of giving it back to the system.

    glibc gives blocks of megabytes back. The next training step gets them anew, page by page and zeroed: a step of the
    paper's transformer then takes 1.07 times as long (1.00 to 1.15). No other C library is asked.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim the heap
            mallopt(-3, 2**30) or mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: tensors from the heap; older glibc takes less


@cache
def bfloat16_products() -> bool:
    """Whether oneDNN multiplies bfloat16 on this machine's CPU; elsewhere PyTorch does so in plain loops."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported and supported())


#: Held while a model is built, which draws from the global generator, and while a step may be compiled: the compiler
#: puts that generator back to where it found it.
building = threading.Lock()


def compiled(step: Callable) -> Callable:
    """The same, compiled if the environment variable ``SLMLIB_COMPILE`` is 1; else as it is.

    As it is, a step of today's transformers takes 1.4 to 1.7 times as long as compiled, which begins with a warm-up of
    17 to 45 seconds; the paper's models gain nothing. Sums are rounded otherwise, so a run ends in other weights.

    Raises:
        ValueError: if PyTorch cannot compile here, or the variable is something else.
    """
    if not compiling():
        return step
    try:
        with building:
            torch.compile(torch.sin)(torch.zeros(8))
        if torch._dynamo.config.disable:
            raise ValueError("TORCHDYNAMO_DISABLE is set")
    except Exception as error:  # whatever is missing: PyTorch has a class for each
        raise ValueError(
            "SLMLIB_COMPILE is 1, but PyTorch cannot compile here: install a C++ compiler and Python's headers, or "
            f"unset it ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
    # Of one function PyTorch compiles eight models and leaves the ninth as it is: hence a function for each.
    own = FunctionType(step.__code__.replace(), step.__globals__)
    fast = torch.compile(own, dynamic=False, options={"cpp_wrapper": True})

    def locked(*args):
        with building:
            return fast(*args)

    return locked


def compiling() -> bool:
    """Whether training steps are compiled: what the environment variable ``SLMLIB_COMPILE`` says, 0 if unset.

    Raises:
        ValueError: if it says neither 0 nor 1.
    """
    text = os.environ.get("SLMLIB_COMPILE") or "0"
    if text not in ("0", "1"):
        raise ValueError(f"SLMLIB_COMPILE is {text!r}; set it to 1, or unset it")
    return text == "1"


class Muon(torch.optim.Muon):
    """PyTorch's Muon (Jordan et al., 2024), with matrices of one shape stacked, and in float32 where that is faster.

    PyTorch's takes one matrix after the other, in bfloat16 even where a CPU has no products for it: with AVX2 alone a
    step of two tiny transformers then takes 2.2 times as long (2.1 to 2.3) and 2.9 times (2.8 to 3.1).
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float):
        super().__init__(matrices, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            weights, gradients, means = [], [], []
            self._init_group(group, weights, gradients, means)
            torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, means, group["momentum"])  # Nesterov's
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            stacks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for W, M in zip(weights, ahead, strict=True):
                M = M.T if W.size(0) > W.size(1) else M
                stacks.setdefault(M.shape, []).append((W, M))
            for stack in stacks.values():
                updates = orthogonal(torch.stack([M for _, M in stack]), group["ns_coefficients"], group["ns_steps"])
                for (W, _), update in zip(stack, updates, strict=True):
                    rate = group["lr"] * max(1, W.size(0) / W.size(1)) ** 0.5
                    W.add_(update if update.shape == W.shape else update.T, alpha=-rate)


def orthogonal(M: Tensor, coefficients: tuple[float, float, float], rounds: int) -> Tensor:
    """Matrices (n, rows, columns), none taller than wide, with singular values near one (Jordan et al., 2024)."""
    a, b, c = coefficients
    wide = M.device.type == "cpu" and not bfloat16_products()

    def short(x: Tensor) -> Tensor:  # as rounded as products in bfloat16 are
        return x.bfloat16().float() if wide else x.bfloat16()

    M = short(M)
    M = short(M / short(M.flatten(1).norm(dim=1)).clamp(min=1e-7)[:, None, None])
    for _ in range(rounds):
        gram = short(M @ M.mT)
        M = short(torch.baddbmm(M, short(torch.baddbmm(gram, gram, gram, beta=b, alpha=c)), M, beta=a))
    return M


LARGE = 4_000_000
_found: list[str] = []  # the setting that each one inside fast_matmul met, whatever its thread; the first, that before
_lock = threading.Lock()


@contextmanager
def fast_matmul(device: torch.device, work: int):
    """Inside, float32 matrix products on a CPU go to oneDNN, where its results are as exact as those by default.

    ``work``, parameters times windows a batch, must be ``LARGE``: in small products MKL is ahead, a step of a tiny
    transformer takes 1.20 times as long by oneDNN (1.14 to 1.27).

    PyTorch multiplies by MKL, which is slower on AMD's processors: a step of the paper's transformer takes 1.07 times
    as long (1.04 to 1.10), of its MLP 1.16 times, of its linear model 1.17 times. oneDNN is asked only where it may use
    bfloat16. A CPU with bfloat16 units would do so: there the default is kept. The setting is the process's: the last
    thread to leave restores it, and small products beside large ones are made as those are.
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
            first = _found[0]
            _found.pop()
            if not _found:
                matmul.fp32_precision = first


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
