"""Counting models: the yardsticks that need no training. Shapes: V vocabulary, n order."""

import torch
from torch import Tensor


class Additive:
    """An n-gram model with additive smoothing: p(w | h) = (c(h w) + alpha) / (c(h) + alpha V).

    h is the n - 1 tokens before w, c counts in the training text. Order 1 is the unigram model, order 2
    the bigram model. alpha = 1 is Laplace's rule of succession.

    Raises:
        ValueError: for an order or vocabulary below 1, an alpha not above 0, or V^n beyond 63 bits.
    """

    def __init__(self, order: int, vocab_size: int, alpha: float = 1.0):
        if order < 1 or vocab_size < 1 or not alpha > 0:
            raise ValueError(f"need order >= 1, vocab_size >= 1, alpha > 0, got {order}, {vocab_size}, {alpha}")
        if vocab_size**order >= 2**63:
            raise ValueError(f"{vocab_size} tokens in {order}-grams do not fit a 63-bit key; lower the order")
        self.order, self.vocab_size, self.alpha = order, vocab_size, alpha

    def _keys(self, ids: Tensor, length: int) -> Tensor:
        """A number for each n-gram of that length, (len(ids) - length + 1,): its ids as digits in base V."""
        keys = torch.zeros(len(ids) - length + 1, dtype=torch.int64)
        for i in range(length):
            keys = keys * self.vocab_size + ids[i : i + len(keys)]
        return keys

    def fit(self, ids: Tensor) -> "Additive":
        """Count the n-grams of 1-D ``ids``; returns the model itself."""
        grams = {length: self._keys(ids, length) for length in range(1, self.order + 1)}
        # Histories are counted where a token follows: as the n-grams one longer, less their last digit.
        self._grams = {n: torch.unique(k, return_counts=True) for n, k in grams.items()}
        self._histories = {n: torch.unique(k // self.vocab_size, return_counts=True) for n, k in grams.items()}
        return self

    def nll(self, ids: Tensor) -> Tensor:
        """NLL in nats of each token of 1-D ``ids`` given those before it, (len(ids),) float64.

        The first tokens, which have fewer than n - 1 before them, are scored by the shorter n-grams.
        """
        parts = []
        for n in range(1, self.order + 1):
            keys = self._keys(ids if n == self.order else ids[:n], n)
            seen = _look_up(*self._grams[n], keys) + self.alpha
            history = _look_up(*self._histories[n], keys // self.vocab_size) + self.alpha * self.vocab_size
            parts.append(history.log() - seen.log())
        return torch.cat(parts)


def _look_up(keys: Tensor, counts: Tensor, wanted: Tensor) -> Tensor:
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[at] == wanted, counts[at], 0).double()
