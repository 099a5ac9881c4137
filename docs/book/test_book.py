"""The book, and JupyterLab, in a real browser: `make test-book`.

Chromium comes from `playwright install chromium`, or is the system's. BOOK_PICTURES=FOLDER keeps
pictures of the pages, to be looked at.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest


ROOT = Path(__file__).resolve().parents[2]
sync_api = pytest.importorskip("playwright.sync_api", reason="no browser: pip install '.[browser]'")
bs4 = pytest.importorskip("bs4")
HTML = ROOT / "build" / "book"
WIDTHS = {"phone": 390, "desk": 1400}


@pytest.fixture(scope="session")
def browser():
    with sync_api.sync_playwright() as playwright:
        mine = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            launched = playwright.chromium.launch(executable_path=mine, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no browser: playwright install chromium ({str(error).splitlines()[0]})")
        yield launched
        launched.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="session")
def site():
    """The address of the built book."""
    assert (HTML / "index.html").exists(), "make book first"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def pages() -> list[str]:
    found = [p.relative_to(HTML).as_posix() for p in HTML.rglob("*.html")]
    return sorted(p for p in found if not p.startswith("_static"))


@cache
def soup(page: str):
    return bs4.BeautifulSoup((HTML / page).read_text(encoding="utf-8"), "html.parser")


def watch(page) -> list[str]:
    """What goes wrong on a page from now on: errors, failed requests, requests to elsewhere."""
    wrong = []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.on("response", lambda r: wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None)

    def elsewhere(request) -> None:
        if urlparse(request.url).hostname not in ("127.0.0.1", None):
            wrong.append(f"elsewhere: {request.url}")

    page.on("request", elsewhere)
    return wrong


FIGURES = """() => [...document.querySelectorAll('article img:not([src*="_static"])')].map(i => ({
    alt: i.alt, width: i.naturalWidth, shown: i.getBoundingClientRect().width, src: i.src}))"""
SCROLL = "() => document.querySelectorAll('img').forEach(i => i.loading = 'eager')"
OVERFLOW = "() => document.documentElement.scrollWidth - window.innerWidth"


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_loads_by_itself_and_fits(browser, site, width):
    """No errors, no request to elsewhere, all figures there with a text, nothing wider than the
    window.
    """
    problems, figures = [], 0
    page = browser.new_page(viewport={"width": WIDTHS[width], "height": 900})
    wrong = watch(page)
    for name in pages():
        page.goto(site + name)
        page.evaluate(SCROLL)
        page.wait_for_load_state("networkidle", timeout=120_000)
        problems += [f"{name}: {w}" for w in wrong]
        wrong.clear()
        for figure in page.evaluate(FIGURES):
            figures += 1
            if not figure["width"] or not figure["shown"] or len(figure["alt"]) < 10:
                problems.append(f"{name}: figure {figure}")
        if page.evaluate(OVERFLOW) > 0:
            problems.append(f"{name}: wider than {WIDTHS[width]} pixels")
        picture(page, f"{name.replace('/', '-')}-{width}")
    page.close()
    assert not problems, "\n".join(problems)
    print(f"\n{len(pages())} pages, {figures} figures at {WIDTHS[width]} pixels")
    assert figures >= 200


def picture(page, name: str) -> None:
    if folder := os.environ.get("BOOK_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page="notebooks" not in name)


def test_search_finds_a_term(browser, site):
    page = browser.new_page()
    wrong = watch(page)
    page.goto(site + "search.html?q=grouped-query+attention")
    page.wait_for_selector("ul.search li a")
    found = page.eval_on_selector_all("ul.search li a", "all => all.map(a => a.href)")
    assert any("04_attention" in address for address in found), found
    assert not wrong
    page.close()


def test_all_internal_links_resolve():
    problems, links = [], 0
    for name in pages():
        for link in soup(name).select("a[href]"):
            if urlparse(link["href"]).scheme or link.get("href") in ("#", ""):
                continue
            links += 1
            target, fragment = urldefrag(urljoin(name, link["href"]))
            path = unquote(target.split("?")[0])
            if not (HTML / path).exists():
                problems.append(f"{name}: {link['href']}")
            elif fragment and path.endswith(".html") and not has(path, unquote(fragment)):
                problems.append(f"{name}: {link['href']}: no such place")
    assert not problems, "\n".join(problems[:40])
    print(f"\n{links} internal links")


@cache
def anchors(page: str) -> set[str]:
    return {tag["id"] for tag in soup(page).select("[id]")}


def has(page: str, fragment: str) -> bool:
    return fragment in anchors(page)


# axe needs a minute for a page of code; of all texts in the same colours three are enough
SAMPLE = """() => {
    const seen = {};
    for (const e of document.querySelectorAll('main *')) {
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
        let behind = e, key = getComputedStyle(e).color + getComputedStyle(e).fontSize;
        while (behind && /, 0\\)$|transparent/.test(getComputedStyle(behind).backgroundColor))
            behind = behind.parentElement;
        key += behind ? getComputedStyle(behind).backgroundColor : '';
        if ((seen[key] = (seen[key] || 0) + 1) <= 3) e.dataset.sample = '';
    }
}"""


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast(browser, site, mode):
    """axe's rule for contrast (WCAG AA) on every page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    rules = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
    page = browser.new_page(color_scheme=mode)
    problems = []
    for name in pages():
        page.goto(site + name)
        page.evaluate("mode => document.documentElement.dataset.theme = mode", mode)
        page.evaluate(SAMPLE)
        context = {"include": [["[data-sample]"]]}
        found = axe.run(page, context=context, options=rules).response["violations"]
        for node in [node for violation in found for node in violation["nodes"]][:3]:
            problems.append(f"{name}: {node['html'][:150]} {node['any'][0]['message'][:150]}")
    page.close()
    assert not problems, f"{len(problems)}\n" + "\n".join(problems[:40])


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """The address of JupyterLab on a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    for part in ("notebooks", "data", "minillama", "course", "docs"):
        shutil.copytree(ROOT / part, folder / part)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = folder / "settings" / "@jupyterlab"
    write(settings / "notebook-extension" / "tracker.jupyterlab-settings", ALL_CELLS)
    write(settings / "apputils-extension" / "notification.jupyterlab-settings", NO_NEWS)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}"]
    command += ["--ServerApp.token=", "--ServerApp.password=", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--LabApp.user_settings_dir={folder / 'settings'}"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    log = open(folder / "log", "w", encoding="utf-8")
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=one_thread)
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
        log.close()


# every cell in the page, not only those that are visible
ALL_CELLS = {"windowingMode": "none", "autoStartDefaultKernel": True}
NO_NEWS = {"fetchNews": "false", "checkForUpdates": False}


def write(path: Path, settings: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings), encoding="utf-8")


def wait_for(port: int, process, seconds: int = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError("JupyterLab did not start")


def run_all(page, lab: str, notebook: str) -> None:
    """Open a notebook and run all its cells; fails if one ends in an error."""
    page.goto(f"{lab}/lab/tree/notebooks/{notebook}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    page.wait_for_selector(f"{STATUS}:has-text('Idle')", timeout=90_000)
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    page.wait_for_selector(f"{STATUS}:has-text('Busy')", timeout=30_000)
    page.wait_for_function(f"() => {DONE}", timeout=500_000, polling=1000)
    counts = page.eval_on_selector_all(".jp-CodeCell .jp-InputPrompt", COUNTS)
    assert counts and counts == [f"[{n + 1}]:" for n in range(len(counts))], counts
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    assert errors.count() == 0, errors.all_inner_texts()
    print(f"\n{notebook}: {len(counts)} cells")


STATUS = "#jp-main-statusbar"
COUNTS = "all => all.map(e => e.textContent.trim()).filter(text => text)"
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
DONE = f"{PROMPTS}.every(e => e.textContent.trim() !== '[*]:')"


def test_chapter_0_runs_in_jupyterlab(browser, lab):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    run_all(page, lab, "00_the_whole_llama.ipynb")
    picture(page, "lab-00")
    page.close()


def test_the_chat_box_of_chapter_10_answers(browser, lab):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    run_all(page, lab, "10_chat.ipynb")
    box = page.locator(".widget-text input").last
    box.wait_for(timeout=60_000)
    box.fill("What is the capital of France?")
    box.press("Enter")
    chat = page.locator(".widget-vbox", has=page.locator(".widget-text input")).last
    answered = "e => e.innerText.includes('capital') && e.innerText.includes('Paris')"
    page.wait_for_function(answered, arg=chat.element_handle(), timeout=120_000)
    chat.scroll_into_view_if_needed()
    picture(page, "lab-10")
    page.close()
