"""Sphinx extension: what _config.yml alone cannot say.

Buttons follow repository.url, MathJax is part of the site, and a page can show what another page's notebook glued.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from shutil import copy2, copytree

from docutils.nodes import Element
from docutils.parsers.rst.directives import unchanged_required
from docutils.statemachine import StringList
from myst_nb.ext.glue import GLUE_PREFIX
from myst_nb.ext.glue.directives import (
    PasteFigureDirective,
    PasteMarkdownDirective,
)
from sphinx.directives.patches import Figure
from sphinx.errors import ExtensionError

BUTTONS = ("use_repository_button", "use_edit_page_button", "use_issues_button")


def choose_buttons(app, config):
    """No address, no buttons; else those which its host offers."""
    options = config.html_theme_options
    url = options["repository_url"] = (
        (options.get("repository_url") or "")
        .strip()
        .rstrip("/")
        .removesuffix(".git")
    )
    if not url:
        options.update(dict.fromkeys(BUTTONS, False), launch_buttons={})
    elif "github" not in url:
        options["launch_buttons"] = {
            **options.get("launch_buttons", {}),
            "colab_url": "",
        }  # Colab opens GitHub only


def refuse_unexecuted(app, env, docnames):
    """Notebooks are stored without outputs: pages made of them as they are would show none."""
    for name in docnames:
        path = Path(env.doc2path(name))
        if path.suffix == ".ipynb":
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            code = [
                c
                for c in cells
                if c["cell_type"] == "code" and "".join(c["source"]).strip()
            ]
            if code and not any(c.get("execution_count") for c in code):
                raise ExtensionError(
                    f"{path.name} has not been run, so its page would show no results. "
                    "Run `make book`, which does both; or see 'Without make' in README.md."
                )


def copy_mathjax(app, error):
    """Of the package's 24 MB: the TeX to HTML bundle, its fonts, and what its menu and rarer TeX commands load."""
    if error is None and app.builder.format == "html":
        source = (
            Path(
                next(
                    iter(
                        find_spec(
                            "sphinx-mathjax-offline"
                        ).submodule_search_locations
                    )
                )
            )
            / "static/mathjax"
        )
        target = Path(app.outdir) / "_static/mathjax"
        for folder in (
            "a11y",
            "input/tex/extensions",
            "output/chtml/fonts/woff-v2",
        ):
            copytree(source / folder, target / folder, dirs_exist_ok=True)
        (target / "sre/mathmaps").mkdir(parents=True, exist_ok=True)
        for file in (
            "tex-chtml.js",
            "sre/mathmaps/base.json",
            "sre/mathmaps/en.json",
        ):
            copy2(source / file, target / file)


def glued(directive, mime: str) -> str:
    """What the executed notebook named by the option doc glued under the directive's key."""
    env, key = directive.state.document.settings.env, directive.arguments[0]
    name, path = env.relfn2path(directive.options.pop("doc"))
    env.note_dependency(name)
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if (
                output.get("metadata", {}).get("scrapbook", {}).get("name")
                == key
            ):
                data = {
                    kind.removeprefix(GLUE_PREFIX): value
                    for kind, value in output["data"].items()
                }
                if mime in data:
                    return "".join(data[mime])
    raise directive.error(
        f"{name} has glued no {mime} named {key!r}; has it been run?"
    )


class GlueFigure(PasteFigureDirective):
    """{glue:figure} with the option doc. (Its own {glue} with doc knows no SVG, no caption and no number.)"""

    option_spec = PasteFigureDirective.option_spec | {"doc": unchanged_required}

    def run(self):
        if "doc" not in self.options:
            return super().run()
        picture = Path(
            self.state.document.settings.env.srcdir,
            "glued",
            f"{self.arguments[0]}.svg",
        )
        picture.parent.mkdir(exist_ok=True)
        picture.write_text(glued(self, "image/svg+xml"), encoding="utf-8")
        place = (
            self.content,
            self.lineno,
            self.content_offset,
            self.block_text,
            self.state,
            self.state_machine,
        )
        return Figure(
            "figure", [f"/glued/{picture.name}"], self.options, *place
        ).run()


class GlueMarkdown(PasteMarkdownDirective):
    """{glue:md} with the option doc, read as the book's own Markdown."""

    option_spec = PasteMarkdownDirective.option_spec | {
        "doc": unchanged_required
    }

    def run(self):
        if "doc" not in self.options:
            return super().run()
        node = Element()
        lines = glued(self, "text/markdown").splitlines()
        self.state.nested_parse(
            StringList(lines, self.source), self.content_offset, node
        )
        return node.children


def setup(app):
    app.connect(
        "config-inited", choose_buttons, priority=100
    )  # before the theme reads its options
    app.connect("env-before-read-docs", refuse_unexecuted)
    app.connect("build-finished", copy_mathjax)
    app.add_directive_to_domain("glue", "figure", GlueFigure, override=True)
    app.add_directive_to_domain("glue", "md", GlueMarkdown, override=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
