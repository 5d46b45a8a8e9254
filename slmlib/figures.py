"""Every matplotlib figure of the book, in one style: colour-blind safe, readable on light and dark pages."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import matplotlib.ticker as ticker
import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from .training import History

GREY = "#7d7d7d"  # contrast of about 4 : 1 on white and on the theme's dark page alike

#: A colour and a marker a model, from Okabe and Ito's palette, those that stand out on both pages.
MODELS = {
    "Linear": ("#D55E00", "o"),
    "MLP": ("#0079BD", "s"),
    "Self-attention": ("#009E73", "^"),
    "Transformer": ("#CC79A7", "D"),
}
_SPARE = [("#9467D9", "o"), ("#B58500", "s"), ("#5F8F00", "v"), *MODELS.values()]

STYLE = {
    "figure.figsize": (5.8, 3.7),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.bbox": "tight",
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "slmlib",  # the same figure, the same bytes
}


def use_style() -> None:
    """Make the book's style the default of this process; in a notebook, draw as SVG."""
    plt.rcParams.update(STYLE)
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        get_ipython()  # a NameError outside a notebook
    except (ImportError, NameError):
        return
    set_matplotlib_formats("svg")


def _looks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by label: the model's own where the label names one, else the next spare pair."""
    known = {label: MODELS[label] for label in labels if label in MODELS}
    spare = (pair for pair in _SPARE if pair[0] not in {colour for colour, _ in known.values()})
    return {label: known.get(label) or next(spare) for label in labels}


def _yardsticks(ax: plt.Axes, yardsticks: Mapping[str, float] | None) -> None:
    for name, nll in (yardsticks or {}).items():
        ax.axhline(nll, color=GREY, lw=1, ls=(0, (1, 2)))
        ax.annotate(name, (0, nll), (3, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                    ha="left", va="bottom", fontsize=9)  # fmt: skip


def loss_curves(
    histories: Mapping[str, History], windows_per_epoch: int, yardsticks: Mapping[str, float] | None = None
) -> Figure:
    """Training loss (solid, a running mean) and validation loss (dashed, after each epoch) against windows seen.

    Args:
        histories: by label; models keep their colour throughout the book.
        windows_per_epoch: the same for all of them.
        yardsticks: name -> NLL, drawn as dotted lines.
    """
    fig, ax = plt.subplots()
    looks = _looks(list(histories))
    for label, history in histories.items():
        colour, marker = looks[label]
        epochs, steps = len(history.valid), len(history.step_losses)
        span = max(1, steps // 15)
        smooth = np.convolve(history.step_losses, np.ones(span) / span, mode="valid")
        x = (np.arange(len(smooth)) + (span + 1) / 2) * epochs * windows_per_epoch / steps
        ax.plot(x, smooth, color=colour, lw=1.4, label=label)
        ax.plot(np.arange(1, epochs + 1) * windows_per_epoch, history.valid, color=colour, ls="--", marker=marker)
    _yardsticks(ax, yardsticks)
    ax.set(xlabel="training windows seen", ylabel="NLL, nats a token")
    ax.plot([], [], color=GREY, lw=1.4, label="training")
    ax.plot([], [], color=GREY, ls="--", label="validation")
    ax.legend()
    return fig


def loss_against(
    series: Mapping[str, Mapping[float, float]],
    xlabel: str,
    log: bool = True,
    yardsticks: Mapping[str, float] | None = None,
    ylabel: str = "test NLL, nats a token",
) -> Figure:
    """Loss against a hyper-parameter: one line a series, ``{label: {value: NLL}}``; each value gets its tick."""
    fig, ax = plt.subplots()
    for label, (colour, marker) in _looks(list(series)).items():
        points = sorted(series[label].items())
        ax.plot(*zip(*points, strict=True), color=colour, marker=marker, label=label)
    if log:
        ax.set_xscale("log", base=2)
    ticks = sorted({x for points in series.values() for x in points})
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    ax.minorticks_off()
    _yardsticks(ax, yardsticks)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(series) > 1:
        ax.legend()
    return fig


def loss_against_cost(
    points: Mapping[str, Mapping[str, tuple[float, float]]],
    xlabel: str,
    yardsticks: Mapping[str, float] | None = None,
) -> Figure:
    """Loss against a cost on a log axis, parameters or FLOPs: ``{model: {source: (cost, NLL)}}``.

    The first source is drawn filled, the second hollow (this run and the paper's figure, say).
    """
    fig, ax = plt.subplots()
    sources: list[str] = []
    for i, (label, (colour, marker)) in enumerate(_looks(list(points)).items()):
        for source, (cost, nll) in points[label].items():
            if source not in sources:
                sources.append(source)
            face = colour if source == sources[0] else "none"
            ax.plot(cost, nll, marker, ms=9, mec=colour, mfc=face, mew=1.6)
        cost, nll = next(iter(points[label].values()))
        ax.annotate(label, (cost, nll), (0, (8, -18)[i % 2]), textcoords="offset points", ha="center", color=colour)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))  # 200k, 1M, 2T
    ax.minorticks_off()
    ax.margins(x=0.15, y=0.15)
    _yardsticks(ax, yardsticks)
    for source in sources:
        face = GREY if source == sources[0] else "none"
        ax.plot([], [], "o", ms=8, mec=GREY, mfc=face, mew=1.6, label=source)
    ax.set(xlabel=xlabel, ylabel="test NLL, nats a token")
    if len(sources) > 1:
        ax.legend()
    return fig


def dots(values: Mapping[str, Sequence[float]], xlabel: str, reference: str | None = None) -> Figure:
    """A row a name: the mean over seeds with its 95 % interval (Student's t); a dotted line at ``reference``.

    Args:
        values: by name, one value a seed, at least two each.
    """
    fig, ax = plt.subplots(figsize=(5.8, 0.36 * len(values) + 1))
    for row, (name, seeds) in enumerate(values.items()):
        mean, half = float(np.mean(seeds)), interval(seeds)
        colour = MODELS["Transformer" if name == reference else "MLP"][0]
        ax.errorbar(mean, row, xerr=half, fmt="o", color=colour, ms=7, capsize=3, elinewidth=1.4)
        ax.annotate(f"{mean:.2f}", (mean + half, row), (6, 0), textcoords="offset points", va="center", fontsize=10)
        if name == reference:
            ax.axvline(mean, color=GREY, lw=1, ls=(0, (1, 2)))
    ax.set_yticks(range(len(values)), list(values))
    ax.invert_yaxis()
    ax.margins(x=0.14)
    ax.set(xlabel=xlabel)
    return fig


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of a mean, by Student's t; needs two values or more."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def attention_rows(weights: Tensor, rows: Sequence[str]) -> Figure:
    """Where the scored position looks: one picture a head, one row a window, brighter is more.

    Args:
        weights: attention of the last position, (H, n, t): heads, windows, the t last positions looked at.
        rows: a label for each of the n windows; newlines and spaces are made visible.
    """
    heads, n, t = weights.shape
    fig, axes = plt.subplots(1, heads, figsize=(1.25 * heads + 1, 0.2 * n + 1), squeeze=False)
    for h, ax in enumerate(axes[0]):
        ax.imshow(weights[h].numpy(), cmap="viridis", vmin=0, vmax=float(weights.max()), aspect="auto",
                  extent=(-t + 0.5, 0.5, n - 0.5, -0.5))  # fmt: skip
        ax.set_title(f"head {h + 1}", fontsize=10, color=GREY)
        names = [row.replace("\n", "↵").replace(" ", "·") for row in rows]
        ax.set_yticks(range(n), names if h == 0 else [], fontsize=10, family="monospace")
        ax.grid(False)
        ax.tick_params(length=0)
    fig.supxlabel("position, counted back from the last", fontsize=10, color=GREY)
    return fig
