import functools
import gzip
import hashlib
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import files_in

from slmlib import corpora
from slmlib.corpora import Corpus, CorpusUnavailable, Vocabulary, load_corpus, read_corpus

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
WORD_CORPORA = {  # words in train, valid and test; distinct words in train
    "ptb": (887_521, 70_390, 78_669, 9_999),
    "wikitext-2": (2_051_910, 213_886, 241_211, 33_277),
}


@functools.cache
def real(name):
    """The corpus and its raw files, if they are in the cache of whoever runs the tests; nothing is downloaded."""
    folder = corpora.data_folder()
    files = [file for file in corpora.FILES if file.startswith(name + "/")]
    if missing := [file for file in files if not (folder / file).is_file()]:
        pytest.skip(f"needs {', '.join(missing)} in {folder}")
    return load_corpus(name), [(folder / file).read_bytes() for file in files]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no proxy."""
    monkeypatch.setenv("SLMLIB_DATA", str(tmp_path))
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path


@pytest.fixture
def offline(cache, monkeypatch):
    """No network: every request goes to a proxy that is not there."""
    for name in PROXIES[:3]:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    return cache


# The splits


@pytest.mark.parametrize("name", WORD_CORPORA)
def test_word_corpora_have_the_papers_words(name):
    corpus, raw = real(name)
    splits = [text.decode().split() for text in raw]
    ids = corpus.train, corpus.valid, corpus.test
    assert (*map(len, ids), len(corpus.vocabulary)) == WORD_CORPORA[name]
    assert corpus.vocabulary.tokens == tuple(sorted(set(splits[0])))
    for words, i in zip(splits, ids, strict=True):
        assert corpus.vocabulary.decode(i) == " ".join(words)


def test_python_docs_is_the_whole_of_pydocs_topics_and_large_enough_to_stand_in():
    from pydoc_data.topics import topics

    corpus = load_corpus("python-docs")
    splits = corpus.train, corpus.valid, corpus.test
    text = "".join(map(corpus.vocabulary.decode, splits))
    assert text == "\n".join(topics[key] for key in sorted(topics))
    assert corpus.vocabulary.tokens == tuple(sorted(set(text)))
    assert len(corpus.train) == pytest.approx(0.8 * len(text), abs=1)
    assert min(map(len, splits)) > 10_000 + 128  # the paper's evaluation windows fit


def test_head_cuts_the_train_split_and_keeps_the_rest():
    ids = torch.arange(5)
    corpus = Corpus("toy", ids, ids, ids, Vocabulary(tuple("abcde"), "character"))
    short = corpus.head(train=3)
    assert [len(split) for split in (short.train, short.valid, short.test)] == [3, 5, 5]
    assert len(corpus.head(train=None).train) == 5
    assert short.train.tolist() == [0, 1, 2]
    assert (short.name, short.vocabulary) == ("toy", corpus.vocabulary)


def store(cache, monkeypatch, name, **texts):
    """Put files of a corpus into the cache, and their hashes into FILES."""
    (cache / name).mkdir(exist_ok=True)
    for stem, text in texts.items():
        (cache / name / f"{stem}.txt").write_bytes(text.encode())
        hashed = "https://nowhere.invalid", hashlib.sha256(text.encode()).hexdigest()
        monkeypatch.setitem(corpora.FILES, f"{name}/{stem}.txt", hashed)


def test_character_splits_without_the_real_text(cache, monkeypatch):
    marks = "".join(chr(ord("a") + i * i * 7 % 26) for i in range(1_115_394 - 3))
    text = marks[:892_117] + "\n" + marks[892_117 : 892_117 + 111_669] + "\n" + marks[892_117 + 111_669 :] + "Z"
    store(cache, monkeypatch, "tiny_shakespeare", input=text)
    corpus = load_corpus("tiny_shakespeare")
    decoded = [corpus.vocabulary.decode(ids) for ids in (corpus.train, corpus.valid, corpus.test)]
    assert "\n".join(decoded) == text
    assert list(map(len, decoded)) == [892_117, 111_669, 111_606]
    assert corpus.vocabulary.tokens[0] == "Z"  # in the test split only; neither dropped newline counts


@pytest.mark.parametrize("name", WORD_CORPORA)
def test_the_vocabulary_of_words_is_the_train_splits(cache, monkeypatch, name):
    store(cache, monkeypatch, name, train=" the\tcat \n the N\n", valid="N cat\n", test="the\n\nthe\n")
    corpus = load_corpus(name)
    assert corpus.vocabulary == Vocabulary(("N", "cat", "the"), "word")
    assert [ids.tolist() for ids in (corpus.train, corpus.valid, corpus.test)] == [[2, 1, 2, 0], [0, 1], [2, 2]]


# The vocabulary

CHARACTERS = Vocabulary(tuple("\nabé"), "character")
WORDS = Vocabulary(("<unk>", "N", "cat", "the"), "word")


@pytest.mark.parametrize(
    ("vocabulary", "text", "ids"),
    [
        (CHARACTERS, "ba\né", [2, 1, 0, 3]),
        (CHARACTERS, "", []),
        (WORDS, "the cat <unk> N", [3, 2, 0, 1]),
        (WORDS, "", []),
    ],
)
def test_encode_and_decode_are_inverse(vocabulary, text, ids):
    encoded = vocabulary.encode(text)
    assert (encoded.dtype, encoded.tolist()) == (torch.int64, ids)
    assert vocabulary.decode(encoded) == vocabulary.decode(ids) == text


@pytest.mark.parametrize(
    ("vocabulary", "text", "named"),
    [
        (CHARACTERS, "abxy", ("character 'x'", "position 2", "4 known")),
        (WORDS, "the dog", ("word 'dog'", "position 1")),
    ],
)
def test_an_unknown_token_is_named_with_its_position(vocabulary, text, named):
    with pytest.raises(ValueError) as error:
        vocabulary.encode(text)
    assert all(words in str(error.value) for words in named)


@pytest.mark.parametrize("bad", [4, -1])
@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_an_id_outside_the_vocabulary_is_named_with_its_position(bad, kind):
    with pytest.raises(ValueError, match=rf"id {bad} at position 2 is not from 0 to 3"):
        CHARACTERS.decode(kind([0, 1, bad, 9]))


@pytest.mark.parametrize(
    ("tokens", "unit", "named"),
    [
        ("aba", "character", "'a' at positions 0 and 2"),
        (("a", "bc"), "character", "one character, got 'bc' at position 1"),
        (("a", ""), "character", "got '' at position 1"),
        (("a b",), "word", "one word, got 'a b' at position 0"),
        (("a", "b\n"), "word", r"got 'b\\n' at position 1"),
        (("a", 3), "word", "got 3 at position 1"),
        (("a",), "letter", "unit must be 'character' or 'word', got 'letter'"),
    ],
)
def test_a_vocabulary_of_something_else_than_tokens_is_refused(tokens, unit, named):
    with pytest.raises(ValueError, match=named):
        Vocabulary(tokens, unit)


@pytest.mark.parametrize("ids", [[[0, 1]], 3, [0.5], [True], "ab", None, torch.zeros(2, 2)], ids=str)
def test_what_are_no_ids_is_refused(ids):
    with pytest.raises(ValueError, match="ids must be"):
        CHARACTERS.decode(ids)


def test_python_docs_is_one_text_by_its_exact_name():
    exact = corpora.exact_name("python-docs")
    assert re.fullmatch(r"python-docs-[0-9a-f]{8}", exact) and corpora.exact_name(exact) == exact
    assert torch.equal(load_corpus(exact).train, load_corpus("python-docs").train)
    with pytest.raises(CorpusUnavailable, match="another Python"):
        load_corpus("python-docs-00000000")


# Getting the files


def test_a_file_that_may_not_be_read_is_unavailable(cache, monkeypatch):
    store(cache, monkeypatch, "ptb", train="a", valid="a", test="a")

    def locked(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(CorpusUnavailable, match=r"cannot be read \(Permission denied\).*What to do"):
        load_corpus("ptb")


@pytest.mark.parametrize("folder", ["~nobody-here/x", None])
def test_without_a_home_folder_it_says_what_to_set(monkeypatch, folder):
    def homeless(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.setattr("pooch.os_cache", homeless)
    monkeypatch.setenv("SLMLIB_DATA", folder or "")
    with pytest.raises(CorpusUnavailable, match=r"home directory.*set SLMLIB_DATA to a folder"):
        load_corpus("ptb")


def test_every_source_is_immutable_and_hashed():
    for url, sha256 in corpora.FILES.values():
        assert re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/\S+\.txt", url)
        assert re.fullmatch("[0-9a-f]{64}", sha256)


@pytest.mark.parametrize("name", ["shakespeare", "", "toy/input.txt"])
def test_an_unknown_corpus_lists_those_there_are(name):
    with pytest.raises(ValueError) as error:
        load_corpus(name)
    assert repr(name) in str(error.value)
    assert all(known in str(error.value) for known in ("tiny_shakespeare", "ptb", "wikitext-2", "python-docs"))


@pytest.mark.parametrize(("name", "file"), [("tiny_shakespeare", "input.txt"), ("ptb", "train.txt")])
def test_offline_a_missing_file_says_what_was_tried_and_what_to_do(offline, name, file):
    """If requests ignored the proxies, the run of all chapters with no corpus would prove nothing."""
    with pytest.raises(CorpusUnavailable) as error:
        load_corpus(name)
    url, _ = corpora.FILES[f"{name}/{file}"]
    for words in (str(offline / name / file), "missing", url, "connect to the internet", "SLMLIB_DATA"):
        assert words in str(error.value)
    assert files_in(offline) == []


def test_a_download_that_leaves_https_is_refused(cache, monkeypatch):
    reply = nullcontext(SimpleNamespace(url="http://elsewhere/x"))
    monkeypatch.setattr(corpora, "build_opener", lambda: SimpleNamespace(open=lambda *_, **__: reply))
    with pytest.raises(CorpusUnavailable, match="leads to http://elsewhere/x, which is not https"):
        corpora.fetch("ptb/train.txt")
    assert files_in(cache) == []


def test_the_cache_folder_is_slmlib_data_or_the_users_cache(cache, monkeypatch):
    assert corpora.data_folder() == cache.resolve()
    monkeypatch.setenv("SLMLIB_DATA", "~/somewhere")
    monkeypatch.setenv("HOME", str(cache))
    assert corpora.data_folder() == cache.resolve() / "somewhere"
    pooch = pytest.importorskip("pooch")
    monkeypatch.setenv("SLMLIB_DATA", "")
    assert corpora.data_folder() == pooch.os_cache("slmlib")


def test_models_training_and_python_docs_need_neither_pooch_nor_widgets():
    code = (
        "import sys; sys.modules.update(pooch=None, ipywidgets=None)\n"
        "import slmlib.models, slmlib.training, slmlib.corpora\n"
        "print(len(slmlib.corpora.load_corpus('python-docs').train))"
    )
    root = Path(corpora.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def text_file(folder, data):
    path = folder / "my text.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_a_text_of_ones_own_is_cut_in_three(tmp_path):
    text = "".join(f"line {i}\r\nand on\r" for i in range(400))
    corpus = read_corpus(text_file(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    whole = text.replace("\r\n", "\n").replace("\r", "\n")
    parts = [corpus.vocabulary.decode(ids) for ids in (corpus.train, corpus.valid, corpus.test)]
    assert "".join(parts) == whole and [len(p) for p in parts[:2]] == [len(whole) * 8 // 10, len(whole) // 10]
    assert re.fullmatch(r"my-text-[0-9a-f]{8}", corpus.name) and not any(corpus.unknown.values())


def test_what_the_train_split_lacks_is_unknown_and_counted(tmp_path):
    corpus = read_corpus(text_file(tmp_path, "ab" * 1_650 + "cde" + "ab" * 400))
    assert corpus.unknown == {"train": 0, "valid": 3, "test": 0}
    at = 3_300 - len(corpus.train)
    assert corpus.vocabulary.decode(corpus.valid[at : at + 5]) == "\ufffd\ufffd\ufffdab"


def test_words_that_occur_once_are_unknown_in_training_too(tmp_path):
    text = " ".join(["the", "cat"] * 800 + ["once"] + ["the", "dog"] * 300)
    corpus = read_corpus(text_file(tmp_path, text), "word")
    assert corpus.vocabulary.tokens == ("<unk>", "cat", "dog", "the") and corpus.unknown["train"] == 1
    few = read_corpus(text_file(tmp_path, text + "!"), "word")
    assert few.unknown == corpus.unknown | {"test": 1} and few.name != corpus.name


def test_only_so_many_words_are_known(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "MOST_WORDS", 2)
    text = " ".join(["a", "b", "c", "a", "b"] * 500)
    assert read_corpus(text_file(tmp_path, text), "word").vocabulary.tokens == ("<unk>", "a", "b")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds 0 characters"),
        (b"a" * 1_999, "holds 1,999 characters, and 2,000 are the least"),
        (b"text \x00 " * 1_000, "a zero byte at position 5"),
        (b"a" * 3_000, "leaves one character to predict, 'a'"),
        ("café ".encode("latin-1") * 1_000, "not UTF-8 text (byte 0xe9 at position 3)"),
        ("café ".encode("utf-16") * 1_000, "UTF-16: save it as UTF-8"),
        (gzip.compress(b"text " * 1_000), "compressed: unpack it first"),
    ],
)
def test_a_file_that_is_no_long_text_is_refused_by_name(tmp_path, data, words):
    path = text_file(tmp_path, data)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_corpus(path)
    assert str(path) in str(error.value) and "give a" in str(error.value)
