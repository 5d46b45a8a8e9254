"""The paper's runs and claims: what is committed under results/, the tests of the claims, the verdicts, the status."""

import csv
import io
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from slmlib import paper, studies
from slmlib.__main__ import MARKS, app
from slmlib.experiments import RESULTS, Experiment, Record, Store

ROOT = Path(__file__).parent.parent
COMMITTED = sorted((ROOT / "results").rglob("*.json"))


def made_up(experiment: Experiment, test_nll: float, valid: list[float] | None = None) -> Record:
    """A record of a run that never was, for the tests of the tests."""
    return Record(
        experiment=experiment,
        train=[5.0] * experiment.training.epochs,
        valid=valid or [5.0] * experiment.training.epochs,
        best_epoch=1,
        test_nll=test_nll,
        test_nll_whole=test_nll + 0.1,
        parameters=1,
        parameters_without_embeddings=1,
        flops={"paper": 1.0, "counted": 1.0},
        seconds={"training": 1.0, "testing": 1.0},
        machine={"processor": "none", "device": "cpu", "threads": 1, "system": "none"},
        versions={"python": "3", "torch": "2"},
    )


def invented(losses: dict[str, list[float]], valid=None) -> dict[str, dict[int, Record]]:
    valid = valid or {}
    return {
        r.label: {
            s: made_up(r.experiment(s), nll, valid.get(r.label, [None] * 99)[s])
            for s, nll in enumerate(losses.get(r.label, []))
        }
        for r in paper.RUNS
    }


# --- what is committed


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_a_committed_record_is_what_its_name_says(path):
    text = path.read_text(encoding="utf-8")
    record = Record.from_json(text)  # recomputes the key
    assert path.name == f"{record.experiment.name}.json" and Record.from_json(record.to_json()) == record
    epochs = record.experiment.training.epochs
    assert len(record.train) == len(record.valid) == epochs
    assert record.best_epoch == min(range(epochs), key=record.valid.__getitem__) + 1
    losses = [*record.train, *record.valid, record.test_nll, record.test_nll_whole]
    worst = 12 if record.experiment.training.learning_rate <= 1e-3 else 50  # the frontier's boldest rates go astray
    assert all(0 < nll < worst for nll in losses)
    assert all(seconds > 0 for seconds in record.seconds.values())


def test_every_record_of_the_paper_is_of_one_of_its_runs_at_its_budget():
    wanted = {e.key: r for r in paper.RUNS for s in range(10) for e in [r.experiment(s)]}
    for record in Store(RESULTS / "paper"):
        run = wanted[record.experiment.key]
        assert record.parameters == run.params
        windows = run.training.epochs * run.training.windows_per_epoch
        assert record.flops["paper"] == 2 * run.params * run.model.context * windows
        assert record.flops["counted"] % windows == 0


def test_records_of_one_run_count_the_same_flops_and_differ_by_seed():
    for label, by_seed in paper.records(Store(RESULTS / "paper")).items():
        assert len({r.flops["counted"] for r in by_seed.values()}) <= 1, label
        assert len({r.test_nll for r in by_seed.values()}) == len(by_seed), label


def test_there_is_nothing_else_under_results():
    others = [p for p in (ROOT / "results").rglob("*") if p.is_file() and ".running" not in p.parts]
    assert sorted(others) == COMMITTED


# --- the runs


def test_experiments_are_the_96_that_the_book_publishes():
    wanted = paper.experiments()
    assert len(wanted) == len(set(wanted)) == 18 * 5 + 2 * 3
    assert [e.seed for e in wanted] == sorted(e.seed for e in wanted)  # seed by seed: whole sets as early as possible
    assert {e.train_tokens for e in wanted if e.corpus != "tiny_shakespeare"} == {80_000}
    assert len(paper.experiments(seeds=2)) == 40
    assert len(paper.experiments(seeds=1, groups=["depth", "rope"])) == 5
    with pytest.raises(ValueError, match="seeds"):
        paper.experiments(seeds=0)
    with pytest.raises(ValueError, match=r"depths.*main, context"):
        paper.experiments(groups=["depths"])


def test_records_finds_what_the_store_has(tmp_path):
    store = Store(tmp_path)
    run = paper.run("RoPE")
    store.put(made_up(run.experiment(3), 2.0))
    store.put(made_up(replace(run.experiment(4), train_tokens=9_999), 2.0))  # not the paper's run
    found = paper.records(store)
    assert set(found) == {r.label for r in paper.RUNS}
    assert set(found["RoPE"]) == {3} and sum(map(len, found.values())) == 1


# --- the tests of the claims


def test_holm_is_the_step_down_method():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert paper.holm(p) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})  # monotone: b is not 0.04
    assert paper.holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert paper.holm({}) == {}
    assert paper.holm({"b": 0.01, "n": float("nan"), "a": 0.001}) == pytest.approx({"a": 0.003, "b": 0.02, "n": 1.0})


@pytest.mark.parametrize("tied", [0, 1, 2])
def test_a_contrast_of_equals_has_p_1_and_spoils_no_other(tied):
    """Wherever it stands among a claim's three."""
    losses = {"Linear": [3.0, 3.1, 3.05, 3.02]}
    for i, label in enumerate(("MLP", "Self-attention", "Transformer")):
        better = [1.0, 1.001, 1.002, 1.001]
        losses[label] = (
            losses["Linear"] if i == tied else [a - b for a, b in zip(losses["Linear"], better, strict=True)]
        )
    (judged,) = paper.judge(invented(losses), [claim("C1")])
    p = [finding.p for finding in judged.findings]
    assert p.pop(tied) == 1 and max(p) < 1e-6
    assert judged.findings[tied].low == judged.findings[tied].high == 0
    assert judged.verdict == "cannot be told apart from noise"


def test_a_paired_contrast_is_a_t_test_of_the_seeds_differences():
    a, b = [2.30, 2.35, 2.28, 2.41], [2.29, 2.30, 2.27, 2.35]
    (judged,) = paper.judge(invented({"RoPE": a, "Learned positions": b}), [claim("C5")])
    (finding,) = judged.findings
    expected = stats.ttest_rel(a, b)
    assert finding.p == pytest.approx(expected.pvalue)  # one contrast: nothing to correct
    assert (finding.low, finding.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert finding.effect == pytest.approx(mean(a) - mean(b)) and finding.n == 4
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assert finding.d == pytest.approx(mean(differences) / stdev(differences))


def test_seeds_that_only_one_side_has_do_not_pair():
    found = invented({"RoPE": [2.1, 2.2, 2.3], "Learned positions": [2.0, 2.1, 2.2, 9.9]})
    (judged,) = paper.judge(found, [claim("C5")])
    assert judged.findings[0].n == 3 and judged.findings[0].effect == pytest.approx(0.1)


def test_an_unpaired_contrast_is_welchs():
    losses = {"Linear T=32": [2.5, 2.52, 2.49], "Linear T=64": [2.7, 2.71, 2.66], "Linear T=128": [3.0, 3.1, 3.2]}
    (judged,) = paper.judge(invented(losses), [claim("C4")])
    raw = [
        stats.ttest_ind(losses[a], losses[b], equal_var=False).pvalue
        for a, b in (("Linear T=64", "Linear T=32"), ("Linear T=128", "Linear T=64"))
    ]
    corrected = paper.holm(dict(enumerate(raw)))
    assert [f.p for f in judged.findings] == pytest.approx([corrected[0], corrected[1]])


def test_the_correction_counts_the_contrasts_still_to_come():
    losses = {"RoPE": [2.1, 2.2, 2.35], "Learned positions": [2.0, 2.1, 2.2]}
    alone = paper.judge(invented(losses), [claim("C5")])[0].findings[0].p
    among = next(j for j in paper.judge(invented(losses)) if j.claim.id == "C5").findings[0].p
    assert among == pytest.approx(min(1, alone * sum(len(c.contrasts) for c in paper.CLAIMS)))


def test_another_correction_can_be_asked_for():
    losses = {"Linear": [3.0, 3.01, 2.99], "MLP": [2.9, 2.93, 2.9], "Self-attention": [2.1, 2.1, 2.12]}
    found = invented(losses | {"Transformer": [2.0, 2.02, 2.0]})
    raw = paper.judge(found, [claim("C1")], correct=lambda p: p)[0].findings
    tripled = paper.judge(found, [claim("C1")], correct=lambda p: {k: len(p) * v for k, v in p.items()})[0].findings
    assert [f.p for f in tripled] == pytest.approx([3 * f.p for f in raw])
    assert max(f.p for f in paper.judge(found, [claim("C1")])[0].findings) == pytest.approx(max(f.p for f in raw))


@pytest.mark.parametrize("gap, below", [(0.0, True), (0.06, False)])
def test_an_interval_can_lie_below_the_papers_figure(gap, below):
    three = [2.25, 2.27, 2.30]
    found = invented({"Transformer L=3": three, "Transformer L=4": [x + gap + 0.001 * s for s, x in enumerate(three)]})
    assert paper.judge(found, [claim("C3")])[0].findings[0].below_papers is below  # the paper's is 0.028


def claim(name: str) -> paper.Claim:
    return next(c for c in paper.CLAIMS if c.id == name)


@pytest.mark.parametrize(
    "shift, noise, verdict",
    [
        (0.1, 0.01, "holds"),
        (-0.1, 0.01, "does not hold"),
        (0.01, 0.1, "cannot be told apart from noise"),
        (-0.01, 0.1, "cannot be told apart from noise"),
    ],
)
@pytest.mark.parametrize(
    "name, labels", [("C3", ("Transformer L=4", "Transformer L=3")), ("C5", ("RoPE", "Learned positions"))]
)
def test_the_verdict_follows_the_effect(name, labels, shift, noise, verdict):
    rng = np.random.default_rng(1)
    worse, better = (list(2 + d + noise * rng.standard_normal(5)) for d in (shift, 0.0))
    (judged,) = paper.judge(invented(dict(zip(labels, (worse, better), strict=True))), [claim(name)])
    assert judged.verdict == verdict


def test_one_contrast_below_zero_is_enough_for_a_claim_not_to_hold():
    losses = {"Linear": [3.0, 3.01, 2.99], "MLP": [2.3, 2.31, 2.3], "Self-attention": [2.1, 2.1, 2.12]}
    assert paper.judge(invented(losses | {"Transformer": [2.0, 2.02, 2.0]}), [claim("C1")])[0].verdict == "holds"
    assert (
        paper.judge(invented(losses | {"Transformer": [4.0, 4.02, 4.0]}), [claim("C1")])[0].verdict == "does not hold"
    )
    assert paper.judge(invented(losses | {"Transformer": [2.0]}), [claim("C1")])[0].verdict == "not enough records"


def test_c6_and_c7_read_the_epochs_they_speak_of():
    valid = {
        "Penn Treebank": [[6.5, 6.2, *[6.3] * 5, 6.9 + s] for s in (0, 0.01, 0.03)],
        "WikiText-2": [[6.8 + s, 6.9, *[7.0] * 5, 7.5] for s in (0, 0.01, 0.03)],
    }
    found = invented({"Penn Treebank": [6.0] * 3, "WikiText-2": [7.0] * 3}, valid)
    (judged,) = paper.judge(found, [claim("C7")])
    assert [f.effect for f in judged.findings] == pytest.approx([0.7 + 0.04 / 3, 0.7 - 0.04 / 3])

    valid = {
        f"MLP h={h}": [[3.0, 2.8 - gain - s * h / 128] for s in (0, 0.01)]
        for h, gain in ((128, 0), (256, 0), (512, 0.1))
    }
    found = invented({"MLP h=128": [2.6, 2.61], "MLP h=256": [2.5, 2.5], "MLP h=512": [2.45, 2.47]}, valid)
    (judged,) = paper.judge(found, [claim("C6")])
    assert [f.effect for f in judged.findings] == pytest.approx([(0.05 + 0.08) / 2, 0.1 + 0.015])


def test_under_no_effect_at_all_some_claim_is_called_true_or_false_in_one_case_of_twenty():
    """Holm keeps the chance of even one false verdict below 5 %."""
    rng, wrong, trials = np.random.default_rng(0), 0, 300
    claims = [replace(claim("C1"), id=f"{i}", contrasts=(c,)) for i, c in enumerate(claim("C1").contrasts)]
    claims += [claim("C3"), claim("C5")]
    labels = [
        "Linear",
        "MLP",
        "Self-attention",
        "Transformer",
        "Transformer L=3",
        "Transformer L=4",
        "RoPE",
        "Learned positions",
    ]
    for _ in range(trials):
        found = invented({label: list(2 + 0.1 * rng.standard_normal(5)) for label in sorted(labels)})
        wrong += any(j.verdict in ("holds", "does not hold") for j in paper.judge(found, claims))
    assert wrong / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_the_papers_own_effects_are_its_own_figures():
    by_label = {r.label: r.test_nll for r in paper.RUNS}
    assert claim("C3").contrasts[0].paper == pytest.approx(by_label["Transformer L=4"] - by_label["Transformer L=3"])
    assert claim("C6").contrasts[0].paper == pytest.approx(2.5482 - 2 * 2.5115 + 2.5002)


def test_the_attention_epochs_of_c2_cost_no_more_than_the_mlps_training():
    """By the FLOPs that the committed records counted."""
    found = paper.records(Store(RESULTS / "paper"))
    mlp, attention = (next(iter(found[label].values())) for label in ("MLP", "Self-attention"))
    epoch = attention.flops["counted"] / attention.experiment.training.epochs
    assert 2 * epoch <= mlp.flops["counted"] < 3 * epoch


# --- status, scoreboard, command line


def test_status_compares_with_the_paper():
    found = invented({"Linear": [3.00, 3.02], "MLP": [2.30], "Self-attention": [2.12, 2.13]})
    lines = {s.label: s for s in paper.status(found)}
    assert lines["Linear"].mean == pytest.approx(3.01) and lines["Linear"].sd == pytest.approx(stdev([3.0, 3.02]))
    assert lines["Linear"].agrees is False  # 0.045 away, s.d. 0.014
    assert lines["MLP"].agrees is None and lines["MLP"].sd is None  # one run says nothing of the spread
    assert lines["Self-attention"].agrees is True  # 0.03 away or less
    assert lines["RoPE"].mean is lines["RoPE"].agrees is None and lines["RoPE"].seeds == 0


def test_status_as_json(tmp_path):
    Store(tmp_path).put(made_up(paper.run("RoPE").experiment(0), 2.0))
    Store(tmp_path).put(made_up(paper.run("RoPE").experiment(1), 2.2))
    result = CliRunner().invoke(app, ["status", "--json", "--store", str(tmp_path)])
    listed = {entry["label"]: entry for entry in json.loads(result.stdout)}
    assert result.exit_code == 0 and len(listed) == 20
    rope = listed["RoPE"]
    assert (rope["group"], rope["seeds"], rope["paper"]) == ("rope", 2, 2.0096)
    assert rope["mean"] == pytest.approx(2.1) and rope["sd"] == pytest.approx(stdev([2.0, 2.2]))
    assert listed["Linear"]["mean"] is listed["Linear"]["sd"] is None


def test_status_as_a_table_fits_a_terminal(tmp_path):
    for s in range(3):
        Store(tmp_path).put(made_up(paper.run("Self-attention H=1").experiment(s), 2.3 + s / 10))
    result = CliRunner().invoke(app, ["status", "--store", str(tmp_path)], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if "Self-attention H=1" in line)
    assert "3/5" in line and "2.4000 ± 0.1000" in line and "2.3482" in line and "+0.0518" in line and "yes" in line
    assert "…" not in result.stdout and max(map(len, result.stdout.splitlines())) <= 80


def test_a_damaged_record_is_named(tmp_path):
    path = tmp_path / f"{paper.run('Linear').experiment(0).name}.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=path.name):
        paper.records(Store(tmp_path))


def test_run_asks_for_a_group_that_there_is():
    result = CliRunner().invoke(app, ["run", "paper", "--group", "depths"])
    assert result.exit_code == 2 and "depths" in result.output


def test_the_scoreboard_has_a_row_a_claim():
    losses = {r.label: [2 + random.Random(f"{r.label}{s}").random() for s in range(3)] for r in paper.RUNS}
    board = paper.scoreboard(invented(losses))
    rows = list(csv.reader(io.StringIO(board), delimiter="|"))
    *table, blank, below = rows
    assert [row[1].strip() for row in table[2:]] == [f"C{i}" for i in range(1, 8)]
    assert {len(row) for row in table} == {7}
    assert not blank and below == ["*From 60 of 96 runs; the others are still to be made.*"]
    whole = invented({r.label: [2.0 + s / 9 for s in range(r.seeds)] for r in paper.RUNS})
    assert "runs" not in paper.scoreboard(whole)
    rows = paper.scoreboard(whole, {"C2": ("of these", "of those: **so**", "as seen")}).splitlines()
    assert (
        rows[3].count("|") == 6
        and "| of these: **" in rows[3]
        and "**; of those: **so** |" in rows[3]
        and "; as seen |" in rows[3]
    )
    assert [row for row in rows if "C2" not in row] == [
        row for row in paper.scoreboard(whole).splitlines() if "C2" not in row
    ]


def test_a_further_verdict_without_records_of_the_papers_runs_stands_alone():
    row = paper.scoreboard({r.label: {} for r in paper.RUNS}, {"C2": ("this", "that", "evidence")}).splitlines()[3]
    assert row.startswith("| C2 |") and "| this: **not enough records**; that | evidence |" in row


def test_the_command_line_says_what_is_wrong_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(*arguments):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code and isinstance(result.exception, SystemExit), result.exception
        return " ".join(result.output.split())

    assert "does not exist" in refused("status", "--store", "nowhere")
    assert "needs a README.md" in refused("scoreboard", "--readme", "--store", str(RESULTS / "paper"))
    store = Store(tmp_path / "paper")
    experiment = paper.run("Linear").experiment(0)
    store.put(made_up(experiment, 3.0))
    store.path(experiment).write_text("{", encoding="utf-8")
    for command in (["status"], ["scoreboard"], ["run", "paper"]):
        assert "Move the file away" in refused(*command, "--store", str(store.folder))


def test_the_readme_shows_what_the_records_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.partition(MARKS[0])[2].partition(MARKS[1])[0]
    beside = studies.again_at_equal_compute(Store(RESULTS / "frontier").found())
    said = paper.scoreboard(paper.records(Store(RESULTS / "paper")), beside)
    assert shown == said, "write it anew: python -m slmlib scoreboard --readme"


def test_scoreboard_writes_the_readme_and_nothing_else_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book" / "assets").mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"before\n{MARKS[0]}stale\n{MARKS[1]}\nafter\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["scoreboard", "--readme", "--store", str(RESULTS / "paper")])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"before\n{MARKS[0]}| ") and text.endswith(f"\n{MARKS[1]}\nafter\n") and "stale" not in text
    assert "<svg" in (tmp_path / "book" / "assets" / "agreement.svg").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text("no marks", encoding="utf-8")
    assert CliRunner().invoke(app, ["scoreboard", "--readme"]).exit_code == 1
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "no marks"
