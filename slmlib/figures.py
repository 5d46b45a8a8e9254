"""Every matplotlib figure of the book, in one style: colour-blind safe, labels beside what they name. Computes nothing.

Figures are dark on white; on the site's dark pages a style sheet turns that round and keeps the hues.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import matplotlib.ticker as ticker
import numpy as np
from IPython import get_ipython
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor

from .stats import Estimate, Lowest, paired
from .training import History

INK, PALE = "#3d3d3d", "#767676"  # text, and what stands back: both at least 4.5 : 1 on the page
WIDTH, SIZE = 4.9, 10  # in inches, and of text in points: 9 pixels high where a phone makes a figure 327 wide

#: A colour and a marker a model, after Okabe and Ito's palette, dark enough to be read as text.
MODELS = {
    "Linear": ("#C24E00", "o"),
    "MLP": ("#0069A8", "s"),
    "Self-attention": ("#007A59", "^"),
    "Transformer": ("#A84F7F", "D"),
    "Every position": ("#7A4FC2", "v"),
}
_SPARE = [MODELS[name] for name in ("MLP", "Linear", "Self-attention", "Every position")]
_SPARE += [("#8A6500", "D"), ("#A84F7F", "P"), (PALE, "X")]
#: The colour of a verdict.
VERDICTS = {"holds": "#0069A8", "does not hold": "#C24E00"}

STYLE = {
    "figure.figsize": (WIDTH, 3.5), "figure.constrained_layout.use": True, "savefig.bbox": "tight",
    "font.size": SIZE, "legend.fontsize": SIZE, "axes.titlesize": SIZE, "figure.labelsize": SIZE,
    "legend.frameon": False, "lines.linewidth": 1.8,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": PALE, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": PALE, "grid.alpha": 0.25,
    "svg.hashsalt": "slmlib",  # the same figure, the same bytes
}  # fmt: skip
NLL = "test NLL, nats per token"


def use_style() -> None:
    """Make the book's style the default of this process, whatever the reader's own; in a notebook, show figures.

    As SVG for pages, and as PNG for notebooks that were downloaded: JupyterLab shows no SVG of those.
    """
    plt.rcdefaults()
    plt.rcParams.update(STYLE)
    shell = get_ipython()
    if getattr(shell, "kernel", None) is not None:
        shell.run_line_magic("matplotlib", "inline")  # MPLBACKEND may say something else
        set_matplotlib_formats("svg", "png", metadata={"Date": None})  # the same run, the same page


def _looks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by label: the model's own where a label is its name up to a comma, else a spare pair."""
    known = {}
    for label in labels:
        pair = MODELS.get(label.partition(",")[0])
        if pair and pair not in known.values():
            known[label] = pair
    taken = {colour for colour, _ in known.values()}
    spare = [pair for pair in _SPARE if pair[0] not in taken]
    if len(labels) - len(known) > len(spare):
        raise ValueError(f"{len(labels)} series and too few colours to tell them apart: draw fewer")
    return {label: known.get(label) or spare.pop(0) for label in labels}


def _label_ends(ax: plt.Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Each line's name beside its right end, moved apart where they would cover each other."""
    low, high = ax.get_ylim()
    below = -np.inf
    for name, (x, y, colour) in sorted(ends.items(), key=lambda item: item[1][1]):
        below = max(y, below + 0.055 * (high - low))
        ax.annotate(name, (x, below), (7, 0), textcoords="offset points", va="center", color=colour,
                    annotation_clip=False)  # fmt: skip


def _scale(ax: plt.Axes, scale: str, ticks: Sequence[float]) -> None:
    """A linear x-axis, one in powers of two with a tick at each value, or one in powers of ten."""
    if scale == "log2":
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    elif scale == "log":
        ax.set_xscale("log")
    elif len(ticks) <= 10:
        ax.set_xticks(ticks, [f"{x:g}" if x < 10_000 else f"{x / 1000:g}k" for x in ticks])
    else:
        ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.minorticks_off()


def lines(
    series: Mapping[str, Mapping[float, float | Sequence[float]]],
    xlabel: str,
    ylabel: str = NLL,
    scale: str = "log2",
    levels: Mapping[str, float] | None = None,
    points: Mapping[str, tuple[float, float]] | None = None,
    reported: Mapping[float, float] | None = None,
    ylim: tuple[float, float] | None = None,
    lowest: Mapping[str, Lowest] | None = None,
) -> Figure:
    """Loss against something, a labelled line a series; where a value has several seeds, through their means.

    Args:
        series: ``{label: {x: NLL or the NLL of each seed}}``, at most five (ValueError); each seed is a dot, bars are
            95 % intervals (Student's t) of three seeds or more.
        scale: of x, ``log2``, ``log`` or ``linear``.
        levels: name -> NLL, drawn as dotted lines.
        points: name -> (x, NLL), hollow; a name that begins with an underscore is not written.
        reported: x -> the paper's figure, hollow, labelled *the paper*.
        lowest: label of a series -> where it is lowest, drawn as a bar over the interval.
    """
    if len(series) > 5:
        raise ValueError(f"{len(series)} lines in one panel cannot be told apart: draw at most five")
    fig, ax = plt.subplots()
    ends = {}
    for label, (colour, marker) in _looks(list(series)).items():
        runs = {x: np.atleast_1d(y) for x, y in sorted(series[label].items()) if np.size(y)}
        for x, seeds in runs.items():
            if len(seeds) > 1:
                ax.plot([x] * len(seeds), seeds, ".", color=colour, ms=4, alpha=0.6)
        half = [(e := paired(seeds)).high - e.effect if len(seeds) > 2 else 0.0 for seeds in runs.values()]
        means = [float(y.mean()) for y in runs.values()]
        ax.errorbar(list(runs), means, half if any(half) else None, color=colour, ms=5, capsize=3, elinewidth=1.2,
                    marker=marker if len(runs) <= 20 else None)  # fmt: skip
        ends[label] = (max(runs), means[-1], colour)
        if low := (lowest or {}).get(label):
            ax.plot([low.low, low.high], [low.loss] * 2, color=colour, lw=5, alpha=0.35, solid_capstyle="butt")
            ax.plot(low.at, low.loss, "|", color=colour, ms=14, mew=2)
    _scale(ax, scale, sorted({x for line in series.values() for x in line}))
    for name, (x, y) in (points or {}).items():
        ax.plot(x, y, "o", ms=7, mec=PALE, mfc="none", mew=1.4)
        if not name.startswith("_"):
            right = ax.transAxes.inverted().transform(ax.transData.transform((x, y)))[0] > 0.5
            ax.annotate(name, (x, y), (-7 if right else 7, 0), textcoords="offset points", va="center",
                        ha="right" if right else "left", color=PALE)  # fmt: skip
    if reported:
        ax.plot(*zip(*sorted(reported.items()), strict=True), "o", ms=9, mec=PALE, mfc="none", mew=1.6)
        x, y = max(reported.items())
        ax.annotate("the paper", (x, y), (7, -9), textcoords="offset points", color=PALE)
    for name, nll in (levels or {}).items():
        ax.axhline(nll, color=PALE, lw=1, ls=(0, (1, 2)))
        ax.annotate(name, (0, nll), (3, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                    va="bottom")  # fmt: skip
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if ylim:
        ax.set_ylim(ylim)
    if len(series) > 1:
        _label_ends(ax, ends)
    return fig


def emblem(
    best: Mapping[str, Mapping[float, Sequence[float]]],
    points: Mapping[str, tuple[float, float]],
    counting: float,
    mixed: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """The book's first figure: what a budget buys, the paper's runs (``screen.emblem``), and what counting gives.

    Args:
        mixed: name -> (x, NLL) of networks mixed with counts, black diamonds.
    """
    hollow = {f"_{label}": point for label, point in points.items()}
    low, high = 1.48 if mixed else 1.55, 2.75
    label = max(points, key=lambda name: (points[name][1] < high, points[name][1]))
    hollow["the paper's runs"] = hollow.pop(f"_{label}")
    levels = {"counting seven characters": counting}
    figure = lines(best, "training FLOPs of the model", scale="log", levels=levels, points=hollow)
    ax = figure.axes[0]
    ax.set(ylim=(low, high), ylabel=f"{NLL}, whole split")
    for name, (x, y) in (mixed or {}).items():
        ax.plot(x, y, "D", color=INK, ms=6)
        left = x > 1e12  # towards the middle
        ax.annotate(name, (x, y), (-8 if left else 8, 0), textcoords="offset points", va="center",
                    ha="right" if left else "left")  # fmt: skip
    return figure


def curves(histories: Mapping[str, History], windows_per_epoch: int) -> Figure:
    """Training loss (solid, a running mean) and validation loss (dashed) by windows seen."""
    fig, ax = plt.subplots()
    ends = {}
    for label, (colour, marker) in _looks(list(histories)).items():
        history = histories[label]
        epochs, steps = len(history.valid), len(history.step_losses)
        span = max(1, steps // 15)
        smooth = np.convolve(history.step_losses, np.ones(span) / span, mode="valid")
        x = (np.arange(len(smooth)) + (span + 1) / 2) * epochs * windows_per_epoch / steps
        ax.plot(x, smooth, color=colour, lw=1.4)
        ax.plot(np.arange(1, epochs + 1) * windows_per_epoch, history.valid, color=colour, ls="--", marker=marker)
        ends[label] = (epochs * windows_per_epoch, history.valid[-1], colour)
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.set(xlabel="training windows seen", ylabel="NLL, nats per token")
    _label_ends(ax, ends)
    ax.plot([], [], color=PALE, lw=1.4, label="training")
    ax.plot([], [], color=PALE, ls="--", label="validation")
    ax.legend()
    return fig


def rows(
    values: Mapping[str, Sequence[float] | Estimate],
    xlabel: str,
    reported: Mapping[str, float] | None = None,
    words: Mapping[str, str] | None = None,
    zero: bool = False,
    band: float = 0.0,
) -> Figure:
    """A row a name: each seed a dot, their mean and its 95 % interval; or an estimate and its interval.

    Args:
        reported: the paper's figures by name, hollow.
        words: by name a verdict, which colours the row: blue if the claim holds, orange if not, else grey. The axis is
            then linear to ±0.1 and logarithmic beyond, for values that differ hundredfold.
        zero, band: draw a line at zero; shade so much on both sides of it.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 0.3 * len(values) + 1))
    if zero:
        ax.axvline(0, color=PALE, lw=1)
    if band:
        ax.axvspan(-band, band, color=PALE, alpha=0.18, lw=0)
    for row, (name, some) in enumerate(values.items()):
        colour = MODELS["MLP"][0] if words is None else VERDICTS.get(words[name], PALE)
        if not isinstance(some, Estimate):
            ax.plot(some, [row] * len(some), ".", color=PALE, ms=5)
            some = paired(some) or Estimate(*[float(some[0])] * 3, 1.0, 1, 0.0, 0)
        ax.errorbar(some.effect, row, xerr=[[some.effect - some.low], [some.high - some.effect]], fmt="o",
                    color=colour, ms=6, capsize=3, elinewidth=1.4)  # fmt: skip
        if name in (reported or {}):
            ax.plot(reported[name], row, "D", ms=8, mec=INK, mfc="none", mew=1.3)
    if words is not None:
        ax.set_xscale("symlog", linthresh=0.1, linscale=1.0)
        ax.xaxis.set_major_locator(ticker.FixedLocator([-1, -0.3, -0.1, 0, 0.1, 0.3, 1]))
        ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        ax.minorticks_off()
        for word, colour in (*VERDICTS.items(), ("not significant", PALE)):
            ax.plot([], [], "o", color=colour, label=word)
    else:
        ax.locator_params(axis="x", nbins=6)
    if reported:
        ax.plot([], [], "D", mec=INK, mfc="none", mew=1.3, label="the paper's runs")
    if words is not None or reported:
        fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set_xlabel(xlabel, loc="right")  # which may be wider than the axis
    return fig


def waterfall(losses: Mapping[str, Sequence[float]], effects: Mapping[str, Estimate], xlabel: str) -> Figure:
    """A bar a change, from the loss before it to the loss after it, its end with a 95 % interval; each seed a dot.

    Args:
        losses: by change, in their order, those of each seed; the first is where it begins.
        effects: of each but the first how much it lowers the loss: blue if it does significantly, orange if it raises
            it, else grey.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 0.3 * len(losses) + 1))
    before = None
    for row, (name, seeds) in enumerate(losses.items()):
        after, sign = float(np.mean(seeds)), effects[name].sign if before is not None else 0
        colour = {1: VERDICTS["holds"], 0: PALE, -1: VERDICTS["does not hold"]}[sign]
        if before is not None:
            ax.barh(row, after - before, left=before, color=colour, height=0.6, alpha=0.85)
            ax.plot([before - effects[name].high, before - effects[name].low], [row, row], color=INK, lw=1.2)
        ax.plot(seeds, [row] * len(seeds), ".", color=INK, ms=4)
        before = after
    ax.set_yticks(range(len(losses)), list(losses))
    ax.set_ylim(len(losses) - 0.5, -0.5)
    ax.set_xlabel(xlabel, loc="right")
    return fig


def stacked(bars: Mapping[str, Mapping[str, float]], xlabel: str, scale: float = 1.0) -> Figure:
    """A bar a row, cut into its components: ``{row: {component: amount}}``, amounts divided by ``scale``."""
    fig, ax = plt.subplots(figsize=(WIDTH, 0.42 * len(bars) + 1.6))
    components = list(dict.fromkeys(c for parts in bars.values() for c in parts))
    ends = np.zeros(len(bars))
    for component, (colour, _) in _looks(components).items():
        widths = np.array([parts.get(component, 0) / scale for parts in bars.values()])
        ax.barh(range(len(bars)), widths, left=ends, color=colour, label=component, height=0.7)
        ends += widths
    ax.set_yticks(range(len(bars)), list(bars))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel=xlabel)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def attention_rows(weights: Tensor, names: Sequence[str]) -> Figure:
    """Where the last, scored position looks: one picture per head, one row per window, brighter is more.

    Args:
        weights: its attention, (H, n, t): heads, windows, the t last positions looked at.
        names: a label for each of the n windows; newlines and spaces are made visible.
    """
    heads, n, t = weights.shape
    fig, axes = plt.subplots(1, heads, figsize=(WIDTH, 0.2 * n + 1), squeeze=False)
    visible = [name.replace("\n", "↵").replace(" ", "·") for name in names]
    for h, ax in enumerate(axes[0]):
        ax.imshow(weights[h].numpy(), cmap="viridis", vmin=0, vmax=float(weights.max()), aspect="auto",
                  extent=(-t + 0.5, 0.5, n - 0.5, -0.5))  # fmt: skip
        ax.set_title(f"head {h + 1}")
        ax.set_yticks(range(n), visible if h == 0 else [], family="monospace", parse_math=False)
        ax.grid(False)
        ax.tick_params(length=0)
    fig.supxlabel("position, counted back from the last")
    return fig
