"""What was damaged, cut short, or is another's: refused by name with what to do, never read as something else."""

import hashlib
import re
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from conftest import same, timeless

from slmlib import corpora, tryout
from slmlib.checkpoints import epochs_done
from slmlib.corpora import CorpusDamaged, load_corpus
from slmlib.experiments import RecordDamaged, Store, run
from slmlib.mixing import Gate, Mixture
from slmlib.models import build
from slmlib.ngrams import KneserNey

from .conftest import BLOCKS, QUICK, often, said_in_a_line

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT, OTHER = (replace(BLOCKS, training=replace(QUICK, epochs=1, whole_stride=9_999), seed=seed) for seed in (0, 1))
KINDS = {  # what is kept -> the error, and what to do
    "record": (RecordDamaged, "(?i)move (the file|it) away"),
    "losses": (RecordDamaged, "Move the file away and run its experiment again"),
    "checkpoint": (ValueError, "delete it to start this run anew"),
    "model": (ValueError, "python -m slmlib try writes another"),
    "corpus": (CorpusDamaged, "delete it and try again"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory, one_thread):
    """Each kind of file: its path, another's of its kind, and what gives back whether what is read is what was kept."""
    folder, corpus = tmp_path_factory.mktemp("kept"), load_corpus("python-docs")
    store = Store(folder / "store", keeps_losses=True)
    whole, _ = (run(e, store, keep_checkpoint=True) for e in (SHORT, OTHER))
    losses, sample = store.losses(SHORT)

    def losses_again():
        again = store.losses(SHORT)
        return same(again[0], losses) and again[1] == sample

    def run_again():
        store.path(SHORT).unlink(missing_ok=True)
        return timeless(run(SHORT, store, keep_checkpoint=True)) == timeless(whole)

    model, ids, V = build(SHORT.model, len(corpus.vocabulary), seed=0), corpus.train[:300], len(corpus.vocabulary)
    mixture = Mixture(model, [KneserNey(2, V).fit(ids)], Gate.of(torch.rand(4, 2)), ids)
    tryout.keep(folder / "model", mixture, SHORT, corpus.vocabulary)

    def model_again():
        again, vocabulary, mixed = tryout.load(folder / "model")
        same_gate = torch.equal(mixed.gate.weights, mixture.gate.weights) and torch.equal(mixed.text.long(), ids)
        return same(again, model) and vocabulary == corpus.vocabulary and same_gate

    for i in range(2):
        (folder / f"text{i}.txt").write_text(f"to be {i} or not\n" * 20, encoding="utf-8")
    text = folder / "text0.txt"
    hashed = hashlib.sha256(text.read_bytes()).hexdigest()

    def corpus_again():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLMLIB_DATA", str(folder))
            patch.setattr(corpora, "FILES", {"text0.txt": ("http://127.0.0.1:9/", hashed)})  # where nobody listens
            return bool(corpora.fetch("text0.txt"))

    return {
        "record": (*map(store.path, (SHORT, OTHER)), lambda: store.get(SHORT) == whole),
        "losses": (*(store.path(e).with_suffix(".safetensors") for e in (SHORT, OTHER)), losses_again),
        "checkpoint": (*(store.running(e, "safetensors") for e in (SHORT, OTHER)), run_again),
        "model": (folder / "model", None, model_again),  # any that was kept is one to go on with
        "corpus": (text, folder / "text1.txt", corpus_again),
    }


def damaged(whole, dice):
    """A bit flipped, most often near the beginning, where a file says what it holds; or cut short; or a hole."""
    n = len(whole)
    at, most = dice.randrange(dice.choice((n, min(n, 600)))), dice.randrange(1, 600)
    flipped = whole[:at] + bytes([whole[at] ^ 1 << dice.randrange(8)]) + whole[at + 1 :]
    holed = whole[:at] + bytes(len(whole[at : at + most])) + whole[at + most :]
    return dice.choice((flipped, whole[:at], holed))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_damaged_or_anothers_is_refused_by_name_or_read_as_it_was(kept, kind, dice):
    (path, another, read), (error, to_do) = kept[kind], KINDS[kind]
    whole, refused = path.read_bytes(), 0
    bad = [damaged(whole, dice) for _ in range(often(60, 2_000))] + [b"", b"garbage" * 100, b"[1, 2]"]
    bad += [another.read_bytes()] if another else []
    bad += [safetensors.torch.save({"a": torch.zeros(1)}), whole.replace(b"valid", b"walid")]
    try:
        assert read()
        for data in bad:
            path.write_bytes(data)
            try:
                assert read()
            except error as raised:
                refused += 1
                assert said_in_a_line(raised, path) and re.search(to_do, str(raised)), raised
            assert path.read_bytes() == data or data == whole  # left as it was
        assert refused >= 0.8 * len(bad)
    finally:
        path.write_bytes(whole)


def test_a_damaged_checkpoint_has_done_no_number_of_epochs(kept, tmp_path):
    assert epochs_done(tmp_path / "none") == 0 and epochs_done(kept["checkpoint"][0]) == 1
    with pytest.raises(ValueError, match=r"cannot|no checkpoint.*delete it"):
        epochs_done(tmp_path)
