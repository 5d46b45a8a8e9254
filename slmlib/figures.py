"""Every matplotlib figure of the book, in one style: colour-blind safe, readable on light and dark pages."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import matplotlib.ticker as ticker
import numpy as np
from IPython import get_ipython
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from scipy import stats
from torch import Tensor

from .paper import AGREE
from .training import History

GREY = "#7d7d7d"  # contrast of about 4 : 1 on white and on the theme's dark page alike

#: A colour and a marker a model, from Okabe and Ito's palette, those that stand out on both pages.
MODELS = {
    "Linear": ("#D55E00", "o"),
    "MLP": ("#0079BD", "s"),
    "Self-attention": ("#009E73", "^"),
    "Transformer": ("#CC79A7", "D"),
    "Every position": ("#9467D9", "v"),
}
_SPARE = [("#9467D9", "o"), ("#B58500", "s"), ("#5F8F00", "v"), *list(MODELS.values())[:4]]

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
    """Make the book's style the default of this process, whatever the reader's own; in a notebook, show figures.

    As SVG for pages, and as PNG for notebooks that were downloaded: JupyterLab shows no SVG of those.
    """
    plt.rcdefaults()
    plt.rcParams.update(STYLE)
    shell = get_ipython()
    if getattr(shell, "kernel", None) is not None:
        shell.run_line_magic("matplotlib", "inline")  # MPLBACKEND may say something else
        set_matplotlib_formats("svg", "png")


def _looks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by label: the model's own where the label names one, else the next spare pair."""
    known = {label: MODELS[label] for label in labels if label in MODELS}
    spare = [pair for pair in _SPARE if pair[0] not in {colour for colour, _ in known.values()}]
    unknown = [label for label in labels if label not in known]
    if len(unknown) > len(spare):
        raise ValueError(f"{len(labels)} series and {len(known) + len(spare)} colours to tell them apart: draw fewer")
    looks = known | dict(zip(unknown, spare, strict=False))
    return {label: looks[label] for label in labels}


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
    ax.set(xlabel="training windows seen", ylabel="NLL, nats per token")
    ax.plot([], [], color=GREY, lw=1.4, label="training")
    ax.plot([], [], color=GREY, ls="--", label="validation")
    ax.legend()
    return fig


def _cost_axis(ax: plt.Axes) -> None:
    """A logarithmic x-axis with round ticks."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))  # 200k, 1M, 2T
    ax.minorticks_off()


def loss_against(
    series: Mapping[str, Mapping[float, float | Sequence[float]]],
    xlabel: str,
    log: bool = True,
    yardsticks: Mapping[str, float] | None = None,
    reported: Mapping[float, float] | None = None,
    ylabel: str = "test NLL, nats per token",
) -> Figure:
    """Loss against a hyper-parameter or a cost: one line a series, ``{label: {value: NLL}}``.

    Each value gets its tick, up to ten of them.

    Where there is a list of NLLs, one per seed, each seed is a small dot, and the line goes through the means, with
    95 % intervals (Student's t) from two seeds up. ``reported`` adds the paper's figures as hollow grey markers.
    """
    fig, ax = plt.subplots()
    for label, (colour, marker) in _looks(list(series)).items():
        points = {x: np.atleast_1d(y) for x, y in sorted(series[label].items()) if np.size(y)}
        for x, seeds in points.items():
            if len(seeds) > 1:
                ax.plot([x] * len(seeds), seeds, ".", color=colour, ms=4, alpha=0.6)
        half = [interval(seeds) if len(seeds) > 1 else 0.0 for seeds in points.values()]
        ax.errorbar(list(points), [y.mean() for y in points.values()], half if any(half) else None, color=colour,
                    marker=marker, label=label, capsize=3, elinewidth=1.4)  # fmt: skip
    if reported:
        ax.plot(*zip(*sorted(reported.items()), strict=True), "o", ms=9, mec=GREY, mfc="none", mew=1.6, label="paper")
    ticks = sorted({x for points in series.values() for x in points})
    if len(ticks) <= 10:
        if log:
            ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    elif log:
        _cost_axis(ax)
    else:
        ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.minorticks_off()
    _yardsticks(ax, yardsticks)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(series) > 1 or reported:
        ax.legend(ncols=1 if len(series) < 4 else 2)
    return fig


_FILLS = ("full", "none", "left")


def loss_against_cost(
    points: Mapping[str, Mapping[str, tuple[float, float]]],
    xlabel: str,
    yardsticks: Mapping[str, float] | None = None,
) -> Figure:
    """Loss against a cost on a log axis, parameters or FLOPs: ``{model: {source: (cost, NLL)}}``.

    The first source is drawn filled, the second hollow (this run and the paper's figure, say), a third half filled;
    a thin line joins those of one model.
    """
    fig, ax = plt.subplots()
    sources: list[str] = []
    for i, (label, (colour, marker)) in enumerate(_looks(list(points)).items()):
        for source, (cost, nll) in points[label].items():
            if source not in sources:
                sources.append(source)
            fill = _FILLS[sources.index(source)]
            ax.plot(cost, nll, marker, ms=9, color=colour, fillstyle=fill, markerfacecoloralt="none", mew=1.6)
        ax.plot(*zip(*points[label].values(), strict=True), color=colour, lw=0.8, alpha=0.6, zorder=1)
        cost, nll = next(iter(points[label].values()))
        ax.annotate(label, (cost, nll), (0, (8, -18)[i % 2]), textcoords="offset points", ha="center", color=colour)
    _cost_axis(ax)
    ax.margins(x=0.15, y=0.15)
    _yardsticks(ax, yardsticks)
    for source, fill in zip(sources, _FILLS, strict=False):
        ax.plot([], [], "o", ms=8, color=GREY, fillstyle=fill, markerfacecoloralt="none", mew=1.6, label=source)
    ax.set(xlabel=xlabel, ylabel="test NLL, nats per token")
    if len(sources) > 1:
        ax.legend()
    return fig


def frontier(
    series: Mapping[str, Mapping[float, Sequence[float]]],
    xlabel: str,
    yardsticks: Mapping[str, float] | None = None,
) -> Figure:
    """Test loss against compute on a log axis, a panel per model: means over seeds, 95 % intervals from two seeds up.

    Args:
        series: ``{"MLP T=8": {FLOPs: NLL of each seed}}``; the families of one model share a panel, where each is
            labelled with its context, and are grey in the others.
        xlabel: which FLOPs.
        yardsticks: name -> NLL, drawn as dotted lines.
    """
    models = list(dict.fromkeys(family.rpartition(" ")[0] for family in series))
    rows = -(-len(models) // 2)
    fig, axes = plt.subplots(rows, 2, figsize=(5.8, 2.2 * rows + 0.7), sharex=True, sharey=True, squeeze=False)
    means = {family: [float(np.mean(seeds)) for seeds in points.values()] for family, points in series.items()}
    lowest, highest = min(map(min, means.values())), max(map(max, means.values()))
    for ax, model in zip(axes.flat, models, strict=False):
        colour, marker = MODELS[model]
        ends = []
        for family, points in series.items():
            if family.rpartition(" ")[0] != model:
                ax.plot(list(points), means[family], color=GREY, lw=0.7, alpha=0.35, zorder=1)
                continue
            half = [interval(seeds) if len(seeds) > 1 else 0.0 for seeds in points.values()]
            ax.errorbar(list(points), means[family], half, color=colour, marker=marker, ms=4, lw=1.4, capsize=2,
                        elinewidth=1.2)  # fmt: skip
            ends.append((means[family][-1], max(points), family.rpartition(" ")[2]))
        below = -np.inf
        for y, x, context in sorted(ends):
            below = max(y, below + 0.085 * (highest - lowest))  # labels that would cover each other move up
            ax.annotate(context, (x, below), (6, 0), textcoords="offset points", va="center", fontsize=8, color=colour)
        ax.set_title(model, fontsize=10, color=colour, loc="left")
        ax.set_xscale("log")
        ax.margins(x=0.2)
        _yardsticks(ax, yardsticks)
    if len(models) % 2:  # the last panel is empty, and the one above it ends its column
        axes[-1, 1].remove()
        axes[max(0, rows - 2), 1].tick_params(labelbottom=True)
    fig.supxlabel(xlabel, fontsize=10, color=GREY)
    fig.supylabel("test NLL, nats per token", fontsize=10, color=GREY)
    return fig


def bands(
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]],
    xlabel: str,
    yardsticks: Mapping[str, float] | None = None,
    ylabel: str = "NLL, nats per token",
) -> Figure:
    """Loss against compute as lines with a shaded band, in panels one below the other that share their axes.

    Args:
        panels: ``{panel: {model: (FLOPs, loss, low, high)}}``, arrays (n,) each; NaN where there is nothing.
        xlabel: of all panels.
        yardsticks: name -> NLL, drawn as dotted lines in each.
        ylabel: which loss.
    """
    fig, axes = plt.subplots(len(panels), 1, figsize=(5.8, 2.3 * len(panels) + 0.8), sharex=True, sharey=True,
                             squeeze=False)  # fmt: skip
    for ax, (panel, lines) in zip(axes[:, 0], panels.items(), strict=True):
        for model, (cost, loss, low, high) in lines.items():
            ax.plot(cost, loss, color=MODELS[model][0], label=model)
            ax.fill_between(cost, low, high, color=MODELS[model][0], alpha=0.25, lw=0)
        ax.set_title(panel, fontsize=10, color=GREY, loc="left")
        ax.set(xscale="log", ylabel=ylabel)
        _yardsticks(ax, yardsticks)
    axes[-1, 0].set(xlabel=xlabel)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return fig


def dots(
    values: Mapping[str, Sequence[float]],
    xlabel: str,
    reference: str | None = None,
    reported: Mapping[str, float] | None = None,
) -> Figure:
    """A row a name: the mean over seeds with its 95 % interval (Student's t); a dotted line at ``reference``.

    Args:
        values: by name, one value a seed; a single one gets no interval.
        xlabel: what they are, and their unit.
        reference: a name, whose row is set apart.
        reported: the paper's figures by name, as hollow grey markers.
    """
    fig, ax = plt.subplots(figsize=(5.8, 0.36 * len(values) + 1))
    for row, (name, seeds) in enumerate(values.items()):
        mean, half = float(np.mean(seeds)), interval(seeds) if len(seeds) > 1 else 0.0
        colour = MODELS["Transformer" if name == reference else "MLP"][0]
        ax.errorbar(mean, row, xerr=half, fmt="o", color=colour, ms=7, capsize=3, elinewidth=1.4)
        ax.annotate(f"{mean:.2f}", (mean + half, row), (6, 0), textcoords="offset points", va="center", fontsize=10)
        if name == reference:
            ax.axvline(mean, color=GREY, lw=1, ls=(0, (1, 2)))
        if name in (reported or {}):
            ax.plot(reported[name], row, "o", ms=9, mec=GREY, mfc="none", mew=1.6)
    ax.set_yticks(range(len(values)), list(values))
    ax.invert_yaxis()
    ax.margins(x=0.14)
    ax.set(xlabel=xlabel)
    if reported:
        ax.plot([], [], "o", ms=9, mec=GREY, mfc="none", mew=1.6, label="paper")
        ax.legend()
    return fig


def differences(rows: Mapping[str, Sequence[float]]) -> Figure:
    """A row per run of the paper: each seed's test NLL minus the paper's figure (dots), and their mean (bar).

    Args:
        rows: by label, one difference a seed; a row may be empty. Shaded: what agrees by ``paper.AGREE``, whatever
            its spread.
    """
    fig, ax = plt.subplots(figsize=(5.8, 0.27 * len(rows) + 0.9))
    ax.axvspan(-AGREE, AGREE, color=GREY, alpha=0.18, lw=0)
    ax.axvline(0, color=GREY, lw=1)
    for row, values in enumerate(rows.values()):
        ax.plot(values, [row] * len(values), "o", color=MODELS["MLP"][0], ms=5, alpha=0.6, mew=0)
        if len(values):
            ax.plot(float(np.mean(values)), row, "|", color=MODELS["Linear"][0], ms=12, mew=2.4)
    ax.set_yticks(range(len(rows)), list(rows), fontsize=10)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set(xlabel="our test NLL minus the paper's, nats per token")
    return fig


def effects(rows: Mapping[str, tuple[float, float, float, float | None, bool]]) -> Figure:
    """A row a contrast: the effect and its 95 % interval; hollow: what the paper's single runs give.

    Args:
        rows: by name, (effect, low, high, the paper's or None, told apart from zero), in nats. The axis is linear
            to ±0.1 and logarithmic beyond.
    """
    fig, ax = plt.subplots(figsize=(5.8, 0.36 * len(rows) + 1))
    ax.axvline(0, color=GREY, lw=1)
    for row, (effect, low, high, theirs, told) in enumerate(rows.values()):
        colour = MODELS["MLP" if told else "Linear"][0]
        ax.errorbar(effect, row, xerr=[[effect - low], [high - effect]], fmt="o" if told else "s", color=colour,
                    mfc=colour, ms=6, capsize=3, elinewidth=1.4)  # fmt: skip
        if theirs is not None:
            ax.plot(theirs, row, "D", ms=8, mec=GREY, mfc="none", mew=1.4)
    ax.set_xscale("symlog", linthresh=0.1, linscale=1.0)
    ax.xaxis.set_major_locator(ticker.FixedLocator([-1, -0.1, -0.05, 0, 0.1, 1]))
    ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    ax.minorticks_off()
    ax.set_yticks(range(len(rows)), list(rows), fontsize=10)
    ax.invert_yaxis()
    ax.set(xlabel="effect, nats per token; the claim says: above zero")
    for name, fmt, key in (("told apart from zero", "o", "MLP"), ("not told apart", "s", "Linear")):
        ax.plot([], [], fmt, color=MODELS[key][0], label=name)
    ax.plot([], [], "D", mec=GREY, mfc="none", mew=1.4, label="the paper's runs")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return fig


def stacked(rows: Mapping[str, Mapping[str, float]], xlabel: str, scale: float = 1.0) -> Figure:
    """A bar a row, cut into its components: ``{row: {component: amount}}``, amounts divided by ``scale``."""
    fig, ax = plt.subplots(figsize=(5.8, 0.42 * len(rows) + 1.6))
    components = list(dict.fromkeys(c for parts in rows.values() for c in parts))
    ends = np.zeros(len(rows))
    for component, (colour, _) in _looks(components).items():
        widths = np.array([parts.get(component, 0) / scale for parts in rows.values()])
        ax.barh(range(len(rows)), widths, left=ends, color=colour, label=component, height=0.7)
        ends += widths
    ax.set_yticks(range(len(rows)), list(rows), fontsize=10)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel=xlabel)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return fig


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of a mean, by Student's t; needs two values or more."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def attention_rows(weights: Tensor, rows: Sequence[str]) -> Figure:
    """Where the scored position looks: one picture per head, one row per window, brighter is more.

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
