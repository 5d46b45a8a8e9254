"""Runs on a real Dask cluster: separate processes that share no folder with the store; some of them are killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import epochs_in, stream
from test_cli import experiment, start

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


class Machines:
    """A scheduler and workers, each a process in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.started, self.workers, self.address = folder, 0, [], None
        (folder / "told.py").write_text(TRACE, encoding="utf-8")

    def start(self, command, *options):
        self.started += 1
        own = self.folder / f"{self.started}"
        own.mkdir()
        nothing = {"SLMLIB_DATA": str(own), "TMPDIR": str(own), "DASK_TEMPORARY_DIRECTORY": str(own)}
        path = os.pathsep.join(sys.path)  # the folder of the tests is not theirs, what they import is
        with open(own / "said", "w", encoding="utf-8") as said:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{command}", *map(str, options)],
                cwd=own,
                env=os.environ | nothing | {"PYTHONPATH": path},
                stdout=said,
                stderr=said,
            )

    def schedule(self):
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        at = self.address.rpartition(":")[2] if self.address else 0
        options = "--host", "127.0.0.1", "--port", at, "--no-dashboard", "--scheduler-file", file
        self.scheduler = self.start("scheduler", *options)
        while not file.exists():
            assert self.scheduler.poll() is None, self.said()
            time.sleep(0.02)
        self.address = json.loads(file.read_text(encoding="utf-8"))["address"]

    def work(self, count):
        """So many workers at least."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        options = "--nthreads", 1, "--no-nanny", "--no-dashboard", "--preload", self.folder / "told.py"
        for _ in range(count - len(self.workers)):
            self.workers.append(self.start("worker", self.address, *options))

    def kill(self, process):
        process.kill()
        process.wait()

    def said(self):
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(self.folder.glob("*/said")))

    def traced(self):
        """By worker: of each piece the seed and the epoch that it went on from."""
        lines = {path: path.read_text(encoding="utf-8").splitlines() for path in self.folder.glob("*/said")}
        told = {path: [line.split() for line in found if line.startswith("seed ")] for path, found in lines.items()}
        return {path: [(int(words[1]), int(words[3])) for words in found] for path, found in told.items() if found}


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    machines = Machines(tmp_path_factory.mktemp("machines"))
    machines.schedule()
    yield machines
    for process in (machines.scheduler, *machines.workers):
        machines.kill(process)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    wanted = [experiment(seed, EPOCHS) for seed in SEEDS]
    return run_all(wanted, store=tmp_path_factory.mktemp("serial"))


def bare(records):
    """But for times and machine."""
    return [replace(record, seconds={}, machine={}) for record in records]


def connected(address, workers, **options):
    """Once so many have come."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            found = Cluster(address, **options)
        except ClusterBroken as error:
            assert "has no workers" in str(error)
            time.sleep(0.1)
            continue
        found.client.wait_for_workers(workers, timeout=60)
        return found


def wait_until(what, machines):
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until, machines.said()
        time.sleep(0.01)


def test_a_killed_workers_run_goes_on_elsewhere_from_its_checkpoint(tmp_path, machines, serial):
    machines.work(2)
    wanted, store, found = [experiment(seed, EPOCHS) for seed in SEEDS], Store(tmp_path), []
    with connected(machines.address, 2, piece=0) as there:
        calling = threading.Thread(target=lambda: found.extend(run_all(wanted, there, store)))
        calling.start()
        wait_until(lambda: all(epochs_in(store.running(e, "safetensors")) for e in wanted[:2]), machines)
        victim = machines.workers[0]
        address = {pid: address for address, pid in there.client.run(os.getpid).items()}[victim.pid]
        at_it = []
        while not at_it:
            victim.send_signal(signal.SIGSTOP)  # so that what it is at is what the scheduler says
            at_it = [e for e in wanted for key in there.client.processing()[address] if key.startswith(e.name)]
            if not at_it:
                victim.send_signal(signal.SIGCONT)
        machines.kill(victim)
        calling.join()
    assert bare(found) == bare(serial) and list(store) == found
    traced = machines.traced()
    print(at_it, traced)
    (before, after) = traced.values()
    raise AssertionError(traced)
