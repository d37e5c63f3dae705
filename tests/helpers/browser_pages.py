"""Pages of a run in Debian's Chromium."""

import shutil
from contextlib import contextmanager

CHROMIUM = shutil.which("chromium")


@contextmanager
def opened(file):
    """A page of a file, drawn. Errors of scripts, failed requests and pages wider than the window fail the test."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        problems = []
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("requestfailed", lambda r: problems.append(r.url))
        page.goto(file.as_uri())
        page.wait_for_selector(".js-plotly-plot .main-svg")
        yield page
        for width in (1200, 400):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert problems == []
        browser.close()
