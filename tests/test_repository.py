"""What is committed: notebooks without outputs, one set of requirements, nothing of this or that machine."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
import types
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
import yaml
from IPython.core.interactiveshell import InteractiveShell
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
MADE = {".git", ".venv", ".run", "_build", "build", "dist"}  # folders that are never committed


def tracked() -> list[Path]:
    """The files Git knows or would add; in a copy without Git, all but what is made here."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, encoding="utf-8").stdout.split("\0")
        paths = [ROOT / name for name in names if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [
            path
            for path in ROOT.rglob("*")
            if not MADE & set(path.relative_to(ROOT).parts)
            and not any(part == "__pycache__" or part.endswith((".egg-info", "_cache")) for part in path.parts)
        ]
    return sorted(path for path in paths if path.is_file())


FILES = tracked()


def cells(notebook: Path) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_stripped(notebook):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(notebook))
    metadata = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]
    assert metadata["kernelspec"]["name"] == "python3" and "widgets" not in metadata


def toc_files(node) -> list[str]:
    children = [child for key in ("parts", "chapters", "sections") for child in node.get(key, [])]
    return [node[key] for key in ("root", "file") if key in node] + [f for c in children for f in toc_files(c)]


def test_the_table_of_contents_and_the_folder_agree():
    listed = toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
    there = {p.relative_to(ROOT).with_suffix("").as_posix() for e in ("ipynb", "md") for p in ROOT.glob(f"book/*.{e}")}
    assert len(listed) == len(set(listed)) and set(listed) == there


def test_chapters_start_with_the_same_guard():
    guards = {"".join(cells(notebook)[0]["source"]).partition("install --quiet")[0] for notebook in NOTEBOOKS}
    assert len(guards) == 1 and "google.colab" in guards.pop()


@pytest.mark.parametrize("colab, installed", [(False, True), (False, False), (True, True), (True, False)])
def test_the_guard_installs_on_colab_only(monkeypatch, colab, installed):
    start = "".join(cells(NOTEBOOKS[0])[0]["source"])
    guard = start[: start.index("{address}") + len("{address}")]
    shell, asked = InteractiveShell(), []
    shell.register_magic_function(asked.append, magic_name="pip")
    monkeypatch.setenv("SLMLIB_REPOSITORY", "https://example.org/book")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    shell.run_cell(guard).raise_error()
    wanted = ["install --quiet git+https://example.org/book"] if colab and not installed else []
    assert [" ".join(line.split()) for line in asked] == wanted


def test_no_file_names_a_machine_or_a_registry():
    registry = "pypi" + ".org|pythonhosted" + ".org|download.pytorch" + ".org|anaconda" + ".org"
    forbidden = re.compile(r"(?<![\w.])/(work|home|root|Users|tmp|opt)/|\.\./shared|" + registry)
    allowed = {".ci/run": {"../shared"}}
    found = {}
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        if path == Path(__file__) or path.suffix in {".png", ".woff2", ".safetensors"}:
            continue
        hits = {match.group() for match in forbidden.finditer(path.read_text(encoding="utf-8"))}
        if hits - allowed.get(name, set()):
            found[name] = hits
    assert found == {}


def test_nothing_is_unpickled_or_run_that_is_not_code_of_ours():
    """Weights and checkpoints are safetensors, records JSON."""
    unsafe = re.compile(
        r"\b(pickle|marshal|shelve|dill|joblib|allow_pickle)\b|torch\.load\(|(?<![.\w])(eval|exec)\(|yaml\.(unsafe_)?load\("
    )
    ours = [p for p in FILES if p.suffix in {".py", ".ipynb"} and "tests" not in p.relative_to(ROOT).parts]
    assert len(ours) > 40
    assert [p.name for p in ours if unsafe.search(p.read_text(encoding="utf-8"))] == []


def test_text_is_read_and_written_as_utf_8_whatever_the_locale():
    """ruff sees `open`; of a path it does not know that it is one."""
    bare = re.compile(r"\.(read_text\(\)|write_text\((?![^\n]*encoding)[^\n]*\)$)", re.MULTILINE)
    code = [path for path in FILES if path.suffix == ".py" and path != Path(__file__)]
    assert [path.name for path in code if bare.search(path.read_text(encoding="utf-8"))] == []


def test_files_are_small():
    most = {"transformer.safetensors": 1_500_000}  # the largest of the published weights
    assert [path.name for path in FILES if path.stat().st_size > most.get(path.name, 1_000_000)] == []


def requirements(lines) -> dict[str, Requirement]:
    found = [Requirement(line.split("#")[0]) for line in lines if line.strip() and line[0] not in "#-"]
    assert len(found) == len({canonicalize_name(r.name) for r in found})
    return {canonicalize_name(r.name): r for r in found}


def test_requirements_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = requirements(sum(project["optional-dependencies"].values(), project["dependencies"]))
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = requirements(text)
    assert "-e ." in text
    assert {name: r.specifier for name, r in listed.items()} == {name: r.specifier for name, r in declared.items()}

    pinned = requirements((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())
    for name, requirement in pinned.items():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), f"{name}: not one plain version"
    for name, requirement in listed.items():
        assert str(pinned[name].specifier).removeprefix("==") in requirement.specifier, name

    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert f"python{project['requires-python']}" in environment
    assert {"pip": ["-r requirements.txt"]} in environment


def test_what_is_pinned_runs_on_the_oldest_python_that_is_promised():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    for name in requirements((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()):
        try:
            needs = metadata(name).get("Requires-Python") or ""
        except PackageNotFoundError:  # of another system
            continue
        assert SpecifierSet(needs).contains(oldest), f"{name} needs Python {needs}"


def test_every_import_is_declared():
    """Of the package: what it imports is what pyproject.toml says it needs, no more and no less."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = project["dependencies"] + project["optional-dependencies"]["cluster"]
    declared = {canonicalize_name(Requirement(line).name) for line in listed}
    lines = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "slmlib").glob("*.py"))
    modules = {m for m in re.findall(r"^\s*(?:from|import) ([A-Za-z_]\w*)", lines, re.MULTILINE)}
    needed = {m.lower().replace("_", "-") for m in modules if m not in sys.stdlib_module_names}
    needed -= {"dask"}  # comes with distributed
    needed -= {"matplotlib-inline", "myst-nb"}  # used where present: in a kernel, in the book's own environment
    assert needed <= declared
    assert declared - needed <= {"ipywidgets"}  # for tqdm's bar in a notebook


def test_the_page_on_citing_says_what_citation_cff_says():
    page = (ROOT / "book/f-extend.ipynb").read_text(encoding="utf-8")
    known = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    cited = dict(re.findall(r"(\w+) += {([^{}]+)}", page))
    assert [cited[field] for field in ("title", "version")] == [known[field] for field in ("title", "version")]
    assert cited["year"] == str(known["date-released"].year)


def test_each_module_imports_only_from_those_above_it():
    """As the page on the package says, which lists all of them."""
    order = re.findall(r"automodule:: slmlib\.(\w+)", (ROOT / "book/api.md").read_text(encoding="utf-8"))
    there = {path.stem for path in (ROOT / "slmlib").glob("[!_]*.py")}
    assert set(order) == there and len(order) == len(there)
    for at, name in enumerate(order):
        for node in ast.walk(ast.parse((ROOT / f"slmlib/{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                needed = {node.module} if node.module else {alias.name for alias in node.names}
                assert needed & there <= set(order[:at]), name
