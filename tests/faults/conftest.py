"""What the tests of faults share: tiny experiments, a dice, disks that fill up.

``SLMLIB_SOAK``, a number, asks for the long form and is the dice's seed: ``make soak`` sets it and says it.
"""

import os
import random
import subprocess

import pytest

from slmlib.experiments import Experiment, Store, run
from slmlib.models import TransformerConfig
from slmlib.training import TrainingConfig

SOAK = os.environ.get("SLMLIB_SOAK", "")

QUICK = TrainingConfig(3, windows_per_epoch=64, eval_windows=2_000, eval_stride=200, batch=32, whole_stride=999)
BLOCKS = Experiment(
    "python-docs", TransformerConfig(context=8, d_model=8, heads=2, layers=1, ff_width=12, dropout=0.3), QUICK, 2
)
LOCK = {".lock"}  # the suffixes of what stays in .running


def often(short, at_length):
    """The one in the short form, the other in the long."""
    return at_length if SOAK else short


def left_in(store):
    """The suffixes of what lies in .running."""
    return {path.suffix for path in (store.folder / ".running").iterdir()}


def said_in_a_line(error, path, *words):
    """Whether an error names the file and holds these words, all in one line."""
    said = str(error)
    return "\n" not in said and str(path) in said and all(word in said for word in words)


@pytest.fixture
def dice():
    seed = int(SOAK or 0)
    print(f"the dice's seed is {seed}; the same again: SLMLIB_SOAK={seed}")
    return random.Random(seed)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", keeps_losses=True)


@pytest.fixture(scope="module")
def undisturbed(one_thread):
    """What ``BLOCKS`` leaves where nothing goes wrong."""
    return run(BLOCKS)


@pytest.fixture
def mount(tmp_path):
    """mount("size=100k"): a small disk, a folder; mount(..., again) with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, encoding="utf-8")
        except FileNotFoundError:
            pytest.skip("no disk can be mounted here: there is no mount")
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)  # whatever a failed test has open there
