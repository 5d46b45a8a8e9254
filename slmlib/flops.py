"""Floating-point operations of the models: closed forms in four ledgers, and PyTorch's counter to hold them against.

All count matrix products, a multiply-add as 2, as PyTorch's ``FlopCounterMode`` does; norms, softmax, dropout,
residual sums, embedding look-ups and the optimiser are outside. The backward pass of a product costs two of its size:
one for the gradient of each factor.
"""

from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from . import models
from .checks import choice
from .models import Config, LinearConfig, MLPConfig, Transformer, TransformerConfig, build, hidden_matrices

Ledger = Literal["paper", "written", "needed", "absorbed"]
Scored = Literal["last", "every"]


def forward_flops(
    config: Config, vocab_size: int, ledger: Ledger = "needed", scored: Scored = "last"
) -> dict[str, int]:
    """FLOPs of one window's forward pass, by component.

    A product of (m, k) and (k, n) is 2mkn. With T context, C width, V vocabulary, h hidden units, F feed-forward
    width, L layers, and S the positions that are scored (1, or T if ``scored`` is ``every``):

    ``written`` charges each product as the paper's code makes it. Linear: the window's embeddings, T·C numbers, times
    the head: 2TCV. MLP: 2TCh + 2h² + 2hV. Transformer, each layer: queries, keys and values 6TC²; their products
    q kᵀ and a v, over all H heads together, 2T²C each; the output matrix 2TC²; the feed-forward layer 4TCF; and once
    the head, 2SCV. The causal mask saves nothing: its half is computed and dropped.

    ``needed`` charges what the scored positions need, which is what ``slmlib`` computes. The last layer needs keys and
    values everywhere, 4TC², but queries 2SC², q kᵀ and a v 2STC each, output 2SC² and feed-forward 4SCF at S positions;
    where a short convolution over n positions precedes the feed-forward layer, all but that at S + n. (Its own products
    are of single numbers and outside, as those of norms are.) For the linear model and the MLP, and where every
    position is scored, it equals ``written``.

    ``absorbed`` is ``needed`` without keys and values in the last layer where one position is scored, which nothing in
    ``slmlib`` computes: q · W_K x = (W_Kᵀ q) · x and Σ a W_V x = W_V Σ a x (DeepSeek-AI, 2024, on inference). Query,
    W_Kᵀ q and the value matrix cost 2C² each, the two products over the T inputs of each of H heads 2THC each. Rotary
    positions stand between W_K and the query, so there the keys remain: 2TC² and 2TC. Otherwise it equals ``needed``,
    and where a convolution before the feed-forward layer needs attention at more than one position.

    ``paper`` is the paper's figure: 2 · parameters · T, for every architecture alike. Of an architecture that has no
    closed form here, the other three are what PyTorch counts.

    Raises:
        ValueError: for an unknown ledger or way of scoring, or ``every`` for a model that scores the last position.
    """
    choice("ledger", ledger, get_args(Ledger))
    choice("scored", scored, get_args(Scored))
    if scored == "every" and not isinstance(config, TransformerConfig):
        raise ValueError(f"a {type(config).__name__} scores the last position only: scored cannot be 'every'")
    V, T, C = vocab_size, config.context, config.d_model
    if ledger == "paper":
        with torch.device("meta"):  # shapes without numbers
            return {"2 · parameters · T": 2 * models.n_parameters(build(config, V)).total * T}
    if type(config) is LinearConfig:
        return {"head": 2 * T * C * V}
    if type(config) is MLPConfig:
        h = config.hidden
        return {"first layer": 2 * T * C * h, "second layer": 2 * h * h, "head": 2 * h * V}
    if type(config) is not TransformerConfig:
        window = torch.zeros(1, T, dtype=torch.int64)
        targets = window if scored == "every" else window[:, 0]
        return {"counted": count_flops(build(config, V, seed=0), window, targets, backward=False)}
    S = T if scored == "every" else 1
    full = [T] * config.layers  # the positions at which each layer works
    fed = list(full)  # and those of them that its feed-forward layer sees
    if ledger != "written":
        fed[-1], full[-1] = S, min(T, S + config.conv) if config.ff_width else S
    qkv = [2 * s * C * C + 4 * T * C * C for s in full]
    attention = [4 * s * T * C for s in full]
    if ledger == "absorbed" and scored == "last" and full[-1] == 1:
        H, rotary = config.heads, config.positions == "rope"
        qkv[-1] = 4 * C * C + (2 * T * C * C if rotary else 2 * C * C)
        attention[-1] = 2 * T * H * C + (2 * T * C if rotary else 2 * T * H * C)
    return {
        "queries, keys, values": sum(qkv),
        "attention": sum(attention),
        "output matrix": sum(2 * s * C * C for s in full),
        "feed-forward": sum(4 * s * C * config.ff_width for s in fed),
        "head": 2 * S * C * V,
    }


def flops_per_window(config: Config, vocab_size: int, ledger: Ledger = "needed", scored: Scored = "last") -> int:
    """FLOPs of one training window in a ledger (see ``forward_flops``).

    Training is three times the forward pass, except in the paper's figure, which knows no backward pass.
    """
    forward = sum(forward_flops(config, vocab_size, ledger, scored).values())
    return forward if ledger == "paper" else 3 * forward


@cache
def muon_flops(config: Config) -> int:
    """FLOPs of Muon's own matrix products in a step, which no ledger holds, whatever the batch.

    Each matrix between embedding and head, m by n with m the smaller, goes through five Newton-Schulz iterations
    (Jordan et al., 2024) of three products: X Xᵀ, 2m²n; its square, 2m³; that times X, 2m²n.
    """
    with torch.device("meta"):  # shapes without numbers
        shapes = [sorted(p.shape) for p in hidden_matrices(build(config, 1))]
    return sum(5 * (4 * m * m * n + 2 * m**3) for m, n in shapes)


def count_flops(model: nn.Module, tokens: Tensor, targets: Tensor, backward: bool = True) -> int:
    """FLOPs of one pass over a batch of windows, as PyTorch's counter sees them; it leaves no trace.

    It counts what is run. (Of PyTorch's fused attention it would see nothing on a CPU; ``slmlib``'s is written out.)

    Args:
        model: a module of ``slmlib.models``.
        tokens: (B, T) ids.
        targets: (B,) ids to score the last position, (B, T) to score every one.
        backward: count the backward pass too.
    """
    every = targets.dim() == 2
    if every and not isinstance(model, Transformer):
        raise ValueError(f"targets must be (B,) for a {type(model).__name__}, got shape {tuple(targets.shape)}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.random.fork_rng(), FlopCounterMode(display=False) as counter:  # dropout draws
        logits = model(tokens, every_position=True).flatten(0, 1) if every else model(tokens)
        loss = F.cross_entropy(logits, targets.flatten())
        if backward:
            torch.autograd.grad(loss, parameters)
    return counter.get_total_flops()


def as_text(flops: float) -> str:
    """A number of FLOPs as text, to two digits: 3 · 10¹², or 10¹²."""
    digits, exponent = f"{flops:.1e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if float(digits) == 1 else f"{float(digits):g}\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}{power}"
