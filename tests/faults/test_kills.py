"""kill -9 at any moment, and two at the same work: the records are the undisturbed run's, times aside."""

import itertools
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
from conftest import epochs_in, timeless, wait_until
from filelock import FileLock, Timeout

from slmlib import checkpoints, load_corpus
from slmlib.experiments import Experiment, Store, run
from slmlib.models import TransformerConfig

from .conftest import BLOCKS, LOCK, QUICK, left_in, often

pytestmark = pytest.mark.usefixtures("one_thread")


def kill(process):
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL  # it was alive until then


def test_killed_at_random_while_it_trains_and_keeps_checkpoints(tmp_path, begin, dice):
    """The kills are spread over the run; its checkpoints are so large that a good part of the time goes into them."""
    kills = often(5, 200)
    model = TransformerConfig(context=8, d_model=96, heads=2, layers=1, ff_width=96, dropout=0.2)
    training = replace(QUICK, epochs=6 * kills, windows_per_epoch=96, learning_rate=0.001)
    experiment = Experiment("python-docs", model, training, 0)
    whole = run(experiment, Store(tmp_path / "whole"))
    an_epoch = whole.seconds["training"] / training.epochs
    store, done = Store(tmp_path / "killed"), [0]
    checkpoint = store.running(experiment, "safetensors")
    for target in sorted(dice.sample(range(1, 4 * kills), kills)):
        process = begin(run, experiment, store)
        reached = max(target, done[-1] + 1)
        wait_until(lambda t=reached: epochs_in(checkpoint) >= t, process.is_alive, pause=an_epoch / 20)
        time.sleep(dice.uniform(0, 2 * an_epoch))
        kill(process)
        done.append(epochs_in(checkpoint))
        assert "model.head.bias" in safetensors.torch.load_file(checkpoint)
        assert list(store) == []
    process = begin(run, experiment, store)
    process.join(1_200)  # a third of the epochs, on a machine that may be busy
    (record,) = store
    assert process.exitcode == 0 and timeless(record) == timeless(whole) and left_in(store) == LOCK


def begin_and_run(experiment, store, sign):
    load_corpus(experiment.corpus)
    sign.touch()
    run(experiment, store)


def test_killed_at_random_while_it_tests_and_keeps_what_came_out(store, tmp_path, begin, dice):
    """From the last checkpoint on, through the test, the token losses and the record, to the end."""
    whole, (_, sample) = run(BLOCKS, store, keep_checkpoint=True), store.losses(BLOCKS)
    running, kept, sign, killed = store.folder / ".running", tmp_path / "kept", tmp_path / "sign", 0

    def but_for_its_test():
        shutil.rmtree(store.folder)
        shutil.copytree(kept, running)

    shutil.copytree(running, kept)
    but_for_its_test()
    began = time.monotonic()
    run(BLOCKS, store)
    took = time.monotonic() - began
    for _ in range(often(4, 200)):
        but_for_its_test()
        sign.unlink(missing_ok=True)
        process = begin(begin_and_run, BLOCKS, store, sign)
        wait_until(sign.exists, process.is_alive, pause=0.001)
        time.sleep(dice.uniform(0, 1.5 * took))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert timeless(run(BLOCKS, store)) == timeless(whole) and store.losses(BLOCKS)[1] == sample
        assert left_in(store) <= {*LOCK, ".safetensors"}  # a last checkpoint: Store says when it stays
    assert killed


MOMENTS = {  # when it ends -> epochs that are in the checkpoint then
    **{"checkpoint half-written": 1, "checkpoint written": 1, "checkpoint replaced": 2},
    **{"losses half-written": 3, "losses written": 3, "losses replaced": 3},
    **{"record half-written": 3, "record written": 3, "record replaced": 3},
}


def run_until(moment, experiment, store):
    """Run it up to that moment of its second checkpoint, of its losses or of its record, and end as by kill -9."""
    what, when = moment.split()
    path, number = {
        "checkpoint": (store.running(experiment, "safetensors"), 2),
        "losses": (store.path(experiment).with_suffix(".safetensors"), 1),
        "record": (store.path(experiment), 1),
    }[what]
    move, moves = os.replace, itertools.count(1)

    def replace_and_die(source, target):
        now = Path(target) == path and next(moves) == number
        if now and when == "half-written":
            os.truncate(source, os.path.getsize(source) // 2)
        if not now or when == "replaced":
            move(source, target)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.os.replace = replace_and_die
    run(experiment, store)


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_end_in_the_middle_of_writing_does_no_harm(store, begin, undisturbed, moment):
    process = begin(run_until, moment, BLOCKS, store)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert epochs_in(store.running(BLOCKS, "safetensors")) == MOMENTS[moment]
    assert len(list(store)) == (moment == "record replaced")
    assert timeless(run(BLOCKS, store)) == timeless(undisturbed)
    assert len(list(store)) == 1 and set(store.losses(BLOCKS)[0]) == {"valid", "test", "whole"}
    assert left_in(store) == LOCK | ({".safetensors"} if moment == "record replaced" else set())


# Two at the same work; two commands at the same suite are in test_command.py


def meet_and_run(experiment, store, parties):
    (store.folder / f"{os.getpid()}.here").touch()
    wait_until(lambda: len(list(store.folder.glob("*.here"))) == parties)
    return run(experiment, store)


def test_two_processes_at_one_experiment_train_it_once(store, spawned, undisturbed):
    store.folder.mkdir()
    both = [spawned.submit(meet_and_run, BLOCKS, store, 2) for _ in range(2)]
    first, second = (future.result(120) for future in both)
    assert first == second  # its seconds too
    assert list(store) == [first]
    assert timeless(first) == timeless(undisturbed)


def test_two_threads_at_one_experiment_train_it_once(store, undisturbed):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, [BLOCKS] * 2, [store] * 2)
    assert first == second and timeless(first) == timeless(undisturbed)


def hold(lock, sign):
    with FileLock(lock):
        sign.touch()
        time.sleep(600)


def test_the_lock_of_a_living_process_is_waited_for_and_that_of_a_dead_one_is_not(store, begin, undisturbed):
    lock, sign = store.running(BLOCKS, "lock"), store.running(BLOCKS, "sign")
    holder = begin(hold, lock, sign)
    wait_until(sign.exists, holder.is_alive)
    with pytest.raises(Timeout):
        FileLock(lock).acquire(timeout=0)
    waiting = begin(run, BLOCKS, store)
    waiting.join(1)
    assert waiting.is_alive()
    assert list(store) == []
    kill(holder)
    waiting.join(120)
    assert waiting.exitcode == 0
    (record,) = store
    assert timeless(record) == timeless(undisturbed)
    store.path(BLOCKS).unlink()
    assert lock.exists()
    assert timeless(run(BLOCKS, store)) == timeless(record)
