"""Explorers: what a reader moves. Each is one output with two lives.

On a page without a kernel it is HTML, whose frames ``assets/explore.js`` switches; in JupyterLab and Colab the same
frames come from ipywidgets, live, and follow the reader's own prompt where there is one.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import count, product
from math import log10
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, NamedTuple

import ipywidgets
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import paper, recipes, studies, tryout
from .corpora import Corpus, CorpusUnavailable, Vocabulary, load_corpus
from .experiments import RESULTS, Experiment, Record, Store, trained
from .flops import Ledger, Scored, as_text, forward_flops
from .models import MLP, Config, MLPConfig, Transformer, TransformerConfig, build, generate, n_parameters
from .ngrams import KneserNey, of_orders
from .training import Run, TrainingConfig, epochs, evaluate
from .verdicts import CLAIMS, Evidence, judge
from .windows import Evaluation, random_stream

#: What a page has in its style sheet, for a widget.
_STYLE = """<style>
.explore .bar { background: #0069a8; display: block; height: 0.9em; min-width: 1px; }
.explore .bars { width: 40em; max-width: 100%; } .explore .bars td:nth-child(2) { width: 65%; }
.explore .bars th { font-weight: normal; text-align: left; } .explore .looked { font-family: monospace; }
.explore .side { display: grid; grid-template-columns: repeat(auto-fill, minmax(13em, 1fr)); }
.explore .looked span { background: rgb(0 105 168 / calc(var(--w) * 0.85)); } .explore .here { outline: 2px solid; }
.explore svg { max-width: 30em; } .explore svg text { fill: currentColor; font-size: 12px; }
.explore polyline { fill: none; stroke: #c24e00; stroke-width: 2; } .explore polyline.line0 { stroke: #0069a8; }
.explore svg path { stroke: currentColor; } .explore svg .level { stroke-dasharray: 2 4; }
</style>"""


class Control(NamedTuple):
    """What is moved: a slider, a list, a slider that plays, a button that goes on; it stands at an option's number."""

    label: str
    options: Sequence[str]
    start: int = 0
    kind: Literal["slider", "list", "play", "draw"] = "slider"


@dataclass
class Explorer:
    """Controls and the frame, as HTML, of where they stand; shown as the last line of a cell."""

    name: str  # of ``data-explorer``
    caption: str  # what there is to be seen, in words: it stands below
    controls: Sequence[Control]  # in the order of ``frame``'s arguments
    frame: Callable[..., str]  # the number of each control's option -> HTML; with ``own``, also what the reader typed
    own: str | None = None  # the label of a text field that a kernel adds
    data: Any = None  # what the page's script draws from where frames for all options would be too many
    more: str = ""  # HTML below the frame that a script of its own knows

    def page(self) -> str:
        """The HTML for a page without a kernel: the first frame, and the others as inert templates."""
        start = tuple(control.start for control in self.controls)
        if self.data is None:
            every = product(*(range(len(control.options)) for control in self.controls))
            frames = {at: self.frame(*at) for at in every}
            more = "".join(f'<template data-at="{",".join(map(str, at))}">{of}</template>' for at, of in frames.items())
        else:
            frames = {start: self.frame(*start)}
            text = json.dumps(self.data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
            more = f'<script type="application/json">{text}</script>'
        return (
            f'<div class="explore" data-explorer="{escape(self.name)}" role="group" '
            f'aria-label="{escape(self.caption)}">'
            f'<div class="controls" hidden>{"".join(map(_control, self.controls))}</div>'
            f'<div class="frame mathjax_ignore" aria-live="polite">{frames[start]}</div>{more}{self.more}'
            f'<p class="caption">{escape(self.caption)}</p></div>'
        )

    def widget(self) -> ipywidgets.Widget:
        """The same, live."""
        moved, html = [_widget(control) for control in self.controls], ipywidgets.HTML()
        typed = [] if self.own is None else [ipywidgets.Text(description=self.own, continuous_update=False)]

        def draw(*_: object):
            own = [box.value or None for box in typed]
            html.value = f'{_STYLE}<div class="explore">{self.frame(*(w.value for w, _ in moved), *own)}</div>'

        for box in [*(w for w, _ in moved), *typed]:
            box.observe(draw, "value")
        draw()
        caption = ipywidgets.HTML(f"<p><em>{escape(self.caption)}</em></p>")
        return ipywidgets.VBox([*(shown for _, shown in moved), *typed, html, caption])

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        live = {"version_major": 2, "version_minor": 0, "model_id": self.widget().model_id}
        return {"text/plain": self.caption, "text/html": self.page(), "application/vnd.jupyter.widget-view+json": live}


def _control(control: Control) -> str:
    label, last = escape(control.label), len(control.options) - 1
    if control.kind == "list":
        options = "".join(
            f'<option value="{i}"{" selected" * (i == control.start)}>{escape(text)}</option>'
            for i, text in enumerate(control.options)
        )
        return f"<label>{label} <select data-axis>{options}</select></label>"
    if control.kind == "draw":
        return f'<button type="button" data-axis value="{control.start}" data-last="{last}">{label}</button>'
    play = '<button type="button" data-play>Play</button>' if control.kind == "play" else ""
    named = escape(json.dumps(list(control.options), ensure_ascii=False))
    return (
        f'<label>{label} <input type="range" data-axis min="0" max="{last}" value="{control.start}" '
        f'data-names="{named}"> <output>{escape(control.options[control.start])}</output></label>{play}'
    )


def _widget(control: Control) -> tuple[ipywidgets.Widget, ipywidgets.Widget]:
    """What holds the value, and what is shown of it."""
    options = [(text, i) for i, text in enumerate(control.options)]
    if control.kind == "draw":
        button, drawn = ipywidgets.Button(description=control.label, layout={"width": "auto"}), ipywidgets.IntText()
        button.on_click(lambda _: drawn.set_trait("value", (drawn.value + 1) % len(options)))
        return drawn, button
    kind = ipywidgets.Dropdown if control.kind == "list" else ipywidgets.SelectionSlider
    look = {"style": {"description_width": "initial"}, "layout": {"width": "32em"}}
    box = kind(description=control.label, options=options, value=control.start, **look)
    if control.kind != "play":
        return box, box
    play = ipywidgets.Play(value=control.start, min=0, max=len(options) - 1, interval=700)
    ipywidgets.jslink((play, "value"), (box, "index"))
    return box, ipywidgets.HBox([play, box])


def _shown(text: str) -> str:
    return text.replace("\n", "↵").replace(" ", "␣")


def _visible(text: str) -> str:
    return escape(_shown(text))


def _bars(rows: Sequence[tuple[str, float, str]], longest: float | None = None) -> str:
    """Name, length and text of each bar."""
    longest = longest or max(length for _, length, _ in rows)
    drawn = (
        f'<tr><th scope="row">{name}</th><td><span class="bar" style="width:{100 * length / longest:.1f}%"></span>'
        f"</td><td>{text}</td></tr>"
        for name, length, text in rows
    )
    return f'<table class="bars">{"".join(drawn)}</table>'


def _likeliest(p: Tensor, vocabulary: Vocabulary, n: int) -> str:
    """Bars of the n tokens with the largest of the probabilities p, (V,)."""
    top = p.topk(min(n, len(p)))
    rows = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    return _bars([(_visible(vocabulary.tokens[i]), v, f"{v:.0%}") for v, i in rows], 1.0)


def _chart(
    lines: Mapping[str, Mapping[float, float]], at: float, xlabel: str, levels: Mapping[str, float], scale=log10
) -> str:
    """Lines over x with a mark at one x, as SVG that is legible at 340 pixels."""
    xs = [scale(x) for line in lines.values() for x in line]
    ys = [*levels.values(), *(y for line in lines.values() for y in line.values())]
    left, right, bottom, top = min(xs), max(xs), min(ys) - 0.03, max(ys) + 0.03

    def place(x: float, y: float) -> tuple[float, float]:
        return 42 + 250 * (scale(x) - left) / (right - left), 150 - 135 * (y - bottom) / (top - bottom)

    def text(x: float, y: float, said: str) -> str:
        return f'<text x="{x:.0f}" y="{y + 4:.0f}">{escape(said)}</text>'

    parts = [text(4, place(at, y)[1], f"{y:.2f}") for y in (bottom + 0.03, top - 0.03)] + [text(42, 164, xlabel)]
    for k, (name, line) in enumerate(lines.items()):
        points = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in sorted(line.items()))
        x, y = place(*max(line.items()))
        parts += [f'<polyline class="line{k}" points="{points}"/>', text(x + 4, y, name)]
    for name, level in levels.items():
        y = place(at, level)[1]
        parts += [f'<path class="level" d="M42,{y:.1f}H292"/>', text(42, y - 8, name)]
    parts.append(f'<path class="mark" d="M{place(at, bottom)[0]:.1f},12V150"/>')
    return f'<svg viewBox="0 0 370 172" role="img" aria-label="{escape(xlabel)}">{"".join(parts)}</svg>'


# The explorers


def budget(found: Mapping[Experiment, Record] | None = None) -> Explorer:
    """What a budget buys: the model that validation chose, its loss beside counting's, its size, a sample."""
    found = recipes.published() if found is None else found
    runs, kept = recipes.runs(found), Store(RESULTS / "together", keeps_losses=True)
    alone = [of for architecture in recipes.ALONE for of in recipes.without_muon(architecture, found)[0].values()]
    able = [*runs.values(), *([found[e] for e in of] for of in alone if all(e in found for e in of))]
    budgets = sorted({budget for _, budget in runs})
    lines = {
        label: {b: fmean(r.test_nll_whole for r in records) for (a, b), records in runs.items() if a == architecture}
        for architecture, label in (("mlp", "MLP"), ("blocks", "transformer"))
    }
    papers = fmean(r.test_nll_whole for r in paper.records(Store(RESULTS / "paper"))["Transformer"].values())
    counting = _counting_loss()
    levels = {"counting": counting} if counting else {}

    def frame(i: int, ledger: int, own: str | None = None) -> str:
        if own:
            return _own_budget(own, found)
        cost = recipes.with_optimiser if ledger else lambda record: record.flops["counted"]
        records = min((of for of in able if cost(of[0]) <= 1.001 * budgets[i]), key=recipes.validation)
        record, loss = records[0], fmean(r.test_nll_whole for r in records)
        seconds = median(r.seconds["training"] for r in records)
        beside = {"this model": loss, "counting, order 7": counting, "the paper's transformer": papers}
        bars = [(name, nll, f"{nll:.2f}") for name, nll in beside.items() if nll]
        written = ""
        if record.experiment in kept:
            text = escape(kept.losses(record.experiment)[1])
            written = f"<p>It writes, after some lines of the test text:</p><pre>{text}</pre>"
        return (
            f"<p>{as_text(cost(record))} FLOPs{', Muon’s products among them' if ledger else ''}, "
            f"{_clock(seconds)} on one core of our machine: train {_described(record.experiment)}, "
            f"{record.parameters:,} parameters.</p>"
            f"{_bars(bars)}<p>Nats a character of the whole test split: shorter is better.</p>"
            f"{_chart(lines, budgets[i], 'FLOPs of training', levels)}{written}"
        )

    return Explorer(
        "budget",
        "For each budget of FLOPs on Tiny Shakespeare what validation chose, trained as one trains today: an MLP, or a "
        "transformer with short convolutions. Narrow layers and small batches run slowly: FLOPs are not time.",
        [
            Control("Budget, FLOPs", [as_text(b) for b in budgets], min(5, len(budgets) - 1)),
            Control("What is counted", ["the model’s products", "Muon’s as well"], 0, "list"),
        ],
        frame,
        own="Your FLOPs",
    )


def _own_budget(typed: str, found: Mapping[Experiment, Record]) -> str:
    """What to train for FLOPs that the reader typed, and how long that takes on this machine: some steps are tried."""
    try:
        flops, corpus = float(typed), load_corpus("tiny_shakespeare")
        wanted = recipes.best_under(flops, corpus, found=found)
    except (ValueError, CorpusUnavailable) as error:
        return f"<p>{escape(str(error))}</p>"
    parameters = n_parameters(build(wanted.model, len(corpus.vocabulary), seed=0)).total
    return (
        f"<p>{as_text(flops)} FLOPs, {_clock(tryout.expected(wanted, corpus))} on one core of this machine, by steps "
        f"made just now: train {_described(wanted)}, {parameters:,} parameters.</p>"
    )


def _counting_loss() -> float | None:
    """Kneser-Ney's order 7 on the records' look at the whole test split; None where the corpus cannot be had."""
    try:
        corpus = load_corpus("tiny_shakespeare")
    except CorpusUnavailable:
        return None
    model = KneserNey(7, len(corpus.vocabulary)).fit(corpus.train)
    return Evaluation(None, 8, recipes.FIRST_SCORED).mean(model.nll(corpus.test))


def _described(experiment: Experiment) -> str:
    m = experiment.model
    if isinstance(m, MLPConfig):
        return f"<strong>an MLP</strong>, {m.context} characters, {m.hidden} hidden units"
    if isinstance(m, TransformerConfig):
        blocks = f"{m.layers} block{'s' * (m.layers > 1)} of width {m.d_model}"
        mixed = ", short convolutions" if m.conv else ""
        return f"<strong>a transformer</strong>, {m.context} characters, {blocks}{mixed}"
    return f"<strong>a linear model</strong>, {m.context} characters"


def _clock(seconds: float) -> str:
    return f"about {seconds:.0f} seconds" if seconds < 100 else f"about {seconds / 60:.0f} minutes"


def counting(corpus: Corpus) -> Explorer:
    """What counts of each order expect after a prompt, and how much of the prompt they have seen before."""
    models = list(of_orders(range(1, 8), len(corpus.vocabulary), corpus.train).values())
    ends = [min(400 + 37 * i, len(corpus.test) - 12 + i) for i in range(12)]
    prompts = [corpus.vocabulary.decode(corpus.test[max(0, e - 24) : e]) for e in ends]
    known = set(corpus.vocabulary.tokens)

    def frame(order: int, prompt: int, own: str | None = None) -> str:
        text = "".join(c for c in own or "" if c in known) or prompts[prompt]
        ids = corpus.vocabulary.encode(text)
        p = models[order].next_token(ids)
        seen = models[order].seen(torch.cat((ids, ids[:1])))[-1]  # of the histories of the token to come
        matched = int((seen > 0).sum()) - 1
        before, marked = (_visible(part) for part in (text[: len(text) - matched], text[len(text) - matched :]))
        return (
            f"<p>After <code>{before}<mark>{marked}</mark></code>: of the {order} characters before it that this order "
            f"may use, the training text has seen the marked {matched} together.</p>"
            f"{_likeliest(p, corpus.vocabulary, 8)}"
        )

    return Explorer(
        "counting",
        "The eight likeliest next characters by counts of each order. Longer histories are surer, until none was seen.",
        [
            Control("Order", [str(n) for n in range(1, 8)], 4),
            Control("Prompt", [_shown(text) for text in prompts], 0, "list"),
        ],
        frame,
        own="Your prompt",
    )


def attention(model: Transformer | None = None, corpus: Corpus | None = None, start: int = 1000) -> Explorer:
    """Where each head of each block looks, from each position of a line of the test text.

    Args:
        model: a trained transformer; if None, the published one on the text that it knows, on another text one of
            10¹⁰ FLOPs, trained here in seconds.
        corpus: its text; Tiny Shakespeare if None.
        start: where in the test split the window begins whose last 48 characters are shown.
    """
    corpus = load_corpus("tiny_shakespeare") if corpus is None else corpus
    kept = RESULTS / "weights" / studies.file_of("transformer")
    if model is None and corpus.name == "tiny_shakespeare" and kept.exists():
        model = tryout.load(kept).network
    elif model is None:
        model = trained(recipes.small("blocks", corpus), corpus, progress=False)[0]
    window = corpus.test[max(0, min(start, len(corpus.test) - model.config.context)) :][: model.config.context]
    n = min(48, len(window))
    text = corpus.vocabulary.decode(window)[-n:]
    weights = model.attention_maps(window[None])[:, 0, :, -n:, -n:]  # (L, H, n, n)
    percent = (100 * weights).round().int()

    def frame(block: int, head: int, at: int) -> str:
        row = percent[block, head, at]
        spans = "".join(
            f'<span{" class=here" if i == at else ""} style="--w:{row[i].item() / 100:.2f}">{_visible(c)}</span>'
            for i, c in enumerate(text)
        )
        most = int(row.argmax())
        return (
            f'<p class="looked">{spans}</p><p>It looks most at “{_visible(text[most])}”, {at - most} back, '
            f"with {row[most].item()} % of its weight.</p>"
        )

    return Explorer(
        "attention",
        "Where one head looks from the outlined character: the stronger the tint, the more. Heads differ in how far.",
        [
            Control("Block", [str(i + 1) for i in range(model.config.layers)], 0, "list"),
            Control("Head", [str(i + 1) for i in range(model.config.heads)], 0, "list"),
            Control("Position", [f"{i + 1}: {_shown(c)}" for i, c in enumerate(text)], n - 1),
        ],
        frame,
        data={"text": [_shown(c) for c in text], "percent": percent.tolist()},
    )


_SIZES = {
    "Context": (8, 16, 32, 64, 128, 256, 512),
    "Width": (16, 32, 64, 128, 256, 512),
    "Blocks": (1, 2, 3, 4, 6, 8),
    "Vocabulary": (65, 256, 10_000, 33_278),
}


def cost() -> Explorer:
    """What a training window of a transformer costs, by component, in two ledgers; and its parameters."""

    def frame(*at: int) -> str:
        T, C, L, V = (sizes[i] for sizes, i in zip(_SIZES.values(), at, strict=False))
        scored: Scored = ("last", "every")[at[4]]
        ledger: Ledger = ("needed", "written")[at[5]]
        config = costed(T, C, L)
        parts = {name: 3 * flops for name, flops in forward_flops(config, V, ledger, scored).items()}
        total = sum(parts.values())
        with torch.device("meta"):
            parameters = n_parameters(build(config, V)).total
        rows = [(name, flops, f"{flops / total:.0%}") for name, flops in parts.items()]
        return (
            f"<p>{parameters:,} parameters; {total:,} FLOPs a window of training, "
            f"{total // (T if scored == 'every' else 1):,} a prediction.</p>{_bars(rows)}"
        )

    return Explorer(
        "cost",
        "Where a transformer’s FLOPs go. Attention itself costs much only where windows are far longer than the width.",
        [
            *(
                Control(name, [f"{size:,}" for size in sizes], start)
                for (name, sizes), start in zip(_SIZES.items(), (4, 3, 2, 0), strict=True)
            ),
            Control("Scored", ["the last position", "every position"], 0, "list"),
            Control("Ledger", ["needed", "as written"], 0, "list"),
        ],
        frame,
        data={"sizes": list(_SIZES.values())},
    )


def costed(context: int, width: int, layers: int) -> TransformerConfig:
    """The transformer that ``cost`` speaks of: pre-norm, rotary, four times as many hidden units as it is wide."""
    today = {"norm": "pre", "norm_kind": "rms", "positions": "rope"}
    return TransformerConfig(context, width, heads=width // 16, layers=layers, ff_width=4 * width, **today)


def learning(
    config: Config | None = None, training: TrainingConfig | None = None, corpus: Corpus | None = None, seed: int = 0
) -> Explorer:
    """What a model writes after so many steps: it is trained here, once, and looked at on the way.

    Without a config and a training: the transformer for 10¹⁰ FLOPs; without a corpus, on Tiny Shakespeare.

    Raises:
        ValueError: for one of config and training without the other.
    """
    corpus = load_corpus("tiny_shakespeare") if corpus is None else corpus
    if (config is None) != (training is None):
        raise ValueError("config and training must be given together, or neither")
    if config is None:
        small = recipes.small("blocks", corpus)
        config, training = small.model, small.training
    model = build(config, len(corpus.vocabulary), seed=seed)
    steps = training.steps_per_epoch * training.epochs
    looks = sorted({*(n for n in (0, 10, 30, 100, 300, 1_000, 3_000, 10_000) if n < steps), steps})
    losses, texts, done = {}, [], count()

    def look():
        if (step := next(done)) in looks:
            losses[float(step)] = evaluate(model, corpus.valid, training.validation)
            prompt = corpus.test[: config.context + 100]
            ids = generate(model, prompt, 240, 0.8, random_stream(seed, "text"))
            texts.append(corpus.vocabulary.decode(ids[len(prompt) :]))

    look()
    epochs(Run(model, training, seed), corpus, look, lambda: None)

    def frame(i: int) -> str:
        step, loss = list(losses.items())[i]
        return (
            f"<p>After {step:,.0f} steps of {training.batch} windows: {loss:.2f} nats a character in validation.</p>"
            f"<pre>{escape(texts[i])}</pre>{_chart({'': losses}, step, 'training step', {}, float)}"
        )

    return Explorer(
        "learning",
        "What the model writes as it learns: letter frequencies first, then word lengths, then words.",
        [Control("Step", [f"{n:,}" for n in looks], len(looks) - 1, "play")],
        frame,
    )


def lottery(evidence: Evidence) -> Explorer:
    """One run of each, drawn at random: which side of a claim wins, and how often over all pairs of runs."""
    asked = [(verdict, one) for verdict in judge(evidence) if verdict.reading == "paper" for one in verdict.contrasts]

    def frame(k: int, draw: int) -> str:
        verdict, one = asked[k]
        pairs = [*product(*one.values)]
        order = torch.randperm(len(pairs), generator=random_stream(k, "draws")).tolist()
        a, b = pairs[order[draw % len(pairs)]]
        return (
            f"<p>{verdict.claim}, <em>{escape(CLAIMS[verdict.claim])}</em>: {escape(one.says)}, above zero if it is "
            f"true. One run of each: {a:.3f} − {b:.3f} = <strong>{a - b:+.3f}</strong>, "
            f"{'for the claim' if a > b else 'against it'}.</p>"
            f"<p>Over all {len(pairs)} pairs of runs {sum(x > y for x, y in pairs)} speak for it; by all seeds "
            f"together, <strong>{verdict.verdict}</strong>.</p>"
        )

    return Explorer(
        "lottery",
        "Single runs are one draw. Where their spread is as large as the gap, the next draw may say the opposite.",
        [
            Control("Claim", [f"{v.claim}: {one.says}" for v, one in asked], 0, "list"),
            Control("Draw one run of each", [str(i) for i in range(24)], 0, "draw"),
        ],
        frame,
    )


_PROMPT = "ROMEO:\n"


def models(folder: Path = RESULTS / "weights") -> Explorer:
    """The published models side by side: what each expects after a text, and how it goes on; typed by the reader.

    On a page ``assets/models.js`` computes them, from what ``book/ext/packing.py`` packs.

    Raises:
        FileNotFoundError: if the folder has not the weights.
        CorpusUnavailable: if Tiny Shakespeare, which is counted, cannot be had.
    """
    networks, counts, vocabulary = published(folder)
    names = [f"counts of order {counts.order}", *networks]
    temperatures = (0.5, 0.8, 1.0)

    def expects(name: str, ids: Tensor) -> Tensor:
        if name not in networks:
            return counts.next_token(ids)
        model = networks[name]
        T = model.config.context
        window = F.pad(ids, (max(0, T - len(ids)), 0))[-T:] if isinstance(model, MLP) else ids[-T:]
        with torch.inference_mode():
            return model(window[None])[0].double().softmax(0)

    def frame(i: int, t: int, own: str | None = None) -> str:
        text = "".join(c for c in own or _PROMPT if c in vocabulary.tokens) or _PROMPT
        ids, stream = vocabulary.encode(text), random_stream(0, "text")
        tables = [f"<div><p>{name}</p>{_likeliest(expects(name, ids), vocabulary, 5)}</div>" for name in names]
        model = networks.get(names[i])
        write = partial(generate, model, cache=isinstance(model, Transformer)) if model else counts.generate
        new = write(ids, 200, temperature=temperatures[t], generator=stream)[len(ids) :]
        return (
            f'<p>After <code>{_visible(text[-40:])}</code> they expect:</p><div class="side">{"".join(tables)}</div>'
            f"<p>{names[i]} goes on:</p><pre>{escape(text + vocabulary.decode(new))}</pre>"
        )

    return Explorer(
        "models",
        "Four models after the same text. Which of them keeps to a speaker, and which to verse?",
        [
            Control("Who goes on", names, len(names) - 1, "list"),
            Control("Temperature", [f"{t:g}" for t in temperatures], 1),
        ],
        frame,
        own="Your text",
        more='<p class="load" hidden><button type="button">Load the models (2 MB) and write yourself</button></p>',
    )


def published(folder: Path) -> tuple[dict[str, nn.Module], KneserNey, Vocabulary]:
    """The published networks, by name, counts of order 5, and their vocabulary.

    Raises:
        FileNotFoundError, CorpusUnavailable: as ``models`` does.
    """
    loaded = {name: tryout.load(folder / studies.file_of(name)) for name in studies.PUBLISHED}
    vocabulary = next(iter(loaded.values())).vocabulary
    counts = KneserNey(5, len(vocabulary)).fit(load_corpus("tiny_shakespeare").train)
    return {name: kept.network for name, kept in loaded.items()}, counts, vocabulary
