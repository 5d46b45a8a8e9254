"""What tests of several files share."""

import json
import multiprocessing
import time
from dataclasses import replace

import pytest
import safetensors
import torch

from slmlib import speed
from slmlib.corpora import CorpusUnavailable, load_corpus
from slmlib.experiments import Record, process_pool


@pytest.fixture(scope="module")
def one_thread():
    """Here and in the processes started from here: the number of threads may change the last bits."""
    with speed.one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def forkserver(one_thread):
    """Starts processes at once: forks of one that has imported PyTorch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "slmlib.experiments", "torch._dynamo"])  # the last: Adam imports it
    return context


@pytest.fixture(scope="session")
def spawned():
    """Two of the package's own worker processes, which have one thread each."""
    with process_pool(2) as pool:
        yield pool


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
