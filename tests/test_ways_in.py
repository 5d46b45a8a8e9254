"""`make` as it goes wrong for people: whole checkouts of a book of one page, in a `.venv` of their own. Minutes."""

import json
import os
import shutil
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SITE_PACKAGES = site.getsitepackages()[0]
INTRO = "# Intro\n\n{numref}`fig-drawn`\n"
TOC = "format: jb-book\nroot: book/intro\noptions: {numbered: true}\nchapters:\n  - file: book/01-data\n"
PYPROJECT = '[project]\nname = "slmlib"\nversion = "0"\n[tool.setuptools]\npackages = ["slmlib"]\n'


def notebook(*cells):
    """A notebook of code cells; the second one's figure has a name that the first page refers to."""
    code = {"cell_type": "code", "execution_count": None, "outputs": [], "metadata": {}}
    figure = {"mystnb": {"figure": {"name": "fig-drawn", "caption": "Drawn."}}}
    made = [{**code, "id": f"c{i}", "source": text} for i, text in enumerate(cells)]
    made[-1]["metadata"] = figure
    title = {"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# Chapter"}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": [title, *made], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


CHAPTER = notebook(
    "import slmlib, os, matplotlib.pyplot as plt\nfrom slmlib.figures import use_style\n"
    "use_style()\nassert slmlib.WHERE == os.path.dirname(os.path.dirname(os.getcwd())).removesuffix('/.run')",
    "plt.plot([1, 2]);",
)
PLAIN = notebook("1", "assert True")


def lay(folder: Path) -> Path:
    """A checkout with a book of one page, and the package, which asks for nothing to be installed."""
    for name in ("Makefile", ".ci/make.py", ".ci/warm.py", ".gitignore", "_config.yml", "requirements.lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in ("book/assets", "book/ext", "results/words"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "benchmarks").mkdir()
    shutil.copytree(ROOT / "slmlib", folder / "slmlib", ignore=shutil.ignore_patterns("__pycache__"))
    with open(folder / "slmlib" / "__init__.py", "a", encoding="utf-8") as package:
        package.write("\nfrom pathlib import Path\n\nWHERE = str(Path(__file__).parents[1])\n")
    (folder / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (folder / "requirements.txt").write_text("-e .\n", encoding="utf-8")
    (folder / "_toc.yml").write_text(TOC, encoding="utf-8")
    for name, text in (("intro.md", INTRO), ("01-data.ipynb", CHAPTER), ("conftest.py", "")):
        (folder / "book" / name).write_text(text, encoding="utf-8")
    return folder


def make(folder: Path, *arguments, **env):
    env = {**os.environ, "TORCH": "pip", **env}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8")


def set_up(folder: Path, **env) -> Path:
    """`make setup`, and a way to what the tests' own environment holds; a `.venv` made anew has lost it."""
    done = make(folder, "setup", **env)
    assert done.returncode == 0, done.stderr
    way = next((folder / ".venv").glob("lib/python3*/site-packages")) / "way.pth"
    way.write_text(SITE_PACKAGES + "\n", encoding="utf-8")
    return way


@pytest.fixture
def checkout(tmp_path):
    folder = lay(tmp_path / "co")
    set_up(folder)
    return folder


def built(folder: Path, **env):
    done = make(folder, "book", **env)
    assert done.returncode == 0, done.stdout + done.stderr
    html = (folder / "_build" / "html" / "book" / "01-data.html").read_text(encoding="utf-8")
    assert 'id="fig-drawn"' in html
    return done.stdout


def test_twice_is_once(checkout):
    assert "1 passed" in built(checkout)
    began = time.monotonic()
    assert "passed" not in built(checkout)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("way", [shutil.copytree, os.rename], ids=["copied", "moved"])
def test_the_venv_of_another_checkout_is_made_anew(checkout, tmp_path, way):
    options = {"symlinks": True} if way is shutil.copytree else {}
    way(checkout, tmp_path / "co2", **options)
    (tmp_path / "co2" / "slmlib" / "__init__.py").write_text("raise RuntimeError('this one')\n", encoding="utf-8")
    assert make(tmp_path / "co2", "setup").returncode == 0
    assert not any((tmp_path / "co2" / ".venv").glob("lib/*/site-packages/way.pth"))
    set_up(tmp_path / "co2")
    done = make(tmp_path / "co2", "book")
    assert done.returncode != 0 and "this one" in done.stdout


def test_a_venv_whose_python_is_gone_is_made_anew(checkout):
    for name in (checkout / ".venv" / "bin").glob("python*"):
        name.unlink()
    way = set_up(checkout)
    assert way.exists() and "1 passed" in built(checkout)


@pytest.mark.parametrize("value", ["Agg", "module://nowhere"])
def test_figures_are_there_whatever_the_environment_says(checkout, value):
    (checkout / ".run").mkdir()
    rc = checkout / ".run" / "matplotlibrc"
    rc.write_text("axes.grid: False\n", encoding="utf-8")
    assert "1 passed" in built(checkout, MPLBACKEND=value, MATPLOTLIBRC=str(rc), PYTHONOPTIMIZE="2")
    assert "passed" not in built(checkout)


def test_a_lone_notebook_has_its_figures_too(checkout):
    command = [str(checkout / ".venv/bin/python"), "-m", "nbconvert", "--to", "notebook", "--execute", "--stdout"]
    chapter = (checkout / "book" / "01-data.ipynb").read_text(encoding="utf-8").replace("assert", "_ = 0 and")
    (checkout / "book" / "01-data.ipynb").write_text(chapter, encoding="utf-8")
    done = subprocess.run(
        [*command, "book/01-data.ipynb"], cwd=checkout, env={**os.environ, "MPLBACKEND": "Agg"}, capture_output=True
    )
    shown = [o for c in json.loads(done.stdout)["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert [set(o["data"]) & {"image/svg+xml", "image/png"} for o in shown] == [{"image/svg+xml", "image/png"}]


@pytest.mark.parametrize("name", ["x[book]", "it's", "a b", "ü"])
def test_a_checkout_may_have_any_name(tmp_path, name):
    folder = lay(tmp_path / name)
    set_up(folder)
    for own in ("my notes", "it's", "x[1]"):
        (folder / "book" / f"{own}.ipynb").write_text(PLAIN, encoding="utf-8")
    assert built(folder).count("1 passed") == 4


def test_a_notebook_of_the_reader_that_fails_is_shown(checkout):
    (checkout / "book" / "my notes.ipynb").write_text(notebook("1", "1 / 0"), encoding="utf-8")
    done = make(checkout, "book")
    assert done.returncode != 0 and "ZeroDivisionError" in done.stdout and "01-data.ipynb" in done.stdout
    assert not (checkout / "_build" / "html").exists()


def test_pip_may_be_set_to_install_for_the_user(tmp_path):
    set_up(lay(tmp_path / "co"), PIP_USER="1")
    (tmp_path / "pip.conf").write_text("[install]\nuser = true\n", encoding="utf-8")
    set_up(lay(tmp_path / "co2"), PIP_CONFIG_FILE=str(tmp_path / "pip.conf"), PIP_INDEX_URL=index_url())


def index_url() -> str:
    """pip's own setting, which the configuration file above replaces; may be empty."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True)
    return said.stdout.decode().strip() or os.environ.get("PIP_INDEX_URL", "")


def free(folder: Path) -> int:
    """Bytes; what earlier runs left there is counted as free, since the next one takes its place."""
    shutil.rmtree(folder / "source", ignore_errors=True)
    return shutil.disk_usage(folder).free


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path):
    folder = lay(tmp_path / "co")
    set_up(folder)
    small = folder / ".run"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        for room in (20_000, 250_000, 500_000, 1_000_000):
            (small / "filler").write_bytes(b"0" * (free(small) - room))
            done = make(folder, "book")
            assert done.returncode != 0 and "No space left on device" in done.stdout + done.stderr
            (small / "filler").unlink()
        (small / "filler").touch()
        (small / "filler").unlink()
        assert "The book is in" in built(folder)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_half_written_result_is_made_again(checkout):
    built(checkout)
    (checkout / ".run" / "ran" / "01-data.ipynb").write_text('{"cells": [', encoding="utf-8")
    (checkout / "book" / "intro.md").write_text(INTRO + "\nMore.\n", encoding="utf-8")
    assert "1 passed" in built(checkout)


def test_a_newcomer_who_builds_what_has_not_run_is_told_what_to_run(checkout):
    call = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    command = [str(checkout / ".venv/bin/python"), "-c", call, "build", "."]
    done = subprocess.run(command, cwd=checkout, capture_output=True, encoding="utf-8")
    assert done.returncode != 0 and "Run `make book`" in done.stdout + done.stderr


def test_git_ignores_a_venv_that_is_a_link(checkout):
    shutil.move(checkout / ".venv", checkout.parent / "elsewhere")
    (checkout / ".venv").symlink_to(checkout.parent / "elsewhere")
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    said = subprocess.run(["git", "status", "--short"], cwd=checkout, capture_output=True, encoding="utf-8").stdout
    assert ".venv" not in said and "book/" in said
