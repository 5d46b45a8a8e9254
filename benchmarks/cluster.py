"""What a cluster and the store cost beside the training: minutes of a machine that does nothing else.

python benchmarks/cluster.py FILE writes what it finds there; what is published lies in cluster.json.
"""

import json
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from measure import timed

from slmlib.cluster import Cluster, local
from slmlib.corpora import load_corpus
from slmlib.experiments import Experiment, Record, Store, machine, run, run_all, trained
from slmlib.models import MLPConfig
from slmlib.training import TrainingConfig

TRAINING = TrainingConfig(1, windows_per_epoch=6_400, eval_windows=2_000, eval_stride=8, scored="last")
SHORT = Experiment("python-docs", MLPConfig(context=4, d_model=16, hidden=32), TRAINING, 0)
CHECKPOINT = 3_000_000  # bytes, of a small model's run


def echo(data: object) -> object:
    return data


def engine(there: Cluster, data: object, count: int) -> float:
    """Seconds a task that does nothing but hand back what it was given, as ``Cluster`` asks for its own."""

    def task(number: int) -> object:
        return there.client.submit(echo, data, key=f"empty-{time.time_ns()}-{number}").result()

    return timed(lambda: [future.result() for future in [there.submit(task, i) for i in range(count)]]) / count


def store(record: Record, count: int = 1000) -> dict[str, float]:
    """Seconds a record: written, read, and all of ``run`` but the work."""
    experiments = [replace(record.experiment, seed=seed) for seed in range(count)]
    records = {experiment: replace(record, experiment=experiment) for experiment in experiments}
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        seconds = {
            "write": timed(lambda: [Store(a).put(record) for record in records.values()]),
            "read": timed(lambda: list(Store(a))),
            "run": timed(lambda: [run(e, Store(b), by=lambda e, *_: (records[e], None)) for e in experiments]),
        }
    return {what: took / count for what, took in seconds.items()}


def bare(experiments: list[Experiment]) -> None:
    """On a worker, so that both take the same processor: nothing but training and testing."""
    torch.set_num_threads(1)
    corpus = load_corpus("python-docs")
    for experiment in experiments:
        trained(experiment, corpus, progress=False)


def overhead(there: Cluster, rounds: int = 10, each: int = 10) -> dict[str, float]:
    """Of short runs on one worker, by ``run_all`` with a store and bare, in alternating rounds."""
    found = []
    for part in range(-1, rounds):  # the first to warm up
        experiments = [replace(SHORT, seed=each * (part + 1) + seed) for seed in range(each)]
        with tempfile.TemporaryDirectory() as folder:
            ways = [
                partial(run_all, experiments, there, folder),
                lambda of=experiments: there.client.submit(bare, of, pure=False).result(),
            ]
            order = (0, 1) if part % 2 else (1, 0)
            took = {way: timed(ways[way]) / each for way in order}
        found.append((took[0], took[1]))
    more = sorted(ours - plain for ours, plain in found[1:])
    low, _, high = statistics.quantiles(more, n=4)
    plain = statistics.median(plain for _, plain in found[1:])
    return {"runs": rounds * each, "bare": plain, "more": statistics.median(more), "low": low, "high": high}


def measure() -> dict[str, object]:
    torch.set_num_threads(1)
    corpus = load_corpus("python-docs")
    record = trained(SHORT, corpus, progress=False)[-1]
    text = record.to_json()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    found = {"machine": machine(), "versions": versions, "record_bytes": len(text)}
    with local(2) as address, Cluster(address) as there:
        found["versions"]["distributed"] = there.client.get_versions()["client"]["packages"]["distributed"]
        engine(there, text, 20)
        found["engine"] = {str(count): engine(there, text, count) for count in (10, 100, 1000)}
        found["checkpoint"] = {"bytes": CHECKPOINT, "seconds": engine(there, bytes(CHECKPOINT), 20)}
    found["store"] = store(record)
    with local(1) as address, Cluster(address) as there:
        found["overhead"] = overhead(there)
    return found


if __name__ == "__main__":
    text = json.dumps(measure(), indent=1) + "\n"
    print(text)
    Path(sys.argv[1]).write_text(text, encoding="utf-8")
