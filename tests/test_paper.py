"""The paper's runs: what is committed under results/, and how ours compare with them."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest
from conftest import made_up
from typer.testing import CliRunner

from slmlib import paper
from slmlib.__main__ import app
from slmlib.experiments import RESULTS, Record, Store

ROOT = Path(__file__).parent.parent
COMMITTED = sorted((ROOT / "results").rglob("*.json"))


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


def test_each_committed_record_is_what_its_name_says():
    for path in COMMITTED:
        record = Record.from_json(path.read_text(encoding="utf-8"))  # recomputes the key
        assert path.name == f"{record.experiment.name}.json" and Record.from_json(record.to_json()) == record, path
        epochs = record.experiment.training.epochs
        assert len(record.train) == len(record.valid) == epochs, path
        assert record.best_epoch == min(range(epochs), key=record.valid.__getitem__) + 1, path
        losses = [*record.train, *record.valid, record.test_nll, record.test_nll_whole]
        worst = 12 if record.experiment.training.learning_rate <= 1e-3 else 50  # the frontier's boldest go astray
        assert all(0 < nll < worst for nll in losses), path
        assert all(seconds > 0 for seconds in record.seconds.values()), path


def test_every_record_of_the_paper_is_of_one_of_its_runs_at_its_budget():
    wanted = {e.key: r for r in paper.RUNS for s in range(10) for e in [r.experiment(s)]}
    for record in Store(RESULTS / "paper"):
        run = wanted[record.experiment.key]
        assert record.parameters == run.params
        windows = run.training.epochs * run.training.windows_per_epoch
        assert record.flops["paper"] == 2 * run.params * run.model.context * windows
    for label, by_seed in paper.records(Store(RESULTS / "paper")).items():
        assert len({r.test_nll for r in by_seed.values()}) == len(by_seed), label


def test_there_is_nothing_else_under_results():
    others = [p for p in (ROOT / "results").rglob("*") if p.is_file() and ".running" not in p.parts]
    kept = [p for p in others if p.suffix == ".safetensors"]  # token losses beside their record, and weights
    assert sorted(set(others) - set(kept)) == COMMITTED
    assert all(p.with_suffix(".json") in COMMITTED or p.parent.name == "weights" for p in kept)


# --- the runs


def test_experiments_are_the_96_that_the_book_publishes():
    wanted = paper.experiments()
    assert len(wanted) == len(set(wanted)) == 18 * 5 + 2 * 3
    assert [e.seed for e in wanted] == sorted(e.seed for e in wanted)  # seed by seed: whole sets as early as possible
    assert {e.train_tokens for e in wanted if e.corpus != "tiny_shakespeare"} == {80_000}
    assert len(paper.experiments(seeds=2)) == 40
    assert len(paper.experiments(seeds=1, groups=iter(["depth", "rope"]))) == 5
    with pytest.raises(ValueError, match="seeds"):
        paper.experiments(seeds=0)
    with pytest.raises(ValueError, match=r"main, context.*depths"):
        paper.experiments(groups=["depths"])


def test_records_finds_what_the_store_has(tmp_path):
    store = Store(tmp_path)
    run = paper.run("RoPE")
    store.put(made_up(run.experiment(3), 2.0))
    store.put(made_up(replace(run.experiment(4), train_tokens=9_999), 2.0))  # not the paper's run
    found = paper.records(store)
    assert set(found) == {r.label for r in paper.RUNS}
    assert set(found["RoPE"]) == {3} and sum(map(len, found.values())) == 1


# --- status and the command line


def test_status_compares_with_the_paper_by_three_rules():
    found = invented({"Linear": [3.00, 3.02], "MLP": [2.30], "Self-attention": [2.12, 2.13], "Transformer": [1.8, 2.2]})
    lines = {s.label: s for s in paper.status(found)}
    assert lines["Linear"].mean == pytest.approx(3.01) and lines["Linear"].sd == pytest.approx(stdev([3.0, 3.02]))
    assert list(lines["Linear"].agrees().values()) == [False, False, True]  # 0.045 away, s.d. 0.014, two runs
    assert list(lines["Self-attention"].agrees().values()) == [True, True, True]
    assert list(lines["Transformer"].agrees().values()) == [True, True, True]
    assert lines["MLP"].agrees() == {} and lines["MLP"].sd is None  # one run says nothing of the spread
    assert lines["RoPE"].mean is lines["RoPE"].difference is None and lines["RoPE"].seeds == 0
    assert list(paper.agreement(found).values()) == [2, 2, 3] and paper.agreement(invented({})) == {}


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


def test_status_as_a_table_loses_no_figure(tmp_path):
    for s in range(3):
        Store(tmp_path).put(made_up(paper.run("Self-attention H=1").experiment(s), 2.3 + s / 10))
    result = CliRunner().invoke(app, ["status", "--store", str(tmp_path)], env={"COLUMNS": "40"})
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if "Self-attention H=1" in line)
    assert "3/5" in line and "2.4000 ± 0.1000" in line and "2.3482" in line and "+0.0518" in line and "yes" in line
    assert "…" not in result.stdout


@pytest.mark.parametrize("command", ["status --store paper", "run paper --store paper", "verdicts --results ."])
def test_a_damaged_record_is_said_in_a_line(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    store, experiment = Store("paper"), paper.run("Linear").experiment(0)
    store.put(made_up(experiment))
    store.path(experiment).write_text("{", encoding="utf-8")
    result = CliRunner().invoke(app, command.split())
    assert isinstance(result.exception, SystemExit) and "Move the file away" in " ".join(result.output.split())


def test_the_papers_runs_are_complete_and_found_by_label():
    groups = {"main": 4, "context": 3, "width": 3, "heads": 3, "depth": 3, "rope": 2, "words": 2}
    assert Counter(r.group for r in paper.RUNS) == groups and len({r.label for r in paper.RUNS}) == 20
    for run in paper.RUNS:
        assert paper.run(run.label) is run
    with pytest.raises(KeyError, match="Self-attention"):
        paper.run("Selfattention")
