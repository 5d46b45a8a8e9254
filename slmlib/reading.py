"""Models that go on learning from the text they read, part by part: each part is predicted first and learnt after that.

For networks this is dynamic evaluation (Mikolov et al., 2010; Krause et al., 2018), for counts an adaptive model, as
compression has them. Shapes: N tokens are scored.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from .checks import number
from .corpora import Corpus
from .mixing import ORDERS, Counted, of_counts
from .models import n_parameters
from .ngrams import of_beginnings
from .speed import dropping_by, fast_matmul
from .training import TrainingConfig, _loss, token_nll
from .windows import Evaluation, Windows, random_stream

#: How many tokens a part has, how often a network goes over one once it has predicted it, and by which of AdamW's
#: rates, among which validation chooses.
PART, PASSES, RATES = 7_000, 3, (1e-4, 3e-4, 1e-3)


def parts(evaluation: Evaluation, tokens: int, context: int) -> Iterator[tuple[int, int, int]]:
    """Where the parts of a split begin, which token of each is scored first, and where they end.

    The first begins at the first token that is scored.
    """
    scored = evaluation.scored(tokens, context)
    for begin in range(scored.start, scored.stop, PART):
        yield begin, begin + (scored.start - begin) % scored.step, min(begin + PART, scored.stop)


def read_on(
    model: nn.Module, ids: Tensor, evaluation: Evaluation, training: TrainingConfig, rate: float, seed: int = 0
) -> Tensor:
    """NLL of the scored tokens of 1-D ``ids``, (N,), under a copy of the model that learns each part it has predicted.

    AdamW learns it at a constant ``rate``, in batches and at positions as ``training`` has them: of every window of a
    part if the last position is scored, else of windows one after the other, from another offset in each pass.

    Raises:
        ValueError: as ``training.token_nll`` does, and for a rate that is not positive.
    """
    T, model = model.config.context, deepcopy(model).requires_grad_()
    optimiser = torch.optim.AdamW(model.parameters(), lr=number("rate", rate, positive=True), weight_decay=0.0)
    windows, order, losses = Windows(ids, T), random_stream(seed, "reading"), []
    apart = 1 if training.scored == "last" else T
    for begin, first, end in parts(evaluation, len(ids), T):
        if first < end:
            losses.append(token_nll(model, ids[:end], Evaluation(None, evaluation.stride, first)))
        model.train()
        with dropping_by(order), fast_matmul(ids.device, n_parameters(model).total * training.batch):
            for _ in range(PASSES):
                offset = torch.randint(apart, (1,), generator=order).item()
                starts = torch.arange(begin - T + offset, end - T, apart)
                for chosen in starts[torch.randperm(len(starts), generator=order)].split(training.batch):
                    loss = _loss(model, windows.whole(chosen), training.scored)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
    return torch.cat(losses)


def losses(model: nn.Module, corpus: Corpus, training: TrainingConfig) -> dict[str, Tensor]:
    """By the rate of ``RATES`` that validation chooses: NLL of each token of "valid, read on" and "whole, read on".

    And that "rate" itself, (1,).
    """
    tried = {rate: read_on(model, corpus.valid, training.validation, training, rate) for rate in RATES}
    rate = min(tried, key=lambda rate: tried[rate].mean().item())
    whole = read_on(model, corpus.test, training.whole_test, training, rate)
    return {"valid, read on": tried[rate], "whole, read on": whole, "rate": torch.tensor([rate])}


def read(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of what a store keeps of a run, what ``losses`` gave, under the names of a frozen model's: "valid", "whole"."""
    return {name: kept[f"{name}, read on"] for name in ("valid", "whole")}


def counted(corpus: Corpus, training: TrainingConfig, context: int, orders: Sequence[int] = ()) -> dict[str, Counted]:
    """As ``mixing.counted``, of counts that take in each part once they have predicted it: "valid" and "whole".

    They begin with those of the train split; what they read of one split they have not read of the other. Their
    orders are those of ``mixing.ORDERS`` if none are given.
    """
    orders, V = orders or ORDERS[corpus.vocabulary.unit], len(corpus.vocabulary)
    before = max(orders)  # so many tokens are looked back at
    there = {}
    for name, ids, look in (("valid", corpus.valid, training.validation), ("whole", corpus.test, training.whole_test)):
        start, pieces = look.scored(len(ids), context).start, [*parts(look, len(ids), context)]
        known = [len(corpus.train) + begin - start for begin, *_ in pieces]
        models = of_beginnings(orders, V, torch.cat((corpus.train, ids[start:])), known)
        of = [
            [x[before + first - begin :: look.stride] for x in of_counts([*m.values()], ids[begin - before : end])]
            for (begin, first, end), m in zip(pieces, models, strict=True)
        ]
        there[name] = Counted(*map(torch.cat, zip(*of, strict=True)))
    return there
