"""python -m slmlib run, as a user meets it: started, stopped, started again."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import end_of, wait_until
from typer.testing import CliRunner

from slmlib import __main__ as main
from slmlib import chapters, cluster, load_corpus, tryout
from slmlib.experiments import Experiment, Store
from slmlib.models import MLPConfig
from slmlib.training import TrainingConfig


def run_words(store, options, epochs, patience=10):
    """The command on a suite of runs of a second or so each, of so many epochs: the first one, the others."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background would ignore it
    main.out.width = main.err.width = 200
    cluster.PATIENCE = patience
    main.studies.SUITES["words"] = lambda seeds, found: [experiment(s, epochs[s > 0]) for s in range(seeds)]
    main.app(["run", "words", "--store", str(store), *options])


def wait_for(pattern, folder, process, count=1):
    wait_until(lambda: len(list(folder.glob(pattern))) >= count, process.is_alive, process.err.read_text)


def experiment(seed, epochs=6, **more):
    training = TrainingConfig(epochs=epochs, windows_per_epoch=6400, eval_windows=500, eval_stride=10, **more)
    return Experiment("python-docs", MLPConfig(context=4, d_model=8, hidden=16), training, seed)


@pytest.fixture
def here(monkeypatch):
    """here(store, wanted, seeds): the command on a suite of one's own, in this process, without workers."""
    monkeypatch.setattr(main, "process_pool", lambda workers: nullcontext())

    def here(store, wanted, seeds=1, *options):
        monkeypatch.setitem(main.studies.SUITES, "words", wanted)
        arguments = "run", "words", "--store", str(store), "--device", "cpu", "--seeds", str(seeds), *options
        return CliRunner().invoke(main.app, arguments)

    return here


def test_stopped_and_started_again(tmp_path, begin, here):
    """By Ctrl-C in a terminal, when one run is done and another, of a quarter of an hour, is under way."""
    process = begin(run_words, tmp_path, ("--seeds", "40", "--workers", "1"), (6, 4000))
    wait_for("*.json", tmp_path, process)
    wait_for(".running/*-s1-*.safetensors", tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = end_of(process, 30)
    assert code == 130 and "Traceback" not in err, err
    assert "The same command goes on from here" in err
    assert " ".join(err.split()).endswith("under way goes on from its last finished epoch.")  # the last that is said
    (record,) = Store(tmp_path)
    kept = Store(tmp_path).path(record.experiment).read_bytes()

    again = here(tmp_path, lambda seeds, found: [experiment(0), experiment(40)], 2)
    assert again.exit_code == 0 and again.stdout.count("test NLL") == 1, again.stderr
    assert experiment(40) in Store(tmp_path) and Store(tmp_path).path(experiment(0)).read_bytes() == kept


def status_in_ascii():
    sys.stdout.reconfigure(encoding="ascii")
    main.main(lambda: main.app(["status"]))


def test_what_is_redirected_is_utf_8_whatever_the_locale(begin):
    code, said, _ = end_of(begin(status_in_ascii))
    plain = CliRunner().invoke(main.app, ["status"]).stdout
    assert code == 0 and said == plain and "±" in plain


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_said_in_a_line():
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "slmlib", "status"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.decode() == "slmlib: [Errno 28] No space left on device\n"


def test_no_more_seeds_are_run_than_are_asked_for(tmp_path, here):
    done = here(tmp_path, lambda seeds, found: [experiment(seed, 1) for seed in range(1, 4)], 2)  # seed 0 is another's
    assert done.exit_code == 0 and done.stdout.count("test NLL") == 2, done.stderr
    assert experiment(2, 1) in Store(tmp_path) and experiment(3, 1) not in Store(tmp_path)


def test_failing_runs_are_named(tmp_path, here):
    done = here(tmp_path, lambda seeds, found: [experiment(s, learning_rate=1e30) for s in range(2)], 2)
    assert done.exit_code == 1 and done.stderr.count("-mlp-T4-s") == 2 and "lower the learning rate" in done.stderr


def test_what_is_asked_next_may_depend_on_what_was_found(tmp_path, here):
    done = here(tmp_path, lambda seeds, found: [experiment(s, 1) for s in range(min(seeds, len(found) + 1))], 3)
    assert done.exit_code == 0 and done.stdout.count("test NLL") == 3, done.stderr
    assert all(experiment(seed, 1) in Store(tmp_path) for seed in range(3))


@pytest.mark.parametrize("kept", [False, True])
def test_checkpoints_are_kept_for_longer_runs_if_asked_for(kept, tmp_path, here):
    done = here(tmp_path, lambda seeds, found: [experiment(0, 1)], 1, *["--keep-checkpoints"] * kept)
    assert done.exit_code == 0 and len([*tmp_path.glob(".running/*.safetensors")]) == kept


def test_the_tests_behind_the_verdicts_are_a_table():
    rows = CliRunner(env={"COLUMNS": "250"}).invoke(main.app, ["verdicts"]).stdout.splitlines()
    for verdict in chapters.judged():
        for contrast in verdict.contrasts:
            told = {verdict.claim, verdict.verdict, contrast.says, f"{contrast.estimate.effect:+.3f}"}
            assert any(all(word in row for word in told) for row in rows), told


def test_workers_end_with_the_command(tmp_path, begin):
    """Killed outright it cannot tell them to."""
    process = begin(run_words, tmp_path, ("--seeds", "40", "--workers", "1"), (4000, 4000))
    wait_for(".running/*.lock", tmp_path, process)
    command = ["pgrep", "-P", str(process.pid)]
    workers = subprocess.run(command, capture_output=True, encoding="utf-8").stdout.split()
    process.kill()
    process.join()
    assert len(workers) >= 2
    wait_until(lambda: all(map(ended, workers)))


def ended(process):
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_weights_are_trained_once_and_can_be_loaded(tmp_path, monkeypatch):
    corpus = load_corpus("python-docs")
    training = TrainingConfig(epochs=1, windows_per_epoch=64, eval_windows=200, eval_stride=7, whole_stride=99)
    made_up = {"one block": Experiment("python-docs", MLPConfig(4, 4, 8), training, 0)}
    monkeypatch.setattr(main, "load_corpus", lambda name: corpus)
    monkeypatch.setattr(main.studies, "published", lambda: made_up)
    result = CliRunner().invoke(main.app, ["weights", "--folder", str(tmp_path / "w")])
    assert result.exit_code == 0 and "one-block.safetensors" in result.output
    model, vocabulary, _ = tryout.load(tmp_path / "w/one-block.safetensors")
    assert vocabulary == corpus.vocabulary and model.config == MLPConfig(4, 4, 8)
    assert CliRunner().invoke(main.app, ["weights", "--folder", str(tmp_path / "w")]).output == ""
