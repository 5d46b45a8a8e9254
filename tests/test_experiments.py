import json
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import FrozenInstanceError, fields, replace
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import made_up, same, timeless

from slmlib import experiments, training
from slmlib.checkpoints import epochs_done
from slmlib.corpora import exact_name, load_corpus
from slmlib.experiments import Experiment, RecordDamaged, Store, run, run_all, trained
from slmlib.flops import count_flops
from slmlib.models import LinearConfig, MLPConfig, TransformerConfig, build, n_parameters
from slmlib.training import Diverged, TrainingConfig, evaluate, fit
from slmlib.windows import Evaluation

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = TrainingConfig(3, windows_per_epoch=64, eval_windows=2_000, eval_stride=200, batch=32, learning_rate=0.01)
LINEAR = Experiment("python-docs", LinearConfig(context=8, d_model=6), QUICK, 0)
MLP = Experiment("python-docs", MLPConfig(context=8, d_model=6, hidden=12, dropout=0.3), QUICK, 1)
ATTENTION = Experiment(
    "python-docs", TransformerConfig(context=8, d_model=8, heads=2, layers=2, ff_width=12, dropout=0.3), QUICK, 2
)
THREE = (LINEAR, MLP, ATTENTION)
SHORT, DIVERGING, UNKNOWN = FAILING = (
    replace(LINEAR, train_tokens=8),  # no window of 8 and its target
    replace(MLP, training=replace(QUICK, learning_rate=1e30)),
    replace(LINEAR, corpus="no-such-corpus"),
)
three = pytest.mark.parametrize("experiment", THREE, ids=lambda e: e.kind)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def never(*_args, **_options):
    raise AssertionError("this was not to be called")


def with_epochs(experiment, epochs):
    return replace(experiment, training=replace(experiment.training, epochs=epochs))


# Experiment


@three
def test_an_experiment_is_frozen_named_by_what_it_is_and_its_spec_gives_it_back(experiment):
    kind, seed = {LINEAR: ("linear", 0), MLP: ("mlp", 1), ATTENTION: ("transformer", 2)}[experiment]
    assert experiment.kind == kind
    assert experiment.corpus == exact_name("python-docs")  # another text under each Python: another key
    assert experiment.name == f"{experiment.corpus}-{kind}-T8-s{seed}-{experiment.key}"
    assert re.fullmatch("[0-9a-f]{10}", experiment.key)
    with pytest.raises(FrozenInstanceError):
        experiment.seed = 5
    for e in (experiment, replace(experiment, train_tokens=70)):
        again = Experiment.from_spec(json.loads(json.dumps(e.spec())))
        assert (again, again.key, again.name, hash(again)) == (e, e.key, e.name, hash(e))


def test_numbers_that_are_equal_give_one_key():
    numpy = Experiment("ptb", MLPConfig(np.int64(8), dropout=np.float64(0.1)), TrainingConfig(np.int32(3)), np.int64(1))
    for one, other in (
        [replace(MLP, model=MLPConfig(dropout=p)) for p in (0.0, 0)],
        [replace(MLP, model=MLPConfig(dropout=p)) for p in (0.0, -0.0)],
        [replace(MLP, training=TrainingConfig(learning_rate=r)) for r in (1, 1.0)],
        [numpy, Experiment("ptb", MLPConfig(8, dropout=0.1), TrainingConfig(3), 1)],
    ):
        assert (one, one.key, one.spec()) == (other, other.key, json.loads(json.dumps(other.spec())))


def changed(config):
    """That config once for each of its fields, with another value there."""
    for f in fields(config):
        value = getattr(config, f.name)
        if isinstance(value, str):
            yield from (replace(config, **{f.name: other}) for other in set(get_args(f.type)) - {value})
        elif isinstance(value, bool):
            yield replace(config, **{f.name: not value})
        elif f.name == "weight_decay":
            yield replace(config, optimiser="adamw", weight_decay=0.1)
        elif not value:
            yield replace(config, **{f.name: 100 if value is None else 0.25 if f.type is float else 1})
        else:
            yield replace(config, **{f.name: value / 2 if isinstance(value, float) else 2 * value})


@three
def test_every_field_changes_the_key(experiment):
    all_of_them = [
        experiment,
        *(replace(experiment, **change) for change in ({"corpus": "ptb"}, {"seed": 9}, {"train_tokens": 1})),
        replace(experiment, training=replace(QUICK, eval_windows=None)),
        *(replace(experiment, model=model) for model in changed(experiment.model)),
        *(replace(experiment, training=training) for training in changed(QUICK)),
    ]
    assert len(all_of_them) >= 5 + len(fields(experiment.model)) + len(fields(QUICK))
    assert len({e.key for e in all_of_them}) == len({e.name for e in all_of_them}) == len(all_of_them)


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("model", {"kind": "lstm"}, "lstm"),
        ("model", {"kind": ["mlp"]}, "mlp"),
        ("model", {"hidden": 3}, "hidden"),  # which a linear model has not
        ("training", {"batch": 0}, r"TrainingConfig\.batch .* got 0"),
        (None, {"seed": -1}, r"Experiment\.seed .* got -1"),
    ],
)
def test_a_spec_with_something_unknown_or_wrong_is_refused_by_name(part, change, named):
    spec = LINEAR.spec()
    (spec[part] if part else spec).update(change)
    with pytest.raises(ValueError, match=named):
        Experiment.from_spec(spec)


# Record and Store


def tampered(path, change):
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["sha256"]  # which those of earlier versions lack
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def tampering(change):
    return lambda path: tampered(path, change)


SPOILERS = {
    "another seed": tampering(lambda values: values["experiment"].update(seed=5)),
    "another rate": tampering(lambda values: values["experiment"]["training"].update(learning_rate=0.5)),
    "another key": tampering(lambda values: values.update(key="0123456789")),
    "no key": tampering(lambda values: values.pop("key")),
    "a field is missing": tampering(lambda values: values.pop("test_nll")),
    "no experiment": tampering(lambda values: values.pop("experiment")),
    "no model": tampering(lambda values: values["experiment"].pop("model")),
    "a number": lambda path: path.write_bytes(b"3"),
}
WRONG = {
    "test_nll": ("2.5", None, float("nan"), float("inf"), -0.1, True, [2.5]),
    "test_nll_whole": ("2.5", None),
    "test_nll_last": ("2.5", float("nan")),
    "train": ([], 3, None, [1.0, 2.0], [1.0, 2.0, None]),
    "valid": ([], 3, [1.0, 2.0, "3"], [1.0, 2.0, float("nan")], {"1": 2.0}),
    "best_epoch": (99, 0, 1.0, None, True),
    "parameters": (0, 1.5, "8"),
    "flops": ({}, 3, {"paper": 1.0}, {"paper": 1.0, "counted": None}),
    "seconds": ({}, {"training": "1", "testing": 1.0}),
    "machine": (3, None, []),
    "versions": (3, {"python": 3.11}),
}
VALUES = {(n, repr(v)): tampering(lambda vs, n=n, v=v: vs.update({n: v})) for n, vs in WRONG.items() for v in vs}


@pytest.mark.parametrize(
    ("spoil", "named"),
    [*((spoil, "move") for spoil in SPOILERS.values()), *((spoil, f"{n} must be") for (n, _), spoil in VALUES.items())],
    ids=[*SPOILERS, *map("-".join, VALUES)],
)
def test_a_file_that_cannot_be_right_is_named_with_what_is_wrong_and_what_to_do(store, spoil, named):
    store.put(made_up(LINEAR))
    spoil(store.path(LINEAR))
    for read in (lambda: store.get(LINEAR), store.found, lambda: run(LINEAR, store)):
        with pytest.raises(RecordDamaged, match=f"(?i){re.escape(str(store.path(LINEAR)))}.*{named}"):
            read()


def test_a_later_versions_fields_are_kept(store):
    store.put(made_up(LINEAR))

    def later(values):
        values.update(colour="red", more=[1])
        values["sha256"] = experiments._checksum(values)

    tampered(store.path(LINEAR), later)
    record = store.get(LINEAR)
    assert record.more == {"colour": "red", "more": [1]} and list(store) == [record]
    store.put(record)
    assert json.loads(store.path(LINEAR).read_text(encoding="utf-8"))["colour"] == "red"


@pytest.mark.parametrize(
    "part, change",
    [
        ("model", {"colour": "red"}),
        ("training", {"colour": "red"}),
        (None, {"colour": "red"}),
        ("training", {"schedule": "red"}),  # another choice of what there is
    ],
)
def test_a_later_versions_experiment_is_warned_of_and_left(store, part, change):
    store.put(made_up(LINEAR))
    store.put(made_up(MLP))
    tampered(store.path(MLP), lambda v: (v["experiment"][part] if part else v["experiment"]).update(change))
    with pytest.warns(UserWarning, match=r"(colour|schedule).*version.*leave it"):
        assert store.found() == {LINEAR: made_up(LINEAR)}
    with pytest.raises(RecordDamaged, match="leave it"):
        store.get(MLP)


@pytest.mark.parametrize("name", ["._{}", "notes", "{}_old", "copy of {}", "{} (1)"])
def test_files_that_are_not_named_as_records_are_passed_over(store, name):
    store.put(made_up(LINEAR, 0.5))
    text = made_up(LINEAR, 0.25).to_json() if "{}" in name and name[0] != "." else "\0notes"
    (store.folder / f"{name.format(LINEAR.name)}.json").write_text(text, encoding="utf-8")
    assert [r.test_nll for r in store] == [0.5] == [store.found()[LINEAR].test_nll]


def test_a_store_gives_what_was_put_by_file_name(store):
    assert (store.get(LINEAR), LINEAR in store, list(store), store.found()) == (None, False, [], {})
    wanted = [*THREE, *(replace(LINEAR, seed=seed) for seed in (10, 3, 2, 1))]
    for e in wanted:
        store.put(made_up(e))
        store.running(e, "json").write_text("half a rec", encoding="utf-8")
    assert LINEAR in store and replace(LINEAR, seed=9) not in store
    assert (store.get(MLP), store.get(replace(MLP, seed=9))) == (made_up(MLP), None)
    assert store.found() == {e: made_up(e) for e in wanted}
    assert [r.experiment.name for r in store] == sorted(e.name for e in wanted)
    assert [r.experiment.name for r in store] == sorted(path.stem for path in store.folder.glob("*.json"))


# trained, and run


BY_HEART = {  # forty tokens: validation is best before the end
    "training": replace(QUICK, epochs=12, eval_windows=30_000, learning_rate=0.1),
    "train_tokens": 40,
}


FROM_A_TOKEN_ON = {"training": replace(QUICK, eval_windows=None, eval_stride=50, eval_from=20)}


@pytest.mark.parametrize(
    ("experiment", "changes"), [*((e, {}) for e in THREE), (MLP, BY_HEART), (ATTENTION, FROM_A_TOKEN_ON)]
)
def test_a_record_is_what_fit_and_evaluate_give_on_disk_or_in_memory(store, experiment, changes):
    experiment = replace(experiment, **changes)
    steps, whole = experiment.training, load_corpus("python-docs")
    record = run(experiment, store)
    model, last = build(experiment.model, len(whole.vocabulary), seed=experiment.seed), []
    corpus = replace(whole, train=whole.train[: experiment.train_tokens])  # the cap is on the train split alone
    test = Evaluation(steps.eval_windows, steps.eval_stride, steps.eval_from)
    history = fit(
        model, corpus, steps, experiment.seed, False, at_end=lambda m, _: last.append(evaluate(m, whole.test, test))
    )
    assert record.experiment == experiment
    assert (record.train, record.valid, record.best_epoch) == (history.train, history.valid, history.best_epoch)
    assert (record.test_nll, [record.test_nll_last]) == (evaluate(model, whole.test, test), last)
    assert (record.best_epoch < steps.epochs) == (record.test_nll_last != record.test_nll) == (changes is BY_HEART)
    assert record.test_nll_whole == evaluate(model, whole.test, Evaluation(None, 8, steps.eval_from))
    count, windows = n_parameters(model), steps.epochs * steps.windows_per_epoch
    assert (record.parameters, record.parameters_without_embeddings) == count
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    counted = count_flops(model, tokens, tokens[:, 0]) * windows
    assert record.flops == {"paper": 2 * count.total * 8 * windows, "counted": counted}
    assert record.seconds.keys() == {"training", "testing"} and min(record.seconds.values()) > 0
    assert (record.machine["device"], record.machine["threads"]) == ("cpu", 1)
    assert record.versions == {"python": platform.python_version(), "torch": torch.__version__}
    assert store.get(experiment) == record
    assert timeless(run(experiment)) == timeless(record)  # without a store
    live, same_history, in_memory = trained(experiment, whole, progress=False)
    assert same(live, model) and timeless(in_memory) == timeless(record) and same_history.valid == history.valid


def test_a_corpus_may_stand_in_and_the_record_names_it():
    whole = replace(load_corpus("python-docs"), stands_in_for="ptb")
    _, _, record = trained(replace(MLP, corpus="ptb"), whole, progress=False)
    assert timeless(record) == timeless(run(MLP))


@pytest.mark.parametrize(
    ("change", "device", "named"),
    [
        ({}, "cpu", "the test split: 2000 windows .* 992"),
        ({"training": replace(QUICK, eval_from=1000)}, "cpu", "the test split: the first token scored is 1000"),
        *(({}, device, "device must be") for device in ("gpu", 3.5, [], "cpu0")),
    ],
)
def test_what_the_test_or_the_device_lacks_is_told_before_training(store, monkeypatch, change, device, named):
    whole = load_corpus("python-docs")
    monkeypatch.setattr(experiments, "fit", never)
    monkeypatch.setattr(experiments, "_corpus", lambda *_: replace(whole, test=whole.test[:1000]))
    with pytest.raises(ValueError, match=named):
        run(replace(LINEAR, **change), store, device)


def test_a_device_is_looked_for_where_the_work_is_done(store):
    def elsewhere(experiment, device, *_):
        assert device == "cuda"
        return run(experiment), None

    assert run(LINEAR, store, "cuda", by=elsewhere) == store.get(LINEAR)


@pytest.mark.parametrize("device", [torch.device("cpu"), None])
def test_a_device_may_be_pytorchs_or_none(store, device):
    assert run(LINEAR, store, device).machine["device"] == "cpu"


def test_what_is_recorded_is_not_run_again_and_leaves_no_checkpoint(store, monkeypatch):
    records = [run(replace(ATTENTION, seed=seed), store) for seed in (2, 0)]  # the second beside what the first left
    assert {path.suffix for path in store.folder.rglob("*") if path.is_file()} == {".json", ".lock"}
    monkeypatch.setattr(experiments, "fit", never)
    assert run(ATTENTION, store) == records[0]
    with pytest.raises(AssertionError, match="not to be called"):
        run(LINEAR, store)


def test_want_of_memory_is_said_with_what_to_do(monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch.nn.functional, "embedding", full)
    with pytest.raises(MemoryError, match="choose a smaller model or batch"):
        trained(LINEAR, load_corpus("python-docs"), progress=False)


def test_a_failed_run_leaves_no_record_and_frees_the_experiment(store, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(experiments, "evaluate", never)  # after training
        run(MLP, store)
    assert list(store) == []
    assert timeless(run(MLP, store)) == timeless(run(MLP))


# Longer runs go on from shorter ones


def test_a_longer_run_goes_on_from_a_kept_checkpoint_to_the_same_bits(store, monkeypatch):
    short, long = ATTENTION, with_epochs(ATTENTION, 5)
    alone, looks = [run(e) for e in (short, long)], []
    first = run(short, store, keep_checkpoint=True)
    checkpoint = store.running(short, "safetensors")
    assert epochs_done(checkpoint) == 3 and checkpoint == store.running(long, "safetensors")
    monkeypatch.setattr(training, "evaluate", lambda *a, **k: looks.append(0) or evaluate(*a, **k))
    second = run(long, store)
    assert len(looks) == 2 and len(second.valid) == 5  # two epochs were left to train
    assert [timeless(r) for r in (first, second)] == [timeless(r) for r in alone]
    assert not checkpoint.exists()


def test_a_shorter_run_leaves_a_longer_ones_checkpoint_alone(store):
    short, long = with_epochs(ATTENTION, 2), with_epochs(ATTENTION, 4)
    run(long, store, keep_checkpoint=True)
    checkpoint = store.running(long, "safetensors")
    before = checkpoint.read_bytes()
    assert timeless(run(short, store)) == timeless(run(short))
    assert checkpoint.read_bytes() == before
    assert [p.name for p in checkpoint.parent.glob("*.safetensors")] == [checkpoint.name]


def test_run_all_keeps_checkpoints_if_asked(store):
    run_all([with_epochs(LINEAR, epochs) for epochs in (1, 2, 4)], store=store, keep_checkpoints=True)
    assert epochs_done(store.running(LINEAR, "safetensors")) == 4
    run_all([replace(LINEAR, seed=5)], store=store)
    assert not store.running(replace(LINEAR, seed=5), "safetensors").exists()


# run_all


@pytest.fixture
def executor(request):
    makers = {
        "none": nullcontext,
        "threads": lambda: ThreadPoolExecutor(2),
        "spawned": lambda: nullcontext(request.getfixturevalue("spawned")),
    }
    with makers[request.param]() as executor:
        yield executor


def on(*executors):
    return pytest.mark.parametrize("executor", executors, indirect=True)


@on("none", "threads", "spawned")
def test_run_all_gives_records_in_order_and_runs_repeats_once(store, executor):
    there = run(MLP, store)
    wanted, seen = [ATTENTION, LINEAR, MLP, ATTENTION, LINEAR], []
    records = run_all(wanted, executor, str(store.folder), done=seen.append)
    assert [record.experiment for record in records] == wanted
    assert records[0] == records[3]  # its seconds too: it was run once
    assert records == [store.get(e) for e in wanted]
    assert seen[0] == records[2] == there
    assert sorted(record.experiment.kind for record in seen) == ["linear", "mlp", "transformer"]
    assert all(record in records for record in seen)
    assert len(list(store)) == 3


SEVERAL = [*THREE, *(replace(e, seed=seed) for seed in (5, 6, 7) for e in (ATTENTION, MLP))]


@pytest.fixture(scope="module")
def one_by_one(one_thread, tmp_path_factory):
    return run_all(SEVERAL, store=tmp_path_factory.mktemp("alone"))


@on("threads", "spawned")
def test_the_executor_changes_no_bit(store, executor, one_by_one):
    """Those with dropout, two at a time: they may not draw from each other's random numbers."""
    assert len({tuple(record.train) for record in one_by_one}) == len(SEVERAL)
    for record, expected in zip(run_all(SEVERAL, executor, store), one_by_one, strict=True):
        assert timeless(record, machine={}) == timeless(expected, machine={})


@on("none", "threads", "spawned")
def test_failures_are_named_and_the_others_kept(store, executor):
    seen = []
    with pytest.raises(ExceptionGroup, match="3 of 5 experiments failed") as error:
        run_all([SHORT, LINEAR, DIVERGING, MLP, UNKNOWN], executor, store, done=seen.append)
    failures = {failure.__notes__[-1]: failure for failure in error.value.exceptions}
    by_experiment = [failures.pop(f"in experiment {e.name}") for e in FAILING]
    assert not failures
    assert [type(failure) for failure in by_experiment] == [ValueError, Diverged, ValueError]
    assert "with learning rate 1e+30" in str(by_experiment[1])
    assert "no-such-corpus" in str(by_experiment[2])
    assert {record.experiment for record in store} == {record.experiment for record in seen} == {LINEAR, MLP}


def test_an_interrupt_ends_it_at_once_and_the_next_call_goes_on(store, monkeypatch):
    def interrupted(model, *args):
        if isinstance(model.config, MLPConfig):
            raise KeyboardInterrupt
        return fit(model, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(experiments, "fit", interrupted)
        run_all(THREE, store=store)
    (kept,) = store
    assert run_all(THREE, store=store)[0] == kept
