"""The chapters with no corpus and no network: each runs on the stand-in corpus and says so."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

BOOK = Path(__file__).parent.parent / "book"
CLOSED = "http://127.0.0.1:9"  # nothing listens there


@pytest.mark.parametrize("chapter", sorted(p.name for p in BOOK.glob("*.ipynb")))
def test_a_chapter_goes_on_with_the_stand_in(chapter, tmp_path, monkeypatch):
    monkeypatch.setenv("SLMLIB_DATA", str(tmp_path))
    monkeypatch.setenv("SLMLIB_BUDGET", "smoke")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, CLOSED)
        monkeypatch.setenv(name.upper(), CLOSED)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    notebook = nbformat.read(BOOK / chapter, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(BOOK)}}).execute()

    pages = [
        output.data.get("text/html", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "display_data"
    ]
    assert sum("slm-banner" in html and "python-docs" in html for html in pages) == 1
    assert not any(tmp_path.rglob("*.txt"))  # so it was not the corpus after all


def test_the_network_is_really_out_of_reach(monkeypatch, tmp_path):
    """Guards the test above: if requests ignored the proxy variables, it would prove nothing."""
    import slmlib

    monkeypatch.setenv("SLMLIB_DATA", os.fspath(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, CLOSED)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(slmlib.CorpusUnavailable):
        slmlib.load_corpus("tiny_shakespeare")
