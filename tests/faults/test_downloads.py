"""Downloads that go wrong: a sound file or an error in a line, soon, and nothing that a later run takes for good.

A server on this machine does each; it closes a connection after a few seconds at most.
"""

import hashlib
import socketserver
import threading
import time
from contextlib import suppress

import pytest
from conftest import files_in

from slmlib import corpora
from slmlib.corpora import CorpusDamaged, CorpusUnavailable, fetch

from .conftest import said_in_a_line

TEXT = b"To be, or not to be\n" * 500
OK, LENGTH, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"Content-Length: %d\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = OK + LENGTH % len(TEXT) + TEXT


def to(path, *_):
    return b"HTTP/1.1 302 Found\r\nLocation: " + path + b"\r\nContent-Length: 0\r\n\r\n"


def slowly(first, rest):
    yield first
    for byte in rest:
        time.sleep(0.05)
        yield bytes([byte])


def for_ever(piece, seconds=4):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield piece


SERVERS = {  # what is sent, and what the error says; None: it comes all the same
    "whole": (lambda: [WHOLE], None),
    "redirected": (lambda: [to(b"/whole")], None),
    "of unknown length": (lambda: [OK, b"\r\n", TEXT], None),
    "in pieces": (lambda: [OK, CHUNKED, b"%x\r\n" % len(TEXT), TEXT, b"\r\n0\r\n\r\n"], None),
    "dies": (lambda: [WHOLE[:-5_000]], "closed after 5000 of 10000 bytes.*try again"),
    "dies in its headers": (lambda: [WHOLE[:20]], "try again"),
    "dies in pieces": (lambda: [OK, CHUNKED, b"%x\r\n" % len(TEXT), TEXT[:99]], "try again"),
    "dies, of unknown length": (lambda: [OK, b"\r\n", TEXT[:99]], "SHA-?256 hash.*try again"),
    "says nothing": (lambda: [], "try again"),
    "redirected in a circle": (lambda: [to(b"/redirected%20in%20a%20circle")], "redirect.*try again"),
    "another kind of address": (lambda: [to(b"file:///etc/hostname")], "redirect.*try again"),
    "an error page": (
        lambda: [OK + LENGTH % 21 + b"<h1>Please log in</h1>"[:21]],
        "hash.*a proxy perhaps alters it: put a sound copy",
    ),
    "other bytes": (lambda: [WHOLE[:-1] + b"!"], "hash.*a proxy perhaps alters it: put a sound copy"),
    "not found": (lambda: [b"HTTP/1.1 404 Not Found\r\n" + LENGTH % 0], "404.*try again"),
    "out of order": (lambda: [b"HTTP/1.1 503 Service Unavailable\r\n" + LENGTH % 0], "503.*try again"),
    "no server of pages": (lambda: [b"SSH-2.0-OpenSSH_9.2\r\n"], "try again"),
    "crawls": (lambda: slowly(OK + LENGTH % len(TEXT), TEXT[:80]), "TimeoutError.*below 10000 bytes a second"),
    "crawls in its headers": (lambda: slowly(OK + b"X: ", b"0" * 80), "TimeoutError.*below 10000 bytes a second"),
    "crawls in pieces": (lambda: slowly(OK + CHUNKED, b"0" * 80), "TimeoutError.*below 10000 bytes a second"),
    "hangs": (lambda: (time.sleep(4) for _ in range(1)), "TimeoutError.*below 10000 bytes a second"),
    "without end": (lambda: for_ever(OK + b"\r\n" + TEXT), "more than 1000000 bytes came"),
}


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        wanted = self.rfile.readline().split()[1].decode()[1:].replace("%20", " ")
        while self.rfile.readline().strip():
            pass
        with suppress(OSError):  # it was given up
            for piece in SERVERS[wanted][0]():
                self.wfile.write(piece or b"")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads, block_on_close = True, False


@pytest.fixture(scope="module")
def address():
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture
def file(tmp_path, monkeypatch):
    """file(url): the path of a corpus file that comes from there, in an empty folder."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SLMLIB_DATA", str(tmp_path))
    monkeypatch.setattr(corpora, "PATIENCE", 0.8)
    monkeypatch.setattr(corpora, "LARGEST", 1_000_000)

    def file(url):
        monkeypatch.setattr(corpora, "FILES", {"toy/input.txt": (url, hashlib.sha256(TEXT).hexdigest())})
        return tmp_path / "toy" / "input.txt"

    return file


@pytest.mark.parametrize("damaged", [False, True], ids=["missing", "damaged"])
@pytest.mark.parametrize("served", [*SERVERS, "refuses"])
def test_a_download_comes_whole_or_is_given_up_in_a_line_and_leaves_nothing(
    file, address, served, damaged, monkeypatch
):
    if damaged:
        monkeypatch.setenv("TQDM_DISABLE", "1")  # as make does: without a bar
    path = file("http://127.0.0.1:9/" if served == "refuses" else address + served.replace(" ", "%20"))
    if damaged:
        path.parent.mkdir()
        path.write_bytes(b"damaged")
    _, says = SERVERS.get(served, (None, "refused.*try again"))
    began = time.monotonic()
    if says is None:
        assert fetch("toy/input.txt").read_bytes() == TEXT
    else:
        with pytest.raises(CorpusDamaged if damaged else CorpusUnavailable, match=f"(?i){says}") as error:
            fetch("toy/input.txt")
        hashes = [hashlib.sha256(data).hexdigest() for data in (b"damaged", TEXT)] * damaged
        assert said_in_a_line(error.value, path, "What to do", "SLMLIB_DATA", *hashes)
        assert [f.read_bytes() for f in files_in(path.parents[1])] == [b"damaged"] * damaged
        file(address + "whole")
        assert fetch("toy/input.txt").read_bytes() == TEXT
    file("http://127.0.0.1:9/")
    assert fetch("toy/input.txt").read_bytes() == TEXT  # which is not asked for again
    assert time.monotonic() - began < 20 and files_in(path.parents[1]) == [path]
