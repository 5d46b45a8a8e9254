"""The verdicts: how they follow from records, and what the published ones say, recomputed from records here."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean

import first_screen
import numpy as np
import pytest
from first_screen import MARKS
from test_paper import invented
from typer.testing import CliRunner

from slmlib import chapters, frontier, paper, recipes, screen, stats, studies, verdicts
from slmlib.__main__ import app
from slmlib.chapters import CONTEXT, counted
from slmlib.experiments import RESULTS, Store
from slmlib.stats import equivalence, paired
from slmlib.verdicts import CONTRASTS, Evidence

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def evidence():
    return chapters.evidence()


@pytest.fixture(scope="module")
def judged():
    return chapters.judged()


@pytest.fixture(scope="module")
def counting(shakespeare):
    return counted(shakespeare)[CONTEXT:].mean().item()


@pytest.fixture(scope="module")
def mixed(shakespeare):
    return first_screen.mixtures(shakespeare)


def verdict(some, claim, reading="paper"):
    (found,) = [v for v in some if (v.claim, v.reading) == (claim, reading) and v.flops is None]
    return found


def judge(losses, claim, valid=None, **options):
    only = {key: some for key, some in CONTRASTS.items() if key == (claim, "paper")}
    return verdict(verdicts.judge(Evidence(invented(losses, valid), {}, {}), contrasts=only, **options), claim)


# --- how a verdict follows


@pytest.mark.parametrize(
    "shift, noise, word",
    [
        (0.1, 0.01, "holds"),
        (-0.1, 0.01, "does not hold"),
        (0.01, 0.1, "not significant"),
        (-0.01, 0.1, "not significant"),
        (0.001, 0.005, "no effect of that size"),
    ],
)
def test_the_verdict_follows_the_effect(shift, noise, word):
    rng = np.random.default_rng(1)
    worse, better = (list(2 + d + noise * rng.standard_normal(5)) for d in (shift, 0.0))
    assert judge({"Transformer L=4": worse, "Transformer L=3": better}, "C3").verdict == word


def test_a_claim_holds_if_all_its_contrasts_do_and_depends_if_they_disagree():
    losses = {"Linear": [3.0, 3.01, 2.99], "MLP": [2.3, 2.31, 2.3], "Self-attention": [2.1, 2.1, 2.12]}
    for last, word in (
        ([2.0, 2.02, 2.0], "holds"),
        ([4.0, 4.02, 4.0], "depends on the count"),
        ([2.5, 3.0, 3.4], "not significant"),
        ([2.0], "too few records"),
    ):
        assert judge(losses | {"Transformer": last}, "C1").verdict == word
    worse = {label: [x + 2 for x in losses["Linear"]] for label in ("MLP", "Self-attention", "Transformer")}
    assert judge({"Linear": losses["Linear"]} | worse, "C1").verdict == "does not hold"


@pytest.mark.parametrize("tied", [0, 1, 2])
def test_a_contrast_of_equals_has_p_1_and_spoils_no_other(tied):
    """Wherever it stands among a claim's three."""
    losses = {"Linear": [3.0, 3.1, 3.05, 3.02]}
    for i, label in enumerate(("MLP", "Self-attention", "Transformer")):
        better = [1.0, 1.001, 1.002, 1.001]
        losses[label] = [a - b * (i != tied) for a, b in zip(losses["Linear"], better, strict=True)]
    found = judge(losses, "C1")
    p = [m.estimate.p for m in found.contrasts]
    assert p.pop(tied) == 1 and max(p) < 1e-6 and found.verdict == "not significant"


def test_only_seeds_that_both_sides_have_pair_and_other_contexts_do_not():
    found = judge({"RoPE": [2.1, 2.2, 2.3], "Learned positions": [2.0, 2.1, 2.2, 9.9]}, "C5").contrasts[0].estimate
    assert found.n == 3 and found.effect == pytest.approx(0.1)
    assert [c.paired for c in CONTRASTS["C4", "paper"]] == [False, False]
    contexts = {"Linear T=32": [2.51, 2.5], "Linear T=64": [2.5, 2.52, 2.51], "Linear T=128": [2.49, 2.51, 2.5]}
    assert judge(contexts, "C4").verdict == "no effect of that size"


def test_all_contrasts_of_a_reading_are_corrected_together_those_to_come_too():
    losses = {"RoPE": [2.1, 2.2, 2.35], "Learned positions": [2.0, 2.1, 2.2]}
    raw = judge(losses, "C5", correct=lambda p: p).contrasts[0].estimate.p
    among = verdict(verdicts.judge(Evidence(invented(losses), {}, {})), "C5").contrasts[0].estimate.p
    assert among == pytest.approx(min(1, raw * sum(len(c) for (_, r), c in CONTRASTS.items() if r == "paper")))


def test_contrasts_read_the_epochs_that_they_speak_of():
    valid = {
        "Penn Treebank": [[6.5, 6.2, *[6.3] * 5, 6.9 + s] for s in (0, 0.01, 0.03)],
        "WikiText-2": [[6.8 + s, 6.9, *[7.0] * 5, 7.5] for s in (0, 0.01, 0.03)],
    }
    found = invented({"Penn Treebank": [6.0] * 3, "WikiText-2": [7.0] * 3}, valid)
    found["WikiText-2"] = {s: replace(r, test_nll_last=7.4 + s / 10) for s, r in found["WikiText-2"].items()}
    c7 = verdict(verdicts.judge(Evidence(found, {}, {})), "C7")
    assert [m.estimate.effect for m in c7.contrasts] == pytest.approx([0.7 + 0.04 / 3, 0, 0.7 - 0.04 / 3, 0.5])


def test_under_no_effect_at_all_some_claim_is_called_true_or_false_in_one_case_of_twenty():
    """Holm keeps the chance of even one false verdict below 5 %."""
    rng, wrong, trials = np.random.default_rng(0), 0, 300
    asked = {key: some for key, some in CONTRASTS.items() if key in {("C1", "paper"), ("C3", "paper"), ("C5", "paper")}}
    labels = sorted({label for some in asked.values() for c in some for label, _ in (c.worse, c.better)})
    for _ in range(trials):
        found = invented({label: list(2 + 0.1 * rng.standard_normal(5)) for label in labels})
        words = [v.verdict for v in verdicts.judge(Evidence(found, {}, {}), contrasts=asked)]
        wrong += any(word in ("holds", "does not hold", "depends on the count") for word in words)
    assert wrong / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


# --- what is published


def test_the_published_verdicts(evidence, judged):
    """As the paper ran it, at equal compute, each at its best; C2 at equal compute by budget."""
    words = {(v.claim, v.reading): v.verdict for v in judged if v.flops is None}
    assert words == {
        ("C1", "paper"): "holds",
        ("C1", "equal compute"): "holds",
        ("C2", "paper"): "depends on the count",
        ("C2", "optimised"): "not significant",
        ("C3", "paper"): "no effect of that size",
        ("C3", "equal compute"): "not significant",
        ("C3", "optimised"): "not significant",
        ("C4", "paper"): "holds",
        ("C4", "optimised"): "holds",
        ("C5", "paper"): "holds",
        ("C5", "optimised"): "does not hold",
        ("C6", "paper"): "does not hold",
        ("C6", "equal compute"): "holds",
        ("C7", "paper"): "holds",
    }
    by_budget = {v.flops: v.weakest for v in judged if v.flops}
    assert [e.sign for e in by_budget.values()] == [-1, -1, -1, -1, 0, 0]
    assert [round(e.effect, 3) for e in by_budget.values()] == [-0.138, -0.114, -0.042, -0.039, 0.001, 0.037]
    (at_best,) = verdict(judged, "C2", "optimised").contrasts
    assert at_best.estimate.effect == verdicts.mlp_against_blocks(evidence.today)[1e13].estimate.effect


def test_asked_for_a_hundredth_these_verdicts_move(evidence, judged, monkeypatch):
    """As chapter 12's first solution says."""
    monkeypatch.setattr(stats, "LEVEL", 0.01)
    moved = {
        (was.claim, was.reading, was.flops)
        for was, now in zip(judged, verdicts.judge(evidence), strict=True)
        if was.verdict != now.verdict
    }
    asked = {("C2", "paper", None), ("C2", "equal compute", 1e12), ("C5", "paper", None), ("C5", "optimised", None)}
    assert moved == asked


def test_what_short_convolutions_save_is_a_difference_of_means_where_all_seeds_are_there(evidence):
    saved, there = verdicts.convolutions(evidence), evidence.convolved
    asked = studies.convolved(evidence.today)
    assert list(saved) == [budget for _, budget in there] and len(saved) >= 7
    for (_, budget), records in there.items():
        fives = [evidence.gain[replace(studies.today_s(), seed=seed)] for seed in range(5)]
        plain = fives if budget == studies.GAIN else evidence.today["blocks", budget]
        without, with_ = (mean(r.test_nll_whole for r in of) for of in (plain, records))
        assert saved[budget].effect == pytest.approx(without - with_)
        assert [r.experiment for r in records] == asked[budget]
        assert all(r.experiment.model.conv == recipes.REACH for r in records)
    ahead = verdicts.convolved_against_mlp(evidence)
    mlps = mean(r.test_nll_whole for r in evidence.today["mlp", 1e13])
    assert [*ahead, 3e13] == list(saved)
    assert ahead[1e13].effect == pytest.approx(mlps - mean(r.test_nll_whole for r in there["blocks", 1e13]))
    fewer = {e: r for e, r in evidence.gain.items() if e != asked[1e12][1]}
    assert list(replace(evidence, gain=fewer).convolved) == [key for key in there if key[1] != 1e12]


def test_what_short_convolutions_save_on_other_texts_is_a_difference_of_means():
    saved, asked = verdicts.convolutions_elsewhere(), studies.elsewhere()
    stores = Store(RESULTS / "words-together"), Store(RESULTS / "convolutions")
    assert list(saved) == list(asked)
    for key, pair in asked.items():
        without, with_ = (
            mean(next(store.get(run) for store in stores if run in store).test_nll for run in of) for of in pair
        )
        assert saved[key].effect == pytest.approx(without - with_)


def test_c2_on_the_papers_pair_has_four_answers(judged):
    found = [m.estimate for m in verdict(judged, "C2").contrasts]
    assert [round(e.effect, 3) for e in found] == [0.109, -0.051, 0.002, 0.002]
    one, three = "Self-attention", "Transformer"
    asked = (one, 2, "needed"), (one, 1, "written"), (three, 1, "needed"), (three, 1, "written")
    ratios = [verdicts.cost_ratio(*of) for of in asked]
    assert ratios == pytest.approx([0.686, 2.289, 3.607, 4.905], abs=1e-3)


def test_depth_an_effect_as_large_as_the_papers_is_excluded(evidence):
    a, b = (list(evidence.runs(f"Transformer L={n}").values()) for n in (4, 3))
    gap = paired([x.test_nll - y.test_nll for x, y in zip(a, b, strict=True)])
    assert round(equivalence(gap, 0.0283), 3) == 0.004


def test_context_two_of_three_doublings_hurt_the_transformer(evidence):
    """By Welch's test: runs of different contexts draw different windows."""
    found = list(verdicts.doublings(evidence).values())
    assert [round(e.effect, 3) for e in found] == [0.025, 0.038, 0.100]
    assert [e.sign for e in found] == [0, 1, 1] and round(found[0].p, 3) == 0.059


@pytest.mark.parametrize("seed", range(5))
def test_rotary_positions_lose_on_the_whole_split_without_any_one_seed(evidence, seed):
    estimate = CONTRASTS["C5", "paper"][1].measure(evidence.without(seed)).estimate
    assert estimate.low > 0 and estimate.n == 4


def test_the_papers_gaps_in_standard_deviations_of_runs_that_share_nothing(evidence):
    ratios = {name[:2]: gap / apart for name, (gap, apart) in verdicts.spreads(evidence).items()}
    assert round(ratios["C3"], 1) == 1.0 and round(ratios["C5"], 1) == 1.6


def test_agreement_by_each_rule(evidence):
    assert list(paper.agreement(evidence.paper).values()) == [15, 18, 19]


def test_capacity_at_equal_flops_and_early_stopping(judged):
    c6 = [m.estimate for m in verdict(judged, "C6", "equal compute").contrasts]
    assert [round(e.effect, 3) for e in c6] == [0.159, 0.138]
    assert [round(e.high - e.effect, 3) for e in c6] == [0.025, 0.020]
    assert round(verdict(judged, "C6").weakest.effect, 3) == -0.044
    assert all(m.estimate.low > 0.8 for m in verdict(judged, "C7").contrasts)


def test_a_higher_rate_would_not_have_won_where_the_verdict_is_decided(evidence):
    short = [family for family in frontier.of("MLP", "Self-attention", "Transformer") if family.context <= 16]
    deciding = [c for c in evidence.cells.values() if c.family in short and c.budget in (3e12, 1e13)]
    assert len(deciding) == 14 and all(c.rate < max(c.rates) for c in deciding)


def test_verdicts_as_json(judged):
    result = CliRunner().invoke(app, ["verdicts", "--json"])
    listed = json.loads(result.stdout)
    assert result.exit_code == 0 and len(listed) == len(judged)
    assert {"claim", "reading", "verdict", "effect", "low", "high"} <= set.intersection(*map(set, listed))
    assert {v["reading"] for v in listed} == {"paper", "equal compute", "optimised"}
    at = {v["flops"]: v["effect"] for v in listed if (v["claim"], v["reading"]) == ("C2", "equal compute")}
    assert list(at) == [1e11, 3e11, 1e12, 3e12, 1e13, 3e13] and at[1e13] == pytest.approx(0.001, abs=5e-4)


# --- the first screen


def test_the_table_has_a_row_a_claim_and_a_number_a_cell_at_most(judged):
    rows = [line.split("|")[1:-1] for line in screen.table(judged).splitlines()[2:]]
    assert [row[0].strip() for row in rows] == [f"C{i}" for i in range(1, 8)]
    cells = [cell.strip() for row in rows for cell in row[2:5]]
    assert all(re.fullmatch(r"–|[✓✗≈⇄]( [+−]?\d\.\d\d)?( → [✓✗≈]( [+−]?\d\.\d\d)?)*", cell) for cell in cells), cells
    assert all(len(re.findall(r"\d\.\d", cell)) == (cell != "–") for cell in cells), cells
    assert [rows[i][3].strip() for i in (1, 2)] == ["✗ −0.14 → ≈", "✓ → ≈ 0.00"]  # up to 3e12, and beyond
    assert screen.table(judged) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_and_intro_show_what_the_records_say(evidence, counting, mixed):
    template = (ROOT / "book/assets/first-screen.md").read_text(encoding="utf-8")
    said = first_screen.fill(template, evidence, counting, mixed)
    for page, expected in (("README.md", first_screen.from_above(said)), ("book/intro.md", said)):
        text = (ROOT / page).read_text(encoding="utf-8")
        shown = text.partition(MARKS[0])[2].partition(MARKS[1])[0]
        assert shown == expected, "python -m slmlib scoreboard --readme"
        links = re.findall(r"\]\((?!https:)(.*?)\)", shown)
        assert len(links) > 20 and all((ROOT / page).parent.joinpath(link).is_file() for link in links), links


def test_a_first_screen_that_would_not_be_true_is_refused(evidence):
    mixed = {"orders": 1.654, "mixed_tiny": 1.61, "mixed_more": 1.63, "mixed_tenth": 1.61, "mixed_dear": 1.56}
    mixed |= {"mixed_large": 1.55, "orders_on": 1.45, "read_on": 1.38, "both_on": 1.33, "tiny_on": 0.01}
    mixed |= {"new_counts": 0.16, "new_blocks": 0.18, "old_counts": 0.22, "nine": 1.634, "nine_tiny": 0.03}
    mixed |= {"tenfold": 0.1}
    first_screen.numbers(evidence, 1.69, mixed)
    for counting, tiny in ((9.9, 1.61), (1.69, 1.7)):
        with pytest.raises(AssertionError):
            first_screen.numbers(evidence, counting, mixed | {"mixed_tiny": tiny})


def test_scoreboard_writes_between_its_marks_and_nothing_else(tmp_path, monkeypatch, evidence, mixed):
    monkeypatch.setattr(Evidence, "read", lambda: evidence)
    monkeypatch.setattr(first_screen, "mixtures", lambda corpus: mixed)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book/assets").mkdir(parents=True)
    template = (ROOT / "book/assets/first-screen.md").read_bytes()
    (tmp_path / "book/assets/first-screen.md").write_bytes(template)
    pages = [tmp_path / "README.md", tmp_path / "book/intro.md"]
    for page in pages:
        page.write_text(f"before\n{MARKS[0]}stale\n{MARKS[1]}\nafter\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["scoreboard", "--readme"])
    assert result.exit_code == 0, result.output
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"before\n{MARKS[0]}**On a small budget") and text.endswith(f"\n{MARKS[1]}\nafter\n")
        assert "stale" not in text and "{" not in text
    assert "<svg" in (tmp_path / "book/assets/emblem.svg").read_text(encoding="utf-8")
    pages[0].write_text("no marks", encoding="utf-8")
    assert CliRunner().invoke(app, ["scoreboard", "--readme"]).exit_code == 1
    assert pages[0].read_text(encoding="utf-8") == "no marks"


def test_what_the_emblem_shows_is_what_validation_chose(evidence):
    lines, points = screen.as_the_paper_trains(evidence)
    assert list(lines) == ["Linear", "MLP", "Self-attention", "Transformer", "Every position"] and len(points) == 18
    shown, hollow, diamonds = first_screen.emblem(evidence, {"mixed_tiny": 1.6, "mixed_large": 1.5})
    with_ = "with convolutions"
    assert list(shown) == ["Linear", "MLP", "Transformer", with_, "paper's training"] and hollow == points
    assert {budget for budget, _ in diamonds.values()} == {min(shown["MLP"]), max(shown[with_])}
    assert shown[with_][1e12] == [r.test_nll_whole for r in evidence.convolved["blocks", 1e12]]
    assert shown["MLP"][1e12] == [r.test_nll_whole for r in evidence.today["mlp", 1e12]]
    assert mean(shown["paper's training"][1e12]) == min(mean(line[1e12]) for line in lines.values())
    assert mean(lines["MLP"][1e13]) == pytest.approx(evidence.cells["MLP T=8", 1e13].loss)
    flops, loss = points["Learned positions"]
    assert 1e14 < flops < 1.2e14 and 1.9 < loss < 2.1


def test_other_runs_are_found_by_their_labels(evidence):
    for label, experiment in verdicts.OTHERS.items():
        assert [r.experiment for r in evidence.runs(label).values()] == [experiment(s) for s in range(studies.SEEDS)]
