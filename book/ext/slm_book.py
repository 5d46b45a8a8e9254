"""Sphinx extension: what _config.yml alone cannot say.

Buttons follow repository.url; MathJax and the published models are part of the site; a page may say what it took.
"""

import json
import re
from base64 import b64decode, b64encode
from datetime import datetime
from hashlib import sha256
from html import escape
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns

from PIL import Image
from slmlib.corpora import CorpusUnavailable
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from packing import packed

#: What docutils and the theme write that a screen reader or a keyboard cannot use, and what pages have instead.
MENDED = {
    "<th></th>": "<td></td>",  # the corner of a table heads nothing
    '<th class="head"><p></p></th>': "<td></td>",
    # The theme makes such a box a stop for Tab where it scrolls: else a wide formula needs a mouse.
    '<div class="math ': '<div class="pst-scrollable-table-container math ',
    '"bd-sidebar-primary bd-sidebar">': '"bd-sidebar-primary bd-sidebar" role="region" aria-label="Contents">',
}

#: What a page may load: its own files and, by hash, what the theme writes into it.
#: Some browsers do not take a page that is opened from disk for the origin of the
#: files beside it, hence ``file:``, which means nothing elsewhere. Styles may stand in
#: the page: MathJax writes them as it goes, and bars have their length by one.
POLICY = {
    "default-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'self' file:",
    "connect-src": "'self' file:",
    "font-src": "'self' file: data:",
    "img-src": "'self' file: data:",
    "style-src": "'self' file: 'unsafe-inline'",
    # unsafe: the theme's buttons have their calls as attributes
    "script-src": "'self' file: 'unsafe-hashes'",
}

BUTTONS = ("use_repository_button", "use_edit_page_button", "use_issues_button")


def choose_buttons(app, config):
    """No address, no buttons; else those which its host offers."""
    options = config.html_theme_options
    url = options["repository_url"] = (options.get("repository_url") or "").strip().rstrip("/").removesuffix(".git")
    if not url:
        options.update(dict.fromkeys(BUTTONS, False), launch_buttons={})
    elif "github" not in url:
        options["launch_buttons"] = {**options.get("launch_buttons", {}), "colab_url": ""}  # Colab opens GitHub only


def find_scorer(app, config):
    """Chapters before the package's pages in a search, from whatever folder the book is built."""
    config.html_search_scorer = str(Path(__file__).with_name("scorer.js"))


def refuse_unexecuted(app, env, docnames):
    """Notebooks are stored without outputs: pages made of them as they are would show none."""
    for name in docnames:
        path = Path(env.doc2path(name))
        if path.suffix == ".ipynb":
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            code = [c for c in cells if c["cell_type"] == "code" and "".join(c["source"]).strip()]
            if code and not any(c.get("execution_count") for c in code):
                raise ExtensionError(
                    f"{path.name} has not been run, so its page would show no results. "
                    "Run `make book`, which does both; or see 'Without make' in README.md."
                )


class Took(SphinxDirective):
    """A table: what each chapter ran on, as it printed first, and the seconds that its cells took."""

    def run(self):
        lines = ["| chapter | ran on | seconds |", "|---|---|---:|"]
        for path in sorted(Path(self.env.srcdir, "book").glob("*.ipynb")):
            cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
            said = ("".join(o.get("text", "")) for cell in cells for o in cell["outputs"])
            clocks = [c["metadata"].get("execution", {}) for c in cells]
            spans = [(c["iopub.execute_input"], c["shell.execute_reply"]) for c in clocks if "shell.execute_reply" in c]
            times = [[datetime.fromisoformat(at) for at in span] for span in spans]
            took = sum((end - begin).total_seconds() for begin, end in times)
            ran = escape(next(filter(None, said), "–").splitlines()[0]).replace("|", "&#124;")
            lines.append(f"| `{path.stem}` | {ran} | {took:.0f} |")
        return self.parse_text_to_nodes("\n".join(lines))


def finish(app, error):
    """What is done to a site once its pages are written."""
    if error is None and app.builder.format == "html":
        for step in (copy_mathjax, leave_out, shorten_figures, mend_pages, pack_models):
            step(Path(app.outdir))


def copy_mathjax(site):
    """Of the package's 24 MB: the TeX to HTML bundle, its fonts, and what its menu and rarer TeX commands load."""
    source = Path(next(iter(find_spec("sphinx-mathjax-offline").submodule_search_locations))) / "static/mathjax"
    target = site / "_static/mathjax"
    each_alone = ignore_patterns("all-packages.js")  # which would be the others once more
    for folder in ("a11y", "input/tex/extensions", "output/chtml/fonts/woff-v2"):
        copytree(source / folder, target / folder, dirs_exist_ok=True, ignore=each_alone)
    (target / "sre/mathmaps").mkdir(parents=True, exist_ok=True)
    for file in ("tex-chtml.js", "sre/mathmaps/base.json", "sre/mathmaps/en.json"):
        copy2(source / file, target / file)


def leave_out(site):
    """What no page needs: source maps, the theme's translations and fonts for old browsers; in downloads SVG.

    Of a figure in a downloaded notebook JupyterLab shows the PNG alone, a third as large with 256 colours. Chosen to
    cover the most, they keep those of which there is little.
    """
    unused = ("*.map", "fontawesome.js*", "*.ttf", "locales/**/*.*")
    for path in {path for pattern in unused for path in (site / "_static").rglob(pattern)}:
        path.unlink()
    for path in (site / "_sources").rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for output in (output for cell in notebook["cells"] for output in cell.get("outputs", ())):
            data = output.get("data", {})
            if "image/png" in data and data.pop("image/svg+xml", None):
                figure, small = Image.open(BytesIO(b64decode(data["image/png"]))), BytesIO()
                few = figure.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
                few.save(small, "PNG", optimize=True)
                data["image/png"] = b64encode(small.getvalue()).decode()
        path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1), encoding="utf-8")


def shorten_figures(site):
    """Coordinates to a hundredth of a point, and no indentation: an eighth of what figures weigh."""
    for path in (site / "_images").glob("*.svg"):
        text = re.sub(r"<metadata>.*?</metadata>|(?<=\n) +", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        short = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
        path.write_text(short, encoding="utf-8")


def mend_pages(site):
    """``MENDED``; a content-security policy; and no script that a page does not need.

    The theme's script of 1,500 icons draws what its style sheet draws without it, and of those few are used. It loads
    the index of the search everywhere, for results while one types, which are not asked for.
    """
    icons = set()
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        icons.update(re.findall(r"\bfa-[\w-]+", text))
        needless = ["fontawesome"]
        if 'data-explorer="models"' not in text:
            needless.append("models")
        if page.name != "search.html":
            needless += ["searchtools", "language_data", "searchindex"]
        text = re.sub(rf"<script[^>]*\b({'|'.join(needless)})\.js[^>]*></script>", "", text)
        for old, new in MENDED.items():
            text = text.replace(old, new)
        parts = re.split(r"(<article.*</article>)", text, flags=re.DOTALL)
        parts[::2] = [re.sub(r"\n\s+", "\n", part) for part in parts[::2]]  # the theme indents by kilobytes
        first = re.search("<meta[^>]*>|$", parts[0]).end()  # which says the encoding
        tag = policy("".join(parts[::2])) * bool(first)
        page.write_text(parts[0][:first] + tag + "".join((parts[0][first:], *parts[1:])), encoding="utf-8")
    style = site / "_static/styles/pydata-sphinx-theme.css"
    rules = re.compile(r'(?:\.fa-[\w-]+:before,?)+\{content:"[^"]*"\}')
    text = style.read_text(encoding="utf-8")
    used = rules.sub(lambda rule: rule[0] if icons & set(re.findall(r"fa-[\w-]+", rule[0])) else "", text)
    style.write_text(used, encoding="utf-8")


def policy(theme):
    """The tag with ``POLICY`` for a page: what runs in it is what stands outside its article, by the theme's hand.

    What a corpus, a record or a model has in its text would stand in the article.
    """
    inline = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", theme, re.DOTALL)
    inline += re.findall(r'\son[a-z]+="([^"]*)"', theme)
    hashes = {f" 'sha256-{b64encode(sha256(code.encode()).digest()).decode()}'" for code in inline}
    rules = "; ".join(f"{name} {sources}" for name, sources in POLICY.items()) + "".join(sorted(hashes))
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}" />'


def pack_models(site):
    """The published models, for the page that computes them; none where the text that is counted cannot be had."""
    try:
        script = packed()
    except (CorpusUnavailable, FileNotFoundError):
        return
    (site / "_static/models-data.js").write_text(script, encoding="utf-8")


def setup(app):
    app.add_directive("took", Took)
    app.connect("config-inited", choose_buttons, priority=100)  # before the theme reads its options
    app.connect("config-inited", find_scorer)
    app.connect("env-before-read-docs", refuse_unexecuted)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
