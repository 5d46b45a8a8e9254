"""Training windows, T tokens and the token that follows them, and which tokens of a split a loss is taken on.

Shapes: B batch, T context, N windows.
"""

import hashlib
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import Checked, integer, plain, short


def random_stream(seed: int, purpose: str) -> torch.Generator:
    """A CPU random generator for one purpose ("windows", "dropout", …) of one seed.

    Different purposes of the same seed give unrelated streams, so that, say, adding a dropout layer
    does not change which windows a run draws.
    """
    digest = hashlib.sha256(f"{purpose}:{operator.index(seed)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


class Windows:
    """All windows of stride 1 of a 1-D id tensor, as a view: nothing is copied until windows are gathered.

    ``windows[starts]`` gathers a batch in one call and returns inputs (B, T) and targets (B,), where
    ``starts`` is a 1-D int64 tensor or a slice. ``len(windows)`` is N = len(ids) - T, one more than the paper
    counts in its word-level runs, which leave the last window out.

    Raises:
        ValueError: if ``ids`` is not 1-D or holds no whole window.
    """

    def __init__(self, ids: Tensor, context: int):
        if ids.dim() != 1:
            raise ValueError(f"ids must be 1-D, got shape {tuple(ids.shape)}")
        if not 1 <= context < len(ids):
            raise ValueError(
                f"context {context} does not fit {len(ids)} tokens: a window needs context + 1 of them; "
                "choose a context from 1 to len(ids) - 1"
            )
        self.view = ids.unfold(0, context + 1, 1)  # (N, T + 1)

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, starts: Tensor | slice) -> tuple[Tensor, Tensor]:
        batch = self.whole(starts)
        return batch[:, :-1], batch[:, -1]

    def whole(self, starts: Tensor | slice) -> Tensor:
        """The windows, each with the token that follows it: (B, T + 1)."""
        try:
            return self.view[starts] if isinstance(starts, slice) else self.view.index_select(0, starts)
        except (IndexError, RuntimeError, ValueError) as error:
            raise ValueError(f"starts must be integers from 0 to {len(self) - 1}, got {short(starts)}") from error

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` window starts, uniform and with replacement: (count,) int64 on the generator's device."""
        return torch.randint(len(self), (integer("count", count, 0),), generator=generator, device=generator.device)


@dataclass(frozen=True)
class Evaluation(Checked):
    """Which tokens of a split a loss is taken on: the same object for networks and for counting models.

    Raises:
        ValueError: for a field that is not a positive integer or None; names it.
    """

    windows: int | None  # so many tokens in a row, each the target of one window; None: up to the split's end
    stride: int = 1  # and of these every stride-th: the same text, at less cost
    first: int | None = None  # the number of the first, from 0, whatever the context; None: the first after it

    def scored(self, tokens: int, context: int, split: str = "split") -> range:
        """The numbers of the scored tokens in a split of so many, each with ``context`` tokens before it.

        Raises:
            ValueError: if ``first`` lies within the context or beyond the end, or if there are fewer windows than asked
                for; names the split.
        """
        first = integer("context", context, 0) if self.first is None else self.first
        split = plain(split)
        there, wanted = tokens - first, f"the first token scored is {first}, but"
        if first < context:
            raise ValueError(f"the {split}: {wanted} a context of {context} tokens comes before it")
        if there < 1:
            raise ValueError(f"the {split}: {wanted} there are {tokens}, numbered from 0")
        if self.windows is not None and self.windows > there:
            raise ValueError(f"the {split}: {self.windows} windows are asked for (eval_windows), but it holds {there}")
        return range(first, first + (self.windows or there), self.stride)

    def mean(self, nll: Tensor, context: int = 0) -> float:
        """The mean of ``of``: of a counting model's NLL, (tokens,), one value for each of the split."""
        return self.of(nll, context).mean().item()

    def of(self, nll: Tensor, context: int = 0) -> Tensor:
        """The scored ones of values for each token of a split, (tokens,).

        Raises:
            ValueError: as ``scored`` does.
        """
        scored = self.scored(len(nll), context)
        return nll[scored.start : scored.stop : scored.step]


WHOLE = Evaluation(None)  # every token of a split that has a whole context before it
