"""What people do on the desk's pages in a browser, and screenshots of them."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import select

from rewarddance.apps.annotate.database import open_database
from rewarddance.apps.annotate.models import Judgement

SHOTS = os.environ.get("DESK_SHOTS")
"""A folder for screenshots, where somebody wants to look at the pages."""


def shoot(page, name):
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def enter(page, link):
    page.goto(link)
    page.wait_for_function("() => document.activeElement.matches('button.main')")  # `autofocus` comes after the load
    page.keyboard.press("Enter")
    page.wait_for_selector("#questions, main.wide", state="attached")


def wait_for_count(page, text):
    page.wait_for_function("text => document.getElementById('count').textContent.startsWith(text)", arg=text)


def submit_by_key(page, *keys):
    """Press keys, and Enter as soon as both pictures are loaded and an answer can be sent."""
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_function("() => document.getElementById('submit')?.disabled === false")
    page.keyboard.press("Enter")


def stored(url):
    """The answers in a desk's database, in order."""
    database = open_database(url)
    with database.read() as session:
        answers = [row.answers for row in session.scalars(select(Judgement).order_by(Judgement.id))]
    database.close()
    return answers


def check_by_axe(page, name):
    """No rule of axe-core is broken: names, roles, contrast, landmarks, order of headings, and more."""
    found = find_spec("axe_playwright_python")
    if found is None:
        pytest.skip("no axe-core; pip install axe-playwright-python")
    page.evaluate((Path(found.origin).parent / "axe.min.js").read_text())
    result = page.evaluate("axe.run()")
    broken = [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in result["violations"]]
    assert not broken, (name, broken)
    assert len(result["passes"]) > 10
