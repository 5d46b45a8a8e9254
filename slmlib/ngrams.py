"""Counting models: the yardsticks that need no training. Shapes: V vocabulary, n order."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .checks import integer, number, token_ids


class _Level(NamedTuple):
    """The n-grams of one length and their counts. G of them, H histories one token shorter."""

    keys: np.ndarray  # (G,), sorted: the number of the (n-1)-gram that an n-gram ends in, times V, plus its first token
    counts: np.ndarray  # (G,), less the discounts
    total: np.ndarray  # (H,) of the counts of all that follows a history
    spared: np.ndarray  # (H,) of the discounts: what is left to the shorter history


class _Grams(NamedTuple):
    """The n-grams of one length in a text. G of them."""

    keys: np.ndarray  # (G,), as a level has them
    numbers: np.ndarray  # of each that the text has, one after the other: where it stands among the keys
    occurrences: np.ndarray  # (G,)
    suffix: np.ndarray  # (G,) the number of the (n-1)-gram that each ends in
    history: np.ndarray  # (G,) and of the one that it begins with


class KneserNey:
    """Interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1999), exact.

    With h the n - 1 tokens before w, h' the n - 2 before w, and c the count of an n-gram,

        p_n(w | h) = max(c(h w) - D(c(h w)), 0) / c(h ·) + λ(h) p_{n-1}(w | h'),

    where λ(h) gives away exactly what the discounts D took, and a history never seen leaves all to h'. In the
    highest order c is how often the n-gram occurs; in a lower one, after *how many different tokens*. D has one value
    for a count of 1, of 2 and of 3 or more, estimated for each order from the numbers n_k of n-grams with count k:
    with Y = n_1 / (n_1 + 2 n_2), D_k = k - (k + 1) Y n_{k+1} / n_k, brought back to 0.1 or k where it lies beyond,
    so that nothing has probability 0. Where some n_k is 0, as among a few characters, they are 0.5, 1 and 1.5.
    Below the unigrams lies the uniform distribution.

    The text is one stream: there are no sentence borders. Training sorts once for each order; no loop is over tokens.

    Args:
        order: n, at least 1.
        vocab_size: V.

    Raises:
        ValueError: for an order or vocabulary that is no integer of at least 1.
    """

    _lower_by_kinds = True  # c of a lower order is after how many different tokens; else how often

    def __init__(self, order: int, vocab_size: int):
        self.order, self.vocab_size = integer("order", order), integer("vocab_size", vocab_size)
        self._levels: list[_Level] = []

    def fit(self, ids: Tensor) -> "KneserNey":
        """Count the n-grams of 1-D ``ids``; returns the model itself.

        Raises:
            ValueError: if ``ids`` is not 1-D, has an id outside the vocabulary, or fewer tokens than the order.
        """
        return self._estimated(self._grams(ids))

    def _grams(self, ids: Tensor) -> list[_Grams]:
        """What there is to count in ``ids``, by length, up to the order."""
        tokens = token_ids(ids, self.vocab_size).cpu().numpy()
        if len(tokens) < self.order:
            raise ValueError(f"{len(tokens)} tokens hold no {self.order}-gram: lower the order or give more text")
        grams = []
        shorter = np.zeros(len(tokens), np.int64)  # number of the (n-1)-gram that ends at a position
        for n in range(1, self.order + 1):
            of = torch.from_numpy(shorter[n - 1 :] * self.vocab_size + tokens[: len(tokens) - n + 1])
            kinds = torch.unique(of, return_inverse=True, return_counts=True)  # sorts in half of numpy's time
            keys, numbers, occurrences = (values.numpy() for values in kinds)
            ends = np.empty(len(keys), np.int64)  # one place where each ends
            ends[numbers] = np.arange(n - 1, len(tokens))
            history = shorter[ends - 1] if n > 1 else np.zeros(len(keys), np.int64)
            grams.append(_Grams(keys, numbers.astype(np.int32), occurrences, shorter[ends], history))
            shorter = np.concatenate((np.full(n - 1, -1), numbers))
        return grams

    def _estimated(self, grams: list[_Grams]) -> "KneserNey":
        """Itself, with the probabilities that follow from the n-grams up to its order."""
        self._levels = []
        for n, (keys, _, counts, _, history) in enumerate(grams[: self.order], start=1):
            if n < self.order and self._lower_by_kinds:
                counts = np.bincount(grams[n].suffix[grams[n].occurrences > 0], minlength=len(counts))
            discounts = self._discounts(counts)[np.minimum(counts, 3)]
            histories = len(grams[n - 2].keys) if n > 1 else 1
            total = np.bincount(history, counts, histories)
            self._levels.append(_Level(keys, counts - discounts, total, np.bincount(history, discounts, histories)))
        return self

    def _given(self, ids: Tensor, name: str = "ids") -> np.ndarray:
        if not self._levels:
            raise ValueError(f"this {type(self).__name__} has counted nothing yet: call fit first")
        return token_ids(ids, self.vocab_size, name).cpu().numpy()

    @staticmethod
    def _discounts(counts: np.ndarray) -> np.ndarray:
        """D by count, (4,): of a count of 0, 1, 2, and 3 or more."""
        n, k = np.bincount(np.minimum(counts, 5), minlength=6), np.arange(1, 4)
        if not n[1:5].all():
            return np.array([0.0, 0.5, 1.0, 1.5])
        discounts = k - (k + 1) * n[1] / (n[1] + 2 * n[2]) * n[2:5] / n[1:4]
        return np.concatenate(([0.0], discounts.clip(0.1, k)))

    def _p(self, level: _Level, history: np.ndarray, counts: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Of tokens after numbered histories, -1 where one was never seen, given what the shorter histories say."""
        known = np.maximum(history, 0)
        total = np.where(history >= 0, level.total[known], 0)
        return np.where(total > 0, (counts + level.spared[known] * lower) / np.maximum(total, 1), lower)

    def nll(self, ids: Tensor) -> Tensor:
        """NLL in nats of each token of 1-D ``ids``, given all that precede it there, (len(ids),) float64.

        Raises:
            ValueError: if it has not been fitted, or ``ids`` is not 1-D or has an id outside the vocabulary.
        """
        tokens = self._given(ids)
        p = np.full(len(tokens), 1 / self.vocab_size)
        for n, level, history, at, seen in self._matches(tokens):
            p[n - 1 :] = self._p(level, history, np.where(seen, level.counts[at], 0.0), p[n - 1 :])
        return torch.from_numpy(-np.log(p))

    def seen(self, ids: Tensor) -> Tensor:
        """The total c(h ·) of the history of each token, (len(ids), n) float64: that of 0 tokens, 1, … n - 1.

        It is how often the longest one occurred; of a shorter one, as c is there, how many different tokens stood in
        front of it and what followed; 0 where the history was never seen, or would begin before the text.

        Raises:
            ValueError: as ``nll`` does.
        """
        tokens = self._given(ids)
        counts = np.zeros((len(tokens), self.order))
        for n, level, history, *_ in self._matches(tokens):
            counts[n - 1 :, n - 1] = np.where(history >= 0, level.total[np.maximum(history, 0)], 0)
        return torch.from_numpy(counts)

    def _matches(self, tokens: np.ndarray) -> Iterator[tuple[int, _Level, np.ndarray, np.ndarray, np.ndarray]]:
        """For each order n, at each token from the n-th on: its history's number, where its n-gram stands, whether."""
        shorter = np.zeros(len(tokens), np.int64)  # as in fit; -1 where it was never seen
        for n, level in enumerate(self._levels, start=1):
            at, seen = _find(level.keys, shorter[n - 1 :], tokens[: max(0, len(tokens) - n + 1)], self.vocab_size)
            history = shorter[n - 2 : -1] if n > 1 else np.zeros(len(tokens), np.int64)
            yield n, level, history, at, seen
            shorter = np.concatenate((np.full(min(n - 1, len(tokens)), -1), np.where(seen, at, -1)))

    def next_token(self, context: Tensor) -> Tensor:
        """``next_tokens`` of a single 1-D ``context``: (V,) float64, summing to 1."""
        return self.next_tokens(token_ids(context, self.vocab_size, "context")[None])[0]

    def next_tokens(self, contexts: Tensor) -> Tensor:
        """p of every token after each of B contexts of T ids, (B, T), of which the last n - 1 count: (B, V) float64.

        Raises:
            ValueError: as ``nll`` does, but for contexts that are not 2-D.
        """
        return next_of_each([self], contexts)[0]

    def generate(
        self, prompt: Tensor, n: int, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Continue 1-D ``prompt`` by n sampled tokens: the prompt and n more, int64.

        Probabilities are raised to 1 / temperature.

        Raises:
            ValueError: for an n that is no integer of at least 0, a temperature that is not positive, and as ``nll``
                does.
        """
        power = 1 / number("temperature", temperature, positive=True)
        n, ids = integer("n", n, 0), token_ids(prompt, self.vocab_size, "prompt")
        for _ in range(n):
            p = self.next_token(ids)
            chosen = torch.multinomial((p / p.max()) ** power, 1, generator=generator)  # the largest stays 1
            ids = torch.cat((ids, chosen))
        return ids

    @property
    def sizes(self) -> list[int]:
        """How many different n-grams it has counted, by length from 1 on: a count and a key each to remember."""
        return [len(level.keys) for level in self._levels]


def of_orders(orders: Iterable[int], vocab_size: int, ids: Tensor) -> dict[int, KneserNey]:
    """Kneser-Ney of several orders, fitted on the same 1-D ``ids``, which are sorted for the highest alone; by order.

    Raises:
        ValueError: as ``KneserNey`` and its ``fit`` do.
    """
    return next(of_beginnings(orders, vocab_size, ids, [len(token_ids(ids, vocab_size))]))


def of_beginnings(
    orders: Iterable[int], vocab_size: int, ids: Tensor, lengths: Iterable[int]
) -> Iterator[dict[int, KneserNey]]:
    """``of_orders`` of the first so many of ``ids``, for each of several ``lengths``; all are sorted once.

    Their ``sizes`` are those of all ids.

    Raises:
        ValueError: as ``of_orders`` does, and for a length that is no integer from the highest order to that of all.
    """
    orders = [integer("each order", order) for order in orders]
    grams = KneserNey(max(orders, default=1), vocab_size)._grams(ids)
    for length in lengths:
        length = integer("each length", length, len(grams), len(ids))
        there = [of.numbers[: length - shorter] for shorter, of in enumerate(grams)]
        counts = [np.bincount(at, minlength=len(of.keys)) for at, of in zip(there, grams, strict=True)]
        counted = [of._replace(occurrences=some) for of, some in zip(grams, counts, strict=True)]
        yield {order: KneserNey(order, vocab_size)._estimated(counted) for order in orders}


def next_of_each(models: Sequence[KneserNey], contexts: Tensor) -> Tensor:
    """``next_tokens`` of several models of the same text, whose n-grams are looked up once: (models, B, V)."""
    highest = max(models, key=lambda model: model.order)
    V, known = highest.vocab_size, min(contexts.size(1), highest.order - 1)  # of each context
    contexts = highest._given(contexts.flatten(), "contexts").reshape(contexts.shape)[:, contexts.size(1) - known :]
    B, T, every = *contexts.shape, np.arange(V)
    p = np.full((len(models), B, V), 1 / V)
    history = np.zeros(B, np.int64)  # number of each context's end
    numbers = np.zeros((B, V), np.int64)  # and of it with each token
    for n, shared in enumerate(highest._levels[: T + 1], start=1):
        first = every if n == 1 else contexts[:, T - n + 1, None]
        at, seen = _find(shared.keys, numbers, first, V)
        for i, model in enumerate(models):
            for level in model._levels[n - 1 : n]:  # of lower orders none
                p[i] = model._p(level, history[:, None], np.where(seen, level.counts[at], 0.0), p[i])
        numbers = np.where(seen, at, -1)
        if n <= T:  # the history of the next order: the last n tokens of the context
            at, seen = _find(shared.keys, history, contexts[:, T - n], V)
            history = np.where(seen, at, -1)
    return torch.from_numpy(p)


class Additive(KneserNey):
    """Additive smoothing: p(w | h) = (c(h w) + alpha) / (c(h) + alpha V).

    h is the n - 1 tokens before w, or as many as there are; c is how often what it names occurs in the training text.
    Order 1 is the unigram model, order 2 the bigram model. alpha = 1 is Laplace's rule of succession.

    Raises:
        ValueError: as ``KneserNey``, and for an alpha that is not positive and finite.
    """

    _lower_by_kinds = False

    def __init__(self, order: int, vocab_size: int, alpha: float = 1.0):
        super().__init__(order, vocab_size)
        self.alpha = number("alpha", alpha, positive=True)

    @staticmethod
    def _discounts(counts: np.ndarray) -> np.ndarray:
        return np.zeros(4)

    def _p(self, level: _Level, history: np.ndarray, counts: np.ndarray, lower: np.ndarray) -> np.ndarray:
        total = np.where(history >= 0, level.total[np.maximum(history, 0)], 0)
        scale = max(self.alpha, 1.0)  # both sides over alpha where it is large, so that none is inf
        added = self.alpha / scale
        return (counts / scale + added) / (total / scale + added * self.vocab_size)


def _find(keys: np.ndarray, shorter: np.ndarray, first: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where n-grams stand among the keys, by the number of the (n-1)-gram they end in, and whether they do."""
    wanted = shorter * vocab_size + first
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return at, (keys[at] == wanted) & (shorter >= 0)
