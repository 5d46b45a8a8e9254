"""A disk that is full, or that may not be written to: said in a line, nothing lost, and it goes on afterwards."""

import errno
import os
import resource
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import timeless

from slmlib import corpora, screen, tryout
from slmlib.checkpoints import NotWritten
from slmlib.corpora import CorpusUnavailable, Vocabulary, load_corpus
from slmlib.experiments import Store, run, run_all
from slmlib.models import build

from .conftest import BLOCKS, LOCK, left_in, said_in_a_line

pytestmark = pytest.mark.usefixtures("one_thread")

TO_DO = "make room there, or let yourself write there, and do the same again"


def fill(folder, room):
    """Leave only so many bytes there."""
    with open(folder / "filler", "wb") as file:
        free = os.statvfs(folder)
        file.write(b"0" * max(0, free.f_bavail * free.f_frsize - room))


def test_on_a_full_disk_each_write_fails_in_its_turn_and_all_goes_on_from_what_is_there(mount, undisturbed):
    """Room for nothing at first, then for a page more each time: from the beginning, then from the last checkpoint."""
    disk = mount("size=1m")
    store, failed = Store(disk / "store", keeps_losses=True), set()
    store.folder.mkdir()
    written = [store.running(BLOCKS, "safetensors"), store.path(BLOCKS).with_suffix(".safetensors"), store.path(BLOCKS)]
    for begins in ("anew", "with its last checkpoint"):
        for room in range(0, 2**20, 4096):
            fill(disk, room)
            try:
                record = run(BLOCKS, store, keep_checkpoint=begins == "anew")
                break
            except NotWritten as error:
                failed.add(error.filename)
                assert said_in_a_line(error, error.filename, "No space left on device", TO_DO)
                assert list(store) == [] and not list(disk.rglob("*.partial"))
            finally:
                (disk / "filler").unlink()
        assert timeless(record) == timeless(undisturbed)
        if begins == "anew":
            for path in written[1:]:
                path.unlink()
    assert failed == set(map(str, written)) and left_in(store) == LOCK


def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_limit_on_the_size_of_files_stops_a_sweep_at_once_and_keeps_what_there_is(store, forkserver, undisturbed):
    there = run(BLOCKS, store)
    others = [replace(BLOCKS, seed=seed) for seed in range(3, 10)]
    with ProcessPoolExecutor(1, forkserver, limit, (1_000,)) as pool, pytest.raises(NotWritten) as error:
        run_all([BLOCKS, *others], pool, store)
    (note,) = error.value.__notes__
    assert said_in_a_line(error.value, store.folder, "File too large", TO_DO)
    assert note == "not done: " + ", ".join(e.name for e in others[:5]) + " and 2 more"
    assert list(store) == [there] and timeless(there) == timeless(undisturbed)
    assert run_all([BLOCKS, others[0]], store=store)[0] == there


def test_a_store_that_may_not_be_written_to_is_read_and_said_when_it_is_run_into(mount, undisturbed):
    store = Store(mount("size=1m"), keeps_losses=True)
    there = run(BLOCKS, store)
    mount("remount,ro")
    assert run(BLOCKS, store) == there == store.get(BLOCKS) and store.losses(BLOCKS)
    other = replace(BLOCKS, seed=9)
    with pytest.raises(NotWritten) as error:
        run_all([BLOCKS, other], store=store)
    assert said_in_a_line(error.value, store.folder, "Read-only file system", TO_DO)
    mount("remount,rw")
    assert [run_all([BLOCKS, other], store=store)[0], len(list(store))] == [there, 2]


@pytest.fixture
def files(tmp_path, undisturbed):
    """Everything that is written whole: its path, and what writes it."""
    store, vocabulary = Store(tmp_path / "store", keeps_losses=True), Vocabulary(("a", "b"), "character")
    model, page = build(BLOCKS.model, 2, seed=0), tmp_path / "page.md"
    page.write_text("a\n<!-- b -->\nbefore\n<!-- e -->\n", encoding="utf-8")
    return {
        "record": (store.path(BLOCKS), lambda: store.put(undisturbed)),
        "losses": (store.path(BLOCKS).with_suffix(".safetensors"), lambda: store.put_losses(BLOCKS, {}, "")),
        "model": (tmp_path / "m", lambda: tryout.keep(tmp_path / "m", model, BLOCKS, vocabulary)),
        "page": (page, lambda: screen.put_between(page, ("<!-- b -->\n", "<!-- e -->\n"), "after\n")),
    }


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("what", ["record", "losses", "model", "page"])
def test_a_file_is_written_whole_or_not_at_all_and_a_full_disk_not_kept_full(files, monkeypatch, what, there, function):
    path, write = files[what]
    if there:
        write()
    elif what != "page":
        path.unlink(missing_ok=True)
    before = path.read_bytes() if path.exists() else None

    def refuse(file, *_):
        if function == "fsync":
            os.ftruncate(file, os.fstat(file).st_size // 2)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch, pytest.raises(NotWritten) as error:
        patch.setattr(os, function, refuse)
        write()
    assert said_in_a_line(error.value, path, "Disk quota exceeded", TO_DO)
    assert (path.read_bytes() if path.exists() else None) == before
    assert not list(path.parent.rglob("*.partial"))


@pytest.mark.parametrize("options, why", [("size=20k", "No space left"), ("size=20k,ro", "Read-only")])
def test_a_download_onto_such_a_disk_says_what_to_do(mount, monkeypatch, options, why):
    folder = mount(options)
    monkeypatch.setenv("SLMLIB_DATA", str(folder))

    class Endless:
        url, length = "https://elsewhere/x", None
        read1 = staticmethod(lambda n: b"0" * 10_000)
        __enter__, __exit__ = (lambda self: self), (lambda *_: None)

    monkeypatch.setattr(corpora, "build_opener", lambda: SimpleNamespace(open=lambda *_, **__: Endless()))
    with pytest.raises(CorpusUnavailable) as error:
        load_corpus("ptb")
    assert said_in_a_line(error.value, folder / "ptb/train.txt", why, f"make room in {folder / 'ptb'}")
    assert not [path for path in folder.rglob("*") if path.is_file()]
