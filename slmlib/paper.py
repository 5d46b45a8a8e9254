"""The paper's runs as it reports them: S. S. Bhatti, arXiv 2512.20877 (2025).

Configurations are read off the paper and its public notebook; parameters, FLOPs and test NLL are its
own figures, one seed each. Its FLOP figure is 2 · parameters · T · windows · epochs for every architecture.
"""

from dataclasses import dataclass

from .models import Config, LinearConfig, MLPConfig, TransformerConfig
from .training import TrainingConfig


@dataclass(frozen=True)
class PaperRun:
    """One of the paper's runs and what it reports of it."""

    group: str  # main, context, width, heads, depth, rope or words
    label: str  # unique
    corpus: str
    model: Config
    training: TrainingConfig
    params: int
    reported_flops: float
    test_nll: float  # nats a token, on the first training.eval_windows windows of the test split


_MAIN3 = TrainingConfig(epochs=3)
_MAIN4 = TrainingConfig(epochs=4)
_SWEEP = TrainingConfig(epochs=2, windows_per_epoch=30_000, eval_windows=5_000)
_ROPE = TrainingConfig(epochs=8)
_WORDS = TrainingConfig(epochs=8, windows_per_epoch=79_935, eval_windows=19_935, batch=32)

#: How much of each split the paper's word-level runs read.
WORD_CAP = {"train": 80_000, "valid": 20_000, "test": 20_000}


def _attention(heads: int) -> TransformerConfig:
    return TransformerConfig(layers=1, ff_width=512, heads=heads)


def _rope_pair(positions: str) -> TransformerConfig:
    return TransformerConfig(norm="pre", positions=positions, dropout_site="residual", qkv_init="linear")


_SHAKESPEARE = [
    ("main", "Linear", LinearConfig(), _MAIN3, 1_073_345, 4.12e13, 3.0549),
    ("main", "MLP", MLPConfig(), _MAIN3, 4_285_377, 1.65e14, 2.3222),
    ("main", "Self-attention", _attention(heads=4), _MAIN4, 231_617, 1.19e13, 2.1335),
    ("main", "Transformer", TransformerConfig(), _MAIN4, 430_785, 2.21e13, 2.0058),
    ("context", "Linear T=32", LinearConfig(context=32), _SWEEP, 274_625, 1.05e12, 2.5135),
    ("context", "Linear T=64", LinearConfig(context=64), _SWEEP, 540_865, 4.15e12, 2.7006),
    ("context", "Linear T=128", LinearConfig(), _SWEEP, 1_073_345, 1.65e13, 3.0496),
    ("width", "MLP h=128", MLPConfig(hidden=128), _SWEEP, 2_130_497, 3.27e13, 2.5482),
    ("width", "MLP h=256", MLPConfig(), _SWEEP, 4_285_377, 6.58e13, 2.5115),
    ("width", "MLP h=512", MLPConfig(hidden=512), _SWEEP, 8_693_441, 1.34e14, 2.5002),
    ("heads", "Self-attention H=1", _attention(heads=1), _SWEEP, 231_617, 3.56e12, 2.3482),
    ("heads", "Self-attention H=2", _attention(heads=2), _SWEEP, 231_617, 3.56e12, 2.4033),
    ("heads", "Self-attention H=4", _attention(heads=4), _SWEEP, 231_617, 3.56e12, 2.3055),
    ("depth", "Transformer L=2", TransformerConfig(layers=2), _SWEEP, 298_305, 4.58e12, 2.3034),
    ("depth", "Transformer L=3", TransformerConfig(), _SWEEP, 430_785, 6.62e12, 2.2795),
    ("depth", "Transformer L=4", TransformerConfig(layers=4), _SWEEP, 563_265, 8.65e12, 2.3078),
    ("rope", "Learned positions", _rope_pair("learned"), _ROPE, 430_785, 2.21e13, 1.9738),
    ("rope", "RoPE", _rope_pair("rope"), _ROPE, 414_401, 2.12e13, 2.0096),
]
_WORD_RUNS = [
    ("Penn Treebank", "ptb", 2_975_631, 2.44e14, 6.1896),
    ("WikiText-2", "wikitext-2", 8_958_077, 7.33e14, 6.8875),
]

#: All 20 runs, in the paper's order.
RUNS: tuple[PaperRun, ...] = (
    *(PaperRun(group, label, "tiny_shakespeare", *rest) for group, label, *rest in _SHAKESPEARE),
    *(PaperRun("words", name, key, TransformerConfig(context=64), _WORDS, *rest) for name, key, *rest in _WORD_RUNS),
)


def run(label: str) -> PaperRun:
    """The paper's run of that label.

    Raises:
        KeyError: for an unknown label; lists the labels there are.
    """
    for r in RUNS:
        if r.label == label:
            return r
    raise KeyError(f"no run is labelled {label!r}; there are {', '.join(r.label for r in RUNS)}")
