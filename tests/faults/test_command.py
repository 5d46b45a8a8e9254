"""python -m slmlib run where workers are lost, memory is short, a disk is full, or another does the same."""

import multiprocessing
import os
import re
import resource
import signal
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import pytest
from conftest import end_of, timeless
from test_cli import experiment, run_words, wait_for
from typer.testing import CliRunner

from slmlib import __main__ as main
from slmlib.experiments import Store, process_pool, run
from slmlib.models import MLPConfig

from .conftest import BLOCKS, often

pytestmark = pytest.mark.usefixtures("one_thread")

# Workers


def test_an_error_ends_the_pools_workers_and_no_others():
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(300,), daemon=True)
    other.start()
    others = set(multiprocessing.active_children())
    try:
        with pytest.raises(ZeroDivisionError), process_pool(1) as pool:
            pool.submit(time.sleep, 300)
            workers = set(multiprocessing.active_children()) - others
            raise ZeroDivisionError
        assert workers and not any(worker.is_alive() for worker in workers)
        assert all(process.is_alive() for process in others)
    finally:
        other.kill()
        other.join()


@pytest.mark.parametrize("workers", often(["4"], ["2", "4"]))  # with one that has nothing to do; and without
def test_a_worker_that_the_system_kills_is_noticed_in_seconds(tmp_path, begin, workers):
    process = begin(run_words, tmp_path, ("--seeds", "2", "--workers", workers), (4000, 4000))
    wait_for(".running/*.lock", tmp_path, process, 2)
    command = ["pgrep", "-f", "-P", str(process.pid), "multiprocessing.spawn"]
    found = subprocess.run(command, capture_output=True, encoding="utf-8").stdout
    last = int(found.split()[1])  # of the two that train
    began = time.monotonic()
    os.kill(last, signal.SIGKILL)
    code, _, err = end_of(process, 60)
    assert time.monotonic() - began < 15 and code == 1 and "Traceback" not in err
    (said,) = [line for line in err.splitlines() if "A worker was lost" in line]
    assert all(experiment(seed, 4000).name in said for seed in (0, 1))
    assert "fewer workers" in said and said.endswith("The same command goes on from here.")


# The command in this process, on workers that were prepared


@pytest.fixture
def command(monkeypatch):
    """command(store, wanted, pool): what it exits with, and the lines that it says of what went wrong."""

    def command(store, wanted, pool):
        monkeypatch.setitem(main.studies.SUITES, "words", lambda seeds, found: wanted)
        monkeypatch.setattr(main, "process_pool", lambda workers: nullcontext(pool))
        result = CliRunner().invoke(main.app, ["run", "words", "--store", str(store.folder), "--device", "cpu"])
        lines = [line.strip() for line in result.stderr.splitlines()]
        return result.exit_code, [
            line for line in lines if line and not re.search(r"\d:\d\d:\d\d", line)
        ]  # but for the bar

    return command


def limit(more):
    """Of memory: so many bytes more than it has now."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limit is set by /proc")
def test_a_run_that_wants_more_memory_than_there_is_is_named_and_the_others_are_kept(store, command, forkserver):
    large = replace(BLOCKS, model=MLPConfig(context=8, d_model=512, hidden=200_000))
    with ProcessPoolExecutor(1, forkserver, limit, (400_000_000,)) as pool:
        code, (said,) = command(store, [large, BLOCKS], pool)
    assert code == 1 and large.name in said and "config must fit into memory" in said
    assert [record.experiment for record in store] == [BLOCKS]


def test_a_full_disk_ends_a_sweep_in_a_line_and_the_same_command_goes_on(mount, command, spawned, undisturbed):
    store, others = Store(mount("size=1m,nr_inodes=8")), [replace(BLOCKS, seed=seed) for seed in (7, 8, 9)]
    kept = run(BLOCKS, store)  # 1 folder, .running, a lock, a record: of 8 files and folders, 4 are left
    for i in range(2):
        (store.folder / f"filler{i}").touch()
    code, (said,) = command(store, [BLOCKS, *others], spawned)
    assert code == 1 and "No space left on device" in said and "make room" in said and str(store.folder) in said
    assert others[-1].name in said and said.endswith("The same command goes on from here.")
    assert kept in list(store) and not list(store.folder.rglob("*.partial"))
    for i in range(2):
        (store.folder / f"filler{i}").unlink()
    mount("remount,nr_inodes=99")
    assert command(store, [BLOCKS, *others], spawned) == (0, [])
    assert store.get(BLOCKS) == kept and timeless(kept) == timeless(undisturbed) and len(list(store)) == 4


def test_losses_that_are_gone_are_made_again(store, command, spawned, monkeypatch):
    """What the error about a damaged file of losses says: move it away and run its experiment again."""
    monkeypatch.setattr(main.studies, "KEEP_LOSSES", ("words",))
    run(BLOCKS, store)
    losses, _ = store.losses(BLOCKS)
    store.path(BLOCKS).with_suffix(".safetensors").unlink()
    assert command(store, [BLOCKS], spawned) == (0, [])
    assert all(store.losses(BLOCKS)[0][name].equal(nll) for name, nll in losses.items())
