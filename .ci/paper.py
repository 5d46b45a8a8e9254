"""The book on paper: all pages of the built site as one PDF. make.py calls it with .venv's Python."""

import os
import re
import sys
from pathlib import Path

from playwright.sync_api import Error, sync_playwright

# In place of the first page's article: a title, contents and the articles of all pages, which are given as
# [name, HTML]. Ids get their page's name before them, and links follow.
JOIN = """async (pages) => {
  const names = pages.map(([name]) => name), nav = document.querySelector("nav.bd-links");
  const move = (a, name) => {
    const [page, id] = a.getAttribute("href").split("#");
    if (page.includes(":")) return;                                      // elsewhere
    if (page && !names.includes(page)) a.removeAttribute("href");        // not on paper: a source, say
    else a.href = `#${page || name}${id ? ":" + id : ""}`;
  };
  const articles = pages.map(([name, html]) => {
    const article = new DOMParser().parseFromString(html, "text/html").querySelector("article");
    article.querySelectorAll("[id]").forEach((e) => (e.id = `${name}:${e.id}`));
    article.querySelectorAll("a[href]").forEach((a) => move(a, name));
    article.id = name;
    return article;
  });
  const contents = document.createElement("div"), add = (tag, text) =>
    Object.assign(contents.appendChild(document.createElement(tag)), { textContent: text });
  const text = (css) => document.querySelector(css).textContent.trim();
  contents.className = "contents";
  document.title = text("nav.bd-links a");
  add("p", document.title).className = "title";
  add("p", text(".component-author"));
  add("p", text(".extra_footer"));
  add("h1", "Contents");
  nav.querySelectorAll("a").forEach((a) => move(a, names[0]));
  nav.querySelectorAll(".caption").forEach((caption) => caption.removeAttribute("role"));  // no bookmark
  contents.append(...nav.querySelectorAll("ul, .caption"));
  document.querySelector("article").replaceWith(contents, ...articles);
  await MathJax.startup.promise;
  MathJax.typesetClear();
  await MathJax.typesetPromise();
  await document.fonts.ready;
  await Promise.all([...document.images].map((image) => image.decode()));
}"""

# Chromium's styles have no page numbers of what a link leads to.
NUMBER = """(numbers) => document.querySelectorAll(".contents a").forEach((a) =>
  (a.parentElement.dataset.page = numbers[a.hash.slice(1)] ?? ""))"""

STYLE = """
@page :first { @bottom-center { content: none; } }
.contents .title { font-size: 3rem; line-height: 1.2; margin: 16rem 0 3rem; }
.contents h1, .bd-article { break-before: page; }
.contents .caption { font-weight: bold; margin: 1rem 0 0.2rem; }
.contents ul { display: block; list-style: none; margin: 0; padding: 0; }
.contents li { display: flex; justify-content: space-between; }
.contents li::after { content: attr(data-page); }
.contents a { color: inherit; text-decoration: none; }
"""


def join(page, site):
    """Open the site as one page, ready to be printed."""
    book = Path(site).resolve() / "book"
    page.goto((book / "intro.html").as_uri())
    links = page.eval_on_selector_all("nav.bd-links a", "(all) => all.map((a) => a.getAttribute('href'))")
    names = [link.replace("#", "intro.html") for link in links]
    page.evaluate(JOIN, [[name, (book / name).read_text(encoding="utf-8")] for name in names])
    page.add_style_tag(content=STYLE)


def numbers(pdf):
    """The page on which each page of the site starts, by what Chromium writes of pages and of places in them."""
    pages = re.findall(rb"(\d+) 0 obj\s*<</Type /Page\s", pdf)
    starts = re.findall(rb"/([\w.-]+\.html) \[(\d+) 0 R", pdf)
    return {name.decode(): pages.index(page) + 1 for name, page in starts}


def main(site, pdf):
    with sync_playwright() as playwright:
        executable, flags = os.environ.get("CHROMIUM") or None, ["--no-sandbox", "--disable-gpu"]
        try:
            browser = playwright.chromium.launch(executable_path=executable, args=flags)
        except Error:
            wanted = "install it (Debian: apt-get install chromium) or set CHROMIUM to its path"
            sys.exit(f"make: no Chromium that starts: {wanted}")
        page = browser.new_page(color_scheme="light")
        join(page, site)
        options = {"format": "A4", "print_background": True, "prefer_css_page_size": True}
        page.evaluate(NUMBER, numbers(page.pdf(**options)))
        Path(pdf).write_bytes(page.pdf(**options, outline=True, tagged=True))  # no bookmarks without tags
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
