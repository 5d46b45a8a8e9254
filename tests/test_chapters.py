"""What the chapters share: how they start, the table, the paper's runs, the figures."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from test_paper import made_up

from slmlib import LinearConfig, TrainingConfig, Windows, chapters, corpora, figures, paper
from slmlib.corpora import CorpusDamaged, CorpusUnavailable
from slmlib.experiments import Store
from slmlib.ngrams import KneserNey
from slmlib.training import History


@pytest.fixture
def shown(monkeypatch):
    """What chapters display."""
    things = []
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
    assert not chapters.findings_apply(corpus)


def test_a_damaged_corpus_is_an_error_in_a_chapter_too(shown, monkeypatch):
    monkeypatch.setattr(chapters, "load_corpus", unavailable(CorpusDamaged))
    with pytest.raises(CorpusDamaged):
        chapters.start("tiny_shakespeare")


def test_a_chapter_with_its_corpus_shows_no_banner(shown, monkeypatch):
    monkeypatch.setattr(chapters, "load_corpus", lambda name: corpora.load_corpus("python-docs"))
    assert chapters.start("tiny_shakespeare").stands_in_for is None
    assert shown == []


def test_tables_of_a_chapter_show_long_cells_whole(shown, monkeypatch):
    monkeypatch.setattr(chapters, "load_corpus", lambda name: corpora.load_corpus("python-docs"))
    with pd.option_context("display.max_colwidth", 10):
        chapters.start("tiny_shakespeare")
        assert 99 * "-" in pd.DataFrame({"a": [99 * "-"]})._repr_html_()


def test_a_smoke_run_says_that_its_numbers_mean_nothing(shown, monkeypatch):
    monkeypatch.setattr(chapters, "load_corpus", lambda name: corpora.load_corpus("python-docs"))
    monkeypatch.setenv("SLMLIB_BUDGET", "smoke")
    chapters.start("tiny_shakespeare")
    assert "slm-banner" in shown[0].data and "mean nothing" in shown[0].data


def test_a_list_in_a_sentence():
    assert [chapters.listed(items) for items in ("a", "ab", (1, 2, 3))] == ["a", "a and b", "1, 2 and 3"]


def test_findings_are_asserted_at_the_reduced_budget_only(monkeypatch):
    corpus = corpora.load_corpus("python-docs")
    for budget, asserted in (("smoke", False), ("reduced", True), ("paper", False)):
        monkeypatch.setenv("SLMLIB_BUDGET", budget)
        assert chapters.findings_apply(corpus) is asserted
    monkeypatch.setenv("SLMLIB_BUDGET", "reduced")
    assert not chapters.findings_apply(chapters.stand_in("tiny_shakespeare"))


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
    return chapters.rerun("Linear", chapters.stand_in("tiny_shakespeare"))


def test_a_rerun_is_the_papers_run_at_the_budget_in_force(live):
    run = paper.run("Linear")
    assert live.model.config == run.model
    assert live.training == run.training.at("smoke")
    assert len(live.history.valid) == run.training.epochs
    assert 3 < live.test_nll < 6


def test_the_table_leaves_the_paper_out_on_a_stand_in(live):
    with_paper = chapters.table([live], corpora.load_corpus("python-docs"))
    without = chapters.table([live], chapters.stand_in("tiny_shakespeare"))
    assert with_paper.loc["Linear", "paper's figure"] == f"{paper.run('Linear').test_nll:.3f}"
    assert set(with_paper.columns) - set(without.columns) == {"paper's figure"}
    assert with_paper.loc["Linear", "windows seen"] == "0.3k of 150k"
    assert without.loc["Linear", "windows seen"] == "0.3k"
    assert 2 < float(without.loc["Linear", "whole split"]) < 6


def test_the_tables_last_row_is_the_counting_model_on_the_same_tokens(live):
    corpus = chapters.stand_in("tiny_shakespeare")
    table = chapters.table([live], corpus)
    nll = KneserNey(7, len(corpus.vocabulary)).fit(corpus.train).nll(corpus.test)
    _, targets = Windows(corpus.test, 128)[torch.arange(0, 10_000, live.training.eval_stride)]
    scored = slice(128, 10_128, live.training.eval_stride)
    assert list(table.index) == ["Linear", "Kneser-Ney 7"] and torch.equal(corpus.test[scored], targets)
    assert table.loc["Kneser-Ney 7", "this run"] == f"{nll[scored].mean():.3f}"
    assert table.loc["Kneser-Ney 7", "parameters"] == ""


def test_every_context_is_tested_on_the_same_tokens(monkeypatch):
    """A model that knows the answers by heart up to where it was tested would tell: compare the targets themselves."""
    seen = []

    def fake_evaluate(model, ids, evaluation):
        seen.append(ids[list(evaluation.scored(len(ids), model.config.context))])
        return 0.0

    monkeypatch.setattr(chapters, "evaluate", fake_evaluate)
    corpus = corpora.load_corpus("python-docs")
    training = TrainingConfig(epochs=1, windows_per_epoch=64, eval_windows=100)
    for context in (1, 8, 128):
        chapters.train("Linear", LinearConfig(context, 4), training, corpus, seed=0)
    assert len(seen) == 3 and all(torch.equal(targets, corpus.test[128:228]) for targets in seen)


def test_the_papers_runs_are_complete_and_found_by_label():
    assert len(paper.RUNS) == 20 == len({r.label for r in paper.RUNS})
    for run in paper.RUNS:
        assert paper.run(run.label) is run
        context = run.model.context // 2 if run.group == "rope" else run.model.context  # half its own formula
        flops = 2 * run.params * context * run.training.windows_per_epoch * run.training.epochs
        assert run.reported_flops == pytest.approx(flops, rel=0.005)
    with pytest.raises(KeyError, match="Self-attention"):
        paper.run("Selfattention")


HISTORY = History(step_losses=[4.0, 3.5, 3.2, 3.1], train=[3.75, 3.15], valid=[3.4, 3.2])


def drawings():
    h = {"Linear": HISTORY, "something else": HISTORY}
    yield figures.loss_curves(h, windows_per_epoch=128, yardsticks={"bigram": 2.5})
    yield figures.loss_against({"Linear": {8: 3.0, 32: 3.1}, "MLP": {8: 2.9}}, "context T")
    yield figures.loss_against_cost({"MLP": {"this run": (1e6, 2.3), "paper": (1e6, 2.4)}}, "parameters")
    yield figures.dots({"complete": [2.0, 2.1, 2.2], "less": [2.5, 2.4, 2.6]}, "NLL", reference="complete")
    yield figures.loss_against({"ours": {1: [3.0, 3.1], 2: [2.9], 4: []}}, "epoch", log=False, reported={1: 3.0})
    yield figures.dots({"H=1": [2.0]}, "NLL", reported={"H=1": 2.1})
    yield figures.differences({"Linear": [0.01, -0.02], "MLP": []})
    yield figures.effects({"C3": (0.02, -0.01, 0.05, 0.03, False), "C1": (0.7, 0.6, 0.8, None, True)})
    yield figures.frontier(
        {"MLP T=8": {1e11: [2.0, 2.1], 1e12: [1.9]}, "MLP T=16": {1e11: [2.2]}}, "FLOPs", {"7-gram": 1.7}
    )
    x = np.array([1e11, 1e12])
    yield figures.bands(
        {"needed": {"MLP": (x, x * 0 + 2, x * 0 + 1.9, x * 0 + 2.1)}, "written": {}}, "FLOPs", {"7-gram": 1.7}
    )
    yield figures.attention_rows(torch.rand(4, 3, 8), ["a b", "\nc", "d"])


def test_figures_draw_labelled_and_transparent():
    with plt.rc_context(figures.STYLE):
        for figure in drawings():
            figure.canvas.draw()
            assert all(ax.get_xlabel() or ax.get_title() or ax.get_title(loc="left") for ax in figure.axes)
            assert figure.get_facecolor()[3] == 0
            plt.close(figure)


def test_loss_curves_draw_what_was_measured():
    figure = figures.loss_curves({"Linear": HISTORY}, windows_per_epoch=128)
    training, validation, *_ = figure.axes[0].lines
    np.testing.assert_allclose(training.get_ydata(), HISTORY.step_losses)
    np.testing.assert_allclose(training.get_xdata(), [64, 128, 192, 256])
    np.testing.assert_allclose(validation.get_xydata(), [[128, 3.4], [256, 3.2]])
    plt.close(figure)


def test_a_line_over_seeds_goes_through_their_means_with_intervals():
    figure = figures.loss_against({"ours": {1: [3.0, 3.2, 3.1], 2: [2.0]}}, "epoch", reported={2: 2.5})
    (ax,) = figure.axes
    container = ax.containers[0]
    np.testing.assert_allclose(container.lines[0].get_xydata(), [[1, 3.1], [2, 2.0]])
    low, high = container.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(figures.interval([3.0, 3.2, 3.1]))
    drawn = [tuple(xy) for line in ax.lines for xy in line.get_xydata()]
    assert {(1, 3.0), (1, 3.2), (2, 2.5)} <= set(drawn)  # each seed, and the paper's figure
    plt.close(figure)


def test_every_series_has_a_colour_of_its_own():
    with pytest.raises(ValueError, match="20 series and 7 colours"):
        figures.loss_against({f"series {i}": {1.0: 2.0} for i in range(20)}, "x")


def test_the_papers_marker_is_explained_wherever_it_first_stands():
    figure = figures.dots({"a": [1.0], "b": [2.0], "c": [3.0]}, "x", reported={"b": 2.1, "c": 3.1})
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["paper"]


def test_effects_and_differences_are_drawn_where_they_are():
    figure = figures.effects({"C3": (0.02, -0.01, 0.05, 0.03, False)})
    (ax,) = figure.axes
    np.testing.assert_allclose(ax.containers[0].lines[2][0].get_segments()[0][:, 0], [-0.01, 0.05])
    plt.close(figure)
    figure = figures.differences({"Linear": [0.01, -0.03]})
    drawn = [tuple(xy) for line in figure.axes[0].lines for xy in line.get_xydata()]
    assert {(0.01, 0.0), (-0.03, 0.0), (-0.01, 0.0)} <= {(round(x, 9), float(y)) for x, y in drawn}
    plt.close(figure)


def test_the_interval_is_students():
    values = [2.0, 2.1, 2.3]
    low, high = stats.t.interval(0.95, df=2, loc=np.mean(values), scale=stats.sem(values))
    assert figures.interval(values) == pytest.approx((high - low) / 2)


def contrast(a, b):
    """WCAG 2 contrast of two '#rrggbb' colours."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#14181e"], ids=["light", "dark"])
def test_lines_and_text_stand_out_on_both_pages(page):
    assert contrast(figures.GREY, page) > 4
    assert all(contrast(colour, page) > 2.9 for colour, _ in figures.MODELS.values())


def test_yardsticks_score_the_tokens_that_a_run_is_scored_on():
    corpus = corpora.load_corpus("python-docs")
    training = TrainingConfig(eval_windows=1_000, eval_stride=8)
    levels = chapters.yardsticks(corpus, training, orders=(2, 3))
    assert [list(by_name) for by_name in levels.values()] == [["bigram", "3-gram"]] * 2
    for split in ("valid", "test"):
        ids = getattr(corpus, split)
        _, targets = Windows(ids, 128)[torch.arange(0, 1_000, 8)]
        nll = KneserNey(2, len(corpus.vocabulary)).fit(corpus.train).nll(ids)
        assert torch.equal(ids[128:1_128:8], targets)
        assert levels[split]["bigram"] == pytest.approx(nll[128:1_128:8].mean().item())


@pytest.mark.parametrize("corpus_there", [True, False])
def test_records_stand_beside_the_papers_figures(corpus_there, monkeypatch, request):
    corpus = corpora.load_corpus("python-docs")
    load = (lambda name: corpus) if corpus_there else unavailable(CorpusUnavailable)
    monkeypatch.setattr(chapters, "load_corpus", load)
    chapters._counted_as.cache_clear()
    request.addfinalizer(chapters._counted_as.cache_clear)
    table = chapters.records_table(["Linear T=32", "Linear"])
    counting = ["Kneser-Ney 7, 10k", "Kneser-Ney 7, 5k"]
    assert list(table.index) == ["Linear", "Linear T=32"] + counting * corpus_there  # the paper's order
    if corpus_there:
        assert chapters.records_table(["Linear", "MLP"]).index[-1] == "Kneser-Ney 7"
        nll = chapters.counted(corpus)[1]
        assert table.loc[counting[1], "ours"] == f"{nll[32:5_032].mean():.3f}"
        assert table.loc[counting[1], "whole split"] == f"{nll[32:].mean():.3f}"
    values = chapters.recorded("Linear T=32")
    assert table.loc["Linear T=32", "seeds"] == f"{len(values)}"
    assert table.loc["Linear T=32", "paper's figure"] == "2.514"
    assert table.loc["Linear T=32", "ours"].startswith(f"{np.mean(values):.3f}")
    assert float(table.loc["Linear T=32", "difference"]) == pytest.approx(np.mean(values) - 2.5135, abs=5e-4)


def test_no_records_is_said_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "RESULTS", tmp_path)
    chapters.records.cache_clear()
    with pytest.raises(FileNotFoundError, match="python -m slmlib run paper"):
        chapters.records()
    chapters.records.cache_clear()


def test_a_verdict_says_claim_test_and_effect():
    text = chapters.verdict("C4")
    judged = next(j for j in paper.judge(chapters.records()) if j.claim.id == "C4")
    assert f"{judged.claim.statement}*: {judged.verdict}.**" in text and judged.claim.asks in text
    assert all(f.contrast.says in text and paper.signed(f.effect) in text for f in judged.findings)


def test_unknown_names_are_told_with_those_there_are():
    with pytest.raises(KeyError, match=r"C9.*C1, C2"):
        chapters.verdict("C9")
    with pytest.raises(KeyError, match=r"no study is called 'wordz'.*words"):
        chapters.study("wordz", paper.run("Linear").experiment)
    with pytest.raises(KeyError, match=r"'Lineal'.*Linear"):
        chapters.records_table(["Linear", "Lineal"])


def test_a_study_finds_what_the_store_has_and_pairs_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "RESULTS", tmp_path)
    a, b = paper.run("Linear").experiment, paper.run("MLP").experiment
    for experiment, nll in ((a(0), 3.0), (a(2), 3.2), (b(2), 2.5), (b(1), 2.0), (b(9), 1.0)):
        Store(tmp_path / "positions").put(made_up(experiment, nll))
    ours, theirs = chapters.study("positions", a), chapters.study("positions", b)
    assert {s: r.test_nll for s, r in ours.items()} == {0: 3.0, 2: 3.2} and set(theirs) == {1, 2}
    assert chapters.change(ours, theirs) == pytest.approx([0.7])
    assert chapters.change(ours, theirs, lambda r: 2 * r.test_nll) == pytest.approx([1.4])


def test_losses_by_epoch():
    assert chapters.by_epoch([[3.0, 2.0], [3.1, 2.1]]) == {1: [3.0, 3.1], 2: [2.0, 2.1]}
    assert chapters.by_epoch(iter([(3.0, 2.0)]), windows=50) == {50: [3.0], 100: [2.0]}
    assert chapters.by_epoch([]) == {}
    with pytest.raises(ValueError):
        chapters.by_epoch([[3.0, 2.0], [3.1]])


def test_numbers_as_text():
    assert chapters.with_interval([0.5]) == "+0.500"
    half = figures.interval([-0.1, -0.2, -0.15])
    assert chapters.with_interval([-0.1, -0.2, -0.15]) == f"−0.150 ± {half:.3f}"
    assert paper.signed(-0.0123) == "−0.012" and paper.signed(2, 1) == "+2.0"
    assert chapters.plus_minus([2.0, 2.1]) == "2.050 ± 0.071" and chapters.plus_minus([2.0], 1) == "2.0"
