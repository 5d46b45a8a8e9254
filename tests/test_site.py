"""The built book (_build/html) in headless Chromium, opened from disk with no network."""

import importlib.util
import json
import os
import random
import re
import shutil
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

from slmlib import explore, load_corpus
from slmlib.experiments import RESULTS
from slmlib.flops import forward_flops
from slmlib.models import build, n_parameters

SITE = Path(__file__).parent.parent / "_build" / "html"
REQUIRED = os.environ.get("SLM_SITE") == "required"  # as `make test` sets it: what is missing fails, nothing is skipped
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html") if "_static" not in p.parts)
CHAPTERS = [p for p in PAGES if (SITE / "_sources" / p).with_suffix(".ipynb").exists()]
TEXTS = [p for p in PAGES if p.startswith("book/")]
LISTINGS = [p for p in PAGES if p.startswith("_modules/")]
LOOKED_AT = [p for p in PAGES if p not in LISTINGS[2:]]  # they differ in their source alone

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

LEFT = "net::ERR_ABORTED"  # the page was left while a picture of it, its icon say, was on its way

# For each page: wait until MathJax is done, then say what is there. Widths are read at 390 px, a phone's.
FACTS = """async () => {
  if (window.MathJax?.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  const all = (css) => [...document.querySelectorAll(css)];
  const path = (e) => e.tagName.toLowerCase() + [...e.classList].map((c) => "." + c).join("");
  const scrolls = (e) => {                      // inside the article, does something scroll it into view?
    for (let a = e; a && a.tagName !== "ARTICLE"; a = a.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(a).overflowX)) return true;
    return false;
  };
  const raw = [], walker = document.createTreeWalker(document.querySelector("article") ?? document.body, 4);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!parent.closest("pre, code, script, style, mjx-container")) raw.push(walker.currentNode.data);
  }
  return {
    title: document.title,
    width: document.documentElement.scrollWidth,
    wide: all("article *").filter((e) => e.getBoundingClientRect().right > innerWidth + 1
      && !e.closest("mjx-assistive-mml, .visually-hidden, .sr-only") && !scrolls(e)).map(path),
    untypeset: all(".math").filter((e) => !e.querySelector("mjx-container")).map((e) => e.textContent),
    badmath: all("mjx-merror, [data-mjx-error]").map((e) => e.textContent),
    // In a line, unless they are as wide as their paragraph.
    scrolling: all("mjx-container:not([display])").filter((e) => e.scrollWidth > e.clientWidth
      && e.clientWidth < e.closest("h1, h2, h3, h4, p, li, td, th, dd, figcaption, div").clientWidth - 2)
      .map((e) => e.textContent),
    begun: all("div.math").filter((e) =>
      e.querySelector("mjx-container").getBoundingClientRect().left < e.getBoundingClientRect().left - 1)
      .map((e) => e.textContent),
    text: raw.join("\\n"),
    unloaded: all("img").filter((i) => !i.naturalWidth).map((i) => i.src),
    // By more than their file names, which a page has where a cell says nothing better.
    undescribed: all("img").map((i) => i.alt).filter((alt) => /\\.\\w+$/.test(alt)),
    outputs: all(".cell_output").length,
    figures: all(".cell_output img, figure img").length,
    drawn: all("article img").map((i) => [i.src, i.naturalWidth, i.width]),
    links: all("a[href]").map((a) => a.href),
  };
}"""

# Tables that a laptop has no room for.
WIDER = """() => {
  const folded = [...document.querySelectorAll("details.hide:not([open])")];
  folded.forEach((e) => { e.open = true; });
  const tables = document.querySelectorAll("article :is(.cell_output .output, .pst-scrollable-table-container)");
  const found = [...tables].filter((e) => e.querySelector("table") && e.scrollWidth > e.clientWidth + 1);
  const said = found.map((e) => e.innerText.slice(0, 60));
  folded.forEach((e) => { e.open = false; });
  return said;
}"""

# What is cut on paper.
CUT = """() => {
  const all = document.querySelectorAll("article :is(table, pre, img, svg, mjx-container)");
  return [...all].filter((e) => !e.closest("mjx-container mjx-container, details.hide:not([open])")
    && (e.getBoundingClientRect().right > innerWidth + 1 || e.scrollWidth > e.clientWidth + 1
      || (e.matches("pre") && e.scrollHeight > e.clientHeight + 2)))
    .map((e) => `${e.tagName}: ${e.textContent.slice(0, 60)}`);
}"""

PHONE = {"width": 390, "height": 844}
LAPTOP = {"width": 1280, "height": 844}
SHEET = {"width": 680, "height": 990}  # of A4, between its margins

# Contrast of an element's text with what is painted behind it, by WCAG's formula.
CONTRAST = """(e) => {
  const rgba = (s) => (s.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = [255, 255, 255];
  for (let a = e; a; a = a.parentElement) {
    const c = rgba(getComputedStyle(a).backgroundColor);
    if (c.length < 4 || c[3] > 0.5) { behind = c; break; }
  }
  const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind)].sort((x, y) => y - x);
  return {contrast: (a + 0.05) / (b + 0.05), behind: light(behind)};
}"""


# Every fold open.
UNFOLD = """() => {
  document.querySelectorAll("details").forEach((e) => { e.open = true; });
  document.querySelectorAll(".toggle-hidden").forEach((e) => e.classList.remove("toggle-hidden"));
}"""

# Of elements that are alike, with all around them, one stays, and no formula, which has its text's colour: where
# thousands are alike, axe takes long over their colours.
THIN = """() => {
  document.querySelectorAll("mjx-container").forEach((e) => e.remove());
  const kinds = new Map(), seen = new Set(), kept = new Set();
  for (const e of document.body.querySelectorAll("*")) {
    const row = e.tagName === "TR" ? e.rowIndex % 2 : "", style = e.getAttribute("style") ?? "";
    const kind = [kinds.get(e.parentElement) ?? "", e.tagName, e.className, style, row].join();
    if (!seen.has(kind)) for (let a = e; a && !kept.has(a); a = a.parentElement) kept.add(a);
    kinds.set(e, kind);
    seen.add(kind);
  }
  for (const e of kinds.keys()) if (!kept.has(e)) e.remove();
}"""

COLOURS = ["color-contrast", "link-in-text-block"]  # axe's rules that depend on them


def chromium(playwright) -> str | None:
    """The browser: CHROMIUM, then one on PATH, then playwright's own."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    own = playwright.chromium.executable_path
    return found or (own if Path(own).exists() else None)


def give_up(reason: str):
    (pytest.fail if REQUIRED else pytest.skip)(reason, **({"pytrace": False} if REQUIRED else {}))


@pytest.fixture(scope="module")
def browser():
    if not PAGES:
        give_up(f"there is no built book at {SITE}: run `make book`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        executable = chromium(playwright)
        if executable is None:
            give_up(
                "no Chromium found: install it (Debian: apt-get install chromium), set CHROMIUM to its path, "
                "or run `.venv/bin/python -m playwright install chromium`"
            )
        # With scrollbars, which a headless browser hides unless told otherwise.
        options = {"args": FLAGS, "ignore_default_args": ["--hide-scrollbars"]}
        browser = playwright.chromium.launch(executable_path=executable, **options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser):
    """A page that takes note of every error and every request to outside, which it refuses."""
    context = browser.new_context(viewport=PHONE, color_scheme="light")
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.trouble, page.loaded = [], set()
    page.route(re.compile("^(https?|wss?):"), lambda route: route.abort())
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else page.trouble.append(r.url))
    page.on("request", lambda r: page.loaded.add(Path(unquote(urlsplit(r.url).path))))
    page.on("requestfailed", lambda r: page.trouble.append(f"failed: {r.url}") if r.failure != LEFT else None)
    page.on("pageerror", lambda error: page.trouble.append(f"page error: {error}"))
    page.on("console", lambda m: page.trouble.append(f"console: {m.text}") if m.type == "error" else None)
    yield page
    context.close()


@pytest.fixture(autouse=True)
def nothing_is_blocked(request):
    """Whatever a test does with a page, as wide as a phone, its content-security policy lets its own scripts do."""
    page = request.getfixturevalue("page") if "page" in request.fixturenames else None
    if page:
        page.set_viewport_size(PHONE)
        page.trouble.clear()
    yield
    assert not page or [said for said in page.trouble if "Content Security Policy" in said] == []


@pytest.fixture(scope="module")
def facts(page):
    @cache
    def visit(name: str) -> dict:
        """Of one visit, since loading takes longest."""
        page.set_viewport_size(PHONE)
        page.trouble.clear()
        page.loaded.clear()
        page.goto((SITE / name).as_uri())
        if name == "index.html":  # it only leads to the first page
            page.wait_for_url("**/book/*.html")
        found = page.evaluate(FACTS) | {"loaded": set(page.loaded)}
        page.set_viewport_size(LAPTOP)
        found["wider"] = page.evaluate(WIDER)
        page.emulate_media(media="print")
        page.set_viewport_size(SHEET)
        found["cut"] = page.evaluate(CUT)
        page.emulate_media(media="screen")
        return found | {"trouble": list(page.trouble)}

    return visit


def test_the_book_is_built(browser):
    assert {"index.html", "book/intro.html", "book/api.html", "book/bibliography.html"} <= set(PAGES)
    assert CHAPTERS


def test_every_page_has_a_content_security_policy():
    policy = '<meta http-equiv="Content-Security-Policy"'
    assert [name for name in PAGES if policy not in (SITE / name).read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("name", ["book/intro.html", "book/models.html"])
def test_what_a_text_might_smuggle_in_does_not_run(page, name):
    page.goto((SITE / name).as_uri())
    page.evaluate("""async () => {
      const article = document.querySelector("article"), script = document.createElement("script");
      script.textContent = "window.smuggled = 1";
      article.append(script);
      article.insertAdjacentHTML("beforeend", `<img src="data:," onerror="window.smuggled = 2">
        <iframe srcdoc="<script>parent.smuggled = 3</script>"></iframe>
        <object data="data:text/html,<script>parent.smuggled = 4</script>"></object>`);
      await new Promise((done) => setTimeout(done, 300));
    }""")
    assert page.evaluate("() => window.smuggled") is None
    assert len([said for said in page.trouble if "Content Security Policy" in said]) >= 4
    page.trouble.clear()


def test_the_theme_s_own_buttons_work(page):
    page.goto((SITE / "book/intro.html").as_uri())
    page.evaluate(
        "() => { window.toggleFullScreen = window.print = () => { window.called = (window.called ?? 0) + 1; } }"
    )
    assert page.evaluate("""() => {
      const buttons = [...document.querySelectorAll("[onclick]")];
      buttons.forEach((button) => button.click());
      return window.called === buttons.length && buttons.length;
    }""")


FLAWS = ("trouble", "wide", "untypeset", "badmath", "scrolling", "begun", "unloaded", "undescribed", "wider")


@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_page_is_without_flaw(facts, name):
    """No error, no request to outside, nothing wider than a phone, no table wider than a laptop, nothing cut on paper;
    formulas typeset, pictures there, described.
    """
    found = facts(name)
    flaws = (*FLAWS, "cut") if name in TEXTS else FLAWS
    assert {what: found[what] for what in flaws if found[what]} == {} and found["width"] <= 390
    assert not re.search(r"\$[^$\n]+\$|\\\(|\\begin\{|\{(cite|ref|eq|numref|math)(:\w)?\}`", found["text"])


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapters_show_what_they_ran(facts, name):
    assert facts(name)["outputs"] > 0
    assert facts(name)["figures"] > 0 or not re.match(r"book/\d", name)  # an appendix may have none


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_download_is_the_executed_notebook(facts, name):
    source = (SITE / "_sources" / name).with_suffix(".ipynb")
    assert source.as_uri() in facts(name)["links"]
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]))


class _Ids(HTMLParser):
    def __init__(self, path: Path):
        super().__init__()
        self.ids = {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.ids |= {value for key, value in attrs if key == "id" or (tag == "a" and key == "name")}


ids = cache(lambda path: _Ids(path).ids)


@pytest.mark.parametrize("name", LOOKED_AT)
def test_internal_links_resolve(facts, name):
    broken = []
    for link in set(facts(name)["links"]):
        url = urlsplit(link)
        if url.scheme != "file":
            continue
        target = Path(unquote(url.path))
        there = target.is_file() and SITE in target.parents
        if not there or (target.suffix == ".html" and unquote(url.fragment) not in ids(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", ["book/intro.html", *CHAPTERS[:1]])
def test_figures_and_banners_are_legible_in_light_and_dark(page, name):
    """All other text is axe's."""
    page.goto((SITE / name).as_uri())
    page.evaluate(
        "() => document.querySelector('article').insertAdjacentHTML('beforeend', '<div class=\"slm-banner\">b')"
    )
    behind = {}
    for mode in ("light", "dark"):
        page.evaluate("(mode) => { document.documentElement.dataset.theme = mode; }", mode)
        for css in ("h1", "p", ".slm-banner", ".cell_output pre", "td", "figcaption", "figcaption p"):
            for element in page.query_selector_all(f"article {css}")[:3]:
                seen = element.evaluate(CONTRAST)
                assert seen["contrast"] >= 4.5, f"{css}, {mode}: contrast {seen['contrast']:.1f}"
                behind.setdefault(css, {}).setdefault(mode, seen["behind"])
        boxes = page.eval_on_selector_all(
            "article .cell_output img, article figure img",
            "(all) => all.map((i) => getComputedStyle(i)).map((s) => [s.backgroundColor, s.filter])",
        )
        turned = {"light": "none", "dark": "invert(0.92) hue-rotate(180deg)"}[mode]
        assert all(box == ["rgba(0, 0, 0, 0)", turned] for box in boxes), f"{mode}: {boxes}"
    assert all(modes["light"] > 0.7 and modes["dark"] < 0.1 for modes in behind.values()), behind


@pytest.mark.parametrize("name", [p for p in LOOKED_AT if p != "index.html"])  # which only leads to another
def test_axe_finds_no_barrier(page, name):
    """With every fold open, on a phone and on a laptop, light and dark."""
    from axe_playwright_python.sync_playwright import Axe

    barriers, rest = {}, {rule: {"enabled": False} for rule in COLOURS}

    def look(what: str, where: dict | str = "html", **options):
        options["resultTypes"] = ["violations"]
        found = page.evaluate("([where, options]) => axe.run(where, options)", [where, options])["violations"]
        barriers.update({(what, rule["id"]): [node["html"] for node in rule["nodes"]] for rule in found})

    page.goto((SITE / name).as_uri())
    page.evaluate(Axe().axe_script)
    page.evaluate(UNFOLD)
    page.add_style_tag(content="* { transition: none !important; }")  # else colours are read on their way
    if page.evaluate("async () => { await window.MathJax?.startup.promise; return 'MathJax' in window; }"):
        page.wait_for_timeout(400)  # the theme makes stops for Tab of what scrolls, 300 ms after a change
    look("390 px", rules=rest)
    page.set_viewport_size(LAPTOP)
    look("1280 px", {"exclude": ["article"]}, rules=rest)  # more scrolls on a phone, else articles are the same
    page.evaluate(THIN)
    for mode in ("light", "dark"):  # of what a phone shows, nothing is in other colours
        page.evaluate("(mode) => { document.documentElement.dataset.theme = mode; }", mode)
        look(mode, runOnly=COLOURS)
    assert barriers == {}


EXPLORERS = {
    "budget": "book/intro.html",
    "counting": "book/02-counting.html",
    "learning": "book/03-linear.html",
    "attention": "book/05-attention.html",
    "cost": "book/10-flops.html",
    "lottery": "book/12-verdicts.html",
    "models": "book/models.html",
}


def shown(frame) -> str:
    """What is in it, without what the theme adds to boxes that scroll."""
    return re.sub(r' tabindex="-?[0-9]"', "", frame.inner_html())


@pytest.mark.parametrize("name", EXPLORERS)
def test_explorers_answer_to_keyboard_and_mouse(page, name):
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto((SITE / EXPLORERS[name]).as_uri())
    explorer = page.locator(f".explore[data-explorer={name}]").first
    frame, controls = explorer.locator(".frame"), explorer.locator("[data-axis]")
    assert frame.inner_text().strip() and controls.count()
    for i in range(controls.count()):
        control, before = controls.nth(i), shown(frame)
        control.focus()
        kind, at = control.evaluate("(e) => [e.type, e.value]")
        back = "ArrowLeft" if kind == "range" else "ArrowUp"
        on = "ArrowRight" if kind == "range" else "ArrowDown"
        page.keyboard.press("Enter" if kind == "button" else on if at == "0" else back)
        if control.evaluate("(e) => e.options?.length") == 1:
            continue
        assert shown(frame) != before, (name, i)
        if kind != "button":  # where the next one's two options differ
            page.keyboard.press(back if at == "0" else on)
            assert shown(frame) == before, (name, i)
    if explorer.locator("input[type=range]").count():
        seen, box = set(), explorer.locator("input[type=range]").first.bounding_box()
        for share in (0.02, 0.98):
            page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
            seen.add(shown(frame))
        assert len(seen) == 2, name
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_computes_flops_as_the_package_does(page):
    page.goto((SITE / EXPLORERS["cost"]).as_uri())
    draws = random.Random(0)
    for _ in range(30):
        T, C, L = draws.choice([8, 32, 128, 512]), 16 * draws.randint(1, 32), draws.randint(1, 8)
        V, every, written = draws.choice([65, 10_000]), draws.random() < 0.5, draws.random() < 0.5
        config = explore.costed(T, C, L)
        got = page.evaluate("(a) => slmCost(...a)", [T, C, L, V, every, written])
        ledger, scored = "written" if written else "needed", "every" if every else "last"
        assert {k: v // 3 for k, v in got["parts"]} == forward_flops(config, V, ledger, scored)
        with torch.device("meta"):
            assert got["parameters"] == n_parameters(build(config, V)).total


def test_the_page_computes_the_published_models_as_pytorch_does(page):
    """Logits on 24 prompts of many lengths, and how fast it writes."""
    page.goto((SITE / "book/models.html").as_uri())
    page.locator(".explore[data-explorer=models] .load button").click()
    page.wait_for_selector(".live textarea")
    networks, counts, _ = explore.published(RESULTS / "weights")
    text, draws = load_corpus("tiny_shakespeare").test, random.Random(0)
    lengths = [1, 128, *(draws.randint(1, 128) for _ in range(22))]
    prompts = [text[at : at + n] for n in lengths for at in [draws.randrange(100_000)]]
    ask = "async (P) => (await slmLoad()).models.map((m) => P.map((p) => [...m.logits(p)]))"
    for name, rows in zip([None, *networks], page.evaluate(ask, [p.tolist() for p in prompts]), strict=True):
        for ids, row in zip(prompts, rows, strict=True):
            if name is None:
                expected = counts.next_token(ids).log()
            else:
                T = networks[name].config.context
                window = ids[-T:] if name != "MLP" else torch.cat((torch.zeros(T, dtype=torch.int64), ids))[-T:]
                expected = networks[name](window[None])[0].detach().double()
            torch.testing.assert_close(torch.tensor(row, dtype=torch.float64), expected, rtol=0, atol=1e-2)
    page.keyboard.type("☃")  # where the focus is
    page.locator(".live > p", has_text="left out: ☃").wait_for()
    speed, written = page.locator(".live > p").last, page.locator(".live pre")
    for _ in range(3):  # stopped and begun anew before the first could see it: one writes
        page.locator(".live button").dispatch_event("click")
    page.wait_for_timeout(2_000)
    assert int(speed.inner_text().split()[0]) >= 20
    assert written.inner_text().startswith("ROMEO:\n") and written.get_attribute("aria-busy") == "true"
    page.locator(".live button").click()
    assert written.get_attribute("aria-busy") == "false"
    text = written.inner_text()
    page.wait_for_timeout(100)
    assert written.inner_text() == text


def test_an_explorer_says_something_without_scripts(browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for name, where in EXPLORERS.items():
        page.goto((SITE / where).as_uri())
        explorer = page.locator(f".explore[data-explorer={name}]").first
        assert len(explorer.locator(".frame").inner_text()) > 50, name
        assert not explorer.locator(":is(.controls, .load)").filter(visible=True).count()
    context.close()


def test_the_reader_s_preference_decides_the_mode(browser):
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto((SITE / "book/intro.html").as_uri())
        assert page.evaluate("() => document.documentElement.dataset.theme") == scheme
        context.close()


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("RoPE", "07-rope"),
        ("rotary", "07-rope"),
        ("self-attention", "05-attention"),
        ("transformer", "06-transformer"),
        ("verdicts", "12-verdicts"),
        ("Kneser-Ney", "02-counting"),
    ],
)
def test_search_puts_the_chapter_first(page, query, first):
    assert first in hits(page, query)[0]


def hits(page, query):
    page.goto((SITE / "search.html").as_uri() + f"?q={query}")
    page.wait_for_selector("#search-results li a")
    page.locator("#search-results p.search-summary", has_text=re.compile("found|finished", re.IGNORECASE)).wait_for()
    return [a.get_attribute("href") for a in page.locator("#search-results li a").all()]


def test_a_space_after_what_is_searched_for_changes_nothing(page):
    assert hits(page, "words") == hits(page, "words%20")


def test_solutions_stay_hidden_until_asked_for(page):
    for name in CHAPTERS:
        if "<summary>Solution" in (SITE / name).read_text(encoding="utf-8"):
            page.goto((SITE / name).as_uri())
            solution = page.locator("details", has=page.locator("summary", has_text="Solution")).first
            hidden = solution.locator(":scope > :not(summary)").first
            assert not hidden.is_visible()
            solution.locator("summary").click()
            hidden.wait_for(state="visible")
            return
    give_up("no chapter has a hidden solution")


@pytest.fixture
def sheet(browser):
    context = browser.new_context(viewport=SHEET, color_scheme="dark")
    sheet = context.new_page()
    sheet.emulate_media(media="print")
    yield sheet
    context.close()


def test_paper_is_light(sheet):
    sheet.goto((SITE / CHAPTERS[0]).as_uri())
    assert sheet.evaluate("() => document.documentElement.dataset.theme") == "dark"
    for css in ("p", "td", "pre span", "pre", "h2"):
        for element in sheet.query_selector_all(f"article {css}")[:20]:
            red, green, blue = map(int, re.findall(r"\d+", element.evaluate("(e) => getComputedStyle(e).color"))[:3])
            assert max(red, green, blue) < 150, css
    filters = "(all) => all.map((i) => getComputedStyle(i).filter)"
    assert set(sheet.eval_on_selector_all("article img", filters)) == {"none"}


@pytest.fixture(scope="module")
def paper():
    spec = importlib.util.spec_from_file_location("paper", SITE.parent.parent / ".ci" / "paper.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_book_on_paper_is_whole_and_its_links_lead_inside(sheet, paper):
    paper.join(sheet, SITE)
    found = sheet.evaluate("""() => {
      const all = (css) => [...document.querySelectorAll(css)];
      const inside = all(".contents a, article a").map((a) => a.getAttribute("href")).filter((h) => h?.startsWith("#"));
      return {
        articles: all("article").map((a) => a.id),
        contents: all(".contents a").map((a) => a.hash.slice(1)),
        dead: inside.filter((href) => !document.getElementById(decodeURIComponent(href.slice(1)))),
        links: inside.length,
        local: all("article a[href]").filter((a) => !/^(#|https?:|mailto:)/.test(a.getAttribute("href"))).length,
        doubled: all("article [id]").map((e) => e.id).filter((id, i, ids) => ids.indexOf(id) !== i),
        untypeset: all("article .math").filter((e) => !e.querySelector("mjx-container")).length,
        titles: all("article h1").length,
      };
    }""")
    assert sorted(found["articles"]) == sorted(name.removeprefix("book/") for name in TEXTS)
    assert found["contents"] == found["articles"] and found["titles"] == len(TEXTS)
    assert found["links"] > 100 and found["dead"] == found["doubled"] == []
    assert found["local"] == found["untypeset"] == 0


def test_contents_say_on_which_page_a_chapter_starts(sheet, paper):
    sheet.set_content(
        "<a href='#a.html'>a</a> <a href='#b-2.html'>b</a><style>h1 { break-before: page }</style>"
        "<h1 id='a.html'>a</h1><h1>more</h1><h1 id='b-2.html'>b</h1>"
    )
    assert paper.numbers(sheet.pdf()) == {"a.html": 2, "b-2.html": 4}


def test_the_site_is_light(facts):
    """Without the models, which are fetched when they are asked for; a chapter with all that it loads."""
    sizes = {path: path.stat().st_size for path in SITE.rglob("*") if path.is_file()}
    assert sum(size for path, size in sizes.items() if path.name != "models-data.js") < 14e6
    assert {n: w for n in CHAPTERS if (w := sum(sizes.get(path, 0) for path in facts(n)["loaded"])) > 2.5e6} == {}


def test_figures_bear_no_date():
    """So that a second build makes the same pages."""
    drawn = sorted((SITE / "_images").glob("*.svg"))
    assert drawn and [path.name for path in drawn if "<dc:date>" in path.read_text(encoding="utf-8")] == []


def test_icons_are_drawn(page):
    page.goto((SITE / CHAPTERS[0]).as_uri())
    page.evaluate("() => document.fonts.ready")
    icons = page.eval_on_selector_all(
        "i[class*=fa-]", "(all) => all.map((i) => [getComputedStyle(i, '::before').content, i.className])"
    )
    assert icons and [name for content, name in icons if content in ("none", "normal")] == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_text_in_figures_is_legible_on_a_phone(facts, name):
    """Nine pixels high at least: in plots all text is ten points; a drawing says how large its own is."""
    for source, natural, width in facts(name)["drawn"]:
        if source.endswith(".png"):  # a picture of a screen, which words beside it tell
            continue
        svg = Path(unquote(urlsplit(source).path)).read_text(encoding="utf-8")
        sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)"', svg)]
        wide = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) if sizes else natural
        assert min(sizes, default=10 * 96 / 72) * width / wide >= 9, source


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_the_first_screen_shows_the_answer_and_the_figure(page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    page.goto((SITE / "book/intro.html").as_uri())
    for css in ("article p > strong", "article img[src*=emblem]"):
        box = page.locator(css).first.bounding_box()
        assert box["y"] + box["height"] < height, css
