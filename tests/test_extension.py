"""The local Sphinx extension: the book's own configuration, built with a tiny chapter and an address."""

import json
import os
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

from conftest import end_of

ROOT = Path(__file__).parent.parent
LINE = 'repository: {url: "", branch: main}'
BUTTONS = re.compile(r'href="([^"]*)"[^>]*?class="btn btn-sm[^>]*?title="([^"]*)"', re.DOTALL)


def jupyter_book(folder):
    os.environ |= {"SLMLIB_DATA": str(folder / "none"), "https_proxy": "http://127.0.0.1:9"}  # no models to pack
    sys.modules["rfc3987_syntax"] = None  # a check of addresses that takes two seconds to import
    import_module("jupyter_book.cli.main").main(["build", str(folder), "-W", "-n", "--keep-going"])


def build(begin, folder: Path, url: str) -> dict[str, str]:
    """The links in the header of a built chapter, by tooltip."""
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    assert config.count(LINE) == 1
    (folder / "_config.yml").write_text(config.replace(LINE, LINE.replace('""', f'"{url}"')), encoding="utf-8")
    contents = "format: jb-book\nroot: book/intro\nchapters:\n  - file: book/01-data\n"
    (folder / "_toc.yml").write_text(contents, encoding="utf-8")
    for name in ("assets", "ext"):
        shutil.copytree(ROOT / "book" / name, folder / "book" / name)
    (folder / "book" / "intro.md").write_text("# Intro\n\n$x$\n", encoding="utf-8")
    code = {"cell_type": "code", "id": "b", "metadata": {}, "source": "1", "execution_count": 1}
    code["outputs"] = []
    text = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Chapter\n\n$x$"}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [text, code], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "book" / "01-data.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    code, _, said = end_of(begin(jupyter_book, folder))
    assert code == 0, said
    html = (folder / "_build" / "html" / "book" / "01-data.html").read_text(encoding="utf-8")
    return {tooltip: link for link, tooltip in BUTTONS.findall(html) if link.startswith("http")}


def test_one_line_turns_the_buttons_on(tmp_path, begin):
    github = "https://github.com/someone/book"
    assert build(begin, tmp_path, f"{github}.git/") == {
        "Source repository": github,
        "Suggest edit": f"{github}/edit/main/book/01-data.ipynb",
        "Open an issue": f"{github}/issues/new?title=Issue%20on%20page%20%2Fbook/01-data.html&body="
        "Your%20issue%20content%20here.",
        "Launch on Binder": "https://mybinder.org/v2/gh/someone/book/main?urlpath=lab/tree/book/01-data.ipynb",
        "Launch on Colab": "https://colab.research.google.com/github/someone/book/blob/main/book/01-data.ipynb",
    }


def test_without_an_address_there_is_no_button_and_colab_only_for_github():
    from slm_book import BUTTONS as kinds
    from slm_book import choose_buttons

    def chosen(url):
        options = {"repository_url": url, "launch_buttons": {"colab_url": "x", "binderhub_url": "y"}}
        choose_buttons(None, SimpleNamespace(html_theme_options=options))
        return options

    nowhere = chosen("")
    assert nowhere["launch_buttons"] == {} and not any(nowhere[kind] for kind in kinds)
    assert chosen("https://gitlab.com/someone/book.git/") == {
        "repository_url": "https://gitlab.com/someone/book",
        "launch_buttons": {"colab_url": "", "binderhub_url": "y"},
    }
