"""Training and evaluation windows: T tokens and the token that follows them, cut from one id tensor.

Shapes: B batch, T context, N windows.
"""

import hashlib
import operator

import torch
from torch import Tensor


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
        batch = self.view[starts]
        return batch[:, :-1], batch[:, -1]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` window starts, uniform and with replacement: (count,) int64 on the generator's device."""
        return torch.randint(len(self), (count,), generator=generator, device=generator.device)
