"""What tests of several files share."""

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.forkserver import ensure_running

import pytest
import safetensors
import torch

from slmlib import speed
from slmlib.corpora import CorpusUnavailable, load_corpus
from slmlib.experiments import Record, _start_worker
from slmlib.windows import random_stream


@pytest.fixture(scope="module")
def one_thread():
    """Here and in the processes started from here: the number of threads may change the last bits."""
    with speed.one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def forkserver():
    """Starts processes of one thread at once: forks of one that has imported PyTorch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "slmlib.__main__", "distributed", "torch._dynamo"])  # Adam imports it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        ensure_running()
    return context


@pytest.fixture(scope="session")
def spawned(forkserver):
    """Two of the package's own worker processes, which have one thread each; forks, so that they are there at once."""
    with ProcessPoolExecutor(2, forkserver, _start_worker) as pool:
        yield pool


def apart(folder, function, args):
    resource_tracker._resource_tracker._fd = None  # one of its own, which says what a killed process has left
    os.setsid()
    os.chdir(folder)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    function(*args)


@pytest.fixture(scope="session")
def begin(forkserver, tmp_path_factory):
    """begin(function, ...): a process, in a session and a folder of its own; what it says is in ``out`` and ``err``."""

    started = []

    def begin(function, *args):
        folder = tmp_path_factory.mktemp("apart")
        process = forkserver.Process(target=apart, args=(folder, function, args))
        process.out, process.err = folder / "out", folder / "err"
        for said in (process.out, process.err):
            said.touch()
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.is_alive():  # else pytest would wait for it
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()


def end_of(process, seconds=120):
    """What it exits with, soon, and what it has said."""
    process.join(seconds)
    assert process.exitcode is not None, f"still running: {process.err.read_text(encoding='utf-8')}"
    return process.exitcode, process.out.read_text(encoding="utf-8"), process.err.read_text(encoding="utf-8")


def epochs_in(checkpoint):
    """How far a checkpoint's run is, read without the package's help; 0 where there is no file."""
    try:
        with safetensors.safe_open(checkpoint, "pt") as file:
            return len(json.loads(file.metadata()["history"])["valid"])
    except FileNotFoundError:
        return 0


def made_up(experiment, test_nll=2 / 3, valid=None, **changes):
    """A record of a run that never was."""
    losses = [5.0] * experiment.training.epochs
    values = {
        **{"train": losses, "valid": valid or losses, "best_epoch": 1, "test_nll": test_nll},
        **{"test_nll_whole": test_nll + 0.1, "parameters": 10, "parameters_without_embeddings": 8},
        **{"flops": {"paper": 1e15 / 3, "counted": 7.0}, "seconds": {"training": 1.1, "testing": 0.3}},
        **{"machine": {"processor": "an “abacus”", "threads": 1}, "versions": {"python": "3.11.7"}},
    }
    return Record(experiment, **{**values, **changes})


def timeless(record, **also):
    return replace(record, seconds={}, **also)


def wait_until(what, going_on=lambda: True, said=str, pause=0.01):
    """An error, with what is said, where nothing goes on that would bring it about, or for two minutes in vain."""
    until = time.monotonic() + 120
    while not what():
        assert going_on() and time.monotonic() < until, said()
        time.sleep(pause)


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def same(a, b):
    """Whether two modules, or two dictionaries of tensors, hold the same bits under the same names."""
    a, b = (x.state_dict() if isinstance(x, torch.nn.Module) else x for x in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a, b, tolerance):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    """A made-up text of 30,000 characters, of few words."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dogs", "run"]
    drawn = torch.randint(len(words), (8_000,), generator=random_stream(0, "text")).tolist()
    path = tmp_path_factory.mktemp("text") / "cats.txt"
    path.write_text(" ".join(words[i] for i in drawn)[:30_000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def shakespeare():
    try:
        return load_corpus("tiny_shakespeare")
    except CorpusUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def generator_left():
    """The global random generator is neither read nor moved in the test: another seed for it, the same results."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)
