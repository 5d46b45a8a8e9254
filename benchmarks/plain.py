"""The same models as a textbook has them, for a benchmark to hold ``slmlib``'s against.

``nn.MultiheadAttention`` where it serves, every position computed and all but the last dropped, a ``Dataset`` item a
window. Parameters come in the order of ``slmlib.models``, so that weights are copied one by one.
"""

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
        half = config.head_width // 2
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


class Block(nn.Module):
    """A block with learned or rotary positions, the norm after or before each sublayer."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        C, on_weights = config.d_model, config.dropout_site == "attention"
        self.pre = config.norm == "pre"
        if config.positions == "learned":
            p = config.dropout if on_weights else 0.0
            self.attention = nn.MultiheadAttention(C, config.heads, dropout=p, batch_first=True)
        else:
            self.attention = Rotary(config)
        norm = nn.RMSNorm if config.norm_kind == "rms" else nn.LayerNorm
        self.norm1 = norm(C)
        self.feed_forward = nn.Sequential(
            nn.Linear(C, config.ff_width),
            SquaredReLU() if config.ff_kind == "relu2" else nn.ReLU(),
            nn.Linear(config.ff_width, C),
            nn.Dropout(config.dropout),
        )
        self.norm2 = norm(C)
        self.dropout = nn.Dropout(0.0 if on_weights else config.dropout)

    def attend(self, x: Tensor) -> Tensor:
        if isinstance(self.attention, Rotary):
            return self.attention(x)
        mask = torch.ones(x.size(1), x.size(1), dtype=torch.bool, device=x.device).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            x = x + self.dropout(self.attend(self.norm1(x)))
            return x + self.dropout(self.feed_forward(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attend(x)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class Transformer(nn.Module):
    def __init__(self, config: TransformerConfig, vocab_size: int, every: bool):
        super().__init__()
        self.every = every
        self.embed = nn.Embedding(vocab_size, config.d_model)
        self.positions = nn.Embedding(config.context, config.d_model) if config.positions == "learned" else None
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.norm = nn.RMSNorm(config.d_model) if config.norm_kind == "rms" else nn.LayerNorm(config.d_model)
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
