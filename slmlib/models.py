"""The networks: one frozen config and one module an architecture, and ``build`` to go from one to the other.

Every module maps token ids (B, T) to logits (B, V) for the token that follows the window.
Shapes: B batch, T context, C model width, H heads, D = C / H head width, V vocabulary, L layers.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import Checked, Unfit, integer, number, short, token_ids
from .speed import Dropout, building, look_up, products
from .windows import random_stream

EVERY, LAST = slice(None), slice(-1, None)  # the positions to score


@dataclass(frozen=True)
class Config(Checked):
    """What every model has."""

    context: int = 128
    d_model: int = 128


@dataclass(frozen=True)
class LinearConfig(Config):
    """One linear map from the embedded, concatenated window to the logits."""


@dataclass(frozen=True)
class MLPConfig(Config):
    """Two hidden ReLU layers of ``hidden`` units between the concatenated window and the logits."""

    hidden: int = 256
    dropout: float = 0.1  # after each hidden layer


@dataclass(frozen=True)
class TransformerConfig(Config):
    """A stack of causal blocks. One layer with ``ff_width=512`` is the paper's "self-attention" model."""

    heads: int = 4
    layers: int = 3
    ff_width: int = 256  # 0 leaves the feed-forward sublayer out
    ff_kind: Literal["relu", "relu2"] = "relu"  # relu2: squared (So et al., 2021)
    dropout: float = 0.1  # after the feed-forward, and at dropout_site
    dropout_site: Literal["attention", "residual"] = "attention"  # on attention weights, or on each branch's output
    norm: Literal["post", "pre", "none"] = "post"  # after each residual sum, before each sublayer, no norm
    positions: Literal["learned", "rope", "none"] = "learned"
    residual: bool = True
    qkv_init: Literal["xavier", "linear"] = "xavier"  # nn.MultiheadAttention's initialisation, or nn.Linear's
    embed_init: Literal["unit", "small"] = "unit"  # tokens and positions N(0, 1), or N(0, 0.02²) as in GPT
    norm_kind: Literal["layer", "rms"] = "layer"  # LayerNorm, or RMSNorm (Zhang and Sennrich, 2019)
    qk_norm: bool = False  # queries and keys to root mean square 1, head by head (Henry et al., 2020)
    tied: bool = False  # the head's matrix is the embedding's (Press and Wolf, 2017)
    zero_init: bool = False  # each branch's output matrix starts at zero: a block starts as the identity
    previous: int = 0  # so many tokens before each are embedded with it, each by a table of its own that starts at zero
    conv: int = 0  # so many positions before each are mixed into it where a branch begins (``ShortConvolution``)

    _may_be_zero = ("ff_width", "previous", "conv")

    def __post_init__(self):
        super().__post_init__()
        if self.d_model % self.heads:
            got = f"heads={self.heads}, d_model={self.d_model}"
            raise ValueError(f"TransformerConfig.heads must divide d_model, got {got}")
        for name in ("previous", "conv"):
            if (before := getattr(self, name)) >= self.context:
                got = f"{name}={before}, context={self.context}"
                raise ValueError(f"TransformerConfig.{name} must be below context, got {got}")
        if self.positions == "rope" and self.d_model // self.heads % 2:
            got = f"{self.d_model} / {self.heads} = {self.d_model // self.heads}"
            raise ValueError(f"TransformerConfig.positions='rope' needs an even d_model / heads, got {got}")


def changed(config: object) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults: a name that a field added later does not change."""
    return {f.name: v for f in fields(config) if (v := getattr(config, f.name)) != f.default}


def _whole_windows(tokens: Tensor, context: int):
    if tokens.dim() != 2 or tokens.size(1) != context:
        raise ValueError(f"tokens must be (B, {context}), whole windows, got {tuple(tokens.shape)}")


class Linear(nn.Module):
    """softmax(W [e(x_1); …; e(x_T)] + b): the window's embeddings side by side, then one linear map."""

    def __init__(self, config: LinearConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(vocab_size, config.d_model)
        self.head = nn.Linear(config.context * config.d_model, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) ids -> (B, V) logits."""
        _whole_windows(tokens, self.config.context)
        return self.head(self.embed(tokens).flatten(1))  # (B, T, C) -> (B, T·C) -> (B, V)

    def tabulated(self) -> Callable[[Tensor], Tensor]:
        """The same function by look-up, for as long as the weights stay as they are."""
        return look_up(self.embed, self.head)


class MLP(nn.Module):
    """The neural probabilistic language model of Bengio et al. (2003), with two hidden ReLU layers."""

    def __init__(self, config: MLPConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(vocab_size, config.d_model)
        self.hidden = nn.Sequential(
            nn.Linear(config.context * config.d_model, config.hidden),
            nn.ReLU(),
            Dropout(config.dropout),
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(),
            Dropout(config.dropout),
        )
        self.head = nn.Linear(config.hidden, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) ids -> (B, V) logits."""
        _whole_windows(tokens, self.config.context)
        return self.head(self.hidden(self.embed(tokens).flatten(1)))

    def tabulated(self) -> Callable[[Tensor], Tensor]:
        """The same function, its first layer by look-up, for as long as the weights stay as they are."""
        first, rest = look_up(self.embed, self.hidden[0]), self.hidden[1:]
        return lambda tokens: self.head(rest(first(tokens)))


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., 2021), half-split pairing: coordinate i turns with i + D/2.

    Pair i at position t is rotated by the angle t · 10000^(-2i/D).
    """

    def __init__(self, head_width: int, context: int):
        super().__init__()
        rate = 10_000.0 ** (-torch.arange(0, head_width, 2) / head_width)  # (D/2,)
        angle = torch.outer(torch.arange(context), rate)  # (T, D/2)
        self.register_buffer("cos", angle.cos().repeat(1, 2), persistent=False)  # (T, D)
        self.register_buffer("sin", torch.cat((-angle.sin(), angle.sin()), 1), persistent=False)

    def forward(self, x: Tensor, positions: Tensor | slice) -> Tensor:
        """Rotate x (B, T, …, D), whose t-th row stands at ``positions[t]``."""
        D, dims = x.size(-1), (-1, *(1,) * (x.dim() - 3), x.size(-1))
        partner = x.roll(D // 2, -1)
        return x * self.cos[positions].view(dims) + partner * self.sin[positions].view(dims)


#: Of the positions before, ``keys`` and ``values`` (B, H, t, D), and by convolution the last inputs (B, n, C); empty
#: where there are none.
Past = dict[str, Tensor]


class ShortConvolution(nn.Module):
    """x_t + w_1 x_{t-1} + … + w_n x_{t-n}, each channel by itself, with zeros before the first position.

    The weights start at zero. Of the four places of Allen-Zhu (2025), whose name for it is Canon layer, a block has A
    and C: what attention and feed-forward layer read. With n = 3 there, a training step of small blocks takes 1.1 to
    1.2 times as long.
    """

    def __init__(self, before: int, width: int, name: str):
        super().__init__()
        self.weight, self.name = nn.Parameter(torch.zeros(before, 1, width)), name

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). With a ``past``, x follows it and joins it."""
        n, T = len(self.weight), x.size(1)
        x = torch.cat((past[self.name], x), 1) if self.name in (past or ()) else F.pad(x, (0, 0, n, 0))
        if past is not None:
            past[self.name] = x[:, T:]
        return x[:, n:] + sum(w * x[:, n - i : n - i + T] for i, w in enumerate(self.weight, 1))


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al., 2017), computed at the scored positions only."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        C = config.d_model
        self.heads = config.heads
        self.dropout = Dropout(config.dropout if config.dropout_site == "attention" else 0.0)
        self.qkv = nn.Linear(C, 3 * C)
        self.out = nn.Linear(C, C)
        self.rotary = Rotary(C // config.heads, config.context) if config.positions == "rope" else None
        self.qk_norm = config.qk_norm
        if config.qkv_init == "xavier":
            nn.init.xavier_uniform_(self.qkv.weight)
            nn.init.zeros_(self.qkv.bias)
            nn.init.zeros_(self.out.bias)
        if config.zero_init:
            _zero(self.out)

    def project(self, x: Tensor, scored: slice = EVERY, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, S, D) of the scored positions, keys and values (B, H, T, D) of all, of x (B, T, C).

        x begins at position ``first``.
        """
        (T, C), W, b = x.shape[1:], self.qkv.weight, self.qkv.bias
        at = slice(*scored.indices(T))
        if at == slice(0, T, 1):
            stacks, at = [self.qkv(x)], [at]
        else:
            stacks, at = [F.linear(x[:, at], W[:C], b[:C]), F.linear(x, W[C:], b[C:])], [at, slice(0, T)]
        stacks = [stack.unflatten(-1, (-1, self.heads, C // self.heads)) for stack in stacks]  # (B, T, 1 to 3, H, D)
        if self.qk_norm or self.rotary is not None:
            placed, v = stacks[-1].split((stacks[-1].size(2) - 1, 1), 2)
            where = (slice(first + positions.start, first + positions.stop) for positions in at)
            stacks = [*map(self._placed, (*stacks[:-1], placed), where), v]
        return tuple(t.transpose(1, 2) for stack in stacks for t in stack.unbind(2))

    def _placed(self, x: Tensor, positions: slice) -> Tensor:
        if self.qk_norm:
            x = F.rms_norm(x, x.shape[-1:])
        return x if self.rotary is None else self.rotary(x, positions)

    def forward(self, x: Tensor, scored: slice = EVERY, past: Past | None = None) -> Tensor:
        """(B, T, C) -> (B, S, C), S scored positions. With a ``past``, x follows it and joins it."""
        before = past.get("keys") if past is not None else None
        q, k, v = self.project(x, scored, 0 if before is None else before.size(2))
        if before is not None:
            k, v = torch.cat((before, k), 2), torch.cat((past["values"], v), 2)
        if past is not None:
            past |= {"keys": k, "values": v}
        return self.out((self.dropout(attention_weights(q, k)) @ v).transpose(1, 2).flatten(2))


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Where each query looks: softmax(q kᵀ / √D) over its own position and those before it.

    Written out rather than left to PyTorch's fused kernel, which on a CPU is slower with dropout and hides
    its products from the FLOP counter.

    Args:
        q: queries (B, H, S, D) of the last S of T positions.
        k: keys (B, H, T, D).

    Returns:
        (B, H, S, T); rows sum to 1.
    """
    S, T = q.size(-2), k.size(-2)
    scores = products(q / q.size(-1) ** 0.5, k)
    if S > 1:  # the last position alone may look everywhere
        scores += torch.full((S, T), -torch.inf, device=q.device).triu(T - S + 1)
    return scores.softmax(-1)


class FeedForward(nn.Module):
    """Position by position: C -> W -> C through ReLU or its square, then dropout."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        C, W = config.d_model, config.ff_width
        self.up = nn.Linear(C, W)
        self.down = nn.Linear(W, C)
        self.dropout = Dropout(config.dropout)
        self.squared = config.ff_kind == "relu2"
        if config.zero_init:
            _zero(self.down)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)  # (B, T, W)
        return self.dropout(self.down(h.relu().square() if self.squared else h.relu_()))


def _zero(linear: nn.Linear):
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


class Block(nn.Module):
    """Attention, then feed-forward, each inside a residual sum with a norm after or before it."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.pre, self.residual = config.norm == "pre", config.residual
        self.attention = Attention(config)
        self.norm1 = _norm(config)
        self.feed_forward = FeedForward(config) if config.ff_width else None
        self.norm2 = _norm(config) if config.ff_width else None
        self.dropout = Dropout(config.dropout if config.dropout_site == "residual" else 0.0)
        self.conv = config.conv
        if config.conv:
            self.conv1 = ShortConvolution(config.conv, config.d_model, "conv1")
            self.conv2 = ShortConvolution(config.conv, config.d_model, "conv2") if config.ff_width else None

    def forward(self, x: Tensor, scored: slice = EVERY, past: Past | None = None) -> Tensor:
        """(B, T, C) -> (B, S, C)."""
        at = scored
        if self.conv and self.feed_forward and scored != EVERY:  # the second convolution looks back on the sums
            start, stop, _ = scored.indices(x.size(1))
            at, scored = slice(max(0, start - self.conv), stop), slice(start - stop, None)
        a = self.dropout(self.attention(self.attended(x, past), at, past))
        x = self._add(x[:, at], a, self.norm1)
        if self.feed_forward is None:
            return x
        y = self.norm2(x) if self.pre else x
        y = self.conv2(y, past) if self.conv else y
        if at != scored:
            x, y = x[:, scored], y[:, scored]
        return self._add(x, self.dropout(self.feed_forward(y)), self.norm2)

    def attended(self, x: Tensor, past: Past | None = None) -> Tensor:
        """What attention reads of x, (B, T, C) -> (B, T, C)."""
        y = self.norm1(x) if self.pre else x
        return self.conv1(y, past) if self.conv else y

    def _add(self, x: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
        y = x + branch if self.residual else branch
        return y if self.pre else norm(y)


def _norm(config: TransformerConfig) -> nn.Module:
    if config.norm == "none":
        return nn.Identity()
    return nn.LayerNorm(config.d_model) if config.norm_kind == "layer" else nn.RMSNorm(config.d_model)


class Transformer(nn.Module):
    """Embedding and positions, L blocks, a final norm, a linear head (its matrix the embedding's if ``tied``)."""

    def __init__(self, config: TransformerConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(vocab_size, config.d_model)
        self.positions = nn.Embedding(config.context, config.d_model) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = _norm(config)
        self.head = nn.Linear(config.d_model, vocab_size)
        if config.embed_init == "small":
            for table in filter(None, (self.embed, self.positions)):
                table.weight.data *= 0.02
        if config.tied:
            self.head.weight = self.embed.weight
        self.before = nn.ModuleList(nn.Embedding(vocab_size, config.d_model) for _ in range(config.previous))
        for table in self.before:
            nn.init.zeros_(table.weight)

    def forward(self, tokens: Tensor, every_position: bool = False) -> Tensor:
        """(B, t) ids, t <= T -> (B, V) logits after the last token, or (B, t, V) after every one.

        Without ``every_position`` the last block works at the last position alone: its keys and values
        are needed everywhere, its queries, feed-forward and output at one position only.
        """
        x = self._embed(tokens)
        *first, last = self.blocks
        for block in first:
            x = block(x)
        logits = self.head(self.norm(last(x, EVERY if every_position else LAST)))
        return logits if every_position else logits[:, 0]

    def extend(self, tokens: Tensor, pasts: list[Past]) -> Tensor:
        """(B, t) ids of a window so far -> (B, V) logits after the last of them, working only at those that are new.

        ``pasts``, one a block, are the keys and values of the others, and take up the new ones; at first empty dicts.
        """
        x = self._embed(tokens)[:, pasts[0]["keys"].size(2) if pasts[0] else 0 :]
        for block, past in zip(self.blocks, pasts, strict=True):
            x = block(x, EVERY, past)
        return self.head(self.norm(x[:, -1]))

    @torch.no_grad()
    def attention_maps(self, tokens: Tensor) -> Tensor:
        """(B, t) ids -> attention weights of every layer and head, (L, B, H, t, t), without dropout; rows sum to 1."""
        with evaluating(self):
            x, maps = self._embed(tokens), []
            for block in self.blocks:
                q, k, _ = block.attention.project(block.attended(x))
                maps.append(attention_weights(q, k))
                x = block(x)
        return torch.stack(maps)

    def _embed(self, tokens: Tensor) -> Tensor:
        if tokens.dim() != 2 or not 1 <= tokens.size(1) <= self.config.context:
            raise ValueError(f"tokens must be (B, t) with 1 <= t <= {self.config.context}, got {tuple(tokens.shape)}")
        x = self.embed(tokens)  # (B, T, C)
        for n, table in enumerate(self.before, 1):
            x = x + F.pad(table(tokens[:, :-n]), (0, 0, n, 0))[:, : tokens.size(1)]  # nothing where none is before
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.size(1)]
        return x


@contextmanager
def evaluating(model: nn.Module):
    """Evaluation mode inside, the mode that each part was in afterwards, error or not."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


#: Config and module by the name that records use. Whoever adds one may give ``flops.forward_flops`` its closed form.
KINDS: dict[str, tuple[type[Config], type[nn.Module]]] = {
    "linear": (LinearConfig, Linear),
    "mlp": (MLPConfig, MLP),
    "transformer": (TransformerConfig, Transformer),
}


def build(config: Config, vocab_size: int, seed: int | None = None) -> nn.Module:
    """The module that ``config`` describes, over ``vocab_size`` tokens.

    With a ``seed`` the initial weights depend on it alone and the global generator is left as it was;
    without, they come from the global generator, as for any ``nn.Module``.

    Raises:
        TypeError: if ``config`` is not of ``KINDS``.
        ValueError: if ``vocab_size`` is not a positive integer, or the model is larger than memory.
    """
    modules = dict(KINDS.values())
    if type(config) not in modules:
        known = ", ".join(cls.__name__ for cls in modules)
        raise Unfit(f"config must be one of {known}, got {short(config)}")
    vocab_size = integer("vocab_size", vocab_size)
    stream = None if seed is None else random_stream(seed, "initialisation")
    try:
        if stream is None:
            return modules[type(config)](config, vocab_size)
        with building, torch.random.fork_rng(devices=[]):  # PyTorch's layers draw from the one global generator
            torch.default_generator.manual_seed(stream.initial_seed())
            return modules[type(config)](config, vocab_size)
    except (RuntimeError, TypeError, MemoryError) as error:
        got = f"{short(config)} ({short(error)})"
        raise ValueError(f"config must fit into memory over {vocab_size} tokens, got {got}") from error


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices between embedding and head: those that Muon updates."""
    outer = {p for m in model.modules() if isinstance(m, nn.Embedding) or m is model.head for p in m.parameters()}
    return [p for p in model.parameters() if p.dim() == 2 and p not in outer]


class ParameterCount(NamedTuple):
    total: int
    without_embeddings: int  # token and position embeddings left out; the output head counts, a tied one too


def n_parameters(model: nn.Module) -> ParameterCount:
    """Number of trainable parameters, in all and without the embedding tables."""
    total = sum(p.numel() for p in model.parameters())
    head = getattr(model, "head", None)  # a model that a chapter writes may call it something else
    tables = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)} - {getattr(head, "weight", None)}
    return ParameterCount(total, total - sum(table.numel() for table in tables))


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    n: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    pad: int = 0,
    cache: bool = False,
) -> Tensor:
    """Continue ``prompt`` by ``n`` sampled tokens.

    The model always sees a whole window: the last T tokens, filled up on the left with ``pad`` while there are fewer
    (id 0 is the newline in the character corpora). No model is trained on such padding: prefer a prompt of T or more.

    With ``cache`` the window grows instead, and when it is full begins anew with its last half; keys and values are
    kept, so that a step works one token. That is for transformers trained at every position, which know short windows.

    Args:
        model: any module of this file, sampled in evaluation mode and left in the mode it was in; or the mixture of one
            with counts (``mixing.Mixture``), which see no padding.
        prompt: 1-D ids, of any length, empty included.
        n: how many tokens to add.
        cache: as above; a transformer only.
        temperature: divides the logits; 0 takes the likeliest token each time.
        generator: source of randomness, on the CPU; the global one if left out.

    Returns:
        1-D int64 ids on the CPU: the prompt and n more.

    Raises:
        ValueError: for a prompt that is not 1-D integers or has one, or a pad, outside the vocabulary; for a negative
            n; for a temperature that is negative or infinite; for a cache with another model; or if the logits are not
            finite.
    """
    model, mixture = getattr(model, "network", model), model
    vocab_size, n = model.embed.num_embeddings, integer("n", n, 0)
    temperature = number("temperature", temperature, positive=True, zero=True)
    context, device = model.config.context, next(model.parameters()).device
    if cache and not isinstance(model, Transformer):
        raise ValueError(f"cache must be False for a {type(model).__name__}: it keeps no keys and values")
    padding = token_ids([pad], vocab_size, "pad").expand(context)
    ids = torch.cat((padding, token_ids(prompt, vocab_size, "prompt").cpu()))
    begin = min(context, max(1, len(ids) - context))
    see = _growing(model, begin) if cache else lambda ids: model(ids[-context:][None])
    with evaluating(model):
        for _ in range(n):
            logits = see(ids.to(device))[0].float().cpu()  # (V,)
            if mixture is not model:
                logits = mixture.next_token(logits, ids[context:])
            if not logits.isfinite().all():
                raise ValueError("the model's logits are NaN or infinite: its weights are, or have become too large")
            likeliest = logits.topk(vocab_size)  # sorted: the first is the greedy choice
            p = ((likeliest.values - likeliest.values[0]) / max(temperature, 1e-30)).softmax(0)  # the largest is 0
            chosen = torch.multinomial(p, 1, generator=generator) if temperature else 0
            ids = torch.cat((ids, likeliest.indices[chosen].view(1)))
    return ids[context:]


def _growing(model: Transformer, begin: int) -> Callable[[Tensor], Tensor]:
    """From all ids so far (t,), one more at each call, to the logits (1, V) of a window that grows and starts over."""
    pasts, first = [], 0

    def see(ids: Tensor) -> Tensor:
        nonlocal first
        if not pasts or len(ids) - first > model.config.context:
            first = len(ids) - (begin if not pasts else max(1, model.config.context // 2))
            pasts[:] = [{} for _ in model.blocks]
        return model.extend(ids[first:][None], pasts)

    return see
