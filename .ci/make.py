"""What `make` does here: set up .venv, run the chapters, build the site, test all of it.

Of Python's standard library alone, and for any Python 3 that there may be: .venv's own does the work.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / ".run"
SOURCE = RUN / "source"  # what Sphinx reads: the book as it ran, and nothing else
SITE = ROOT / "_build" / "html"
PDF = ROOT / "_build" / "small-language-models.pdf"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
#: Two programs, without a check of web addresses that nbformat would load for two seconds, and no notebook needs.
QUICK = "import sys; sys.modules['rfc3987_syntax'] = None; "
PYTEST = QUICK + "import pytest; sys.exit(pytest.main())"
JUPYTER_BOOK = QUICK + "from jupyter_book.cli.main import main; sys.exit(main())"
MADE = re.compile(r"(^|/)(\.[^/]*|__pycache__|[^/]*\.egg-info)(/|$)")


def stop(message):
    sys.exit("make: " + message)


def setting(name, default):
    return os.environ.get(name, default)


def environment():
    """The reader's environment without what would change how a chapter runs or where pip installs."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "MPLBACKEND", "MATPLOTLIBRC"))}
    # -O, say, would pass over every assertion; and without bytecode each process would compile all that it imports.
    for name in ("DONTWRITEBYTECODE", "HOME", "OPTIMIZE", "PATH", "STARTUP", "WARNINGS"):
        env.pop("PYTHON" + name, None)
    for name in ("TARGET", "PREFIX", "ROOT"):
        env.pop("PIP_" + name, None)
    data = env.get("SLMLIB_DATA", "")
    if data and not data.startswith("~"):  # kernels start in another folder
        env["SLMLIB_DATA"] = os.path.abspath(data)
    return dict(env, PIP_USER="0", IPYTHONDIR=str(RUN / "ipython"))


def python(*arguments, **options):
    """Run .venv's Python; what it says when it fails is enough."""
    env = dict(environment(), **options.pop("env", {}))
    if subprocess.run([str(PYTHON), *map(str, arguments)], env=env, cwd=str(ROOT), **options).returncode:
        sys.exit(1)


def digest(paths, *texts):
    """Of the names and contents of files, and of all files in folders; hidden and made ones left out."""
    total = hashlib.sha256(repr(texts).encode())
    for path in map(ROOT.joinpath, paths):
        inside = [p for p in path.rglob("*") if p.is_file() and not MADE.search(p.relative_to(path).as_posix())]
        for file in sorted(inside) if path.is_dir() else [path]:
            total.update(repr((os.path.relpath(str(file), str(ROOT)), file.stat().st_size)).encode())
            total.update(file.read_bytes())
    return total.hexdigest()


def read(path):
    return path.read_text(encoding="utf-8") if path.is_file() else None


def write(path, data):
    """Whole or not at all: a full disk leaves what was there."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        os.replace(str(partial), str(path))
    except OSError as error:
        if partial.exists():
            partial.unlink()
        stop(f"could not write {path}: {error.strerror}")


# Set-up


def venv_python():
    """The version of .venv's Python; None where it does not start or has no pip."""
    try:
        ask = [str(PYTHON), "-c", "import sys, pip; print(sys.version)"]
        return subprocess.run(ask, env=environment(), capture_output=True, check=True, encoding="utf-8").stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def installed(version):
    """What .venv/.installed holds when .venv is this checkout's, with what it asks for."""
    lock = setting("LOCK", "requirements.lock")
    what = digest(["requirements.txt", "pyproject.toml", *filter(None, [lock])], lock, torch())
    return json.dumps({"checkout": str(ROOT), "python": version, "wanted": what})


def torch():
    pinned = re.search(r"^torch==\S+", read(ROOT / "requirements.lock"), re.MULTILINE)
    return setting("TORCH", pinned.group())


def setup():
    stamp, version = VENV / ".installed", venv_python()
    before = read(stamp)
    if version and before == installed(version):
        return
    elsewhere = bool(before) and json.dumps(str(ROOT)) not in before and not VENV.is_symlink()
    if version is None or elsewhere:  # none yet, its Python gone, or copied or moved from elsewhere
        if sys.version_info < (3, 11):  # noqa: UP036
            name = setting("PYTHON", "python3")
            stop(f"Python 3.11 or newer is needed, and '{name}' is not. Name one: make PYTHON=python3.12")
        if subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], env=environment()).returncode:
            sys.exit(1)
        version = venv_python() or stop(".venv could not be made")
    if before is not None and stamp.exists():
        stamp.unlink()
    lock = setting("LOCK", "requirements.lock")
    newest = ["-c", lock] if lock else ["--upgrade", "--upgrade-strategy", "eager"]
    print("Installing into .venv", flush=True)
    install = ("-m", "pip", "install", "--quiet", "--no-compile")  # what is imported is compiled then
    python(*install, torch())
    python(*install, torch(), "-r", "requirements.txt", *newest)
    write(stamp, installed(version).encode())


# The book


def common():
    """Of all that makes every chapter stale."""
    settings = [environment().get(name) for name in ("SLMLIB_BUDGET", "SLMLIB_COMPILE", "SLMLIB_DATA", "SLMLIB_SEED")]
    return digest(["slmlib", "results", "benchmarks", "book/conftest.py"], settings, read(VENV / ".installed"))


def sources():
    return digest(["book", "_config.yml", "_toc.yml", ".ci/make.py"], common())


def book():
    setup()
    key = sources()
    if read(RUN / "built") != key or not (SITE / "index.html").is_file():
        build(key)
    print("The book is in {}".format((SITE / "index.html").relative_to(ROOT)))
    if any("This page ran on python-docs" in read(chapter) for chapter in (SITE / "_sources").rglob("*.ipynb")):
        print("Some chapters ran on the stand-in corpus, since theirs could not be had; to try again: make clean book")


def build(key):
    """Run what is stale in a copy of the book, build the site aside, and move it into place whole."""
    for old in (SITE, SOURCE):
        shutil.rmtree(str(old), ignore_errors=True)
    ran = RUN / "ran"
    ran.mkdir(parents=True, exist_ok=True)
    shutil.copytree(str(ROOT / "book"), str(SOURCE / "book"), ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(str(ROOT / name), str(SOURCE / name))
    same, stale = common(), []
    for chapter in sorted((SOURCE / "book").glob("*.ipynb"), reverse=True):  # the longest are the last
        kept, of = ran / chapter.name, digest([chapter], same)
        if read(kept.with_suffix(".of")) == of and is_notebook(kept):
            shutil.copy(str(kept), str(chapter))
        else:
            stale.append((chapter, of))
    with kernels() if stale else nullcontext({}) as ready:
        execute(stale, ran, ready)
    listed = re.findall(r"(?:root|file): *['\"]?book/([^'\"\n]+?)['\"]? *$", read(ROOT / "_toc.yml"), re.MULTILINE)
    for chapter in (SOURCE / "book").glob("*.ipynb"):
        if chapter.stem not in listed:  # a reader's own notebook, which is run and is no page
            chapter.unlink()
            continue
        notebook = json.loads(read(chapter))
        if notebook["metadata"].pop("widgets", None):  # their state: a page has the same as HTML
            write(chapter, json.dumps(notebook, ensure_ascii=False).encode())
    with open(str(RUN / "sphinx.log"), "w", encoding="utf-8") as log:
        python("-c", JUPYTER_BOOK, "build", SOURCE, "-W", "-n", "--keep-going", "--quiet", stdout=log)
    SITE.parent.mkdir(exist_ok=True)
    aside = SITE.with_name("html.partial")
    shutil.rmtree(str(aside), ignore_errors=True)
    shutil.move(str(SOURCE / "_build" / "html"), str(aside))  # .run may lie on another disk
    os.replace(str(aside), str(SITE))
    write(RUN / "built", key.encode())


def is_notebook(path):
    try:
        return bool(json.loads(read(path) or "null"))
    except ValueError:  # half written
        return False


def execute(stale, ran, ready):
    """Run chapters, so many at once, and keep each that passes; what fails is shown, after the others have run."""
    waiting, running, failed = list(stale), [], False
    workers = setting("WORKERS", "2")
    if not workers.isdecimal() or int(workers) < 1:
        stop(f"WORKERS must be a number of processes, at least 1, got '{workers}'")
    hours = setting("SLMLIB_BUDGET", "") == "paper"
    limit = "--nbmake-timeout=" + setting("CELL_TIMEOUT", "-1" if hours else "600")
    env = dict(environment(), OMP_NUM_THREADS="1", TQDM_DISABLE="1", **ready)
    try:
        while waiting or running:
            while waiting and len(running) < int(workers):
                chapter, of = waiting.pop(0)
                command = [str(PYTHON), "-c", PYTEST, "--nbmake", "--overwrite", limit, "-p", "no:cacheprovider"]
                what = ["./" + chapter.name]
                if "[" in chapter.name:  # where pytest sees a parameter: all but the others
                    others = {c.name for c in chapter.parent.glob("*.ipynb")} - {chapter.name}
                    what = [".", *("--ignore=" + name for name in others)]
                with open(str(ran / (chapter.name + ".log")), "w", encoding="utf-8") as log:
                    options = {"env": env, "cwd": str(chapter.parent), "stdout": log, "stderr": log}
                    process = subprocess.Popen([*command, *what], **options)
                running.append((process, chapter, of))
            time.sleep(0.05)
            for process, chapter, of in [r for r in running if r[0].poll() is not None]:
                running.remove((process, chapter, of))
                said = read(ran / (chapter.name + ".log"))
                if process.returncode or not is_notebook(chapter):
                    failed = True
                    print(said, flush=True)
                    continue
                write(ran / chapter.name, chapter.read_bytes())
                write((ran / chapter.name).with_suffix(".of"), of.encode())
                print(chapter.name, " ", said.strip().splitlines()[-1], flush=True)
    finally:
        for process, *_ in running:
            process.kill()
    if failed:
        if shutil.disk_usage(str(ran)).free < 2**20:  # then what failed could not say why
            stop(f"No space left on device for {ran}")
        sys.exit(1)


@contextmanager
def kernels():
    """Inside, and with the environment that it yields, a kernel starts without importing all anew: see warm.py."""
    if sys.platform != "linux":
        yield {}
        return
    RUN.mkdir(exist_ok=True)
    said = str(RUN / "kernels.log")
    with tempfile.TemporaryDirectory(prefix="slm-") as folder, open(said, "w", encoding="utf-8") as log:
        server = os.path.join(folder, "socket")
        spec = Path(folder) / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        warm = [str(PYTHON), str(ROOT / ".ci" / "warm.py")]
        what = {"argv": [*warm, "connect", server, "-f", "{connection_file}"], "language": "python"}
        spec.write_text(json.dumps(dict(what, display_name="Python 3 (ipykernel)")), encoding="utf-8")
        env = dict(environment(), OMP_NUM_THREADS="1")
        with socket.socket(socket.AF_UNIX) as listener:  # it listens before the first kernel can ask
            try:
                listener.bind(server)
            except OSError:  # too long a path, or a file system without sockets
                yield {}
                return
            listener.listen(64)
            at = listener.fileno()
            process = subprocess.Popen([*warm, "serve", str(at)], env=env, stdout=log, stderr=log, pass_fds=[at])
        try:
            yield {"JUPYTER_PATH": os.pathsep.join(filter(None, [folder, env.get("JUPYTER_PATH")]))}
        finally:
            process.kill()
            process.wait()


def pdf():
    """The site on paper; whole or not at all."""
    book()
    key = digest([".ci/paper.py"], read(RUN / "built"))
    if read(RUN / "printed") != key or not PDF.is_file():
        partial = PDF.with_suffix(".partial")
        python(".ci/paper.py", SITE, partial, env=chromium())
        os.replace(str(partial), str(PDF))
        write(RUN / "printed", key.encode())
    print(f"The book on paper is {PDF.relative_to(ROOT)}")


def chromium():
    """The setting that names a browser: CHROMIUM, or one on PATH; with neither, playwright's own, which is fetched."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = [name for name in names if name and shutil.which(name)]
    if not found:
        subprocess.run([str(PYTHON), "-m", "playwright", "install", "chromium"])
    return {"CHROMIUM": shutil.which(found[0]) if found else ""}


# The tests


def test():
    setup()
    rest = ["tests", ".ci", "Makefile", "README.md", "LICENSE", "CITATION.cff", "environment.yml", ".gitignore"]
    key = digest(rest, sources())
    if read(RUN / "tested") != key:
        places = ["slmlib", "benchmarks", "tests", "book", ".ci"]
        python("-m", "ruff", "check", *places)
        python("-m", "ruff", "format", "--check", *places)
        before = digest(["book"])
        slow = "--durations=30"  # where the time goes
        behind = [f"tests/faults/test_{name}.py" for name in ("downloads", "inputs")]  # both sides take about as long
        other = [f"--ignore={path}" for path in (*behind, "tests/test_site.py", "tests/test_ways_in.py")]
        one = {"OMP_NUM_THREADS": "1"}  # a core each: two threads stall where anything else runs
        with alongside("-m", "pytest", "tests", *other, slow, **one):
            with kernels() as ready:
                python("-c", PYTEST, "--nbmake", "book/", slow, env=dict(bare(), **ready))
            python("-m", "pytest", *behind, slow, env=one)
        if digest(["book"]) != before:
            stop("running the chapters changed files in book/")
        book()
        site, env = ("-m", "pytest", slow, "tests/test_site.py", "-k"), dict(chromium(), SLM_SITE="required")
        with alongside(*site, "axe", **env):  # which takes as long as all else
            python(*site, "not axe", env=env)
        write(RUN / "tested", key.encode())
    print("All tests have passed on what is here.")


def bare():
    """The smoke budget, no corpus and no network: chapters go on with the text that every Python carries."""
    nothing = RUN / "no corpora"
    shutil.rmtree(str(nothing), ignore_errors=True)
    nothing.mkdir(parents=True)
    closed = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "all_proxy")}
    closed.update({name.upper(): address for name, address in closed.items()}, no_proxy="", NO_PROXY="")
    return dict(closed, OMP_NUM_THREADS="1", SLMLIB_BUDGET="smoke", SLMLIB_DATA=str(nothing))


@contextmanager
def alongside(*arguments, **more):
    """Run .venv's Python on something else while this goes on; what it said comes after."""
    RUN.mkdir(exist_ok=True)
    env = dict(environment(), **more)
    with open(str(RUN / "alongside.log"), "w+", encoding="utf-8") as log:
        process = subprocess.Popen([str(PYTHON), *arguments], env=env, cwd=str(ROOT), stdout=log, stderr=log)
        try:
            yield
            process.wait()
        finally:
            process.kill()
            process.wait()
            log.seek(0)
            print(log.read(), flush=True)
    if process.returncode:
        sys.exit(1)


def ways_in():
    setup()
    python("-m", "pytest", "tests/test_ways_in.py")


def soak():
    """The tests of faults at length, by a seed of their own or the one that SLMLIB_SOAK names."""
    setup()
    seed = setting("SLMLIB_SOAK", "") or str(int.from_bytes(os.urandom(3), "big"))
    if not seed.isdecimal():
        stop(f"SLMLIB_SOAK must be a number, the seed of the tests, got '{seed}'")
    print(f"The seed is {seed}; the same again: make soak SLMLIB_SOAK={seed}", flush=True)
    python("-m", "pytest", "tests/faults", "--durations=20", env={"SLMLIB_SOAK": seed})


def bench():
    setup()
    RUN.mkdir(exist_ok=True)
    python("-m", "slmlib", "bench", "--save", RUN / "bench.json")
    python("benchmarks/cluster.py", RUN / "cluster.json")


def clean():
    made = [RUN, ROOT / "_build", ROOT / "build", ROOT / "dist", ROOT / ".pytest_cache", ROOT / ".ruff_cache"]
    for path in [*made, *ROOT.glob("*.egg-info"), *ROOT.glob("*/__pycache__")]:
        remove(path)


def distclean():
    clean()
    remove(VENV)


def remove(path):
    """A folder with all in it, or a link to one."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(str(path), ignore_errors=True)


def lab():
    setup()


def cluster():
    setup()


GOALS = (setup, book, pdf, test, ways_in, soak, bench, lab, cluster, clean, distclean)
GOALS = {f.__name__.replace("_", "-"): f for f in GOALS}


def main(goal):
    if "_build" in ROOT.parts or "$" in str(ROOT):
        stop(f"neither nbmake nor setuptools works in {ROOT}, for a folder named _build or a $ on the way: move it")
    with open(__file__, "r+", encoding="utf-8") as lock:  # for writing, as a lock over NFS asks for
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stop(f"another make is at work in {ROOT}: wait until it has ended")
        except OSError:  # a file system without locks
            pass
        try:
            GOALS[goal]()
        except KeyboardInterrupt:
            stop("stopped; the same command goes on from here")
        except OSError as error:  # a full disk, a folder that may not be written to
            stop(str(error))
    root = ["--allow-root"] if os.getuid() == 0 else []
    stays = {"lab": ["jupyterlab", *root, "book"], "cluster": ["slmlib.cluster"]}
    if goal in stays:  # outside the lock
        os.execve(str(PYTHON), [str(PYTHON), "-m", *stays[goal]], environment())


if __name__ == "__main__":
    main(sys.argv[1])
