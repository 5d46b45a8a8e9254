"""Runs on a real Dask cluster: separate processes that share no folder with the store; some of them are killed."""

import json
import os
import re
import signal
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import cycle

import pytest
import torch
from conftest import end_of, epochs_in, same, wait_until
from test_cli import experiment, run_words

pytest.importorskip("distributed", reason='the extra "cluster" is not installed')

from slmlib import cluster
from slmlib.cluster import Cluster, ClusterBroken
from slmlib.experiments import Store, run_all

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS, EPOCHS = range(3), 5

# A worker tells of each piece which run it is of, and how many epochs the checkpoint that it was given is into it.
TRACE = """
from slmlib import experiments
from slmlib.checkpoints import epochs_done
trained = getattr(experiments, "untraced", experiments.trained)  # Dask loads this twice
experiments.untraced = trained
def traced(experiment, corpus, device, progress, checkpoint, each_epoch):
    print("seed", experiment.seed, "from", epochs_done(checkpoint), flush=True)
    return trained(experiment, corpus, device, progress, checkpoint, each_epoch)
experiments.trained = traced
"""


def serve(command, *options):
    """Be a scheduler or a worker, with nothing but a folder of its own."""
    tempfile.tempdir = own = os.getcwd()
    os.environ |= {"SLMLIB_DATA": own, "DASK_TEMPORARY_DIRECTORY": own}
    import_module(f"distributed.cli.dask_{command}").main([*map(str, options)])


class Machines:
    """A scheduler and workers, each a process in a folder of its own."""

    def __init__(self, folder, begin):
        self.folder, self.begin, self.all, self.workers, self.address = folder, begin, [], [], None
        (folder / "told.py").write_text(TRACE, encoding="utf-8")

    def schedule(self):
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        at = self.address.rpartition(":")[2] if self.address else 0
        options = "--host", "127.0.0.1", "--port", at, "--no-dashboard", "--scheduler-file", file
        self.scheduler = self.begin(serve, "scheduler", *options)
        wait_until(lambda: file.exists() and file.stat().st_size, self.scheduler.is_alive, self.said)
        self.address = json.loads(file.read_text(encoding="utf-8"))["address"]

    def work(self, count):
        """So many workers at least."""
        self.workers = [worker for worker in self.workers if worker.is_alive()]
        options = "--nthreads", 1, "--no-nanny", "--no-dashboard", "--preload", self.folder / "told.py"
        while len(self.workers) < count:
            self.workers.append(self.begin(serve, "worker", self.address, *options))
            self.all.append(self.workers[-1])
        for w in self.workers:
            wait_until(lambda w=w: "Registered to" in w.err.read_text("utf-8"), w.is_alive, self.said)

    def kill(self, process):
        process.kill()
        process.join()

    def said(self):
        return "\n".join(process.err.read_text(encoding="utf-8") for process in (self.scheduler, *self.all))

    def traced(self):
        """Of each worker's pieces the seeds and the epochs that they went on from, the first worker's first."""
        told = [re.findall("^seed (\\d+) from (\\d+)$", w.out.read_text("utf-8"), re.MULTILINE) for w in self.all]
        return [[(int(seed), int(epochs)) for seed, epochs in lines] for lines in told]


@pytest.fixture(scope="module")
def machines(tmp_path_factory, begin):
    machines = Machines(tmp_path_factory.mktemp("machines"), begin)
    machines.schedule()
    yield machines
    for process in (machines.scheduler, *machines.workers):
        machines.kill(process)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("serial"), keeps_losses=True)
    run_all([experiment(seed, EPOCHS) for seed in SEEDS], store=store)
    return store


def bare(records):
    """But for times and machine."""
    return [replace(record, seconds={}, machine={}) for record in records]


@pytest.fixture
def two(machines):
    """The scheduler's address, with two workers there."""
    machines.work(2)
    return machines.address


def killed(machines, there, runs):
    """Kill a worker amid a piece: of which run, how many epochs the run was into when that began, which worker."""
    addresses = {pid: address for address, pid in there.client.run(os.getpid).items()}
    for victim in cycle(machines.workers):
        os.kill(victim.pid, signal.SIGSTOP)  # so that what it is at is what the scheduler says
        keys = [key.rpartition("-")[0].rpartition("-from-") for key in there.client.processing()[addresses[victim.pid]]]
        asked = [(e, int(epochs)) for name, _, epochs in keys for e in runs if name.endswith(e.name) and int(epochs)]
        number = machines.all.index(victim)
        at_it = [(e, epochs) for e, epochs in asked if (e.seed, epochs) in machines.traced()[number][-1:]]
        if at_it:
            machines.kill(victim)
            return *at_it[0], number
        os.kill(victim.pid, signal.SIGCONT)
        time.sleep(0.05)


def test_a_killed_workers_run_goes_on_elsewhere_from_its_checkpoint(tmp_path, machines, two, serial):
    wanted, store, found = [experiment(seed, EPOCHS) for seed in SEEDS], Store(tmp_path, keeps_losses=True), []
    with Cluster(two, piece=0) as there:
        sweep = partial(run_all, wanted, there, store, keep_checkpoints=True)
        calling = threading.Thread(target=lambda: found.extend(sweep()))
        calling.start()
        run, epochs, number = killed(machines, there, wanted)
        calling.join()
    assert bare(found) == bare(map(serial.get, wanted)) == bare(map(store.get, wanted))
    for e in wanted:
        (losses, sample), (expected, text) = store.losses(e), serial.losses(e)
        assert same(losses, expected) and sample == text
    assert all(epochs_in(store.running(e, "safetensors")) == EPOCHS for e in wanted)
    by = [[at for seed, at in pieces if seed == run.seed] for pieces in machines.traced()]
    killed_at_it, other = by[number], by[1 - number]
    assert killed_at_it[-1] == epochs >= 1 and other[-(EPOCHS - epochs) :] == list(range(epochs, EPOCHS))
    assert sorted(killed_at_it + other) == sorted([*range(EPOCHS), epochs])  # no epoch but that one was begun twice


def test_a_run_at_which_workers_die_is_given_up_and_named(tmp_path, machines, two):
    """Dask's `allowed-failures`, which is 3 by default."""
    long = [experiment(0, 4000)]
    with Cluster(two, piece=0) as there, pytest.raises(ExceptionGroup) as failed:
        there.client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
        threading.Thread(target=killed, args=(machines, there, long)).start()
        run_all(long, there, Store(tmp_path))
    (error,) = failed.value.exceptions
    assert str(error).startswith("1 workers died at it, the last at tcp://127.0.0.1:") and "same command" in str(error)
    assert error.__notes__ == [f"in experiment {long[0].name}"]
    assert epochs_in(Store(tmp_path).running(long[0], "safetensors")) >= 1


@pytest.mark.parametrize("joined", ["before", "later"])
def test_other_versions_are_refused_with_both_named(tmp_path, two, monkeypatch, request, joined):
    def another_pytorch():
        monkeypatch.setattr(torch, "__version__", "1.0")
        cluster.versions.cache_clear()
        request.addfinalizer(cluster.versions.cache_clear)

    mine = torch.__version__
    if joined == "before":
        another_pytorch()
    both = f"has PyTorch {re.escape(mine)}, and 1.0 asks: install or set the same"
    with pytest.raises(ClusterBroken, match=both), Cluster(two) as there:
        another_pytorch()
        run_all([experiment(0)], there, tmp_path)


def test_a_worker_without_the_corpus_is_named_with_what_to_do(tmp_path, two):
    wanted = replace(experiment(0), corpus="ptb")
    to_do = r"worker tcp://\S+ cannot have a corpus: .*set SLMLIB_DATA"
    with pytest.raises(ClusterBroken, match=to_do), Cluster(two) as there:
        run_all([wanted], there, tmp_path)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "127.0.0.1", "", "http://127.0.0.1:1"])
def test_where_no_scheduler_is_that_is_said(address, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    with pytest.raises(ClusterBroken, match=f"no scheduler answers at '{address}' .* start one by `dask scheduler`"):
        Cluster(address)


def test_a_scheduler_that_dies_leaves_the_store_whole_and_the_command_says_how_to_go_on(
    tmp_path, machines, two, serial, begin
):
    def command():
        return begin(run_words, tmp_path, ("--seeds", str(len(SEEDS)), "--scheduler", two), (EPOCHS, EPOCHS), 3)

    process = command()
    wait_until(lambda: list(tmp_path.glob("*.json")) or not process.is_alive(), said=machines.said)
    machines.kill(machines.scheduler)
    code, _, said = end_of(process)
    message = f"The scheduler at {two} no longer answers; all that came from it is kept. Start it again, and "
    assert code == 1 and said.rstrip().splitlines()[-1] == message + "the same command goes on from here.", said
    assert "Traceback" not in said and "distributed" not in said
    kept = list(Store(tmp_path))
    assert 1 <= len(kept) < len(SEEDS)
    for worker in machines.workers:
        machines.kill(worker)
    machines.schedule()
    assert machines.address == two
    machines.work(1)
    code, out, said = end_of(command())
    assert code == 0 and out.count("test NLL") == len(SEEDS) - len(kept), said
    found = list(Store(tmp_path))
    assert bare(found) == bare(serial) and all(record in found for record in kept)


def test_a_cluster_for_trying_ends_with_ctrl_c(begin):
    process = begin(cluster.main, 0, 0)
    wait_until(lambda: "Ctrl-C" in process.out.read_text("utf-8"), process.is_alive, process.err.read_text)
    address = re.search(r"are at (tcp://127\.0\.0\.1:\d+)\.", process.out.read_text("utf-8"))[1]
    assert f"run words --scheduler {address} --store" in process.out.read_text("utf-8")
    os.killpg(process.pid, signal.SIGINT)
    code, _, said = end_of(process)
    assert code == 0 and "Traceback" not in said, said
    with pytest.raises(ProcessLookupError):  # none of them is left, soon
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.parametrize("piece", [-1, "1", None, float("nan")])
def test_a_piece_is_a_number_of_seconds(piece):
    with pytest.raises(ValueError, match=f"piece must be a number of seconds, at least 0, got {piece!r}"):
        Cluster("tcp://127.0.0.1:1", piece)
