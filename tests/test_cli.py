"""python -m slmlib run, as a user meets it: started, stopped, started again."""

import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from slmlib import __main__ as main
from slmlib import load_corpus, tryout
from slmlib.experiments import Experiment, Store
from slmlib.models import MLPConfig
from slmlib.training import TrainingConfig

# The suite `words` replaced by runs of a second or so each on the embedded corpus.
SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background would ignore it
from slmlib import studies
from slmlib.experiments import Experiment
from slmlib.models import MLPConfig
from slmlib.training import TrainingConfig
config = MLPConfig(context=4, d_model=8, hidden=16)
sizes = dict(epochs={epochs}, windows_per_epoch=6400, eval_windows=500, eval_stride=10)
training = TrainingConfig(**sizes, learning_rate={rate})
most = lambda seeds, found: {most}
studies.SUITES["words"] = lambda seeds, found: [
    Experiment("python-docs", config, training, s) for s in range(most(seeds, found))
]
from slmlib.__main__ import app
app()
"""


def start(store, *arguments, epochs=6, rate=3e-4, most="seeds"):
    script = SCRIPT.format(epochs=epochs, rate=rate, most=most)
    command = [sys.executable, "-c", script, "run", "words", "--store", str(store), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


def wait_for(pattern, folder, process):
    until = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.02)


def experiment(seed, epochs=6):
    training = TrainingConfig(epochs=epochs, windows_per_epoch=6400, eval_windows=500, eval_stride=10)
    return Experiment("python-docs", MLPConfig(context=4, d_model=8, hidden=16), training, seed)


@pytest.mark.parametrize("everyone", [True, False], ids=["Ctrl-C in a terminal", "SIGINT to the command alone"])
def test_stopped_and_started_again(tmp_path, everyone):
    process = start(tmp_path, "--seeds", "40", "--workers", "2")
    wait_for("*.json", tmp_path, process)
    if everyone:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "The same command goes on from here" in err and "Traceback" not in err
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert 1 <= len(kept) < 40
    assert len(list(Store(tmp_path))) == len(kept)  # all of them whole

    n = len(kept) + 1
    again = start(tmp_path, "--seeds", str(n), "--workers", "2")
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert all(path.read_bytes() == text for path, text in kept.items())  # not run again
    assert all(experiment(seed) in Store(tmp_path) for seed in range(n))
    assert out.count("test NLL") == n - len(kept)


def test_ctrl_c_ends_the_runs_under_way(tmp_path):
    process = start(tmp_path, "--seeds", "40", "--workers", "2", epochs=4000)  # each would take a quarter of an hour
    wait_for(".running/*.safetensors", tmp_path, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "under way goes on from its last finished epoch." in " ".join(err.split("\n"))
    assert err.rstrip().endswith("epoch.")  # the last thing that is said


def command_line(*arguments, stdout=subprocess.PIPE, **environment):
    command = [sys.executable, "-m", "slmlib", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=os.environ | environment)


@pytest.mark.parametrize(("command", "encoding"), [("verdicts", "cp1252"), ("status", "ascii")])
def test_what_is_redirected_is_utf_8_whatever_the_locale(command, encoding):
    plain, other = command_line(command), command_line(command, PYTHONIOENCODING=encoding)
    assert plain.returncode == other.returncode == 0 and other.stdout == plain.stdout
    assert "±" in plain.stdout.decode("utf-8") or "−" in plain.stdout.decode("utf-8")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_said_in_a_line():
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = command_line("status", stdout=full)
    assert done.returncode == 1 and done.stderr.decode() == "slmlib: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("store, said", [("a-file", "is a file"), ("a-file/x", "Not a directory")])
def test_a_store_in_the_place_of_a_file_is_refused(tmp_path, store, said):
    (tmp_path / "a-file").touch()
    done = command_line("run", "paper", "--store", str(tmp_path / store), COLUMNS="200")
    assert done.returncode and said in done.stderr.decode() and "Traceback" not in done.stderr.decode()


def test_failing_runs_are_named(tmp_path):
    process = start(tmp_path, "--seeds", "2", rate=1e30)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err
    assert err.count("-mlp-T4-s") == 2 and "lower the learning rate" in err


def test_what_is_asked_next_may_depend_on_what_was_found(tmp_path):
    process = start(tmp_path, "--seeds", "3", epochs=1, most="min(seeds, len(found) + 1)")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("test NLL") == 3 and all(experiment(seed, epochs=1) in Store(tmp_path) for seed in range(3))


def test_workers_end_with_the_command(tmp_path):
    """Killed outright it cannot tell them to."""
    process = start(tmp_path, "--seeds", "40", "--workers", "2", epochs=400)
    wait_for(".running/*.safetensors", tmp_path, process)
    process.kill()
    process.wait()
    time.sleep(2)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    time.sleep(3)  # several epochs
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == written


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
