"""Runs on a cluster, by dask.distributed, whose workers need not see the store.

A run goes there in pieces: a worker gets the run's last checkpoint, trains for some seconds and on to the end of an
epoch, and hands back a checkpoint or, at the end, the record; this process writes either into the store. A worker that
dies so costs no more than a piece, which Dask gives to another; a piece that was stopped from here soon ends there.
"""

import hashlib
import importlib.util
import logging
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import torch

from . import __version__
from .checkpoints import epochs_done, write_whole
from .corpora import CorpusDamaged, CorpusUnavailable
from .experiments import Experiment, Losses, Record, run, work
from .speed import compiling, one_thread

PIECE = 30.0  # seconds: what a piece costs beside its training is a small share of that, and no more is lost
PATIENCE = 10.0  # seconds for a scheduler to answer
MOST = 256  # runs that are with the cluster at once, or two a thread of its workers; each has a thread here


class ClusterBroken(BrokenExecutor):
    """The cluster cannot be used, or no longer: nothing that the store holds is lost."""


class Cluster(ThreadPoolExecutor):
    """An executor for ``run_all`` whose runs train on a cluster's workers, a thread each, and are kept here.

    To be used in ``with``. A run that an error or Ctrl-C stops goes on from its last checkpoint in the store.

    Args:
        address: the scheduler's, ``tcp://host:8786`` say.
        piece: after so many seconds a worker hands back a checkpoint, at the end of an epoch.

    Raises:
        ClusterBroken: if there is no Dask, no scheduler or no worker, or a worker has another slmlib, PyTorch or Python
            than this process: it names both. Also what a run raises where the scheduler is lost, such a worker joins or
            a worker cannot have the corpus.
        ValueError: if ``piece`` is no number of seconds.
    """

    def __init__(self, address: str, piece: float = PIECE):
        if not isinstance(piece, Real) or not piece >= 0:
            raise ValueError(f"piece must be a number of seconds, at least 0, got {piece!r}")
        distributed = _distributed()
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost scheduler is said in a line here
        self.address, self._piece = address, piece
        try:
            distributed.comm.resolve_address(str(address))  # of an address that is none a client does not let go
            self.client = distributed.Client(str(address), timeout=PATIENCE, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise ClusterBroken(
                f"no scheduler answers at {address!r} ({error}): start one by `dask scheduler`, and workers by `dask "
                "worker tcp://HOST:8786 --nthreads 1`; for both on this machine `make cluster`"
            ) from None
        try:
            found = self.client.run(versions, on_error="return")
            if not found:
                raise ClusterBroken(f"the scheduler at {address} has no workers: dask worker {address} --nthreads 1")
            for worker, theirs in found.items():
                if isinstance(theirs, Exception):
                    raise ClusterBroken(f"worker {worker} has no slmlib {__version__} ({theirs}): install it there")
                _compare(worker, theirs, versions())
            self.threads = sum(self.client.nthreads().values())
        except BaseException:
            self.client.close()
            raise
        super().__init__(max(MOST, 2 * self.threads))

    def submit(self, function, /, *args, **kwargs) -> Future:
        """As any executor; a ``run`` has its work done on the cluster, anything else is done here."""
        return super().submit(function, *args, **kwargs, **({"by": self._work} if function is run else {}))

    def __exit__(self, kind, *rest):
        if kind:  # the threads wait for what will not come
            self.client.close()
        self.shutdown(cancel_futures=True)
        self.client.close()

    def _work(
        self, experiment: Experiment, device: str, checkpoint: Path, losses: bool, keep: bool
    ) -> tuple[Record, Losses | None]:
        """``experiments.work``, piece by piece on whatever workers there are."""
        while True:
            epochs = epochs_done(checkpoint)
            data = checkpoint.read_bytes() if epochs else b""
            key = f"{experiment.kind}-{experiment.name}-from-{epochs}-{uuid4().hex}"  # Dask shows a kind in one colour
            asked = experiment, device, data, losses, keep, self._piece, versions()
            try:
                record, kept, data = self._result(key, *asked, priority=min(epochs, 1))  # what has begun comes first
            except ValueError as error:
                if data:  # which may be what is wrong, and has another name there
                    error.add_note(f"from {checkpoint}")
                raise
            if data:
                write_whole(checkpoint, data)
            if record:
                return record, kept

    def _result(self, key: str, *arguments, priority: int):
        from distributed import KilledWorker

        try:
            return self.client.submit(_part, *arguments, key=key, priority=priority).result()
        except KilledWorker as error:
            raise RuntimeError(
                f"{error.allowed_failures + 1} workers died at it, the last at {error.last_worker.address}, for want "
                "of memory perhaps: give each more; the same command goes on from its last checkpoint"
            ) from None
        except Exception as error:
            lost = isinstance(error, CancelledError | OSError) or self.client.status != "running"
            if not lost or getattr(error, "__notes__", ()):  # a worker's own
                raise
            raise ClusterBroken(
                f"The scheduler at {self.address} no longer answers; all that came from it is kept. Start it again, "
                "and the same command goes on from here."
            ) from None


def _distributed():
    """Imported here so that nothing but a cluster needs it."""
    try:
        import dask
        import distributed
    except ImportError:
        raise ClusterBroken("distributed is not installed: pip install distributed") from None
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})  # a checkpoint is meant to travel
    return distributed


@cache
def versions() -> dict[str, str]:
    """Of what a run's bits depend on; slmlib's with a digest of its source, since its number seldom changes."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    return {
        "slmlib": f"{__version__} (source {source.hexdigest()[:8]})",
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
        "SLMLIB_COMPILE": str(int(compiling())),
    }


def _compare(worker: str, its: dict[str, str], asked: dict[str, str]) -> None:
    found = [f"{name} {version}, and {asked[name]} asks" for name, version in its.items() if version != asked[name]]
    if found:
        what = "install or set the same on both, and the same command goes on from here"
        raise ClusterBroken(f"worker {worker} has {'; '.join(found)}: {what}")


class _Enough(Exception):
    """Time for a checkpoint."""


def _part(
    experiment: Experiment, device: str, checkpoint: bytes, losses: bool, keep: bool, seconds: float, asked: dict
) -> tuple[Record | None, Losses | None, bytes]:
    """On a worker: the record, with what is kept beside it, or the checkpoint to go on from."""
    from distributed import get_worker

    here = get_worker().address
    _compare(here, versions(), asked)  # a worker may have joined later
    began = time.monotonic()

    def each_epoch(history):
        if len(history.valid) < experiment.training.epochs and time.monotonic() - began >= seconds:
            raise _Enough

    try:
        with one_thread(), TemporaryDirectory(prefix="slmlib-") as folder:  # one, as in a process pool
            path = Path(folder) / "checkpoint.safetensors"
            if checkpoint:
                path.write_bytes(checkpoint)
            with suppress(_Enough):
                record, kept = work(experiment, device, path, losses, keep, each_epoch)
                return record, kept, path.read_bytes() if keep else b""
            return None, None, path.read_bytes()
    except (CorpusUnavailable, CorpusDamaged) as error:  # else the worker would fail run after run, a second each
        raise ClusterBroken(f"worker {here} cannot have a corpus: {error} Then the same command goes on.") from None
    except Exception as error:
        error.add_note(f"on worker {here}")
        raise


@contextmanager
def local(workers: int = 2, port: int = 0, dashboard: int = 0) -> Iterator[str]:
    """A scheduler and workers of one thread each, processes on this machine for trying it: the scheduler's address.

    Ports are free ones if 0.

    Raises:
        ClusterBroken: if the port is taken or Dask is not installed.
    """
    distributed = _distributed()
    where = {"host": "127.0.0.1", "scheduler_port": port, "dashboard_address": f"127.0.0.1:{dashboard}"}
    how = {"threads_per_worker": 1, "silence_logs": logging.CRITICAL}
    try:
        cluster = distributed.LocalCluster(n_workers=workers, **where, **how)
    except RuntimeError as error:
        raise ClusterBroken(f"no cluster can be started: port {port} is taken, perhaps ({error})") from None
    with cluster:
        yield cluster.scheduler_address


def main(port: int = 8786, dashboard: int = 8787) -> None:
    """``make cluster``: a scheduler and two workers here, until Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # by the workers too: Ctrl-C reaches them, and they end with this
    try:
        with suppress(KeyboardInterrupt), local(2, port, dashboard) as address:
            for ends in (signal.SIGINT, signal.SIGTERM):
                signal.signal(ends, signal.default_int_handler)
            print(f"A scheduler and two workers are at {address}. To try them, in another terminal:\n")
            print(f"    .venv/bin/python -m slmlib run words --scheduler {address} --store .run/tried\n")
            if importlib.util.find_spec("bokeh"):
                print(f"Dask shows them at http://127.0.0.1:{dashboard}.")
            print("Ctrl-C ends them.", flush=True)
            threading.Event().wait()
    except ClusterBroken as error:
        sys.exit(f"slmlib: {error}")


if __name__ == "__main__":
    main()
