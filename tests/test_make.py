"""What `make` does, by its parts; tests/test_ways_in.py tries it whole."""

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import wait_until
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile and its script, and the script as a module."""
    (tmp_path / "co" / ".ci").mkdir(parents=True)
    for name in ("Makefile", ".ci/make.py", ".ci/warm.py", "requirements.lock", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / "co" / name)
    return tmp_path / "co"


@pytest.fixture
def script(checkout):
    spec = importlib.util.spec_from_file_location("make", checkout / ".ci" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(checkout, *arguments, **env):
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=checkout, env={**os.environ, **env}, capture_output=True, encoding="utf-8")


def test_a_second_make_is_told_of_the_first(checkout):
    with open(checkout / ".ci" / "make.py", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = make(checkout, "clean")
    assert done.returncode != 0 and "another make is at work in" in done.stderr
    assert "Traceback" not in done.stderr
    assert make(checkout, "clean").returncode == 0


@pytest.mark.parametrize("name", ["_build", "cost$"])
def test_a_place_where_the_tools_fail_is_named(checkout, name):
    checkout = checkout.rename(checkout.with_name(name))
    done = make(checkout, "clean")
    assert done.returncode != 0 and f"{checkout}, for a folder named _build or a $" in done.stderr


def test_a_python_that_is_not_there_is_named(checkout):
    done = make(checkout, "clean", "PYTHON=/with space/python3")
    assert done.returncode != 0 and "there is no '/with space/python3' here" in done.stderr


def test_a_python_may_lie_in_a_folder_with_a_space(checkout, tmp_path):
    (tmp_path / "with space").mkdir()
    (tmp_path / "with space" / "python3").symlink_to(sys.executable)
    assert make(checkout, "clean", f"PYTHON={tmp_path}/with space/python3").returncode == 0


@pytest.mark.parametrize("folder", ['my "data"', "my /data", "cost$x", "it's", "/absolute $HOME", "~nouser/x"])
def test_a_data_folder_keeps_its_name(script, monkeypatch, folder):
    monkeypatch.setenv("SLMLIB_DATA", folder)
    as_it_is = folder.startswith(("/", "~"))
    assert script.environment()["SLMLIB_DATA"] == (folder if as_it_is else os.path.join(os.getcwd(), folder))


def test_an_environment_variable_reaches_the_script_as_it_is(checkout):
    (checkout / ".ci" / "make.py").write_text("import os; print(os.environ['SLMLIB_DATA'])", encoding="utf-8")
    for folder in ('my "data"', "cost$x", "it's", "$(shell false)"):
        assert make(checkout, "book", SLMLIB_DATA=folder).stdout.strip() == folder


def test_what_would_change_a_run_or_an_installation_is_left_out(script, monkeypatch):
    unwanted = ("MPLBACKEND", "MATPLOTLIBRC", "PYTHONOPTIMIZE", "PYTHONPATH", "PIP_TARGET", "MAKEFLAGS")
    for name in unwanted:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("KEPT", "1")
    env = script.environment()
    assert not set(unwanted) & set(env)
    assert (env["PIP_USER"], env["KEPT"]) == ("0", "1")


def test_a_file_is_written_whole_or_not_at_all(script, tmp_path, monkeypatch):
    path = tmp_path / "kept"
    script.write(path, b"before")

    def full(partial, data):
        with open(partial, "wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SystemExit, match="No space left on device"):
        script.write(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.glob("kept*")] == ["kept"]


@pytest.mark.parametrize("text", ["", '{"cells": [', None])
def test_a_half_written_notebook_is_none(script, tmp_path, text):
    if text is not None:
        (tmp_path / "a.ipynb").write_text(text, encoding="utf-8")
    assert not script.is_notebook(tmp_path / "a.ipynb")


def test_a_digest_follows_names_and_contents_and_not_the_place(script, checkout):
    folder = checkout / "book"
    (folder / ".hidden").mkdir(parents=True)
    (folder / "a").write_text("1", encoding="utf-8")
    seen = [script.digest(["book"])]
    for change in (
        lambda: (folder / "a").write_text("2", encoding="utf-8"),
        lambda: (folder / "a").rename(folder / "b"),
        lambda: (folder / "c").touch(),
    ):
        change()
        seen.append(script.digest(["book"]))
    (folder / ".hidden" / "x").touch()
    assert len(set(seen)) == 4 and script.digest(["book"]) == seen[-1] != script.digest(["book"], "and more")


def test_a_stamp_names_the_checkout_the_python_and_what_is_asked_for(script, monkeypatch):
    first = script.installed("3.11")
    assert script.installed("3.12") != first
    monkeypatch.setenv("TORCH", "torch")
    assert script.installed("3.11") != first
    monkeypatch.delenv("TORCH")
    monkeypatch.setattr(script, "ROOT", script.ROOT.rename(script.ROOT.with_name("moved")))
    assert script.installed("3.11") != first


def test_every_chapter_is_stale_after_a_change_that_may_change_it(script, checkout, monkeypatch):
    places = [
        checkout / name for name in ("slmlib/a", "results/a", "benchmarks/a", "book/conftest.py", ".venv/.installed")
    ]
    for path in places:
        path.parent.mkdir()
    places[3].touch()
    seen = [script.common()]
    for path in places:
        path.write_text("changed", encoding="utf-8")
        seen.append(script.common())
    for name in ("SLMLIB_BUDGET", "SLMLIB_COMPILE", "SLMLIB_DATA", "SLMLIB_SEED"):
        monkeypatch.setenv(name, "/changed")
        seen.append(script.common())
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("workers", ["0", "-1", "two", ""])
def test_a_number_of_workers_that_is_none_is_refused(script, monkeypatch, workers):
    monkeypatch.setenv("WORKERS", workers)
    with pytest.raises(SystemExit, match="WORKERS must be a number of processes"):
        script.execute([("chapter", "of")], script.RUN, {})


@pytest.mark.skipif(sys.platform != "linux", reason="forks of a process with PyTorch in it are for Linux")
def test_kernels_are_forks_that_end_with_who_asked_and_plain_where_there_is_no_server(script, monkeypatch):
    monkeypatch.setattr(script, "PYTHON", Path(sys.executable))
    warm = script.ROOT / ".ci" / "warm.py"
    text = warm.read_text(encoding="utf-8")
    names = re.search(r"IMPORTED = (\(.*?\n\))", text, re.DOTALL)[1]
    assert all(map(importlib.util.find_spec, re.findall('"(.*?)"', names)))
    warm.write_text(text.replace(names, '("ipykernel.kernelapp", "ipykernel.ipkernel", "mailbox")'), encoding="utf-8")
    who = "import os, sys; print('mailbox' in sys.modules, os.getcwd(), os.getpid())"
    for key in ("SLMLIB_DATA", "JUPYTER_PATH"):
        monkeypatch.delenv(key, raising=False)

    def started():
        manager = KernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[folder]))
        manager.start_kernel(cwd=str(script.RUN))
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        return manager, client

    def says(client, code):
        said = []
        client.execute_interactive(code, timeout=60, output_hook=lambda m: said.append(m["content"].get("text")))
        return "".join(filter(None, said)).split()

    with script.kernels() as ready:
        folder = os.path.join(ready["JUPYTER_PATH"], "kernels")
        manager, client = started()
        warm, folder_of_it, kernel = says(client, who)
        assert (warm, folder_of_it) == ("True", str(script.RUN))
        sleeping = client.execute("import time; time.sleep(60)")
        time.sleep(0.5)
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=20)["content"]["ename"] == "KeyboardInterrupt", sleeping
        manager.shutdown_kernel(now=True)
        wait_until(lambda: not Path(f"/proc/{kernel}").exists())  # the fork ends with who asked for it
        shutil.copytree(folder, script.RUN / "kernels")
    folder = str(script.RUN / "kernels")
    manager, client = started()
    assert says(client, who)[0] == "False"
    manager.shutdown_kernel(now=True)


def test_clean_takes_links_to_folders_elsewhere(script, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    script.RUN.symlink_to(tmp_path / "elsewhere")
    script.VENV.mkdir()
    script.clean()
    assert not script.RUN.is_symlink() and script.VENV.exists()
    script.distclean()
    assert not script.VENV.exists()


@pytest.mark.parametrize("there", ["named", "chromium", ""])
def test_a_browser_is_the_one_named_or_on_path_or_fetched(script, tmp_path, monkeypatch, there):
    fetched = []
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "named"))
    monkeypatch.setattr(script.subprocess, "run", fetched.append)
    if there:
        for name in {there, "chromium"}:
            (tmp_path / name).touch(mode=0o755)
    assert script.chromium() == {"CHROMIUM": str(tmp_path / there) if there else ""}
    assert [command[2:] for command in fetched] == ([] if there else [["playwright", "install", "chromium"]])


def test_a_pdf_is_made_where_the_book_changed_and_kept_where_it_fails(script, monkeypatch):
    printed = []

    def python(name, site, partial, **options):
        printed.append(name)
        if read := script.read(script.RUN / "fails"):
            raise SystemExit(read)
        partial.write_text(f"print {len(printed)}", encoding="utf-8")

    for name, stand_in in (("book", lambda: None), ("chromium", dict), ("python", python)):
        monkeypatch.setattr(script, name, stand_in)
    (script.ROOT / ".ci" / "paper.py").touch()
    for folder in (script.RUN, script.PDF.parent):
        folder.mkdir()
    for built, shown in (("a", "print 1"), ("a", "print 1"), ("b", "print 2")):
        (script.RUN / "built").write_text(built, encoding="utf-8")
        script.pdf()
        assert script.read(script.PDF) == shown
    (script.RUN / "built").write_text("c", encoding="utf-8")
    (script.RUN / "fails").write_text("no Chromium", encoding="utf-8")
    with pytest.raises(SystemExit):
        script.pdf()
    assert script.read(script.PDF) == "print 2" and len(printed) == 3


@pytest.mark.parametrize("code", [0, 3])
def test_what_runs_alongside_is_shown_and_counts(script, monkeypatch, capfd, code):
    monkeypatch.setattr(script, "PYTHON", Path(sys.executable))
    said = f"print('said'); raise SystemExit({code})"
    if code:
        with pytest.raises(SystemExit), script.alongside("-c", said):
            pass
    else:
        with script.alongside("-c", said):  # where .run is still to be made
            pass
    assert "said" in capfd.readouterr().out


def test_the_bare_run_has_no_corpus_and_no_network(script):
    env = script.bare()
    assert env["SLMLIB_BUDGET"] == "smoke" and not list(Path(env["SLMLIB_DATA"]).iterdir())
    assert env["HTTPS_PROXY"] == env["https_proxy"] == "http://127.0.0.1:9"


def test_a_soak_is_by_a_seed_that_is_said(script, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(script, "setup", lambda: None)
    monkeypatch.setattr(script, "python", lambda *_, env: asked.append(env["SLMLIB_SOAK"]))
    for named in ("7", "", "x"):
        monkeypatch.setenv("SLMLIB_SOAK", named)
        if named == "x":
            with pytest.raises(SystemExit, match="SLMLIB_SOAK must be a number, the seed of the tests, got 'x'"):
                script.soak()
        else:
            script.soak()
            assert f"make soak SLMLIB_SOAK={asked[-1]}" in capsys.readouterr().out
    assert asked[0] == "7" and asked[1].isdecimal()
