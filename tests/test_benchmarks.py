"""The benchmark: that what it times are the same models, and that what is published is what it found."""

import json
from dataclasses import replace
from pathlib import Path

import measure
import plain
import pytest
import torch
from test_flops import VARIANTS
from test_models import TODAY
from torch.nn import functional as F
from typer.testing import CliRunner

from slmlib.__main__ import BENCH_MARKS, app
from slmlib.experiments import BENCHMARKS
from slmlib.models import build
from slmlib.screen import markdown
from slmlib.speed import one_thread
from slmlib.windows import random_stream

ROOT = Path(__file__).parent.parent
PUBLISHED, AVX2 = (
    json.loads((BENCHMARKS / name).read_text(encoding="utf-8")) for name in ("results.json", "avx2.json")
)


MODELS = {name: (case.config, case.every) for name, case in measure.CASES.items()} | {
    f"{c.norm}-{c.positions}-{c.layers}-{c.conv}-{'every' if every else 'last'} {i}": (c, every)
    for i, c in enumerate((*VARIANTS, replace(TODAY, previous=0)))
    for every in (False, True)
    if not (c.previous or c.tied)  # which the textbook's have not
}


@pytest.mark.parametrize("name", MODELS)
def test_a_plain_model_has_the_logits_and_gradients_of_ours(name):
    config, every = MODELS[name]
    ours = build(config, measure.V, seed=0)
    for p in ours.parameters():  # nothing at zero, where a branch would hide
        torch.nn.init.normal_(p, std=0.1, generator=random_stream(p.numel(), "initialisation"))
    theirs = plain.build(config, measure.V, ours, every)
    T = config.context
    window = torch.randint(measure.V, (3, T + 1), generator=random_stream(0, "windows"))
    targets = window[:, 1:] if every else window[:, -1]
    found = []
    for model, further in ((ours, {"every_position": True} if every else {}), (theirs, {})):
        logits = model.eval()(window[:, :T], **further)
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
        found.append([logits, *torch.autograd.grad(loss, list(model.parameters()))])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_a_step_is_timed_in_pairs_and_held_against_the_machines_rates():
    with one_thread():
        row = measure.step(replace(measure.CASES["tiny, width 48"], batch=2), 0.3)
    assert 0 < row["low"] <= row["ratio"] <= row["high"] and row["seconds"] > 0
    assert 0 < row["products"] < 1 and 0 < row["memory"] < 1


def test_a_trick_is_put_back_after_it_was_left_out():
    owner, name, instead, _ = measure._WITHOUT["Dropout"]
    there = getattr(owner, name)
    with one_thread():
        measure._without(owner, name, instead, replace(measure.CASES["tiny, width 48"], batch=1), 0.01)
    assert getattr(owner, name) is there


def test_the_whole_last_block_gives_the_logits_of_the_pruned_one():
    model = build(measure.CASES["attention"].config, measure.V, seed=0).eval()
    tokens = torch.randint(measure.V, (2, 128), generator=random_stream(0, "windows"))
    torch.testing.assert_close(measure._whole_last_block(model, tokens), model(tokens), atol=1e-5, rtol=0)


def test_what_is_published_is_whole_and_the_readme_shows_it():
    assert set(PUBLISHED["step_ratio"]) == set(PUBLISHED["of_limit"]) == set(measure.CASES)
    for name, row in PUBLISHED["steps"].items():
        assert PUBLISHED["step_ratio"][name] == row["ratio"]
        assert PUBLISHED["of_limit"][name] == pytest.approx(row["products"] + row["memory"])
    there = {*measure._WITHOUT, "look_up", "keep_freed_memory"}
    younger = {"products"}  # than those measurements, as Muon is than the first
    assert {t["trick"] for t in PUBLISHED["tricks"]} - {"Muon"} == there - younger
    assert {t["trick"] for t in AVX2["tricks"]} == {*there, "Muon"} - younger
    assert set(AVX2["compiled"]) == set(measure.COMPILED)
    shown = (ROOT / "README.md").read_text(encoding="utf-8").partition(BENCH_MARKS[0])[2].partition(BENCH_MARKS[1])[0]
    assert shown == markdown(measure.rows(PUBLISHED))


def test_the_command_prints_and_keeps_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "measure", lambda quick, show: PUBLISHED)
    Path("benchmarks").mkdir()
    Path("README.md").write_text(f"before\n{BENCH_MARKS[0]}stale\n{BENCH_MARKS[1]}\nafter\n", encoding="utf-8")
    run = CliRunner().invoke(app, ["bench", "--json", "--save", "benchmarks/results.json"])
    kept = json.loads(Path("benchmarks/results.json").read_text(encoding="utf-8"))
    assert json.loads(run.stdout) == kept == PUBLISHED
    text = Path("README.md").read_text(encoding="utf-8")
    assert "stale" not in text and "| transformer |" in text and text.endswith("\nafter\n")
    assert "plain ÷ ours" in CliRunner().invoke(app, ["bench", "--quick"]).stdout
    Path("README.md").write_text("another project's", encoding="utf-8")
    assert CliRunner().invoke(app, ["bench", "--save", "here.json"]).exit_code == 0
    assert Path("README.md").read_text(encoding="utf-8") == "another project's"
    monkeypatch.setattr(measure, "measure", None)  # before anything is measured
    assert "there is no folder nowhere" in CliRunner().invoke(app, ["bench", "--save", "nowhere/x"]).stderr
