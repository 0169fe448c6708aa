"""The built site: links and anchors resolve, nothing leaves it, and a browser can search it and switch its tabs.

It builds the site once, or takes the one that the variable DIL_SITE names.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
PAGES = ("", "theory/", "transforms/", "migration/", "results/linear/", "reference/ode/")
"""Those that a browser opens at the width of a phone: tables, formulas, pictures, signatures."""


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Return the folder of the site."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    if built := os.environ.get("DIL_SITE"):
        return Path(built)
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",  # without -q, which hides the warnings from it, too
        "-f",
        ROOT / "docs" / "mkdocs.yml",
        "-d",
        folder,
    ]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


class Page(HTMLParser):
    """The ids, the links and the files of a page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded = set(), set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and attrs.get("href"):
            self.links.add(attrs["href"])
        elif attrs.get("src") or (tag == "link" and attrs.get("rel") != "canonical"):
            self.loaded.add(attrs.get("src") or attrs["href"])


@pytest.fixture(scope="session")
def pages(site):
    """Return the pages by their address from the root of the site."""
    paths = [path for path in site.rglob("*.html") if path.name != "404.html"]
    return {path.relative_to(site).as_posix().removesuffix("index.html"): Page(path) for path in paths}


def test_every_internal_link_and_anchor_resolves(site, pages):
    broken = [
        f"{address}: {link}"
        for address, page in pages.items()
        for link in page.links | page.loaded
        if not urlsplit(link).scheme and not resolves(urlsplit(urljoin(f"/{address}", link)), site, pages)
    ]
    assert not broken
    assert sum(len(page.links) for page in pages.values()) > 1000


def resolves(target, site, pages):
    """Whether a page has the anchor, or the site the file."""
    path, anchor = unquote(target.path).removeprefix("/"), unquote(target.fragment)
    if path in pages:
        return not anchor or anchor in pages[path].ids
    return (site / path).is_file()


def test_nothing_is_loaded_from_elsewhere(pages):
    assert not [f"{address}: {x}" for address, page in pages.items() for x in page.loaded if urlsplit(x).netloc]


def test_names_in_code_type_are_links(pages):
    links = {urljoin("/start/", link) for link in pages["start/"].links}
    assert {"/reference/dil/#dil.root", "/reference/dil/#dil.CapturedError"} <= links
    assert any(link.startswith("https://docs.jax.dev/") for link in pages["jax/"].links)


def test_every_page_of_the_reference_has_an_example(site):
    for source in sorted((ROOT / "docs" / "pages" / "reference").glob("*.md")):
        built = site / "reference" / source.stem.removesuffix("index") / "index.html"
        assert "```python" in source.read_text() or "&gt;&gt;&gt;" in built.read_text(), source


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that does not write a log."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address(site):
    """Return the address of a server of the site."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser():
    """Return Debian's chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def tab(browser, address):
    """Return a page of the browser, which must not complain and must not ask another server."""
    opened, complaints = browser.new_page(viewport=DESK), []
    opened.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request", lambda asked: asked.url.startswith((address, "data:", "blob:")) or complaints.append(asked.url)
    )
    opened.on("response", lambda answer: answer.status < 400 or complaints.append(f"{answer.status} {answer.url}"))
    yield opened
    opened.close()
    assert not complaints


def test_search_finds_a_name(tab, address):
    tab.goto(address)
    # the first link is that of the page, the second that of the section
    found = "name => document.querySelectorAll('.md-search-result__item a')[1]?.href.endsWith('#' + name)"
    for asked, name in (("dil.linear.CG", "dil.linear.CG"), ("CG", "dil.linear.CG"), ("odeint", "dil.ode.odeint")):
        tab.fill("input.md-search__input", "")
        tab.click("input.md-search__input")
        tab.keyboard.type(asked)
        tab.wait_for_function(found, arg=name)


def test_tabs_switch(tab, address):
    tab.goto(address)
    shown = tab.locator(".tabbed-block:visible")
    for name, word in (("torch", "import torch"), ("JAX", "import jax"), ("NumPy", "import numpy")):
        tab.click(f".tabbed-labels >> text={name}")
        tab.wait_for_function("word => document.querySelector('.tabbed-set').innerText.includes(word)", arg=word)
        assert word in shown.inner_text()


def test_the_dark_mode_switches(tab, address):
    tab.goto(address)
    scheme = "() => document.body.getAttribute('data-md-color-scheme')"
    assert tab.evaluate(scheme) == "default"
    tab.click("label[title='Dark mode']")
    assert tab.evaluate(scheme) == "slate"


def test_formulas_are_set(tab, address):
    tab.goto(f"{address}theory/")
    assert tab.locator(".arithmatex .katex").count() >= tab.locator(".arithmatex").count() > 10
    assert tab.locator(".katex-error").count() == 0


def test_a_phone_need_not_scroll_sideways(tab, address):
    tab.set_viewport_size(PHONE)
    for page in PAGES:
        tab.goto(address + page)
        assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], page
        narrow = "cells => cells.filter(c => c.querySelector('code') && c.clientWidth < 100).map(c => c.innerText)"
        assert tab.locator(".md-content td:not(:first-child)").evaluate_all(narrow) == [], page
