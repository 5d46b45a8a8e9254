"""Counting and networks together: a gate learns from validation text which of them to believe after which history.

Shapes: N tokens, M models that are mixed, F features of a history.
"""

from collections.abc import Mapping, Sequence
from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .corpora import Corpus
from .ngrams import KneserNey, next_of_each, of_orders
from .training import TrainingConfig, token_nll
from .windows import WHOLE, Evaluation

#: Which orders of counting are mixed, by unit of text.
ORDERS = {"character": (3, 5, 7, 9), "word": (1, 2, 3, 5)}
#: What is scored of a text, as in ``training.token_losses``: "valid", "test", "whole", each with its NLL, (N,).
Losses = Mapping[str, Tensor]


class Gate:
    """A mixture p(y | h) = Σ_m g_m(h) p_m(y | h) whose weights g = softmax(W x(h)) depend on the history h.

    So are n-gram models of several orders interpolated (Jelinek and Mercer, 1980), and experts by a gating network
    (Jacobs et al., 1991), here a linear one. W, (F, M), minimises the sum of the NLL and of its own squares, so that a
    short text moves it little; L-BFGS finds it from W = 0.

    Args:
        features: x of each token's history, (N, F).
        nll: of each token under each model, (N, M), in nats.

    Raises:
        ValueError: if the two have not the same number of tokens, at least one.
    """

    def __init__(self, features: Tensor, nll: Tensor):
        if len(features) != len(nll) or not len(nll):
            given = f"features of {len(features)} tokens, losses of {len(nll)}"
            raise ValueError(f"{given}: give both of the same, one at least")
        # Tokens last: softmax over a few contiguous rows takes two thirds of the time that one over short rows takes.
        x, y, N = features.double().T.contiguous(), nll.double().T.contiguous(), len(nll)
        p = (y.min(0).values - y).exp()  # of each model, over the best one's
        self.weights = torch.zeros(len(x), len(p), dtype=torch.float64)
        optimiser = torch.optim.LBFGS([self.weights], max_iter=300, history_size=30, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            prior = (self.weights.T @ x).softmax(0)
            joint = prior * p
            mixed = joint.sum(0)
            self.weights.grad = (x @ (prior - joint / mixed).T + 2 * self.weights) / N
            return self.weights.square().sum() / N - mixed.log().mean()

        optimiser.step(loss)

    @classmethod
    def of(cls, weights: Tensor) -> "Gate":
        """The gate whose W, (F, M), is known."""
        gate = cls.__new__(cls)
        gate.weights = weights.double()
        return gate

    def __call__(self, features: Tensor) -> Tensor:
        """The weight of each model, (N, M), summing to 1 over models."""
        return (features.double() @ self.weights).softmax(1)

    def nll(self, features: Tensor, nll: Tensor) -> Tensor:
        """NLL of each token under the mixture, (N,), in nats."""
        return -torch.logsumexp((features.double() @ self.weights).log_softmax(1) - nll.double(), 1)


class Counted(NamedTuple):
    """What counting knows of some scored tokens."""

    features: Tensor  # (N, F)
    nll: Tensor  # (N, orders)

    def beside(self, network: Tensor | None) -> Tensor:
        """NLL of a network at these tokens, (N,), and of the counts, (N, 1 + orders); of the counts alone for None."""
        return self.nll if network is None else torch.cat((network[:, None], self.nll), 1)


def counted(
    corpus: Corpus, training: TrainingConfig, context: int, models: Sequence[KneserNey] = ()
) -> dict[str, Counted]:
    """Kneser-Ney of several orders at the tokens that a training's looks score.

    The features are those of the highest order: how long a history was seen, one of n; and the total c(h ·) of each
    length, as log(1 + total) / 3.

    Args:
        corpus: the text.
        training: whose looks.
        context: of the network that they are mixed with.
        models: fitted on the train split; those of ``ORDERS`` if there are none.
    """
    models = models or [*of_orders(ORDERS[corpus.vocabulary.unit], len(corpus.vocabulary), corpus.train).values()]
    valid, test = (of_counts(models, ids) for ids in (corpus.valid, corpus.test))
    looks = {"valid": (valid, training.validation), "test": (test, training.test), "whole": (test, training.whole_test)}
    return {name: Counted(*(look.of(x, context) for x in of)) for name, (of, look) in looks.items()}


def _highest(models: Sequence[KneserNey]) -> KneserNey:
    return max(models, key=lambda model: model.order)


def of_counts(models: Sequence[KneserNey], ids: Tensor) -> tuple[Tensor, Tensor]:
    """x of the history of each token, (N, F), and its NLL under each model, (N, orders)."""
    return _features(models, ids), torch.stack([model.nll(ids) for model in models], 1)


def _features(models: Sequence[KneserNey], ids: Tensor) -> Tensor:
    """x of the history of each token, (N, F)."""
    seen = _highest(models).seen(ids)
    return torch.cat((F.one_hot((seen > 0).sum(1) - 1, seen.size(1)), seen.log1p() / 3), 1)


def averaged(networks: Sequence[Losses]) -> dict[str, Tensor]:
    """The losses of an ensemble, which predicts the mean of its networks' probabilities."""
    return {
        name: log(len(networks)) - torch.logsumexp(torch.stack([-of[name].double() for of in networks]), 0)
        for name in networks[0]
    }


def together(networks: Sequence[Losses], counting: Mapping[str, Counted], by_history: bool = True) -> dict[str, Tensor]:
    """The losses of a gate, learnt on "valid", over the counts and the networks' ensemble; over counts alone for none.

    They are of the tokens that were counted, in their order. If not ``by_history``, its weights are the same always.
    """
    network = averaged(networks) if networks else {}
    nll = {name: of.beside(network.get(name)) for name, of in counting.items()}
    x = {name: of.features if by_history else torch.ones(len(of.features), 1) for name, of in counting.items()}
    gate = Gate(x["valid"], nll["valid"])
    return {name: gate.nll(x[name], of) for name, of in nll.items()}


class Mixture:
    """A network, counts of several orders, and the gate over them; ``generate`` samples it as it does a network.

    Args:
        network: whose NLL was the first column that the gate learnt from.
        counts: those of the other columns, in their order.
        gate: over all of them.
        text: 1-D ids that the counts are of, kept for whoever writes the mixture to a file.
    """

    def __init__(self, network: nn.Module, counts: Sequence[KneserNey], gate: Gate, text: Tensor):
        self.network, self.counts, self.gate, self.text = network, list(counts), gate, text

    def next_token(self, logits: Tensor, ids: Tensor) -> Tensor:
        """log p of every token after 1-D ``ids``, (V,) float64, of the network's ``logits`` there, (V,)."""
        # The features of a token are of what stands before it: any token will do.
        x = _features(self.counts, torch.cat((ids, ids.new_zeros(1)))[-_highest(self.counts).order :])[-1:]
        logp = torch.cat((logits.double().log_softmax(0)[None], next_of_each(self.counts, ids[None])[:, 0].log()))
        return torch.logsumexp(self.gate(x).log().T + logp, 0)

    def nll(self, ids: Tensor, evaluation: Evaluation = WHOLE) -> tuple[Tensor, Tensor]:
        """NLL of each scored token of 1-D ``ids``, (N,), in nats: the network's own, and the mixture's.

        Raises:
            ValueError: as ``training.token_nll`` does.
        """
        T = self.network.config.context
        alone = token_nll(self.network, ids, evaluation)
        known = Counted(*(evaluation.of(values, T) for values in of_counts(self.counts, ids)))
        return alone, self.gate.nll(known.features, known.beside(alone))
