"""The experiments beyond the paper's: that they are what they are said to be."""

import json
from dataclasses import replace
from math import log2
from types import SimpleNamespace

import pytest

from slmlib import paper, recipes, stats, studies, tryout, verdicts
from slmlib.checkpoints import load_tensors
from slmlib.experiments import RESULTS, Experiment, Store


@pytest.mark.parametrize("suite", sorted(studies.SUITES))
def test_every_record_is_one_that_its_study_asks_for(suite):
    found = Store(RESULTS / suite).found()
    assert set(found) <= set(studies.SUITES[suite](studies.SEEDS, found))


@pytest.mark.parametrize("suite", ["depth-context", "positions", "words", "together"])
def test_a_suite_lists_each_experiment_once_for_each_seed(suite):
    one, three = studies.SUITES[suite](1, {}), studies.SUITES[suite](3, {})
    assert len(set(three)) == len(three) == 3 * len(one)
    assert {e.seed for e in three} == {0, 1, 2}
    assert {replace(e, seed=0) for e in three} == set(one)


def test_depth_and_context_are_swept_at_equal_windows_from_the_papers_transformer():
    experiments = studies.depth_context(1)
    assert len({e.training for e in experiments}) == 1
    assert {replace(e.model, context=128, layers=3) for e in experiments} == {paper.run("Transformer").model}


@pytest.mark.parametrize("changes", studies.CHANGES)
def test_changes_cost_the_same_and_lead_from_the_papers_transformer_to_todays(changes):
    tried, budget = studies.tried(changes), studies.LARGER if changes == "again" else studies.GAIN
    for experiments in tried.values():
        assert all(e.flops() == pytest.approx(budget, rel=1e-3) for e in experiments)
        assert len({e.training.learning_rate for e in experiments}) == len(experiments)
    first, *_, last = tried.values()
    if changes == "chain":
        assert [first[0].model, first[0].training.learning_rate] == [paper.run("Transformer").model, 3e-4]
        assert studies.today_s() in last
    else:
        point = recipes.chosen(Store(RESULTS / "today").found())["blocks", budget]
        assert first == [recipes.experiment("blocks", point, budget, 0)]
    before = None
    for name, experiments in tried.items():
        assert before is None or experiments[-1] not in before, name  # each changes something
        before = experiments


def test_other_seeds_are_asked_for_at_the_rate_that_validation_chose():
    experiments = studies.tried("added")["linear decay"]
    records = {e: SimpleNamespace(valid=[2.0, 1.9 - 0.1 * (i == 1)]) for i, e in enumerate(experiments)}
    gained = studies.gained(records, "added")
    assert gained == {"linear decay": [replace(experiments[1], seed=seed) for seed in range(studies.GAIN_SEEDS)]}
    assert set(gained["linear decay"]) <= set(studies.gain(3, records))


def test_short_convolutions_are_added_to_todays_choices():
    reached = studies.reached()
    assert {n: replace(e, model=replace(e.model, conv=0)) for n, e in reached.items()} == dict.fromkeys(
        studies.REACHES, studies.today_s()
    )
    found = Store(RESULTS / "today").found()
    points, convolved = recipes.chosen(found), studies.convolved(recipes.runs(found))
    assert list(convolved) == [budget for name, budget in points if name == "blocks"]
    for budget, runs in convolved.items():
        without = [replace(run, model=replace(run.model, conv=0)) for run in runs]
        assert without == [recipes.experiment("blocks", points["blocks", budget], budget, s) for s in range(len(runs))]
        assert all(run.model.conv == recipes.REACH for run in runs)
        assert len(runs) == (5 if budget in (1e12, 3e12, 1e13) else 3)
    assert convolved[studies.GAIN][0] in studies.tried("added")["short convolutions"]
    decayed = studies.decayed(recipes.runs(found))
    for decay, runs in decayed.items():
        without = [replace(run, training=replace(run.training, weight_decay=0.1)) for run in runs]
        assert without == convolved[3e13][: studies.DECAYS[decay]] and decay != 0.1
    runs = [run for of in (convolved, decayed) for runs in of.values() for run in runs]
    assert {*reached.values(), *runs} <= set(studies.gain(3, {}))


def test_on_other_texts_runs_differ_in_their_convolutions_alone():
    found = Store(RESULTS / "convolutions").found()
    asked, there = studies.convolutions(3, found), studies.elsewhere()
    words = {run for of in studies.words_together().values() for run in of}
    assert len(there) == 4 and len(set(asked)) == len(asked)
    here = studies.elsewhere({})["python-docs", 3e12][0]  # of this Python's documentation
    assert [run.model for run in here] == [run.model for run in there["python-docs", 3e12][0]]
    for plain, convolved in there.values():
        assert [studies._reaching(run) for run in plain] == convolved and not any(run.model.conv for run in plain)
        assert set(plain) <= {*asked, *words} and set(convolved) <= set(asked)
        assert len({run.seed for run in plain}) == len(plain) == 3
    mlps = studies.on_documentation("mlp")
    assert {run.corpus for run in mlps} == {run.corpus for run in there["python-docs", 3e12][0]}
    assert set(mlps) <= set(asked)
    begun = {e: r for e, r in found.items() if not e.corpus.startswith("python-docs") or not e.seed}
    assert set(studies.convolutions(3, begun)) == set(asked)  # stopped after the first seed
    for dropout in (0.0, 0.1):
        run = studies.largest(dropout)
        assert run.flops(65) == pytest.approx(1e14, rel=1e-3) and run in asked
        assert run.model.conv == recipes.REACH and run.model.dropout == dropout


@pytest.mark.parametrize("name", studies.WORDS)
def test_words_are_searched_from_their_start_and_the_choice_costs_what_it_says(name):
    points, asked = studies.words_search(name, {})
    start = studies.WORDS[name].starts[0]
    assert not points and asked[0] == studies.of_words(name, start, 0)
    chosen = studies.of_words(name, start, 1)
    assert chosen.flops(studies.WORDS[name].vocabulary) == pytest.approx(start["flops"], rel=1e-3)
    assert replace(asked[0].training, eval_stride=1, valid_stride=4, whole_stride=4) == chosen.training


@pytest.mark.parametrize("name", studies.WORDS)
def test_the_search_for_words_ends_at_the_best_settings_at_each_budget(name):
    text, found = studies.WORDS[name], {}

    def bowl(e):
        sizes = abs(log2(e.model.d_model / 96)) + abs(e.model.layers - 2) + abs(e.training.batch - 16)
        rates = abs(log2(e.training.learning_rate / 4e-3)) + abs(log2(e.training.weight_decay / 0.3))
        return SimpleNamespace(valid=[9.9, sizes + rates + abs(e.model.dropout - 0.1)])

    while new := [e for e in studies.words_search(name, found)[1] if e not in found]:
        found |= {e: bowl(e) for e in new}
    points = studies.words_search(name, found)[0]
    assert set(points) == {text.starts[0]["flops"], *(budget for chain in text.budgets for budget in chain)}
    best = {"rate": 4e-3, "batch": 16, "dropout": 0.1, "weight_decay": 0.3, "shape": (2, 96)}
    assert all(point == {**best, "flops": budget} for budget, point in points.items())


def test_shapes_cost_what_their_budget_says():
    all_of_them = [e for e in studies.shapes() if e.training.valid_from == recipes.NEXT_PLAY]
    assert len(studies.shapes()) == len(all_of_them) + len(studies.WIDTHS[3e12])
    for budget, seeds in studies.SHAPE_SEEDS.items():
        of = [e for e in all_of_them if e.flops() == pytest.approx(budget, rel=2e-3)]
        shapes = {(e.model.layers, e.model.d_model, e.model.context) for e in of}
        assert len(shapes) > 7 and len(of) == seeds * len(shapes)
        all_of_them = [e for e in all_of_them if e not in of]
    assert not all_of_them


APART = (-0.01, 0.0, 0.01, -0.02, 0.02)  # of seeds, zero in the mean of three as of five


@pytest.mark.parametrize("changes", studies.CHANGES)
def test_a_change_is_worth_what_it_takes_off_the_loss_of_the_one_before_or_of_todays(changes):
    chain = changes == "chain"
    levels = dict(zip(list(studies.tried(changes))[2 * chain :], (2.0, 1.9, 1.95), strict=False))
    records = {}
    for name, level in levels.items():
        for rate, tried in enumerate(studies.tried(changes)[name]):
            for seed in range(studies.GAIN_SEEDS):
                loss = level + APART[seed] + rate
                records[replace(tried, seed=seed)] = SimpleNamespace(valid=[loss], test_nll_whole=loss)
    _, second, third = levels
    found, seeds = verdicts.gains(records, changes), len(studies.gained(records, changes)[second])
    assert list(found) == [second, third]
    assert found[second].effect == pytest.approx(0.1) and found[second].sign == 1
    assert found[third].effect == pytest.approx(-0.05 if chain else 0.05)
    pair = [2 + apart for apart in APART], [1.9 + apart for apart in APART[:seeds]]
    assert found[second].p == pytest.approx(2 * stats.unpaired(*pair).p)
    del records[studies.gained(records, changes)[second][1]]
    assert list(verdicts.gains(records, changes)) == [third] * (not chain)  # in the chain it came after that


def test_a_budgets_curves_are_lowest_where_validation_says_and_only_when_all_runs_are_there():
    budget, other, *_ = studies.SHAPE_SEEDS
    best = {"width": 40, "blocks": 2.5, "context": 40}
    records = {}
    for name, curve in studies.curves(budget).items():
        for x, shape in curve.items():
            for seed in range(studies.SHAPE_SEEDS[budget]):
                loss = 2 + 0.1 * log2(x / best[name]) ** 2 + 0.001 * seed
                records.setdefault(studies.shaped(budget, *shape, seed), SimpleNamespace(valid=[9.0, loss]))
    one = studies.shaped(other, *next(iter(studies.curves(other)["width"].values())), 0)
    found = verdicts.minima({**records, one: SimpleNamespace(valid=[2.0])})
    assert set(found) == {(name, budget) for name in best}
    assert found["width", budget].at == pytest.approx(40, rel=0.05)


def test_the_published_weights_are_of_the_runs_that_are_named():
    for name, experiment in studies.published().items():
        _, about = load_tensors(RESULTS / "weights" / studies.file_of(name), tryout._ABOUT)
        assert Experiment.from_spec(json.loads(about["experiment"])) == experiment
