"""The chapters as text, and what they share: how they start, the table, the paper's runs, the figures."""

import json
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import made_up
from matplotlib.colors import to_hex
from matplotlib.text import Text

from slmlib import LinearConfig, TrainingConfig, Windows, chapters, corpora, figures, paper, stats, verdicts
from slmlib.corpora import CorpusDamaged, CorpusUnavailable
from slmlib.experiments import Store
from slmlib.ngrams import KneserNey
from slmlib.training import History

BOOK = Path(__file__).parents[1] / "book"
NOTEBOOKS = sorted(path.name for path in BOOK.glob("*.ipynb"))
PAGES = [*NOTEBOOKS, "intro.md", "d-glossary.md"]
LINK = re.compile(r"\[([^\]]+)\]\((?!\))([\w-]+\.(?:ipynb|md)|)(?:#([\w-]+))?\)")
MYST = re.compile(
    r"\{+[a-z][a-z:]*\}+`\w"  # a role, in an f-string too
    r"|^ *(?::::|```\{)"  # a directive
    r"|^\([\w-]+\)=$|\$\$ *\([\w-]+\)"  # a label, of an equation too
    r"|^\{[.#]",  # attributes
    re.MULTILINE,
)


def cells(name):
    for cell in json.loads((BOOK / name).read_text(encoding="utf-8"))["cells"]:
        yield cell, "".join(cell["source"])


def text(name):
    """All that a page says; of a notebook its code as well, which says things too."""
    if name.endswith(".md"):
        return (BOOK / name).read_text(encoding="utf-8")
    return "\n\n".join(source for _, source in cells(name))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_chapters_are_plain_markdown(name):
    """Roles and directives are for Sphinx alone: JupyterLab and Colab show them raw, and solutions open."""
    assert [found[0] for found in MYST.finditer(text(name))] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_heading_stands_twice(name):
    written = "\n".join(source for cell, source in cells(name) if cell["cell_type"] == "markdown")
    headings = re.findall("^#+ .*", written, re.MULTILINE)
    assert len(set(headings)) == len(headings)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_the_site_hides_is_folded_in_jupyterlab(name):
    for cell, _ in cells(name):
        tags, folded = cell["metadata"].get("tags", []), {}
        if {"remove-input", "hide-input", "remove-cell", "hide-cell"} & {*tags}:
            folded["source_hidden"] = True
        if {"remove-output", "hide-output", "remove-cell", "hide-cell"} & {*tags}:
            folded["outputs_hidden"] = True
        assert cell["metadata"].get("jupyter", {}) == folded, cell["id"]


@pytest.mark.parametrize("name", PAGES)
def test_links_say_where_they_lead(name):
    """By the chapter's number, the equation's, or the title of the page."""
    for says, page, _ in LINK.findall(text(name)):
        if page == "bibliography.md":
            continue
        if chapter := re.fullmatch(r"[Cc]hapter (\d+)", says):
            assert page.startswith(f"{int(chapter[1]):02}-") and page in NOTEBOOKS, says
        elif equation := re.fullmatch(r"\((\w+\.\d+)\)", says):
            assert rf"\tag{{{equation[1]}}}" in text(page or name), says
        else:
            assert re.search("^# (.*)", text(page), re.MULTILINE)[1] == says


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_equations_are_numbered_in_their_order(name):
    page = name.split("-")[0].lstrip("0").upper()
    tags = re.findall(r"\\tag\{(.*?)\}", text(name))
    assert tags == [f"{page}.{i + 1}" for i in range(len(tags))]
    for formula in re.findall(r"^\$\$\n(.*?)\n\$\$$", text(name), re.MULTILINE | re.DOTALL):
        # Sphinx puts what has \\ into a `split`, where no number may stand: \cr does the same.
        assert r"\tag" not in formula or r"\\" not in formula


def test_the_bibliography_is_what_the_chapters_cite():
    cited = set()
    for name in PAGES:
        for says, page, letter in LINK.findall(text(name)):
            if page == "bibliography.md":
                author, year = re.fullmatch(r"(.+?),? \(?(\d{4})\)?", says).groups()
                assert letter == author[0].lower(), says
                cited.add(f"{author} ({year})")
    listed = re.findall(r"^\*\*(.*)\.\*\*", text("bibliography.md"), re.MULTILINE)
    assert sorted(listed, key=str.lower) == listed and set(listed) == cited


@pytest.fixture
def shown(monkeypatch):
    """What chapters display, all with the corpus that every Python carries."""
    things = []
    monkeypatch.setattr(chapters, "load_corpus", lambda name: corpora.load_corpus("python-docs"))
    monkeypatch.setattr(chapters, "display", things.append)
    monkeypatch.setattr(figures, "use_style", lambda: None)
    monkeypatch.setenv("SLMLIB_BUDGET", "reduced")
    return things


def unavailable(kind):
    def load(name):
        if name == "python-docs":
            return corpora.load_corpus(name)
        raise kind("no <network>; do this")

    return load


def test_a_chapter_without_its_corpus_goes_on_with_the_stand_in_under_a_banner(shown, monkeypatch, capsys):
    monkeypatch.setattr(chapters, "load_corpus", unavailable(CorpusUnavailable))
    corpus = chapters.start("tiny_shakespeare")
    assert (corpus.name, corpus.stands_in_for) == ("python-docs", "tiny_shakespeare")
    (banner,) = shown
    assert "slm-banner" in banner.data and "no &lt;network&gt;; do this" in banner.data
    assert "corpus python-docs" in capsys.readouterr().out


def test_a_damaged_corpus_is_an_error_in_a_chapter_too(shown, monkeypatch):
    monkeypatch.setattr(chapters, "load_corpus", unavailable(CorpusDamaged))
    with pytest.raises(CorpusDamaged):
        chapters.start("tiny_shakespeare")


def test_a_chapter_with_its_corpus_shows_no_banner_and_long_cells_of_tables_whole(shown):
    with pd.option_context("display.max_colwidth", 10):
        assert chapters.start("tiny_shakespeare").stands_in_for is None and shown == []
        assert 99 * "-" in pd.DataFrame({"a": [99 * "-"]})._repr_html_()


def test_a_smoke_run_says_that_its_numbers_mean_nothing(shown, monkeypatch):
    monkeypatch.setenv("SLMLIB_BUDGET", "smoke")
    chapters.start("tiny_shakespeare")
    assert "slm-banner" in shown[0].data and "mean nothing" in shown[0].data


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    "budget, stand_in, spoken",
    [("smoke", False, ()), ("reduced", False, (False, True)), ("paper", False, (False,)), ("reduced", True, ())],
)
def test_sentences_and_findings_keep_silent_together(shown, monkeypatch, budget, stand_in, spoken, live):
    """On a stand-in and at smoke altogether; what speaks of live runs but at the budget where it was tried."""
    monkeypatch.setenv("SLMLIB_BUDGET", budget)
    if stand_in:
        monkeypatch.setattr(chapters, "load_corpus", unavailable(CorpusUnavailable))
    chapters.start("tiny_shakespeare")
    del shown[:]
    chapters.say("so it is", live=live)
    assert len(shown) == (live in spoken)
    if live in spoken:
        with pytest.raises(AssertionError, match="7"):
            chapters.finding(False, 7, live=live)
    else:
        chapters.finding(False, 7, live=live)
    chapters.finding(True, 7, live=live)


@pytest.mark.parametrize("bad", ["-1", "x", "1.5"])
def test_the_seed_is_a_non_negative_integer(bad, monkeypatch):
    monkeypatch.setenv("SLMLIB_SEED", "7")
    assert chapters.seed() == 7
    monkeypatch.delenv("SLMLIB_SEED")
    assert chapters.seed() == 0
    monkeypatch.setenv("SLMLIB_SEED", bad)
    with pytest.raises(ValueError, match="SLMLIB_SEED"):
        chapters.seed()


@pytest.fixture
def live(monkeypatch):
    """The paper's linear model after a few steps on the stand-in."""
    monkeypatch.setenv("SLMLIB_BUDGET", "smoke")
    monkeypatch.setenv("SLMLIB_SEED", "0")
    return chapters.rerun("Linear", replace(corpora.load_corpus("python-docs"), stands_in_for="tiny_shakespeare"))


def test_a_rerun_is_the_papers_run_at_the_chapters_budget(live):
    run = paper.run("Linear")
    assert live.model.config == run.model
    small = run.training.at("smoke")
    assert live.training == replace(small, eval_from=128, whole_stride=11 * small.eval_stride)
    assert live.record.experiment.corpus.startswith("python-docs")
    assert len(live.history.valid) == run.training.epochs
    assert 3 < live.test_nll < 6


@pytest.mark.parametrize("silent", [True, False])
def test_a_live_run_and_records_stand_in_one_table(live, monkeypatch, silent):
    monkeypatch.setattr(chapters, "_findings", not silent)
    table = chapters.compare({"here": live, "Linear T=32": chapters.records()["Linear T=32"].values()})
    assert table.loc["here", "test NLL"] == f"{live.test_nll:.3f}" and table.loc["here", "seeds"] == "1"
    assert table.loc["here", "paper"] == ("" if silent else f"{paper.run('Linear').test_nll:.3f}")
    values = chapters.recorded("Linear T=32")
    assert table.loc["Linear T=32", "test NLL"] == chapters.plus_minus(values)
    assert table.loc["Linear T=32", "windows"] == "60,000" and table.loc["Linear T=32", "parameters"] == "274,625"


def test_every_context_is_validated_and_tested_on_the_same_tokens():
    corpus = corpora.load_corpus("python-docs")
    training = TrainingConfig(epochs=1, windows_per_epoch=64, eval_windows=100)
    for context in (1, 8, 128):
        run = chapters.train("Linear", LinearConfig(context, 4), training, corpus, seed=0)
        for split, look in ((corpus.test, run.training.test), (corpus.valid, run.training.validation)):
            assert list(look.scored(len(split), context)) == list(range(128, 228))
        assert list(run.training.whole_test.scored(len(corpus.test), context)) == list(range(128, len(corpus.test), 11))


HISTORY = History(step_losses=[4.0, 3.5, 3.2, 3.1], train=[3.75, 3.15], valid=[3.4, 3.2])


def drawings():
    seeds, one = {1e11: [2.0, 2.1], 1e12: [1.9]}, stats.Estimate(0.02, -0.01, 0.05, 0.2, 5, 0.1, 4)
    yield figures.curves({"Linear": HISTORY, "something else": HISTORY}, 128)
    yield figures.lines({"Linear": {8: 3.0, 32: 3.1}, "MLP": {8: 2.9}}, "context")
    yield figures.lines({"ours": {1: [3.0, 3.1], 2: [2.9], 4: []}}, "epoch", scale="linear", reported={1: 3.0})
    yield figures.lines({"MLP": seeds}, "FLOPs", scale="log", points={"_a": (1e11, 2.5), "b": (1e12, 2.4)})
    yield figures.emblem(
        {"MLP": seeds, "Linear": seeds}, {"a": (1e11, 2.5), "b": (1e12, 2.4)}, 1.69, {"both": (1e11, 1.6)}
    )
    yield figures.rows({"complete": [2.0, 2.1, 2.2], "less": [2.5]}, "NLL", reported={"less": 2.4})
    yield figures.rows({"C3": one, "C1": one}, "nats", words={"C3": "open", "C1": "holds"}, zero=True, band=0.03)
    yield figures.waterfall({"before": [2.0, 2.1], "after": [1.9, 2.0]}, {"after": one}, "NLL")
    yield figures.stacked({"a": {"queries, keys, values": 1.0, "output matrix": 2.0}, "b": {"attention": 3.0}}, "FLOPs")
    yield figures.attention_rows(torch.rand(4, 3, 8), ["a b", "\nc", "d"])


def test_figures_are_labelled_and_legible_on_a_phone():
    """Where their 481 pixels are shown as 327."""
    with plt.rc_context(figures.STYLE):
        for figure in drawings():
            figure.canvas.draw()
            assert all(ax.get_xlabel() or ax.get_title() for ax in figure.axes)
            sizes = [t.get_fontsize() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
            inches = figure.get_tightbbox().width + 2 * plt.rcParams["savefig.pad_inches"]
            assert min(sizes) * 96 / 72 * 327 / (96 * inches) >= 9, (min(sizes), inches)
            plt.close(figure)


def test_loss_curves_draw_what_was_measured():
    figure = figures.curves({"Linear": HISTORY}, windows_per_epoch=128)
    training, validation, *_ = figure.axes[0].lines
    np.testing.assert_allclose(training.get_ydata(), HISTORY.step_losses)
    np.testing.assert_allclose(training.get_xdata(), [64, 128, 192, 256])
    np.testing.assert_allclose(validation.get_xydata(), [[128, 3.4], [256, 3.2]])
    plt.close(figure)


def test_a_line_over_seeds_goes_through_their_means_with_intervals():
    figure = figures.lines({"ours": {1: [3.0, 3.2, 3.1], 2: [2.0]}}, "epoch", reported={2: 2.5})
    (ax,) = figure.axes
    container = ax.containers[0]
    np.testing.assert_allclose(container.lines[0].get_xydata(), [[1, 3.1], [2, 2.0]])
    low, high = container.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(stats.paired([3.0, 3.2, 3.1]).high - 3.1)
    drawn = [tuple(xy) for line in ax.lines for xy in line.get_xydata()]
    assert {(1, 3.0), (1, 3.2), (2, 2.5)} <= set(drawn)  # each seed, and the paper's figure
    plt.close(figure)


def test_lines_are_labelled_at_their_ends_and_no_more_than_five():
    figure = figures.lines({"MLP": {1: 2.0, 2: 1.9}, "Linear": {1: 2.0, 4: 2.3}}, "x")
    assert {text.get_text() for text in figure.axes[0].texts} == {"MLP", "Linear"}
    plt.close(figure)
    with pytest.raises(ValueError, match="6 lines"):
        figures.lines({f"series {i}": {1.0: 2.0} for i in range(6)}, "x")


def test_an_estimate_is_drawn_where_it_is():
    one = stats.Estimate(0.02, -0.01, 0.05, 0.2, 5, 0.1, 4)
    figure = figures.rows({"C3": one}, "nats", reported={"C3": 0.03}, words={"C3": "not significant"})
    (ax,) = figure.axes
    np.testing.assert_allclose(ax.containers[0].lines[2][0].get_segments()[0][:, 0], [-0.01, 0.05])
    assert "the paper's runs" in [text.get_text() for text in figure.legends[0].get_texts()]
    plt.close(figure)


def test_a_waterfall_goes_from_loss_to_loss_in_the_colour_of_what_it_did():
    better, none = stats.Estimate(0.5, 0.4, 0.6, 0.001, 5, 0.1, 4), stats.Estimate(-0.1, -0.3, 0.1, 0.4, 5, 0.1, 4)
    losses = {"first": [2.0, 2.2], "lower": [1.5, 1.7], "perhaps": [1.7, 1.7]}
    figure = figures.waterfall(losses, {"lower": better, "perhaps": none}, "NLL")
    down, up = figure.axes[0].patches
    assert [down.get_x(), down.get_width()] == [pytest.approx(2.1), pytest.approx(-0.5)]
    assert [up.get_x(), up.get_width()] == [pytest.approx(1.6), pytest.approx(0.1)]
    drawn = [list(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() != "."]
    assert drawn == [pytest.approx([1.5, 1.7]), pytest.approx([1.5, 1.9])]
    assert [to_hex(bar.get_facecolor()) for bar in (down, up)] == [figures.VERDICTS["holds"].lower(), figures.PALE]
    plt.close(figure)


def contrast(a, b):
    """WCAG 2 contrast of two '#rrggbb' colours."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def turned_round(colour):
    """What the style sheet makes of a colour on a dark page: invert(0.92), then hue-rotate(180deg)."""
    inverted = np.array([0.92 - 0.84 * int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    weights = np.array([0.213, 0.715, 0.072])  # of red, green and blue in what stays as light as it is
    return to_hex((2 * weights @ inverted - inverted).clip(0, 1))


def test_text_and_lines_stand_out_on_both_pages():
    coloured = {colour for colour, _ in (*figures.MODELS.values(), *figures._SPARE)} | set(figures.VERDICTS.values())
    for colour in {figures.INK, figures.PALE} | coloured:
        assert contrast(colour, "#ffffff") >= 4.5, colour
        assert contrast(turned_round(colour), turned_round("#ffffff")) >= 4.5, colour


def test_yardsticks_score_the_tokens_that_a_run_is_scored_on():
    corpus = corpora.load_corpus("python-docs")
    training = TrainingConfig(eval_windows=1_000, eval_stride=8)
    for split in ("valid", "test"):
        ids, levels = getattr(corpus, split), chapters.yardsticks(corpus, training, (2, 3), split)
        assert list(levels) == ["bigram", "3-gram"]
        _, targets = Windows(ids, 128)[torch.arange(0, 1_000, 8)]
        nll = KneserNey(2, len(corpus.vocabulary)).fit(corpus.train).nll(ids)
        assert torch.equal(ids[128:1_128:8], targets)
        assert levels["bigram"] == pytest.approx(nll[128:1_128:8].mean().item())


def test_records_stand_beside_the_papers_figures():
    table = chapters.agreement("Linear T=32", "Linear")
    values = chapters.recorded("Linear T=32")
    assert list(table.index) == ["Linear", "Linear T=32"] and len(chapters.agreement()) == 20  # the paper's order
    assert table.loc["Linear T=32", "seeds"] == f"{len(values)}" and table.loc["Linear T=32", "paper"] == "2.514"
    assert table.loc["Linear T=32", "ours"].startswith(f"{np.mean(values):.3f}")
    assert table.loc["Linear T=32", "difference"] == chapters.signed(np.mean(values) - 2.5135, 4)
    assert table.loc["Linear", "0.03 nats"] == "no" and table.loc["Linear", "3 s.d."] == "yes"


def test_no_records_is_said_with_what_to_do(monkeypatch, request):
    nothing = verdicts.Evidence({}, {}, {})
    monkeypatch.setattr(verdicts.Evidence, "read", classmethod(lambda cls: nothing))
    chapters.evidence.cache_clear()
    request.addfinalizer(chapters.evidence.cache_clear)
    with pytest.raises(FileNotFoundError, match="python -m slmlib run paper"):
        chapters.records()


def test_a_verdict_has_a_row_a_contrast():
    table = chapters.verdict("C4")
    found = next(v for v in chapters.judged() if (v.claim, v.reading) == ("C4", "paper"))
    assert list(table.index) == [m.says for m in found.contrasts] and table.columns.name == "C4: holds"
    assert list(table["effect"]) == [chapters.signed(m.estimate.effect) for m in found.contrasts]
    assert len(chapters.verdict("C2", "equal compute")) == 6


def test_unknown_names_are_told_with_those_there_are():
    with pytest.raises(KeyError, match=r"'C9' as 'paper'"):
        chapters.verdict("C9")
    with pytest.raises(KeyError, match=r"no study is called 'wordz'.*words"):
        chapters.study("wordz", paper.run("Linear").experiment)
    with pytest.raises(KeyError, match=r"'Lineal'.*Linear"):
        chapters.agreement("Linear", "Lineal")


def test_a_study_finds_what_the_store_has_and_pairs_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "RESULTS", tmp_path)
    a, b = paper.run("Linear").experiment, paper.run("MLP").experiment
    for experiment, nll in ((a(0), 3.0), (a(2), 3.2), (b(2), 2.5), (b(1), 2.0), (b(9), 1.0)):
        Store(tmp_path / "positions").put(made_up(experiment, nll))
    ours, theirs = chapters.study("positions", a), chapters.study("positions", b)
    assert {s: r.test_nll for s, r in ours.items()} == {0: 3.0, 2: 3.2} and set(theirs) == {1, 2}
    assert chapters.change(ours, theirs) == pytest.approx([0.7])
    assert chapters.change(ours, theirs, chapters.whole_split) == pytest.approx([0.7])
    assert chapters.gap(ours, theirs) is None and chapters.gap(ours, ours).effect == 0
    assert chapters.validation_curves({"ours": ours}, 50) == {"ours": {e * 50: [5.0, 5.0] for e in (1, 2, 3)}}


def test_losses_by_epoch():
    assert chapters.by_epoch([[3.0, 2.0], [3.1, 2.1]]) == {1: [3.0, 3.1], 2: [2.0, 2.1]}
    assert chapters.by_epoch(iter([(3.0, 2.0)]), windows=50) == {50: [3.0], 100: [2.0]}
    assert chapters.by_epoch([]) == {}
    with pytest.raises(ValueError):
        chapters.by_epoch([[3.0, 2.0], [3.1]])


def test_numbers_as_text():
    assert chapters.with_interval(stats.Estimate(0.1, 0.0, 0.2, 0.1, 3, 0.1, 2)) == "+0.100 (+0.000 to +0.200)"
    assert chapters.signed(-0.0123) == "−0.012" and chapters.signed(2, 1) == "+2.0"
    assert chapters.plus_minus([2.0, 2.1]) == "2.050 ± 0.071" and chapters.plus_minus([2.0], 1) == "2.0"
