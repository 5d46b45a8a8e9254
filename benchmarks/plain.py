"""The same models as a textbook has them, for a benchmark to hold ``slmlib``'s against.

``nn.MultiheadAttention`` where it serves, every position computed and all but the last dropped, a ``Dataset`` item a
window. Parameters come in the order of ``slmlib.models``, so that weights are copied one by one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from slmlib.models import Config, LinearConfig, MLPConfig, TransformerConfig


class WindowItems(Dataset):
    """Windows of stride 1: T tokens and what follows, the next token or, for ``every``, the next at each position."""

    def __init__(self, ids: Tensor, context: int, every: bool = False):
        self.ids, self.context, self.every = ids, context, every

    def __len__(self) -> int:
        return len(self.ids) - self.context

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        end = i + self.context
        return self.ids[i:end], self.ids[i + 1 : end + 1] if self.every else self.ids[end]


class Rotary(nn.Module):
    """Queries and keys turned by their positions; root mean square 1 before that if ``normed``."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads, self.normed, self.rotary = config.heads, config.qk_norm, config.positions == "rope"
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        half = config.d_model // config.heads // 2
        rate = 10_000.0 ** (-torch.arange(half) / half)
        angle = torch.outer(torch.arange(config.context), rate)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        cos, sin = self.cos[: x.size(-2)], self.sin[: x.size(-2)]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        if self.normed:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        if self.rotary:
            q, k = self.rotate(q), self.rotate(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class Taps(nn.Module):
    """A causal convolution, channel by channel, over a position and the ``reach`` before it: its own weight is one."""

    def __init__(self, reach: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(reach, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.cat((torch.ones_like(self.weight[:1]), self.weight)).flip(0).permute(2, 1, 0)
        return F.conv1d(F.pad(x.mT, (len(self.weight), 0)), kernel, groups=x.size(2)).mT


def norm(config: TransformerConfig) -> nn.Module:
    kind = nn.Identity if config.norm == "none" else nn.RMSNorm if config.norm_kind == "rms" else nn.LayerNorm
    return kind(config.d_model)


class Block(nn.Module):
    """A block with learned or rotary positions, the norm after or before each sublayer."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        C, on_weights = config.d_model, config.dropout_site == "attention"
        self.pre, self.residual = config.norm == "pre", config.residual
        if config.positions == "learned":
            p = config.dropout if on_weights else 0.0
            self.attention = nn.MultiheadAttention(C, config.heads, dropout=p, batch_first=True)
        else:
            self.attention = Rotary(config)
        self.norm1, self.feed_forward = norm(config), None
        if config.ff_width:
            self.feed_forward = nn.Sequential(
                nn.Linear(C, config.ff_width),
                SquaredReLU() if config.ff_kind == "relu2" else nn.ReLU(),
                nn.Linear(config.ff_width, C),
                nn.Dropout(config.dropout),
            )
            self.norm2 = norm(config)
        taps = (Taps(config.conv, C) if config.conv and there else nn.Identity() for there in (1, config.ff_width))
        self.conv1, self.conv2 = taps
        self.dropout = nn.Dropout(0.0 if on_weights else config.dropout)

    def attend(self, x: Tensor) -> Tensor:
        if isinstance(self.attention, Rotary):
            return self.attention(x)
        mask = torch.ones(x.size(1), x.size(1), dtype=torch.bool, device=x.device).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    def branch(self, x: Tensor, norm: nn.Module, conv: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        y = self.dropout(sublayer(conv(norm(x) if self.pre else x)))
        y = x + y if self.residual else y
        return y if self.pre else norm(y)

    def forward(self, x: Tensor) -> Tensor:
        x = self.branch(x, self.norm1, self.conv1, self.attend)
        return self.branch(x, self.norm2, self.conv2, self.feed_forward) if self.feed_forward else x


class Transformer(nn.Module):
    def __init__(self, config: TransformerConfig, vocab_size: int, every: bool):
        super().__init__()
        self.every = every
        self.embed = nn.Embedding(vocab_size, config.d_model)
        self.positions = nn.Embedding(config.context, config.d_model) if config.positions == "learned" else None
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.norm = norm(config)
        self.head = nn.Linear(config.d_model, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.size(1), device=tokens.device))
        logits = self.head(self.norm(self.blocks(x)))
        return logits if self.every else logits[:, -1]


def build(config: Config, vocab_size: int, ours: nn.Module | None = None, every: bool = False) -> nn.Module:
    """The plain model of a config, with the weights of ``ours`` if given."""
    V, width = vocab_size, config.context * config.d_model
    if isinstance(config, LinearConfig):
        model = nn.Sequential(nn.Embedding(V, config.d_model), nn.Flatten(), nn.Linear(width, V))
    elif isinstance(config, MLPConfig):
        h, p = config.hidden, config.dropout
        model = nn.Sequential(
            *(nn.Embedding(V, config.d_model), nn.Flatten()),
            *(nn.Linear(width, h), nn.ReLU(), nn.Dropout(p)),
            *(nn.Linear(h, h), nn.ReLU(), nn.Dropout(p), nn.Linear(h, V)),
        )
    else:
        model = Transformer(config, V, every)
    if ours is not None:
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), ours.parameters(), strict=True):
                mine.copy_(theirs)
    return model
